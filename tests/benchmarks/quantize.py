"""INT8 beside float32, budget by budget: the table of the documentation, and `int8.json`, from a bundle and a profile of it in both precisions.

    make quantize MODEL=deit_tiny_patch16_224 WEIGHTS=w.safetensors METHOD=bat DATA=imagenet-sample CALIBRATION=photos
    python -m tests.benchmarks.quantize bundles/deit-t profiles/RUN           (the last step of it)

The profile directory gets `int8.json`; the table is printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from edge_tprune.analysis.comparison import speedup_text
from edge_tprune.analysis.contrast import contrast
from edge_tprune.analysis.loading import load_rows
from edge_tprune.analysis.metrics import METRICS
from edge_tprune.analysis.table import Row
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import Manifest
from edge_tprune.cli.terminal import print_text
from edge_tprune.files import write_json
from edge_tprune.statistics import Interval

HEADINGS = ("budget", "top-1 fp32 (%)", "top-1 int8 (%)", "difference", "KL(fp32, int8)", "speed of fp32 unpruned")


def pairs(profile: Path) -> list[tuple[Row, Row]]:
    """A profile's budgets in (float32, INT8)."""
    rows = load_rows(profile).rows
    single = {row.budget: row for row in rows if row.precision == "fp32"}
    return [(single[row.budget.removesuffix("@int8")], row) for row in rows if row.precision == "int8"]


def difference(single: Row, whole: Row) -> Interval:
    """Of top-1 in INT8 from float32, in points, paired by image."""
    return contrast(whole, single, METRICS["top1_percent"]).interval


def table(profile: Path, kl_nats: dict[str, float]) -> list[str]:
    """Rows of the documentation's table in Markdown.

    Args:
        profile: in both precisions.
        kl_nats: by budget, of INT8 from float32.
    """
    lines = []
    for single, whole in pairs(profile):
        change = difference(single, whole)
        cells = [
            single.budget,
            *(f"{row.values['top1_percent']:.1f}" for row in (single, whole)),
            f"{change.value:+.1f} ({change.low:+.1f} to {change.high:+.1f})",
            f"{kl_nats[single.budget]:.3f}",
            speedup_text(whole).replace("±", "± "),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def record(manifest: Manifest, budgets: list[str]) -> dict[str, Any]:
    """What a bundle says of its INT8 graphs."""
    rows = []
    for budget in (budget for budget in manifest.budgets if budget.name in budgets):
        single, whole, gate = budget.accuracy, budget.accuracy_in("int8"), budget.parity["onnxruntime-int8"]
        if single is None or whole is None:
            raise SystemExit(f"budget {budget.name} has no accuracy in float32 and int8: edge-tprune eval, in both")
        rows.append(
            {
                "budget": budget.name,
                "fp32_top1_percent": single.top1_percent,
                "int8_top1_percent": whole.top1_percent,
                "against_fp32": whole.against_fp32,
                "gate": {name: getattr(gate, name) for name in _GATE},
                "same_tokens": gate.selection or (),
            }
        )
    found: dict[str, Any] = msgspec.to_builtins({"quantization": manifest.quantization, "rows": rows})
    return found


_GATE = ("images", "loss", "allowed_loss", "kl_nats", "max_kl_nats", "top1_agreement_percent")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("profile", type=Path)
    options = parser.parse_args()
    kept = record(Bundle.open(options.bundle).manifest, [single.budget for single, _ in pairs(options.profile)])
    write_json(options.profile / "int8.json", kept)
    print_text(f"| {' | '.join(HEADINGS)} |\n|---|---:|---:|---|---:|---|")
    for line in table(options.profile, {row["budget"]: row["against_fp32"]["kl_nats"]["value"] for row in kept["rows"]}):
        print_text(line)


if __name__ == "__main__":
    main()
