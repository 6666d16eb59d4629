"""Which images can prove a graph right: those whose choice of tokens does not hang on a rounding error.

Where two tokens' scores all but tie, another kernel may rightly keep the other one. Such an image can prove nothing about a graph, here or
on a board. Noise on the input moves all logits a little, and those of an image whose tokens change by far more than those of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_tprune.bundle.outputs import unit
from edge_tprune.errors import NegativeAnswer
from edge_tprune.export.parity import TOLERANCE
from edge_tprune.export.settings import BuildSettings
from edge_tprune.models.data import sample_images
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction.attention import explicit_attention
from edge_tprune.reduction.first_blocks import FirstBlocks
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.schedule import NetworkShape
from edge_tprune.schedule.latency import SLICE

GOLDEN_BATCHES = 2
UNUSABLE = 1000  #: flips of an image whose tokens change with rounding alone

_IMAGES = 8  # that every graph is proved on, at least; of a network whose proof would take many minutes, fewer
_PROOF_MACS = 300e9  # of one pass over all proof images: eight of ViT-B at 224 pixels, two of it at 518
_CANDIDATES = 4  # sample images looked at for each one needed
_ROUNDING = 3e-6  # noise on normalised pixels that moves scores at least as much as rounding does
_MORE = 3e-5
_FLIP = 5.0  # times the median change of logits: more than that is another choice of tokens
_BATCH, _BATCH_TOKENS = 8, 577  # images in one pass, up to so many tokens; beyond, attention maps bound them


@dataclass(frozen=True)
class ProofImages:
    """Images that every graph is held against PyTorch on."""

    batches: Tensor  #: (batches, B, 3, H, W), normalised
    left_out: int  #: how many others were looked at


def proof_images(shape: NetworkShape) -> int:
    """How many images graphs are proved on, at least: 8, and fewer (from 2 on) where one image costs more than 37 GMACs."""
    return max(GOLDEN_BATCHES, min(_IMAGES, int(_PROOF_MACS // shape.macs())))


def choosing_modules(settings: BuildSettings) -> list[PrunedViT]:
    """The budgets that choose tokens: the unpruned network has no choice, and a slice looks at no score."""
    return [budget.module for budget in settings.budgets if budget.module.reducers and budget.module.method != SLICE]


def choose_images(
    loaded: LoadedModel, settings: BuildSettings, progress: Callable[[int, str], None] = lambda done, what: None
) -> ProofImages:
    """The sample images that are steadiest under all schedules, as many as parity needs.

    Args:
        loaded: the model.
        settings: of the build.
        progress: called before each pass with the share that is done, in numbers of `choosing_modules`, and what is done.

    Raises:
        NegativeAnswer: too few are steady.
    """
    images = proof_images(settings.shape)
    batches = max(GOLDEN_BATCHES, -(-images // settings.batch))
    wanted = batches * settings.batch
    transform = loaded.transform()
    candidates = torch.stack([transform(image) for image in sample_images(loaded.name, _CANDIDATES * wanted)])
    modules = choosing_modules(settings)
    flips = torch.empty(0, dtype=torch.int64)
    for part in torch.split(candidates, wanted):
        flips = torch.cat([flips, count_flips(modules, part, progress)])
        if int((flips == 0).sum()) >= wanted:
            break
    steadiest = flips.argsort(stable=True)[:wanted].sort().values
    if int(flips[steadiest].max()) >= UNUSABLE:
        raise NegativeAnswer(
            f"method {settings.method} chooses other tokens on {int((flips >= UNUSABLE).sum())} of {len(flips)} sample images when "
            "only rounding changes: its scores tie too often to prove a graph right. Try another method, option or budget"
        )
    return ProofImages(candidates[steadiest].reshape(batches, settings.batch, *candidates.shape[1:]), len(flips) - wanted)


@torch.inference_mode()
def count_flips(
    modules: Sequence[PrunedViT],
    images: Tensor,
    progress: Callable[[int, str], None] = lambda done, what: None,
) -> Tensor:
    """How often images (N, 3, H, W) change their tokens under noise, over all modules: (N,); `UNUSABLE` where rounding alone does it.

    Noise of the size of rounding and another way of writing attention must change no token; larger noise tells which images are safest.
    """
    flips = torch.zeros(len(images), dtype=torch.int64)
    if not modules:
        return flips
    generator = torch.Generator().manual_seed(0)
    # Added and subtracted: of two tokens that tie, a draw lifts one and its opposite the other. Two draws that are not opposites may both lift the
    # token that is kept anyway, and miss every second tie.
    draw = torch.randn(images.shape, generator=generator)
    draws = (draw, -draw)
    passes, done = 2 + 2 * len(draws), 0

    def run(given: Tensor) -> Tensor:
        """Outputs (networks, N, values)."""
        nonlocal done
        progress(done * len(modules) // passes, f"choosing images, pass {done + 1} of {passes}")
        done += 1
        return _outputs(modules, given)

    outputs = run(images)
    for noise, price in ((_ROUNDING, UNUSABLE), (_MORE, 1)):
        moved = torch.stack([(run(images + noise * each) - outputs).abs().amax(2) for each in draws], 1)
        usual = moved.flatten(1).median(1).values  # of each network: moved is (networks, draws, N)
        flips += price * (moved > _FLIP * usual[:, None, None]).sum((0, 1))
    with explicit_forms(modules):
        flips += UNUSABLE * ((run(images) - outputs).abs().amax(2) > TOLERANCE / 2).sum(0)
    return flips


def images_at_once(shape: NetworkShape) -> int:
    """How many images to run together: 8, and fewer where their attention maps would take too much memory."""
    return max(1, min(_BATCH, _BATCH * _BATCH_TOKENS**2 // shape.tokens**2))


def run_all(modules: Sequence[PrunedViT], images: Tensor) -> list[Tensor]:
    """What each network of one model answers to images (N, 3, H, W), as many images at once as memory allows."""
    answers = []
    for part in torch.split(images, images_at_once(modules[0].shape)):
        first = FirstBlocks.shared(modules, [part])
        answers.append([first.outputs(module, 0) for module in modules])
    return [torch.cat(parts) for parts in zip(*answers)]


@contextmanager
def explicit_forms(modules: Sequence[PrunedViT]) -> Iterator[None]:
    """Networks whose attention is matmul, softmax, matmul for a while: the same, but for rounding."""
    previous = [module.attention for module in modules]
    try:
        for module in modules:
            module.attention = explicit_attention
        yield
    finally:
        for module, attention in zip(modules, previous):
            module.attention = attention


def _outputs(modules: Sequence[PrunedViT], images: Tensor) -> Tensor:
    """Outputs (networks, N, values), in the units in which parity compares them."""
    outputs = [output.flatten(1) for output in run_all(modules, images)]
    return torch.stack([each / unit(modules[0].output, each.numpy()) for each in outputs])
