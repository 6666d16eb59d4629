"""Finds a recipe for a network and its photos: what crops the network understands, how sharp its answers are, how fast it may learn.

Each rule looks at the unpruned network, or at the students before training, on photos that are there anyway; none needs labels. `python -m
tests.benchmarks.finetune` measures what the constants bring.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from msgspec.structs import replace
from torch import Tensor

from edge_tprune.errors import NegativeAnswer
from edge_tprune.finetune.distill import Teacher
from edge_tprune.finetune.holdout import Scores, mean_loss
from edge_tprune.finetune.photos import Photos, Spot
from edge_tprune.finetune.recipe import Recipe
from edge_tprune.finetune.request import Request
from edge_tprune.finetune.trainer import agreed

EVALUATIONS = 6  # times that the held-out photos are looked at while training
LEAST_AREAS = (0.4, 0.6, 0.8, 1.0)  # shares of a photo's area that crops may begin at, the strongest first
UNDERSTOOD = 0.75  # share of photos whose first class a crop, or the mirrored photo, must not change
_LOOKED_AT = 64  # photos

CONFIDENT = 0.8  # mean probability of the first class above which the logits are softened
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0)

RATES = (4e-5, 2e-5, 8e-5)  # tried in short trainings; the first is taken where the held-out photos do not tell them apart
_PILOT_SHARE, _FEWEST_PILOT_STEPS = 1 / 12, 8  # length of each short training, of the whole
_TIMED_STEPS, _FEWEST_STEPS = 3, 8
_SPARE = 0.95  # of the time that is left is planned with

# Memory of the weights' moving average, as a share of the steps: a longer one still holds the untrained weights at the end.
AVERAGED_SHARE = 0.1
CLASS_TOKENS = 4.0  # weight of the class tokens' distance beside the divergence
LABELS = 0.5  # weight of the cross-entropy beside the divergence

SHARES = (0.75, 0.5, 0.25)
"""How far on the way from the untrained to the trained weights is tried as well. Weights between the two keep more of the unpruned network than
the trained ones, and lose less than their share of the gain (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022)."""

_GAIN = 1.5  # bfloat16 is used where it multiplies matrices so many times as fast


class TimeTooShort(NegativeAnswer):
    """On this machine at this moment: when it has less to do, the same time may be enough."""


@dataclass(frozen=True)
class Pilot:
    """What a short training said."""

    scores: Mapping[str, Scores]
    step_seconds: float
    judge_seconds: float


@torch.no_grad()
def crops_understood(teacher: Teacher, photos: Photos) -> tuple[float, bool, str]:
    """(least share of the area, whether to mirror, why): the strongest cropping that the unpruned network still understands."""
    looked_at = range(min(_LOOKED_AT, len(photos)))

    def answers(least_area: float, mirrored: bool = False) -> Tensor:
        crops = [photos.crop(Spot(number, 0), least_area, False) for number in looked_at]
        images = torch.stack(crops).to(teacher.arithmetic.device)
        return teacher(images.flip(3) if mirrored else images)[0].float()

    if not teacher.head:
        return LEAST_AREAS[0], True, "usual for photos; a network without classes cannot say what it understands"
    whole = answers(1.0).argmax(1)

    def same(given: Tensor) -> float:
        return float((given.argmax(1) == whole).float().mean())

    least_area = next((area for area in LEAST_AREAS if area == 1 or same(answers(area)) >= UNDERSTOOD), 1.0)
    mirrored = same(answers(1.0, mirrored=True))
    flip = mirrored >= UNDERSTOOD
    return (
        least_area,
        flip,
        f"the strongest with the same first class in {100 * UNDERSTOOD:.0f} % of cases; mirrored: {100 * mirrored:.0f} %",
    )


@torch.no_grad()
def temperature(answers: Tensor, head: bool) -> tuple[float, str]:
    """(temperature, why), from the unpruned network's logits (N, classes): 1 unless it is nearly always sure of its answer."""
    if not head:
        return 1.0, "no classes"
    sure = 1.0
    for value in TEMPERATURES:
        sure = float((answers / value).softmax(1).amax(1).mean())
        if sure <= CONFIDENT:
            return value, f"the first class has a mean probability of {sure:.2f}"
    return TEMPERATURES[-1], f"the first class still has a mean probability of {sure:.2f}"


def average(steps: int) -> float:
    """Decay per step of the weights' moving average, for a training of so many steps: its memory is a tenth of them."""
    return 1 - 1 / (1 + AVERAGED_SHARE * steps)


def mixed(untrained: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights `share` of the way from the untrained to the trained ones, on the CPU; whole numbers are the trained ones'."""

    def between(name: str, value: Tensor) -> Tensor:
        return torch.lerp(untrained[name].cpu(), value, share).contiguous() if value.is_floating_point() else value

    return {name: between(name, value) for name, value in trained.items()}


def draws(before: Mapping[str, Scores]) -> dict[str, float]:
    """How often each budget is trained: in proportion to the root of what it has to make up, and the unpruned network like the least of them."""
    roots = {name: math.sqrt(float(scores.divergence.mean())) for name, scores in before.items()}
    total = sum(roots.values()) or 1.0
    raised = {name: max(root / total, 0.1) for name, root in roots.items()}
    whole = sum(raised.values())
    return {name: round(value / whole, 3) for name, value in raised.items()}


def length_and_rate(
    recipe: Recipe,
    request: Request,
    pilot: Callable[[Recipe], Pilot],
    began: float,
    progress: Callable[[str, int, int], None],
) -> Recipe:
    """The recipe with its learning rate and number of steps.

    The rate is the one of `RATES` whose short training answers the held-out photos best. Where a time was given, what is left of it after that is
    filled with steps.

    Args:
        recipe: with everything else.
        request: whose rate and time, if given, are kept to.
        pilot: trains by a recipe and judges.
        began: when the work began, in seconds of the monotonic clock.
        progress: called as (what, done, of).
    """
    rates = RATES if request.rate is None else (request.rate,)
    steps = recipe.steps
    if request.seconds is not None:
        progress("timing a step", 0, len(rates) + 1)
        steps = _affordable(request, pilot(replace(recipe, steps=_TIMED_STEPS)), began)
    short = max(_FEWEST_PILOT_STEPS, round(_PILOT_SHARE * steps))
    if request.rate is None and request.seconds is not None and 3 * len(rates) * short > steps:
        why = f"{rates[0]:g}, untried: of {steps} steps, trying {len(rates)} rates would have taken more than a third"
        recipe = replace(recipe, rate=rates[0], chosen={**recipe.chosen, "rate": why})
    elif request.rate is None:
        found: list[tuple[float, Pilot]] = []
        for number, value in enumerate(rates, 1):
            progress(f"trying the rate {value:g}", number, len(rates) + 1)
            found.append((value, pilot(replace(recipe, rate=value, steps=short, average=average(short)))))
        losses = {value: float(mean_loss(one.scores).mean()) for value, one in found}
        best = min(losses, key=losses.__getitem__)
        tried = ", ".join(f"{value:g}: {loss:.4f}" for value, loss in sorted(losses.items()))
        recipe = replace(
            recipe,
            rate=best,
            chosen={**recipe.chosen, "rate": f"loss on the held-out photos after {short} steps, by rate: {tried}"},
        )
        if request.seconds is not None:
            steps = _affordable(request, found[-1][1], began)
    return replace(recipe, steps=steps, average=average(steps))


def _affordable(request: Request, pilot: Pilot, began: float) -> int:
    """How many steps fit into what is left of the time, with looks at the held-out photos between them.

    Raises:
        TimeTooShort: too few to learn anything.
    """
    assert request.seconds is not None
    spent, looks = time.monotonic() - began, (EVALUATIONS + 3 + len(SHARES)) * pilot.judge_seconds
    left, step = agreed(_SPARE * (request.seconds - spent - looks)), agreed(pilot.step_seconds)
    if left < _FEWEST_STEPS * step:
        needed = math.ceil(spent + looks + _FEWEST_STEPS * step / _SPARE)
        raise TimeTooShort(
            f"{request.seconds:g} s are too short for this fine-tuning on this machine: give at least {needed} s, which is enough for "
            f"{_FEWEST_STEPS} steps and for answering the photos that are held out, or fewer photos"
        )
    return int(left / step)


def bfloat16_gains(device: torch.device) -> bool:
    """Whether this machine multiplies matrices of bfloat16 clearly faster than of float32. On a GPU: whether it can at all."""
    if device.type != "cpu":
        return bool(torch.cuda.is_bf16_supported()) if device.type == "cuda" else False
    pairs = {k: (torch.ones(4096, 384, dtype=k), torch.ones(384, 1536, dtype=k)) for k in (torch.float32, torch.bfloat16)}
    seconds = dict.fromkeys(pairs, math.inf)
    for _ in range(10):  # in turn, so that other programs slow down both
        for kind, (a, b) in pairs.items():
            began = time.perf_counter()
            a @ b
            seconds[kind] = min(seconds[kind], time.perf_counter() - began)
    return agreed(seconds[torch.float32] / seconds[torch.bfloat16]) > _GAIN
