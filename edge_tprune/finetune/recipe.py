"""How one fine-tuning trains: everything that decides its weights apart from the photos and the network."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from edge_tprune.documents import Count, Integer

ALL, NORM, LATE = "all", "norm", "late"
TRAINED = (
    ALL,
    NORM,
    LATE,
)  #: what `train` may be: every parameter, only the layer norms, only what lies behind the first removal
MOST_EPOCHS = 1000


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to train. `chosen` says in words how the values came about."""

    #: Highest learning rate of the one-cycle schedule (Smith 2018, arXiv 1803.09820), AdamW.
    rate: Annotated[float, Meta(gt=0, le=1)]
    steps: Count
    batch: Count  #: photos per step, over all processes
    least_area: Annotated[float, Meta(gt=0, le=1)]  #: crops show from this share of a photo's area to all of it
    flip: bool  #: half of the crops are mirrored
    temperature: Annotated[float, Meta(gt=0)]  #: logits are divided by it in the loss (Hinton et al. 2015, arXiv 1503.02531)
    average: Annotated[float, Meta(ge=0, le=1)]  #: decay per step of the moving average of the weights, which is what is kept
    class_tokens: Annotated[float, Meta(ge=0)]  #: weight of the loss on the class token after each block
    labels: Annotated[float, Meta(ge=0)]  #: weight of the cross-entropy with the labels; 0 without
    #: How often each budget is trained, relative to the others.
    draws: Annotated[dict[str, Annotated[float, Meta(gt=0)]], Meta(min_length=1)]
    train: Annotated[str, Meta(pattern=r"^(all|norm|late)\Z")] = ALL
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    clip: Annotated[float, Meta(gt=0)] = 1.0  #: largest norm of the gradient
    seed: Integer = 0
    chosen: dict[str, str] = msgspec.field(default_factory=dict)  #: field -> why it has its value

    def halved(self) -> Recipe:
        """At half the learning rate."""
        return msgspec.structs.replace(self, rate=self.rate / 2)
