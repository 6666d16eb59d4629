"""A depth network with a ViT inside: a DPT-like head over `forward_intermediates`, its encoder pruned in place and the head untouched.

Weights are random, so the depths mean nothing; how far pruning moves them is printed for three budgets, by the relative error and by a metric of
one's own. The last one becomes an ONNX graph, which is proved to give PyTorch's depths.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import edge_tprune


class DepthNetwork(nn.Module):
    """Reassembles maps of several blocks, from the last to the first, as in "Vision Transformers for Dense Prediction" (section 3)."""

    def __init__(self, encoder: Any, channels: int = 32, blocks: tuple[int, ...] = (1, 3, 5)) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"encoder": encoder})
        self.blocks = blocks
        self.project = nn.ModuleList(nn.Conv2d(encoder.num_features, channels, 1) for _ in blocks)
        self.fuse = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in blocks)
        self.depth = nn.Conv2d(channels, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> depths (B, 1, H, W)."""
        encoder: Any = self.backbone["encoder"]
        maps = encoder.forward_intermediates(images, indices=list(self.blocks), intermediates_only=True)
        x = torch.zeros(())
        for features, project, fuse in zip(reversed(maps), self.project, self.fuse):
            x = functional.relu(fuse(x + project(features)))
        return functional.interpolate(self.depth(x), images.shape[-2:], mode="bilinear")


def depth_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Tensor:
    """A metric of one's own: the mean absolute difference of depths, per image (B,)."""
    return (found["output"] - expected["output"]).abs().flatten(1).mean(1)


def main() -> None:
    """Prunes the encoder at three budgets, and exports the whole network."""
    torch.manual_seed(0)
    network = DepthNetwork(timm.create_model("test_vit", img_size=96, num_classes=0)).eval()
    images = torch.randn(4, 3, 96, 96)
    for budget in (1.0, 0.8, 0.6):
        pruned = edge_tprune.prune_in(network, "backbone.encoder", method="evit", budget=budget)
        error = edge_tprune.network_error(network, pruned, torch.split(images, 2))
        own = edge_tprune.network_error(network, pruned, torch.split(images, 2), depth_error)
        print(
            f"budget {budget}: relative error {error.mean.value:.4f} (worst image {error.worst:.4f}), depths off by {own.mean.value:.4f}"
        )
    with tempfile.TemporaryDirectory() as folder:
        exported = edge_tprune.export_network(pruned, torch.split(images, 1), Path(folder) / "depth.onnx")
        print(
            f"one graph with outputs {exported.outputs}: off by {max(exported.differences.values()):.1e} on {exported.images} images"
        )


if __name__ == "__main__":
    main()
