"""Our methods at the schedules that their authors' codes were run with, beside what those codes gave on the same images.

    python -m tests.benchmarks.published --weights deit_tiny_patch16_224.safetensors --data imagenet-sample       (make eval-published)

DeiT-Tiny, no training, float32, PyTorch. Images are resized to 256 and cropped to 224 (0.875), as those codes were run. Their numbers were
measured once, apart from this project, on the same 1000 ImageNet images (unpruned 79.5 %); they are constants here. `apart` is the difference
in standard errors of a difference of two independent measurements; on the same images the true error is smaller, by how much is not known.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import Heading, Table, print_table
from edge_tprune.models.data import batches, open_dataset
from edge_tprune.models.loading import load_model, make_transform
from edge_tprune.reduction import network_shape
from edge_tprune.schedule import from_tokens
from edge_tprune.search.score import Scorer
from edge_tprune.statistics import mean_interval


def steady(count: int, blocks: range, last: int | None = None) -> list[int]:
    """`count` tokens fewer after each of `blocks` (counted from 1)."""
    tokens, after = 197, []
    for block in range(1, 13):
        tokens -= count if block in blocks else 0
        after.append(tokens)
    return after if last is None else [*after[:11], last]


def stages(*tokens: int) -> list[int]:
    """Tokens after blocks 4, 7 and 10."""
    first, second, third = tokens
    return [197] * 3 + [first] * 3 + [second] * 3 + [third] * 3


DEIT_S_COUNTS = [197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3]

ROWS: list[tuple[str, str, list[int], dict[str, Any], float]] = [
    ("ToMe, r = 11", "tome", steady(11, range(1, 13)), {}, -1.4),
    ("ToMe, r = 16", "tome", steady(16, range(1, 12), 11), {}, -3.8),
    ("PPT, r = 48", "ppt", stages(149, 101, 53), {}, -0.8),
    ("PPT, r = 96", "ppt", stages(101, 51, 26), {}, -5.9),
    ("DiffRate, DeiT-S counts for DeiT-T's 0.645", "diffrate", DEIT_S_COUNTS, {}, -0.6),
    ("GTP, P = 11", "gtp", steady(11, range(1, 13)), {}, -2.7),
    ("GTP, P = 11, the patch grid as graph", "gtp", steady(11, range(1, 13)), {"graph": "spatial"}, -2.7),
    ("MCTF, r = 12, blocks 2 to 12", "mctf", steady(12, range(2, 13)), {}, -0.8),
    ("MCTF, r = 18 while there are so many", "mctf", [197, 179, 161, 143, 125, 107, 89, 71, 53, 35, 18, 10], {}, -2.8),
    ("PiToMe, ratio 0.9275", "pitome", [183, 170, 158, 147, 137, 127, 118, 110, 102, 95, 91, 85], {}, -2.5),
    ("EViT, keep 0.7", "evit", stages(139, 98, 69), {}, -4.1),
    ("EViT, keep 0.695, fused token", "evit", stages(139, 98, 70), {"fuse": True}, -4.6),
    ("EViT, keep 0.505", "evit", stages(101, 51, 27), {}, -13.6),
    ("DPC-KNN, keep 0.735", "dpc_knn", stages(145, 106, 78), {"neighbours": 5}, -4.7),
    ("random, keep 0.7", "random", stages(139, 98, 69), {}, -4.6),
    ("random, keep 0.505", "random", stages(101, 51, 27), {}, -13.8),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="methods, with commas")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded = load_model("deit_tiny_patch16_224", options.weights)
    shape = network_shape(loaded.model)
    transform = make_transform(msgspec.structs.replace(loaded.preprocessing, crop_pct=0.875))
    pairs = list(batches(open_dataset(options.data, 1000), transform, 50))
    images, labels = [torch.from_numpy(x) for x, _ in pairs], [torch.from_numpy(y) for _, y in pairs]

    def errors(method: str, tokens: list[int], given: dict[str, Any]) -> np.ndarray:
        scorer = Scorer(loaded.model, method, images, labels)
        return np.concatenate([np.array(part) for part in scorer(from_tokens(shape, tokens), given)])

    base = errors("none", list(shape.full_schedule()), {})
    title = f"DeiT-Tiny, {len(base)} images, unpruned top-1 {100 - base.mean():.1f} %"
    numbers = [Heading(label, right=True) for label in ("MACs", "their change", "our change", "apart (s.e.)")]
    shown = []
    rows = [row for row in ROWS if not options.only or row[1] in options.only.split(",")]
    found = []
    with show_progress("methods") as advance:
        for number, (label, method, tokens, given, theirs) in enumerate(rows):
            advance(label, number, len(rows))
            change = base - errors(method, tokens, given)
            ours = mean_interval(change)
            # Theirs was measured once; its own error is about that of ours.
            apart = (ours.value - theirs) / (2**0.5 * change.std(ddof=1) / len(change) ** 0.5)
            interval = f"{ours.value:+.1f} ({ours.low:+.1f} to {ours.high:+.1f})"
            shown.append([label, f"{shape.share(tokens):.3f}", f"{theirs:+.1f}", interval, f"{apart:+.1f}"])
            found.append(
                {"code": label, "method": method, "tokens": tokens, "theirs": theirs, "ours": ours.to_json(), "apart": apart}
            )
    print_table(Table([Heading("authors' code, parameter"), *numbers], shown, title))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
