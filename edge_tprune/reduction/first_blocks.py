"""What the first blocks make of fixed images, computed once for many networks.

Up to the block that removes the first tokens a pruned network does what the unpruned one does. Whoever tries many schedules on the same images
therefore keeps the tokens between those blocks, and begins each network where it differs: with the same result, bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from edge_tprune.reduction.host import PrunedViT


class FirstBlocks:
    """The tokens after some of a network's first blocks.

    Args:
        network: whose first blocks are run; others are answered if they share its model, precision and form of attention.
        images: batches (B, 3, H, W).
        after: the blocks, counted from 1, after which the tokens are kept; each is `untouched` in `network`.
    """

    def __init__(self, network: PrunedViT, images: Sequence[Tensor], after: Collection[int]) -> None:
        self.images = images
        self._network = network
        self._after = sorted(block for block in set(after) if 0 < block <= network.untouched)
        self._kept: list[dict[int, Tensor]] = [{} for _ in images]

    def __getstate__(self) -> dict[str, object]:
        """Another process gets images and network, and computes the tokens itself: they are larger than both."""
        return {**self.__dict__, "_kept": [{} for _ in self.images]}

    @classmethod
    def shared(cls, networks: Sequence[PrunedViT], images: Sequence[Tensor]) -> FirstBlocks:
        """For these networks: the tokens after the blocks at which any of them begins to differ."""
        return cls(max(networks, key=lambda network: network.untouched), images, {network.untouched for network in networks})

    @torch.inference_mode()
    def outputs(self, pruned: PrunedViT, batch: int) -> Tensor:
        """What a network answers to the batch of that number: as `pruned(images)`."""
        images, network = self.images[batch], self._network
        begins = max((block for block in self._after if block <= pruned.untouched), default=0)
        if not begins or pruned.model is not network.model or pruned.attention is not network.attention:
            whole: Tensor = pruned(images)
            return whole
        if not self._kept[batch]:
            self._kept[batch] = self._run(images)
        return pruned.run_rest(self._kept[batch][begins], begins + 1).to(images.dtype)

    def _run(self, images: Tensor) -> dict[int, Tensor]:
        stream, done = self._network.embed(images), 0
        kept: dict[int, Tensor] = {}
        for block in self._after:
            stream = self._network.run_first(stream, done + 1, block)
            kept[block], done = stream.x, block
        return kept
