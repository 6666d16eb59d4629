"""How a bundle's manifest says that a graph was proved to be its network."""

from __future__ import annotations

import msgspec

from edge_tprune.documents import Count, Distance, Percent, Whole


class Closeness(msgspec.Struct, frozen=True, kw_only=True):
    """How far logits are from those of the float32 network in PyTorch."""

    images: Count
    max_abs_logit_difference: Distance
    top1_agreement_percent: Percent
    kl_nats: Distance  #: KL(float32 || these), mean over the images
    max_kl_nats: Distance


class VectorCloseness(msgspec.Struct, frozen=True, kw_only=True):
    """How far vectors (an embedding, features, tokens) are from those of the float32 network in PyTorch."""

    images: Count
    max_relative_difference: Distance  #: of a number, in units of the root mean square of the float32 network's output
    cosine_distance: Distance  #: 1 - cosine, mean over the vectors of an image and over the images
    max_cosine_distance: Distance  #: of the image that is farthest


class ClosenessLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a graph in half precision was held to."""

    kl_nats: Distance
    top1_agreement_percent: Percent


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """How many of the tokens after one block are those of the float32 network."""

    block: Count
    tokens: Count
    same_percent: Percent


class Parity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a graph was proved to be its network. `tolerance` and `top1_same` are of float32 graphs, what follows `kl_nats` of the others.

    Of a graph that gives no logits, `vectors` says how near it is, and `tolerance` is of its `max_relative_difference`.
    """

    images: Count
    max_abs_logit_difference: Distance | None = None
    tolerance: Distance | None = None
    top1_same: bool | None = None
    top1_agreement_percent: Percent | None = None
    kl_nats: Distance | None = None
    max_kl_nats: Distance | None = None
    module: Closeness | None = None  #: of the half precision module itself, in PyTorch
    allowed: ClosenessLimits | None = None
    selection: tuple[Selection, ...] | None = None
    runtime: str | None = None  #: what ran the graph
    images_left_out_for_near_ties: Whole | None = None
    vectors: VectorCloseness | None = None
    module_vectors: VectorCloseness | None = None  #: of the half precision module itself, in PyTorch
    allowed_cosine_distance: Distance | None = None  #: what a graph in half precision was held to
    #: Of an INT8 graph, on calibration's last photos: how much farther from the unpruned network than in float32.
    loss: float | None = None
    allowed_loss: Distance | None = None  #: nats, or of outputs other than logits cosine distance

    def __post_init__(self) -> None:
        if (self.max_abs_logit_difference is None) == (self.vectors is None):
            raise ValueError("it says how near a graph is either by its logits or by its vectors")

    @property
    def difference(self) -> float:
        """The largest difference: of a logit, absolute, or relative to the root mean square of other outputs."""
        if self.vectors is not None:
            return self.vectors.max_relative_difference
        assert self.max_abs_logit_difference is not None
        return self.max_abs_logit_difference
