"""Trains the mask head of `segmentation.py` from seeds, on features of the unpruned reference model: minutes on two CPU cores, no download.

python -m edge_tprune.models.train_segmentation --out edge_tprune/models/segmentation.safetensors
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from edge_tprune.models import reference
from edge_tprune.models.segmentation import HEAD, MaskHead, intersection_over_union, to_patches

_HIDDEN = 64
_BATCH = 32


@torch.no_grad()
def draw_features(split: str, count: int) -> tuple[Tensor, np.ndarray]:
    """The first `count` canvases of a split: features of the unpruned model (count, 96, 14, 14) and masks (count, 112, 112)."""
    model = reference.build().eval()
    model.load_state_dict(load_file(reference.WEIGHTS))
    features, masks = [], []
    for first in range(0, count, _BATCH):
        drawn = [reference.compose_mask(split, index) for index in range(first, min(first + _BATCH, count))]
        images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2).float() / 255
        tokens = model.forward_features((images - reference.MEAN[0]) / reference.STD[0])[:, 1:]
        features.append(tokens.transpose(1, 2).reshape(len(images), -1, reference.GRID, reference.GRID))
        masks.append(np.stack([mask for _, mask in drawn]))
    return torch.cat(features), np.concatenate(masks)


def train_head(features: Tensor, masks: np.ndarray, steps: int, seed: int) -> dict[str, Tensor]:
    """A head's tensors. The loss is cross entropy of pixels and Dice's of images (Milletari et al., "V-Net", 3DV 2016, section 3)."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    patches = features.flatten(2).transpose(1, 2)
    targets = torch.from_numpy(to_patches(masks)).float()
    mean, deviation = patches.mean((0, 1)), patches.std((0, 1))
    hidden, pixel = nn.Linear(patches.shape[2], _HIDDEN), nn.Linear(_HIDDEN, targets.shape[2])
    optimiser = torch.optim.Adam([*hidden.parameters(), *pixel.parameters()], lr=5e-3)
    started = time.monotonic()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 5e-3 * (1 - step / steps)
        pick = torch.randint(len(patches), (_BATCH,), generator=generator)
        found, wanted = pixel(torch.relu(hidden((patches[pick] - mean) / deviation))), targets[pick]
        share = found.sigmoid()
        dice = 1 - 2 * (share * wanted).sum((1, 2)) / (share.sum((1, 2)) + wanted.sum((1, 2)))
        loss = binary_cross_entropy_with_logits(found, wanted) + dice.mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if step % 100 == 99:
            print(f"step {step + 1} of {steps}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s", flush=True)
    with torch.no_grad():  # the scaling of features goes into the first layer
        weight = hidden.weight / deviation
        tensors = {
            "hidden_weight": weight,
            "hidden_bias": hidden.bias - weight @ mean,
            "pixel_weight": pixel.weight,
            "pixel_bias": pixel.bias,
        }
        return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HEAD)
    parser.add_argument("--canvases", type=int, default=800)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    save_file(train_head(*draw_features("train", options.canvases), options.steps, options.seed), options.out)
    features, masks = draw_features("test", 200)
    found = intersection_over_union(MaskHead.load(options.out)(features.numpy()), masks)
    print(f"mean intersection over union on {len(masks)} test canvases: {found.mean():.3f}")


if __name__ == "__main__":
    main()
