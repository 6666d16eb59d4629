"""What one removal of each method costs in a network of many tokens: time and memory of a block with it, beside those of the block alone.

    python -m tests.benchmarks.tokens --img-size 518

A ViT-S/14 of two blocks with random weights, in PyTorch on one thread; the first block leaves four fifths of the tokens. Time is the least of seven of process
CPU time of the network with the removal and four fifths of the tokens in the second block, less that of `slice`, which only cuts. Memory is how much
the resident set grew at its peak, less that of the network without a removal. Map is the attention map that a method reads, of one image.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import edge_tprune
from edge_tprune.agent.probe import _PeakMemory
from edge_tprune.reduction import registry


def measure(network: nn.Module, images: Tensor, repeats: int) -> tuple[float, float]:
    """(CPU time in ms, growth of the resident set in MB) of an inference."""
    run: Callable[[Tensor], Tensor] = network
    times = []
    with torch.inference_mode():
        run(images)
        gc.collect()
        memory = _PeakMemory()
        run(images)
        grown = memory.grown_bytes() or 0
        for _ in range(repeats):
            begin = time.process_time()
            run(images)
            times.append(1e3 * (time.process_time() - begin))
    return min(times), grown / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--img-size", type=int, default=518)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=options.img_size, patch_size=14, embed_dim=384, depth=2, num_heads=6, num_classes=0, global_pool="token"
    ).eval()
    images = torch.randn(1, 3, options.img_size, options.img_size)
    tokens = 1 + (options.img_size // 14) ** 2
    left = round(0.8 * tokens)
    _, whole_mb = measure(edge_tprune.prune(model, method="none", schedule=[tokens, tokens]), images, 1)
    base_ms, _ = measure(edge_tprune.prune(model, method="slice", schedule=[left, left]), images, options.repeats)
    map_mb = 4 * 6 * tokens**2 / 1e6
    print(f"{tokens} tokens, 6 heads, {left} left; with slice {base_ms:.0f} ms of CPU, without a removal {whole_mb:.0f} MB")
    print("| method | CPU time, ms | memory, MB | reads a map of, MB |\n|---|---:|---:|---:|")
    for name, method in sorted(registry.methods().items()):
        if name in ("none", "slice"):
            continue
        pruned = edge_tprune.prune(model, method=name, schedule=[left, left])
        spent, grown = measure(pruned, images, options.repeats)
        reads = f"{map_mb:.0f}" if registry.ATTENTION in method.needs else "–"
        print(f"| `{name}` | {spent - base_ms:.0f} | {max(0.0, grown - whole_mb):.0f} | {reads} |", flush=True)


if __name__ == "__main__":
    main()
