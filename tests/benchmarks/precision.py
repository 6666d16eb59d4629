"""What half precision costs: each method's graph in fp16 or mixed against the same network in float32, on real images.

    python -m tests.benchmarks.precision --weights deit_tiny.safetensors --data imagenet/val

Logits come from the exported graph, run by ONNX Runtime, which computes most operators of a half precision graph in float32 between two
roundings; `--module` takes them from PyTorch instead, which rounds after every operator, as a GPU does at worst. The share of tokens that are the
same is PyTorch's in either case.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from edge_tprune.cli.terminal import Heading, Table, print_note, print_table
from edge_tprune.export import parity
from edge_tprune.export.graph import FORMS, export
from edge_tprune.models.data import batches, open_dataset
from edge_tprune.models.loading import LoadedModel, load_model
from edge_tprune.reduction import registry, solve_schedule
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.reduction.precision import PRECISIONS
from edge_tprune.runtime.engine import open_engine


@torch.inference_mode()
def logits_of(module: PrunedViT, images: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([module(torch.from_numpy(part)).numpy() for part in images])


def graph_logits(module: PrunedViT, images: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.onnx"
        onnx.save(export(module, FORMS["tensorrt"], 1, shape), file)  # type: ignore[arg-type]  # three numbers
        with open_engine(file, "onnxruntime", threads=torch.get_num_threads()) as engine:
            return np.concatenate([engine.run(image[None]) for part in images for image in part])


def judge(
    loaded: LoadedModel, method: str, budget: float, precision: str, images: list[np.ndarray], by_module: bool
) -> dict[str, Any]:
    tokens = solve_schedule(loaded.model, "none" if budget == 1 else method, budget=budget, exact_savings=False).tokens
    exact, rounded = (
        PrunedViT(loaded.model, registry.method(method), tokens, {}, PRECISIONS[name]) for name in ("fp32", precision)
    )
    expected = logits_of(exact, images)
    got = logits_of(rounded, images) if by_module else graph_logits(rounded, images, loaded.preprocessing.input_size)
    record = parity.compare(got, expected) or {}
    return {
        "method": method,
        "budget": budget,
        "precision": precision,
        "logits": "module" if by_module else "graph",
        **record,
        "selection": parity.selection(exact, rounded, [torch.from_numpy(part) for part in images]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--weights")
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--methods", default="zero_tprune,bat,evit,tome")
    parser.add_argument("--budget", type=float, default=0.65)
    parser.add_argument("--precisions", default="fp16,mixed")
    parser.add_argument("--module", action="store_true", help="logits from PyTorch instead of the graph")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the records here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded = load_model(options.model, options.weights)
    dataset = open_dataset(options.data, int(loaded.model.num_classes), options.images)
    images = [part for part, _ in batches(dataset, loaded.transform(), 8, options.threads)]
    records = []
    for method in options.methods.split(","):
        for precision in options.precisions.split(","):
            budget = 1.0 if method == "none" else options.budget
            records.append(judge(loaded, method, budget, precision, images, options.module))
            print_note(json.dumps(records[-1]))
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))
    title = f"{options.model}, budget {options.budget:g}, against float32 on {len(dataset)} images"
    labels = ("method", "precision", "same top-1 %", "KL mean", "KL worst", "worst logit", "same tokens % by stage")
    rows = []
    for record in records:
        stages = record["selection"]
        rows.append(
            [
                record["method"],
                record["precision"],
                f"{record['top1_agreement_percent']:.1f}",
                f"{record['kl_nats']:.1e}",
                f"{record['max_kl_nats']:.1e}",
                f"{record['max_abs_logit_difference']:.3f}",
                " ".join(
                    f"{stage['same_percent']:.1f}" for stage in (stages if len(stages) <= 4 else stages[:: len(stages) // 3])
                ),
            ]
        )
    print_table(Table(list(map(Heading, labels)), rows, title))


if __name__ == "__main__":
    main()
