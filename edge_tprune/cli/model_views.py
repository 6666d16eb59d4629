"""What the commands about models and bundles show, as tables."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import Accuracy
from edge_tprune.bundle.outputs import EMBEDDING, LOGITS
from edge_tprune.cli.terminal import Heading, Table
from edge_tprune.errors import missing_package
from edge_tprune.runtime.tensorrt.record import EngineRecord
from edge_tprune.statistics import Interval
from edge_tprune.text import count_of

if TYPE_CHECKING:
    from edge_tprune.export.explain import Explanation
    from edge_tprune.finetune.holdout import Row
    from edge_tprune.finetune.store import Result
    from edge_tprune.search.schedule_file import ScheduleFile

_HOST_PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "safetensors", "PIL", "sklearn", "scipy")


def require_host() -> None:
    """Says which package is missing before a host-side command fails half-way.

    Raises:
        UserError: naming the first missing package and the command that installs it.
    """
    for package in _HOST_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise missing_package(package, "host")


def schedule_text(schedule: Sequence[int]) -> str:
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
    rows = []
    for budget in bundle.budgets:
        worst: dict[str, float] = {}
        for artifact in budget.artifacts:
            off = budget.parity[artifact.key].difference
            worst[artifact.precision] = max(off, worst.get(artifact.precision, 0.0))
        parity = ", ".join(f"{off:.1e}" if len(worst) == 1 else f"{name} {off:.1e}" for name, off in worst.items())
        share, macs = f"{budget.macs_share:.3f}", f"{budget.macs / 1e9:.3f}"
        rows.append([budget.name, schedule_text(budget.schedule), macs, share, parity])
    numbers = [Heading(label, right=True) for label in ("MACs (G)", "share", f"parity ({bundle.manifest.model.output.name})")]
    return Table(
        [Heading("budget"), Heading("tokens after blocks", fold=True), *numbers],
        rows,
        f"{bundle.manifest.model.name}, {bundle.manifest.method.name}, batch {bundle.batch}",
    )


def explanation_table(explanation: Explanation) -> Table:
    """What became of an image's patches, in numbers."""
    rows = []
    for row in explanation.rows:
        last = row.stages[-1] if row.stages else None
        counts = (explanation.patches, 0, 0) if last is None else (last.kept, last.merged, last.dropped)
        rows.append([row.method, row.label, schedule_text(row.schedule), str(row.prediction), *map(str, counts)])
    return Table(
        [
            *(Heading(label, fold=True) for label in ("method", "budget", "tokens after blocks", "predicts")),
            *(Heading(label, right=True) for label in ("kept", "merged", "dropped")),
        ],
        rows,
        f"{explanation.image}, {explanation.model}, unpruned: {explanation.unpruned}",
    )


def accuracy_table(bundle: Bundle, records: Mapping[str, Accuracy]) -> Table:
    """Accuracy per budget, with paired intervals."""
    first = next(iter(records.values()))
    kind = bundle.manifest.model.output.name
    if kind != LOGITS:
        return _distance_table(bundle, records, kind)
    headings = ["top-1 %", "change (points)", "top-5 %", "same top-1 %", "KL (nats)"]
    if first.against_fp32 is not None:
        headings += ["same as in fp32 %", "KL from fp32", "worst logit"]
    rows = []
    for name in [budget.name for budget in bundle.budgets if budget.name in records]:
        record = records[name]
        cells = [
            _number(record.top1_percent, 1),
            _interval(record.top1_change_points, 1, signed=True),
            _number(record.top5_percent, 1),
            _value(record.agreement_percent, 1),
            _interval(record.kl_nats, 3),
        ]
        if (rounding := record.against_fp32) is not None:
            cells += [
                _value(rounding.agreement_percent, 1),
                "-" if rounding.kl_nats is None else f"{rounding.kl_nats.value:.1e}",
                _number(rounding.max_abs_logit_difference, 2),
            ]
        rows.append([name, *cells])
    return Table(
        [Heading("budget"), *(Heading(label, right=True) for label in headings)],
        rows,
        _judged_on(bundle, first),
    )


def _distance_table(bundle: Bundle, records: Mapping[str, Accuracy], kind: str) -> Table:
    """How far embeddings, features or tokens are from the unpruned model's."""
    first = next(iter(records.values()))
    headings = ["cosine distance"]
    labelled = any(record.top1_percent is not None for record in records.values())
    if kind == EMBEDDING:
        headings += ["same nearest neighbour %"]
    if labelled:
        headings += ["nearest neighbour's class right %", "change (points)"]
    if first.against_fp32 is not None:
        headings += ["distance from fp32"]
    rows = []
    for name in [budget.name for budget in bundle.budgets if budget.name in records]:
        record = records[name]
        cells = [_interval(record.cosine_distance, 4)]
        if kind == EMBEDDING:
            cells += [_interval(record.agreement_percent, 1)]
        if labelled:
            cells += [_number(record.top1_percent, 1), _interval(record.top1_change_points, 1, signed=True)]
        if record.against_fp32 is not None:
            cells.append(_interval(record.against_fp32.cosine_distance, 4))
        rows.append([name, *cells])
    columns = [Heading("budget"), *(Heading(label, right=True) for label in headings)]
    return Table(columns, rows, f"{kind} of {_judged_on(bundle, first)}")


def _judged_on(bundle: Bundle, record: Accuracy) -> str:
    return f"{bundle.name} in {record.precision} on {count_of(record.images, 'image')} of {record.data.name} (95 % intervals, paired by image)"


def _value(interval: Interval | None, digits: int) -> str:
    return _number(None if interval is None else interval.value, digits)


def search_table(file: ScheduleFile) -> Table:
    """What a search found, beside the method's defaults."""
    found = file.found
    if found is None:
        raise ValueError("a schedule file that was written by hand has nothing to show")
    score, unit = found.score, {"kl": "nats", "top1": "% wrong", "cosine": f"distance of {found.output}"}[found.score]
    options = " ".join(f"{key}={value}" for key, value in file.options.items())
    metric = next((name for entry in file.budgets.values() for name in entry.predicted or {}), None)
    rows = []
    for name, entry in file.budgets.items():
        predicted = [] if metric is None else [_interval((entry.predicted or {}).get(metric), 2)]
        own = (
            [] if entry.method is None else [entry.method, *(f"{key}={value}" for key, value in (entry.options or {}).items())]
        )
        label = " ".join([name, *own])
        rows.append([label, schedule_text(entry.tokens), *predicted, *(_interval(loss, 4) for loss in entry.losses(score))])
    labels = ([] if metric is None else [f"{metric}, predicted"]) + [f"{score} ({unit})", f"{score} of the defaults"]
    scores = [Heading(label, right=True) for label in labels]
    return Table(
        [Heading("budget"), Heading("tokens after blocks", fold=True), *scores],
        rows,
        f"{found.model}, {file.method} {options}: {count_of(found.images, 'image')} of {found.data}",
    )


def finetune_table(result: Result) -> Table:
    """What a fine-tuning did to the held-out photos."""
    recipe, classes = result.recipe, result.output == "logits"
    loss, unit = ("KL", "nats") if classes else ("distance", "2 - 2 cos")
    answers = [
        Heading("agreed before", "%", right=True),
        Heading("agrees", "%", right=True),
        Heading("top-1 change", "points", right=True),
    ]
    return Table(
        [
            Heading("budget"),
            Heading("MACs", "%", right=True),
            Heading(f"{loss} before", unit, right=True),
            Heading(f"{loss} after", unit, right=True),
            Heading("change", unit, right=True),
            *(answers if classes else []),
        ],
        [
            [
                row.budget,
                f"{100 * row.macs_share:.1f}",
                f"{row.divergence_before:.4f}",
                f"{row.divergence:.4f}",
                _interval(row.divergence_change, 4, signed=True),
                *(_agreement(row) if classes else []),
            ]
            for row in result.rows
        ],
        f"{result.held_out} held-out photos, after {recipe.steps} steps of {recipe.batch} on {result.photos} others "
        f"(95 % intervals, paired by photo)",
    )


def _agreement(row: Row) -> list[str]:
    change = _interval(row.top1_change_points, 1, signed=True)
    return [f"{row.agreement_before_percent:.1f}", f"{row.agreement_percent:.1f}", change]


def engines_table(engines: Sequence[tuple[str, EngineRecord]]) -> Table:
    """(budget, how its engine file was built) as a table."""
    rows = []
    for budget, record in engines:
        became, attention = record.engine, record.network.attention
        layers, fp16, fused = f"{record.network.layers} parsed", "–", "–"  # what is not known where the GPU is not
        if became is not None:
            fused = f"{became.fused_attention} of {len(attention)}"
            layers = layers if became.layers is None else str(became.layers)
            fp16 = fp16 if became.fp16_layers_percent is None else f"{became.fp16_layers_percent:.0f} %"
        where = record.target or record.key.device or "–"
        row = [budget, where, record.key.precision, f"{record.bytes / 1e6:.1f}"]
        rows.append([*row, f"{record.build_seconds:.1f}", layers, fp16, fused])
    numbers = ("file MB", "built in s", "layers", "FP16 layers", "fused attention")
    names = [Heading(label) for label in ("budget", "for", "precision")]
    return Table([*names, *(Heading(label, right=True) for label in numbers)], rows, "engines")


def layers_table(budget: str, layers: Sequence[tuple[str, float]]) -> Table:
    """(name, ms) of a budget's slowest layers."""
    return Table(
        [Heading("layer", fold=True), Heading("ms", right=True)],
        [[name, f"{ms:.4f}"] for name, ms in layers],
        f"budget {budget}: slowest layers, timed one by one",
    )


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(value: Interval | None, digits: int, signed: bool = False) -> str:
    if value is None:
        return "–"
    sign = "+" if signed else ""
    text = f"{value.value:{sign}.{digits}f}"
    if value.low is None or value.high is None:
        return text
    return f"{text} ({value.low:{sign}.{digits}f} to {value.high:{sign}.{digits}f})"
