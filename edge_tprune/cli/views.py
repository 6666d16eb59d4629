"""What the host-side commands print."""

from __future__ import annotations

import importlib.util
from typing import Any

from rich import box
from rich.table import Table

from edge_tprune.bundle.bundle import Bundle
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
    """Every method's facts, from its class, and why some are absent."""
    need_host()
    from edge_tprune.reduction import registry
    from edge_tprune.reduction.tuned import tuned_blocks

    def proportional(method: type[registry.Reducer]) -> bool:
        tokens_out = max(190, method.fewest(197, 1))
        return registry.make(method, registry.Stage(4, 12, 197, tokens_out, 1, True), {}).proportional

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
                "tuned_blocks_of_12": tuned_blocks(name),
                "stages": len(method.default_blocks),
                "removal": method.removal,
                "proportional_attention": proportional(method),
                "limit": method.limit,
                "options": {key: parameter.default for key, parameter in registry.options(method).items()},
            }
            for name, method in sorted(registry.methods().items())
        ],
        "absent": dict(registry.ABSENT),
    }


def methods_table(document: dict[str, Any]) -> Table:
    """`methods_document` for a person; the absent ones follow in `absent_table`."""
    result = table()
    headings = (
        "method",
        "what it does",
        "paper",
        "needs",
        "merges",
        "fused",
        "proportional",
        "blocks of 12",
        "removes by",
        "options",
    )
    for heading in headings:
        result.add_column(heading, overflow="fold")
    for row in document["methods"]:
        result.add_row(
            row["name"],
            row["summary"],
            row["paper"],
            ", ".join(row["needs"]) or "nothing",
            "yes" if row["merges"] else "no",
            "yes" if row["fused_attention"] else "no",
            "yes" if row["proportional_attention"] else "no",
            _ranges(row["default_blocks_of_12"]) + (" (tuned)" if row["tuned_blocks_of_12"] else ""),
            row["removal"],
            " ".join(f"{key}={str(value).lower()}" for key, value in row["options"].items()) or "–",
        )
    return result


def absent_table(document: dict[str, Any]) -> Table:
    """Methods that are not here, and why."""
    result = table()
    result.add_column("not here")
    result.add_column("why", overflow="fold")
    for name, reason in document["absent"].items():
        result.add_row(name, reason)
    return result


def _ranges(numbers: list[int]) -> str:
    """[1, 2, 3, 7] -> "1-3,7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


def schedule_text(schedule: tuple[int, ...]) -> str:
    """(197, 197, 160, 138, ...) -> "197 ×2 → 160 → 138 ×9"."""
    runs: list[list[int]] = []
    for count in schedule:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return " → ".join(f"{count} ×{length}" if length > 1 else str(count) for count, length in runs)


def bundle_table(bundle: Bundle) -> Table:
    """A bundle's budgets as built."""
    model = bundle.manifest["model"]
    result = table(f"{model['name']}, {bundle.manifest['method']['name']}, batch {bundle.batch}")
    result.add_column("budget")
    result.add_column("tokens after blocks", overflow="fold")
    for heading in ("MACs (G)", "share", "parity (logits)"):
        result.add_column(heading, justify="right")
    for budget in bundle.budgets:
        worst: dict[str, float] = {}
        for artifact in budget.artifacts:
            off = budget.parity[artifact.key]["max_abs_logit_difference"]
            worst[artifact.precision] = max(off, worst.get(artifact.precision, 0.0))
        parity = ", ".join(f"{off:.1e}" if len(worst) == 1 else f"{name} {off:.1e}" for name, off in worst.items())
        result.add_row(
            budget.name, schedule_text(budget.schedule), f"{budget.macs / 1e9:.3f}", f"{budget.macs_share:.3f}", parity
        )
    return result


def explanation_table(document: dict[str, Any]) -> Table:
    """What became of an image's patches, in numbers."""
    unpruned = document["unpruned"]
    result = table(f"{document['image']}, {document['model']}, unpruned: {unpruned['name']} {unpruned['probability']:.2f}")
    for heading in ("method", "budget", "tokens after blocks", "finds"):
        result.add_column(heading, overflow="fold")
    for heading in ("kept", "merged", "dropped"):
        result.add_column(heading, justify="right")
    for row in document["rows"]:
        last = row["stages"][-1] if row["stages"] else {"kept": document["patches"], "merged": 0, "dropped": 0}
        found = f"{row['prediction']['name']} {row['prediction']['probability']:.2f}"
        counts = [str(last[fate]) for fate in ("kept", "merged", "dropped")]
        result.add_row(row["method"], f"{row['budget']:g}", schedule_text(tuple(row["schedule"])), found, *counts)
    return result


def accuracy_table(bundle: Bundle, records: dict[str, dict[str, Any]]) -> Table:
    """Accuracy per budget, with paired intervals."""
    first = next(iter(records.values()))
    precision = first["precision"]
    result = table(
        f"{bundle.name} in {precision} on {first['images']} images of {first['data']['name']} (95 % intervals, paired by image)"
    )
    result.add_column("budget")
    headings = ["top-1 %", "change (points)", "top-5 %", "same top-1 %", "KL (nats)"]
    if "against_fp32" in first:
        headings += ["same as in fp32 %", "KL from fp32", "worst logit"]
    for heading in headings:
        result.add_column(heading, justify="right")
    for name in [b.name for b in bundle.budgets if b.name in records]:
        record = records[name]
        cells = [
            _number(record["top1_percent"], 1),
            _interval(record["top1_change_points"], 1, signed=True),
            _number(record["top5_percent"], 1),
            _number(record["agreement_percent"]["value"], 1),
            _interval(record["kl_nats"], 3),
        ]
        if rounding := record.get("against_fp32"):
            cells += [
                _number(rounding["agreement_percent"]["value"], 1),
                f"{rounding['kl_nats']['value']:.1e}",
                _number(rounding["max_abs_logit_difference"], 2),
            ]
        result.add_row(name, *cells)
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


def search_table(document: dict[str, Any]) -> Table:
    """What a search found, beside the method's defaults."""
    found = document["found"]
    score, unit = found["score"], {"kl": "nats", "top1": "% wrong"}[found["score"]]
    options = " ".join(f"{key}={value}" for key, value in document["options"].items())
    result = table(f"{found['model']}, {document['method']} {options}: {found['images']} images of {found['data']}")
    result.add_column("budget")
    result.add_column("tokens after blocks", overflow="fold")
    for heading in (f"{score} ({unit})", f"{score} of the defaults"):
        result.add_column(heading, justify="right")
    for name, entry in document["budgets"].items():
        result.add_row(
            name, schedule_text(tuple(entry["tokens"])), _interval(entry[score], 4), _interval(entry[f"default_{score}"], 4)
        )
    return result


def engines_table(engines: list[tuple[str, dict[str, Any]]]) -> Table:
    """(budget, how its plan was built: `edge_tprune.runtime.tensorrt.cache`) as a table."""
    result = table("engines")
    for heading in ("budget", "for", "precision"):
        result.add_column(heading)
    for heading in ("plan MB", "built in s", "layers", "FP16 layers", "fused attention"):
        result.add_column(heading, justify="right")
    for budget, record in engines:
        became, attention = record["engine"], record["network"]["attention"]
        layers, fp16, fused = f"{record['network']['layers']} parsed", "–", "–"  # what is not known where the GPU is not
        if became is not None:
            fused = f"{became['fused_attention']} of {len(attention)}"
            layers = layers if became["layers"] is None else str(became["layers"])
            fp16 = fp16 if became["fp16_layers_percent"] is None else f"{became['fp16_layers_percent']:.0f} %"
        row = (budget, record["target"] or record["key"]["device"], record["key"]["precision"], f"{record['bytes'] / 1e6:.1f}")
        result.add_row(*row, f"{record['build_seconds']:.1f}", layers, fp16, fused)
    return result


def layers_table(budget: str, layers: list[tuple[str, float]]) -> Table:
    """(name, ms) of a budget's slowest layers."""
    result = table(f"budget {budget}: slowest layers, timed one by one")
    result.add_column("layer", overflow="fold")
    result.add_column("ms", justify="right")
    for name, ms in layers:
        result.add_row(name, f"{ms:.4f}")
    return result
