"""Which faults the golden check finds, and whether it names the block: python -m tests.benchmarks.guard

For each block of a network in fp16 what its MLP adds is doubled, in the graph, which ONNX Runtime then runs. Printed: how far the logits of ordinary and of
outlier images move beside what is allowed, and what the guard says.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.golden import check_golden
from edge_tprune.bundle.guard import Guard
from edge_tprune.export.builder import build
from edge_tprune.export.settings import decide
from edge_tprune.models.loading import load_model
from edge_tprune.runtime.engine import open_engine
from tests.bundle.faults import damage, double, half_bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="reference")
    parser.add_argument("--weights")
    parser.add_argument("--method", default="zero_tprune")
    parser.add_argument("--budget", type=float, default=0.65)
    options = parser.parse_args()
    loaded, name = load_model(options.model, options.weights), f"{options.budget:g}"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        settings = decide(
            loaded,
            options.method,
            budgets=[options.budget],
            runtimes=["onnxruntime", "tensorrt"],
            precisions=["fp32", "fp16"],
        )
        source = build(loaded, settings, Path(folder) / "bundle").bundle.path
        print("| block | ordinary images (allowed) | worst outlier (allowed) | found | named |\n|---:|---|---|---|---|")
        for block in range(1, settings.shape.blocks + 1):
            bundle = damage(half_bundle(source, Path(folder) / f"half-{block}"), name, "fp16", double(block))
            print(_row(bundle, name, block), flush=True)


def _row(bundle: Bundle, name: str, block: int) -> str:
    kind = bundle.manifest.model.output.name
    file = bundle.path / bundle.budget(name).artifact("onnxruntime", "fp16").file
    with open_engine(file, "onnxruntime", threads=1) as engine:
        result = check_golden(engine.run, bundle.golden(), name, kind, "fp16")
    off, allowed = max(result.outliers.values(), key=lambda pair: pair[0] / pair[1])
    named = "-"
    if not result.passed:
        named = Guard(bundle, name, "onnxruntime", "fp16", threads=1).fall_back(result)[0].fault
    found = "no" if result.passed else "yes" if result.difference > result.allowed else "by outliers only"
    return f"| {block} | {result.difference:.2f} ({result.allowed:g}) | {off:.2f} ({allowed:.2f}) | {found} | {named} |"


if __name__ == "__main__":
    main()
