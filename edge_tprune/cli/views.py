"""What the host-side commands print."""

from __future__ import annotations

import importlib.util
from typing import Any

from rich import box
from rich.table import Table

from edge_tprune.build.bundle import Bundle
from edge_tprune.errors import missing_package


def need_host() -> None:
    """Says which package is missing before a host-side command fails half-way.

    Raises:
        UserError: naming the first missing package and the command that installs it.
    """
    for package in ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "safetensors", "PIL", "sklearn", "scipy"):
        if importlib.util.find_spec(package) is None:
            raise missing_package(package, "host")


def table(title: str = "") -> Table:
    """An empty table in the house style."""
    return Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)


def methods_document() -> dict[str, Any]:
    """Every method's facts, from its class."""
    need_host()
    from edge_tprune.reduction import registry

    return {
        "methods": [
            {
                "name": name,
                "paper": method.paper,
                "summary": (method.__doc__ or "").strip().splitlines()[0],
                "needs": sorted(method.needs),
                "fused_attention": registry.ATTENTION not in method.needs,
                "needs_class_token": method.needs_class_token,
                "merges": method.merges,
                "default_blocks_of_12": list(method.default_blocks),
                "limit": method.limit,
                "options": {key: parameter.default for key, parameter in registry.options(method).items()},
            }
            for name, method in sorted(registry.methods().items())
        ]
    }


def methods_table(document: dict[str, Any]) -> Table:
    """`methods_document` for a person."""
    result = table()
    for heading in ("method", "what it does", "paper", "needs", "fused", "blocks of 12", "options"):
        result.add_column(heading, overflow="fold")
    for row in document["methods"]:
        result.add_row(
            row["name"],
            row["summary"],
            row["paper"],
            ", ".join(row["needs"]) or "nothing",
            "yes" if row["fused_attention"] else "no",
            ",".join(map(str, row["default_blocks_of_12"])),
            " ".join(f"{key}={str(value).lower()}" for key, value in row["options"].items()) or "–",
        )
    return result


def schedule_text(schedule: tuple[int, ...]) -> str:
    """(197, 197, 138, ...) -> "197 ×2 → 138 ×10"."""
    runs: list[list[int]] = []
    for count in schedule:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return " → ".join(f"{count} ×{length}" for count, length in runs)


def bundle_table(bundle: Bundle) -> Table:
    """A bundle's budgets as built."""
    model = bundle.manifest["model"]
    result = table(f"{model['name']}, {bundle.manifest['method']['name']}, batch {bundle.batch}")
    result.add_column("budget")
    result.add_column("tokens after blocks", overflow="fold")
    for heading in ("MACs (G)", "share", "parity (logits)"):
        result.add_column(heading, justify="right")
    for budget in bundle.budgets:
        worst = max(record["max_abs_logit_difference"] for record in budget.parity.values())
        result.add_row(
            budget.name, schedule_text(budget.schedule), f"{budget.macs / 1e9:.3f}", f"{budget.macs_share:.3f}", f"{worst:.1e}"
        )
    return result


def accuracy_table(bundle: Bundle, records: dict[str, dict[str, Any]]) -> Table:
    """Accuracy per budget, with paired intervals."""
    first = next(iter(records.values()))
    result = table(f"{bundle.name} on {first['images']} images of {first['data']['name']} (95 % intervals, paired by image)")
    result.add_column("budget")
    for heading in ("top-1 %", "change (points)", "top-5 %", "same top-1 %", "KL (nats)"):
        result.add_column(heading, justify="right")
    for name in [b.name for b in bundle.budgets if b.name in records]:
        record = records[name]
        result.add_row(
            name,
            _number(record["top1_percent"], 1),
            _interval(record["top1_change_points"], 1, signed=True),
            _number(record["top5_percent"], 1),
            _number(record["agreement_percent"]["value"], 1),
            _interval(record["kl_nats"], 3),
        )
    return result


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(value: dict[str, float | None] | None, digits: int, signed: bool = False) -> str:
    if value is None or value["value"] is None:
        return "–"
    sign = "+" if signed else ""
    text = f"{value['value']:{sign}.{digits}f}"
    if value["low"] is None or value["high"] is None:
        return text
    return f"{text} ({value['low']:{sign}.{digits}f} to {value['high']:{sign}.{digits}f})"
