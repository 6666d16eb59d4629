"""What the layers of a network read, on photos: the unpruned network's and the pruned ones' together."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.export.migration import Channels
from edge_tprune.export.ranges import BINS, Histogram
from edge_tprune.reduction.quantization import quantizable


class ObservedLinear(nn.Linear):
    """A Linear layer that remembers what it read: first the extremes, then, between them, how often."""

    def observe(self, layer: nn.Linear) -> ObservedLinear:
        """Takes over a layer's parameters."""
        self.weight, self.bias = layer.weight, layer.bias
        self.low, self.high = float("inf"), float("-inf")
        self.counts: np.ndarray | None = None
        zero = torch.zeros(layer.in_features, dtype=torch.float64)
        self.tokens, self.sums, self.squares = 0, zero, zero
        self.lowest, self.highest = zero.float() + torch.inf, zero.float() - torch.inf  # by channel
        return self

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.rows(input, self.bias, slice(None))

    def rows(self, x: Tensor, bias: Tensor | None, rows: slice) -> Tensor:
        """As `QuantizedLinear.rows`."""
        if self.counts is None:
            self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
            flat = x.flatten(0, -2)
            self.lowest, self.highest = torch.minimum(self.lowest, flat.amin(0)), torch.maximum(self.highest, flat.amax(0))
            self.tokens += len(flat)
            self.sums = self.sums + flat.sum(0, dtype=torch.float64)
            self.squares = self.squares + flat.square().sum(0, dtype=torch.float64)
        else:
            self.counts += torch.histc(x, BINS, self.low, self.high).numpy()
        return functional.linear(x, self.weight[rows], bias)


def observed(model: nn.Module) -> nn.Module:
    """A copy of a network whose layers remember what they read; parameters are shared."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    made = copy.deepcopy(model, dict(shared))
    for name, layer in quantizable(made).items():
        watching = ObservedLinear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        made.set_submodule(name, watching.observe(layer).train(layer.training))
    return made


@torch.inference_mode()
def histograms(watching: nn.Module, run: Callable[[], None]) -> dict[str, Histogram]:
    """What each layer of an `observed` network read, by name.

    Args:
        watching: the network.
        run: runs it over the photos; called twice.

    Raises:
        NegativeAnswer: a layer reads numbers that are not finite.
        UserError: a layer reads the same number everywhere.
    """
    layers = {name: layer for name, layer in watching.named_modules() if isinstance(layer, ObservedLinear)}
    run()
    for name, layer in layers.items():
        if not np.isfinite([layer.low, layer.high]).all():
            raise NegativeAnswer(
                f"{name} reads numbers from {layer.low:g} to {layer.high:g}, which no 8-bit range holds: the network overflows in float32. "
                "Check its weights. Nothing was written"
            )
        if layer.low == layer.high:
            raise UserError(f"{name} reads {layer.low:g} everywhere on all photos: give --calibration photos that differ")
        layer.counts = np.zeros(BINS)
    run()
    return {name: Histogram(layer.low, layer.high, layer.counts) for name, layer in layers.items() if layer.counts is not None}


def channels(watching: nn.Module) -> dict[str, Channels]:
    """What each layer of an `observed` network read, channel by channel, by its name."""
    layers = {name: layer for name, layer in watching.named_modules() if isinstance(layer, ObservedLinear)}
    return {
        name: Channels(layer.lowest, layer.highest, layer.sums / layer.tokens, layer.squares / layer.tokens)
        for name, layer in layers.items()
    }
