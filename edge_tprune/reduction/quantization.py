"""INT8: Linear layers that multiply 8-bit integers, and what becomes an integer (`edge_tprune.reduction.precision` has the table).

    x_q = clamp(round(x / s_x) + z_x)      per tensor, s_x and z_x constants of the layer
    W_q = clamp(round(W / s_W), +-127)     per output channel, symmetric
    y   = (x_q - z_x) s_x  @  (W_q s_W)  +  b

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018), section 2. The two roundings
are operations of their own (`quantize`, `dequantize`), which PyTorch computes and the exporter writes as ONNX's QuantizeLinear and
DequantizeLinear: a runtime that finds both operands of a product dequantized multiplies the integers.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

WEIGHT_LIMIT = 127  #: the largest integer of a weight; -128 is not used, so that the scale is symmetric


@dataclass(frozen=True)
class IntegerType:
    """How the inputs of a layer are written as integers."""

    name: str
    dtype: torch.dtype
    lowest: int
    highest: int
    symmetric: bool  #: zero is the integer 0, so that no product needs a correction for it

    def scale_and_zero(self, low: float, high: float) -> tuple[float, int]:
        """Scale s and zero point z with x ~ (q - z) s for x in low..high. Zero itself is always exact."""
        if self.symmetric:
            return max(-low, high, 0.0) / self.highest or 1.0, 0
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / (self.highest - self.lowest) or 1.0
        return scale, min(self.highest, max(self.lowest, round(self.lowest - low / scale)))


UINT8 = IntegerType("uint8", torch.uint8, 0, 255, False)
INT8 = IntegerType("int8", torch.int8, -128, 127, True)


@torch.library.custom_op("edge_tprune::quantize", mutates_args=())
def quantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Floats to the integers of `zero_point`'s type, per tensor: ONNX's QuantizeLinear."""
    limits = torch.iinfo(zero_point.dtype)
    return (x / scale).round_().add_(zero_point.float()).clamp_(limits.min, limits.max).to(zero_point.dtype)


@quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=zero_point.dtype)


@torch.library.custom_op("edge_tprune::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """Integers to float32: ONNX's DequantizeLinear. With a vector of scales, one for each index of the last axis; without zero point 0."""
    return (q.float() if zero_point is None else q.float() - zero_point.float()) * scale


@dequantize.register_fake
def _(q: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    return torch.empty_like(q, dtype=torch.float32)


class QuantizedLinear(nn.Linear):
    """A Linear layer whose inputs and weights are 8-bit integers; bias, sums and outputs are floats.

    `weight` holds what the integers stand for, so that whoever counts or reads weights finds them.
    """

    integers: Tensor  #: (in, out), int8
    weight_scale: Tensor  #: (out,)
    input_scale: Tensor  #: ()
    input_zero: Tensor  #: (), of the inputs' integer type

    @classmethod
    def of(cls, layer: nn.Linear, low: float, high: float, inputs: IntegerType) -> QuantizedLinear:
        """The layer in integers.

        Args:
            layer: in float32.
            low: inputs below are cut off.
            high: inputs above are cut off.
            inputs: their integer type.
        """
        made = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        made.bias = layer.bias
        weight = layer.weight.detach().t()
        scale = weight.abs().amax(0).clamp_min(torch.finfo(torch.float32).tiny) / WEIGHT_LIMIT
        integers = torch.round(weight / scale).clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT).to(torch.int8)
        made.weight = nn.Parameter((integers.float() * scale).t().contiguous(), requires_grad=False)
        made.register_buffer("integers", integers.contiguous())
        made.register_buffer("weight_scale", scale)
        step, zero = inputs.scale_and_zero(low, high)
        made.register_buffer("input_scale", torch.tensor(step))
        made.register_buffer("input_zero", torch.tensor(zero, dtype=inputs.dtype))
        return made.train(layer.training)

    def half(self) -> QuantizedLinear:
        """Products, bias and sums in float16; scales stay float32."""
        self.weight = nn.Parameter(self.weight.half(), requires_grad=False)
        if self.bias is not None:
            self.bias = nn.Parameter(self.bias.half(), requires_grad=False)
        return self

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.rows(input, self.bias, slice(None))

    def rows(self, x: Tensor, bias: Tensor | None, rows: slice) -> Tensor:
        """Some of the outputs: (..., in) -> (..., rows), in the type of the weight. `bias` of those outputs."""
        bias = None if bias is None else bias.to(self.weight.dtype)
        if not torch.compiler.is_exporting():  # the same numbers, much faster
            limits = torch.iinfo(self.input_zero.dtype)
            x = torch.fake_quantize_per_tensor_affine(
                x.float(), self.input_scale, self.input_zero.to(torch.int32), limits.min, limits.max
            )
            return functional.linear(x.to(self.weight.dtype), self.weight[rows], bias)
        inputs: Tensor = dequantize(quantize(x.float(), self.input_scale, self.input_zero), self.input_scale, self.input_zero)
        weight: Tensor = dequantize(self.integers[:, rows], self.weight_scale[rows])
        product = inputs.to(self.weight.dtype) @ weight.to(self.weight.dtype)
        if bias is None:
            return product
        # Not a vector: ONNX Runtime would join product and vector into a Gemm before it looks for integers, and find none.
        return product + bias.reshape([1] * (product.ndim - 1) + [-1])


def quantizable(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that INT8 is about, by name: the Linears inside the blocks. Not the head, which reads one token."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.startswith("blocks.") and name.count(".") > 1
    }


def quantize_layers(
    model: nn.Module, ranges: Mapping[str, tuple[float, float]], inputs: IntegerType, keep: Collection[str] = ()
) -> nn.Module:
    """A copy of a network whose layers multiply integers; float parameters are shared with it.

    Args:
        model: in float32.
        ranges: by name of layer, between which its inputs lie.
        inputs: their integer type.
        keep: layers that stay as they are.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    made = copy.deepcopy(model, dict(shared))
    for name, layer in quantizable(made).items():
        if name not in keep:
            made.set_submodule(name, QuantizedLinear.of(layer, *ranges[name], inputs))
    return made
