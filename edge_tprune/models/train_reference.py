"""Trains the reference model from seeds: four short phases, over an hour on two CPU cores, no download.

Phase 1 sees only a window of 10 x 10 patches around the whole digit (101 tokens, with the position embeddings of that window), which
teaches reading digits and telling them from fragments at half the price. Phases 2 to 4 show whole canvases (197 tokens), which
teaches finding the digit. All use token labelling (Jiang et al., "All Tokens Matter", NeurIPS 2021): an auxiliary head that is thrown
away afterwards asks every patch whether it belongs to the whole digit and to which class. Nothing in the training removes or
merges tokens: reduction stays training-free.

The shipped weights came from these phases, but the task was made easier on the way: phases 1 and 2 saw digits 28 to 52 pixels wide on 16000
canvases (phase 1 through windows of 8 patches), phase 3 digits of 44 to 68 pixels on 64000, phase 4 the task as it is now on 26000.
Training again therefore gives similar weights, not the same.

    python -m edge_tprune.models.train_reference --out edge_tprune/models/reference.safetensors
"""

from __future__ import annotations

import argparse
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch.nn.functional import cross_entropy

from edge_tprune.models import reference


@dataclass(frozen=True)
class Phase:
    """One stretch of training with its own cosine schedule."""

    window: int  #: side of what is seen, in patches; 10 is the smallest that holds the largest digit wherever it lies
    batch: int
    steps: int
    peak_rate: float


PHASES = (
    Phase(10, 128, 2000, 1.5e-3),
    Phase(reference.GRID, 64, 1800, 6e-4),
    Phase(reference.GRID, 64, 2000, 8e-4),
    Phase(reference.GRID, 64, 400, 4e-4),
)


def draw_pool(split: str, count: int, workers: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`count` canvases: images (count, 3, 112, 112) uint8, labels (count,), boxes (count, 3) as top, left, side."""
    with ProcessPoolExecutor(workers) as executor:
        drawn = list(executor.map(partial(reference.compose, split), range(count), chunksize=200))
    images = torch.from_numpy(np.stack([image for image, _, _ in drawn])).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([label for _, label, _ in drawn]), torch.tensor([box for _, _, box in drawn])


def features(model: VisionTransformer, images: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """Normalised tokens (B, 1 + w w, C) of windows (B, 3, 8 w, 8 w) whose upper left patch is at (row, column) of the grid."""
    patches = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
    side = images.shape[-1] // reference.PATCH
    steps = torch.arange(side)
    index = (row[:, None] + steps)[:, :, None] * reference.GRID + (column[:, None] + steps)[:, None, :]
    position = model.pos_embed[0]
    tokens = patches + position[1:][index.flatten(1)]
    start = (model.cls_token + position[:1]).expand(len(images), -1, -1)
    out: torch.Tensor = model.norm(model.blocks(torch.cat([start, tokens], 1)))
    return out


def token_labels(labels: torch.Tensor, boxes: torch.Tensor, row: torch.Tensor, column: torch.Tensor, side: int) -> torch.Tensor:
    """(B, side side): a patch's class where its centre lies in the box of the whole digit, 10 elsewhere."""
    inside = []
    for axis, start in ((0, row), (1, column)):
        centre = (start[:, None] + torch.arange(side)) * reference.PATCH + reference.PATCH / 2
        low = boxes[:, axis, None]
        inside.append((centre >= low) & (centre < low + boxes[:, 2, None]))
    member = inside[0][:, :, None] & inside[1][:, None, :]
    return torch.where(member, labels[:, None, None], reference.CLASSES).flatten(1)


def windows(
    images: torch.Tensor, boxes: torch.Tensor, side: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random windows of `side` x `side` patches that contain each image's digit, and their (row, column)."""
    corner = []
    for axis in (0, 1):
        first = boxes[:, axis] // reference.PATCH
        last = (boxes[:, axis] + boxes[:, 2] - 1) // reference.PATCH
        low = (last - side + 1).clamp(min=0)
        high = first.clamp(max=reference.GRID - side)
        span = (high - low + 1).clamp(min=1)
        corner.append(low + (torch.rand(len(boxes), generator=generator) * span).long())
    row, column = corner
    size = side * reference.PATCH
    cut = [
        image[:, r : r + size, c : c + size]
        for image, r, c in zip(images, (row * reference.PATCH).tolist(), (column * reference.PATCH).tolist())
    ]
    return torch.stack(cut), row, column


def normalise(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """uint8 (B, 3, h, w) -> normalised float; with a generator, colours are permuted and scaled per image first."""
    x = images.float() / 255
    if generator is not None:
        order = torch.rand(len(x), 3, generator=generator).argsort(1)
        x = x.gather(1, order[:, :, None, None].expand_as(x)) * (0.8 + 0.4 * torch.rand(len(x), 1, 1, 1, generator=generator))
    return (x - reference.MEAN[0]) / reference.STD[0]


@torch.no_grad()
def accuracy(model: VisionTransformer, images: torch.Tensor, labels: torch.Tensor, batch: int = 100) -> float:
    """Top-1 in percent on whole canvases, float32."""
    model.eval()
    right = sum(
        int((model(normalise(images[i : i + batch])).argmax(1) == labels[i : i + batch]).sum())
        for i in range(0, len(images), batch)
    )
    model.train()
    return 100.0 * right / len(images)


def train_phase(
    model: VisionTransformer, number: int, pool: tuple[torch.Tensor, torch.Tensor, torch.Tensor], seed: int
) -> None:
    """Phase `number` (from 1) in place, with an optimiser, a token head and random numbers of its own, so that phases can be resumed."""
    phase = PHASES[number - 1]
    images, labels, boxes = pool
    torch.manual_seed(seed + number)
    generator = torch.Generator().manual_seed(seed + number)
    token_head = torch.nn.Linear(model.embed_dim, reference.CLASSES + 1)
    trained = [*model.parameters(), *token_head.parameters()]
    decay = [p for p in trained if p.ndim > 1]
    plain = [p for p in trained if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    loss_mean = math.log(reference.CLASSES)
    started = time.monotonic()
    model.train()
    for step in range(phase.steps):
        done = step / phase.steps
        for group in optimiser.param_groups:
            group["lr"] = phase.peak_rate * min(1.0, (done + 1e-3) / 0.05) * 0.5 * (1 + math.cos(math.pi * done))
        pick = torch.randint(len(images), (phase.batch,), generator=generator)
        x, row, column = windows(images[pick], boxes[pick], phase.window, generator)
        with torch.autocast("cpu", torch.bfloat16):
            seen = features(model, normalise(x, generator), row, column)
            logits, token_logits = model.head(seen[:, 0]), token_head(seen[:, 1:])
        loss = cross_entropy(logits.float(), labels[pick], label_smoothing=0.05)
        tokens = token_labels(labels[pick], boxes[pick], row, column, phase.window)
        loss_tokens = cross_entropy(token_logits.float().flatten(0, 1), tokens.flatten())
        optimiser.zero_grad(set_to_none=True)
        (loss + loss_tokens).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        loss_mean += 0.02 * (loss.item() - loss_mean)
        if step % 100 == 99:
            losses = f"loss {loss_mean:.3f}  tokens {loss_tokens.item():.3f}"
            print(f"phase {number}  step {step + 1} of {phase.steps}  {losses}  {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=reference.WEIGHTS)
    parser.add_argument("--canvases", type=int, default=64000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--first-phase", type=int, default=1, help="resume from the weights at --out, which an earlier phase wrote"
    )
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    model = reference.build()
    if options.first_phase > 1:
        model.load_state_dict(load_file(options.out))
    pool = draw_pool("train", options.canvases, options.threads)
    test_images, test_labels, _ = draw_pool("test", 2000, options.threads)
    for number in range(options.first_phase, len(PHASES) + 1):
        train_phase(model, number, pool, options.seed)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, options.out)
        print(f"phase {number} done: {accuracy(model, test_images, test_labels):.2f} % top-1 on 2000 test canvases", flush=True)


if __name__ == "__main__":
    main()
