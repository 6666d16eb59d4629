"""Is a graph the network that was asked for? Its outputs against PyTorch's, on real images, through the file that was written.

A float32 graph must give PyTorch's outputs. A graph in half precision cannot: it is held against the float32 network within wider
bounds, and how far it strays is recorded, together with how many of its tokens are others.

ONNX Runtime on CPU judges both. Most of a half precision graph's operators it computes in float32, one after the other without rounding in between:
that proves the graph right, but an overflow on a device would not show. So the half precision module itself runs in PyTorch, which rounds after
every operator, and is held to the same bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from edge_tprune.bundle.divergence import divergence, log_softmax
from edge_tprune.bundle.outputs import LOGITS, cosine_distance, max_difference
from edge_tprune.bundle.parity import Closeness, ClosenessLimits, Parity, Selection, VectorCloseness
from edge_tprune.errors import InternalError, NegativeAnswer
from edge_tprune.export.overflow import HalfPrecisionBreak, describe_break
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.runtime.engine import open_engine

TOLERANCE = 1e-4  # in float32: absolute on logits, on other outputs in units of their root mean square
HALF_KL = 0.1  # nats, mean over the images, of a half precision graph from the float32 network: one near tie may turn, no more
HALF_AGREEMENT = 75.0  # per cent of images with the float32 network's top-1
HALF_DISTANCE = 0.05  # cosine distance, mean over the images, of outputs other than logits

_RUNTIME = "onnxruntime"


def _run(file: Path, images: np.ndarray) -> np.ndarray:
    with open_engine(file, _RUNTIME, threads=torch.get_num_threads()) as engine:
        return np.stack([engine.run(batch) for batch in images])


def prove_equal(file: Path, name: str, images: np.ndarray, expected: np.ndarray, kind: str = LOGITS) -> Parity:
    """A float32 graph's record.

    Args:
        file: the graph.
        name: of its budget.
        images: (batches, B, 3, H, W).
        expected: PyTorch's outputs for them (batches, B, ...).
        kind: which output it is.

    Raises:
        InternalError: a number off by more than the tolerance (of logits absolute, else in units of the root mean square), or another top-1.
    """
    outputs = _run(file, images)
    worst = max_difference(kind, outputs, expected)
    count = images.shape[0] * images.shape[1]
    if kind != LOGITS:
        vectors = compare_vectors(outputs, expected, kind) if worst <= TOLERANCE else None
        if vectors is None:
            raise InternalError(
                f"budget {name}: the exported graph is not the same network: worst relative difference of its {kind} {worst:.2e} "
                f"(allowed {TOLERANCE:.0e}) on {count} images. Nothing was written"
            )
        return Parity(images=count, tolerance=TOLERANCE, runtime=_RUNTIME, vectors=vectors)
    same = bool((outputs.argmax(-1) == expected.argmax(-1)).all())
    if not worst <= TOLERANCE or not same:
        raise InternalError(
            f"budget {name}: the exported graph is not the same network: worst logit difference {worst:.2e} "
            f"(allowed {TOLERANCE:.0e}), top-1 {'same' if same else 'differs'} on {count} images. Nothing was written"
        )
    return Parity(images=count, max_abs_logit_difference=worst, tolerance=TOLERANCE, top1_same=same, runtime=_RUNTIME)


def prove_near(file: Path, name: str, images: np.ndarray, expected: np.ndarray, modules: tuple[PrunedViT, PrunedViT]) -> Parity:
    """A half precision graph's record. Arguments as for `prove_equal`, and the (float32, half precision) modules.

    Raises:
        HalfPrecisionBreak: numbers that are not finite, a divergence, a share of other top-1 or a cosine distance beyond what is allowed; in
            which block.
    """
    exact_module, half_module = modules
    batches = [torch.from_numpy(batch) for batch in images]
    with torch.inference_mode():
        module_outputs = np.stack([half_module(batch).numpy() for batch in batches])
    found = {"graph": _run(file, images), "module": module_outputs}
    kind, precision = half_module.output, half_module.precision.name
    try:
        record = _prove_near_logits(found, expected) if kind == LOGITS else _prove_near_vectors(found, expected, kind)
    except NegativeAnswer as broken:
        where = describe_break(exact_module, half_module, batches[0])
        others = "mixed or fp32" if precision == "fp16" else "fp32"
        raise HalfPrecisionBreak(
            f"budget {name}: in {precision} {broken}; {where}. Try --precision {others}. Nothing was written", precision
        ) from None
    return msgspec.structs.replace(record, selection=tuple(selection(exact_module, half_module, batches)), runtime=_RUNTIME)


def _prove_near_logits(outputs: dict[str, np.ndarray], expected: np.ndarray) -> Parity:
    graph, module = compare(outputs["graph"], expected), compare(outputs["module"], expected)
    for what, found in (("graph", graph), ("module", module)):
        if found is None or found.kl_nats > HALF_KL or found.top1_agreement_percent < HALF_AGREEMENT:
            raise NegativeAnswer(f"the {what} is not the same network: {_describe(found)}")
    assert graph is not None
    limits = ClosenessLimits(kl_nats=HALF_KL, top1_agreement_percent=HALF_AGREEMENT)
    return msgspec.structs.replace(to_parity(graph), module=module, allowed=limits)


def to_parity(near: Closeness) -> Parity:
    """The record of a graph whose logits are so near to those of its float32 network."""
    return Parity(
        images=near.images,
        max_abs_logit_difference=near.max_abs_logit_difference,
        top1_agreement_percent=near.top1_agreement_percent,
        kl_nats=near.kl_nats,
        max_kl_nats=near.max_kl_nats,
    )


def _prove_near_vectors(outputs: dict[str, np.ndarray], expected: np.ndarray, kind: str) -> Parity:
    graph, module = (compare_vectors(outputs[what], expected, kind) for what in ("graph", "module"))
    for what, found in (("graph", graph), ("module", module)):
        if found is None or found.cosine_distance > HALF_DISTANCE:
            described = "its numbers are not finite" if found is None else f"cosine distance {found.cosine_distance:.4f}"
            raise NegativeAnswer(
                f"the {what}'s {kind} are not those of the same network: {described} (allowed {HALF_DISTANCE:g})"
            )
    assert graph is not None
    return Parity(images=graph.images, vectors=graph, module_vectors=module, allowed_cosine_distance=HALF_DISTANCE)


def compare_vectors(outputs: np.ndarray, expected: np.ndarray, kind: str) -> VectorCloseness | None:
    """How far outputs (batches, B, ...) other than logits are from the expected ones; None where they are not finite."""
    if not np.isfinite(outputs).all():
        return None
    flat = (-1, *expected.shape[2:])
    distance = cosine_distance(kind, outputs.reshape(flat), expected.reshape(flat))
    return VectorCloseness(
        images=len(distance),
        max_relative_difference=max_difference(kind, outputs, expected),
        cosine_distance=float(distance.mean()),
        max_cosine_distance=float(distance.max()),
    )


def _describe(found: Closeness | None) -> str:
    if found is None:
        return "its logits are not finite"
    return (
        f"KL {found.kl_nats:.4f} nats (allowed {HALF_KL:g}), top-1 agrees on {found.top1_agreement_percent:.0f} % "
        f"of {found.images} images (allowed {HALF_AGREEMENT:g} %)"
    )


def compare(logits: np.ndarray, expected: np.ndarray) -> Closeness | None:
    """How far logits (..., classes) are from the expected ones; None where they are not finite."""
    if not np.isfinite(logits).all():
        return None
    kl = divergence(log_softmax(expected), log_softmax(logits))
    return Closeness(
        images=int(kl.size),
        max_abs_logit_difference=float(np.abs(logits - expected).max()),
        top1_agreement_percent=float(100.0 * (logits.argmax(-1) == expected.argmax(-1)).mean()),
        kl_nats=float(kl.mean()),
        max_kl_nats=float(kl.max()),
    )


@torch.inference_mode()
def selection(one: PrunedViT, other: PrunedViT, images: Sequence[Tensor]) -> list[Selection]:
    """How alike two modules with one schedule choose, over all batches `images` (B, 3, H, W), at each block that removes tokens.

    `same_percent`: the share of the first module's tokens after that block, prefix tokens apart, that the other has too. A token is known by the
    original tokens it stands for, each by more than a half; one that was merged counts by its overlap (intersection over union) with the other
    module's token that is nearest to it. What an earlier block chose otherwise counts again later on.
    """
    first = one.shape.prefix_tokens
    stages = [int(number) for number in one.reducers]
    same = dict.fromkeys(stages, 0.0)
    count = 0
    for batch in images:
        traces = one.trace(batch), other.trace(batch)
        count += len(batch)
        for number in stages:
            members = [(trace[number - 1][:, first:] > 0.5).float() for trace in traces]
            same[number] += float(_overlap(*members).sum())
    return [
        Selection(
            block=number,
            tokens=one.schedule[number - 1],
            same_percent=min(100.0, 100.0 * same[number] / (count * (one.schedule[number - 1] - first))),
        )
        for number in stages
    ]


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    """Of each row of 0 and 1 (B, K, N) the largest intersection over union with a row of the other (B, M, N): (B, K)."""
    common = one @ other.transpose(1, 2)
    union = one.sum(-1)[:, :, None] + other.sum(-1)[:, None] - common
    return (common / union.clamp_min(1)).amax(2)
