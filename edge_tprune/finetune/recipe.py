"""How one fine-tuning trains: everything that decides its weights apart from the photos and the network."""

from __future__ import annotations

import msgspec

ALL, NORM, LATE = "all", "norm", "late"
TRAINED = (
    ALL,
    NORM,
    LATE,
)  #: what `train` may be: every parameter, only the layer norms, only what lies behind the first removal
MOST_EPOCHS = 1000


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to train. `chosen` says in words how the values came about."""

    rate: float  #: highest learning rate of the one-cycle schedule (Smith 2018, arXiv 1803.09820), AdamW
    steps: int
    batch: int  #: photos per step, over all processes
    least_area: float  #: crops show from this share of a photo's area to all of it
    flip: bool  #: half of the crops are mirrored
    temperature: float  #: logits are divided by it in the loss (Hinton et al. 2015, arXiv 1503.02531)
    average: float  #: decay per step of the moving average of the weights, which is what is kept
    class_tokens: float  #: weight of the loss on the class token after each block
    labels: float  #: weight of the cross-entropy with the labels; 0 without
    draws: dict[str, float]  #: how often each budget is trained, relative to the others
    train: str = ALL
    weight_decay: float = 0.0
    clip: float = 1.0  #: largest norm of the gradient
    seed: int = 0
    chosen: dict[str, str] = msgspec.field(default_factory=dict)  #: field -> why it has its value

    def halved(self) -> Recipe:
        """At half the learning rate."""
        return msgspec.structs.replace(self, rate=self.rate / 2)
