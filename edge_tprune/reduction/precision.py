"""The number formats that a network can compute in. What each of them means is said here and nowhere else.

|                                                                              | fp32    | fp16    | mixed   |
|------------------------------------------------------------------------------|---------|---------|---------|
| matrix products: patch embedding, qkv, QK^T, AV, projection, MLP, head       | float32 | float16 | float16 |
| residual stream, and the tokens and embeddings it is made of                 | float32 | float16 | float32 |
| LayerNorm and other norms, layer scale, softmax with the bias in its logits  | float32 | float32 | float32 |
| everything that decides on tokens: evidence, scores, sizes, merging weights  | float32 | float32 | float32 |
| an attention-pooling head, as a whole                                        | float32 | float32 | float32 |
| images in, logits out                                                        | float32 | float32 | float32 |

int8 is one of these columns with other Linears in the blocks (qkv, projection, MLP): both operands of their products are 8-bit integers
(`edge_tprune.reduction.quantization`), the sums are floats. For ONNX Runtime the rest is fp32, for
TensorRT fp16.

fp16 moves and adds half the bytes; mixed keeps what small updates would be lost from: a stream whose largest channels are hundreds of
times the others. Where fp16 and mixed are equally near to fp32, fp16 is the one to take.

A network in half precision is a copy with half weights whose layers each read in the type of their own weights; the forward pass
(`edge_tprune.reduction.host`) brings their results back to the stream's. So a graph exported from it says in every node what it computes in,
and a strongly typed TensorRT network has nothing left to choose.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.reduction.quantization import QuantizedLinear

_PRODUCTS = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class Precision:
    """One column of the table above."""

    name: str
    products: torch.dtype
    stream: torch.dtype
    integers: bool = False  #: whether the Linears of the blocks multiply 8-bit integers


PRECISIONS = {
    p.name: p
    for p in (
        Precision("fp32", torch.float32, torch.float32),
        Precision("fp16", torch.float16, torch.float16),
        Precision("mixed", torch.float16, torch.float32),
        Precision("int8", torch.float32, torch.float32, integers=True),
    )
}
HALF_INTEGERS = Precision("int8", torch.float16, torch.float16, integers=True)  #: for a GPU
DEFAULT, INTEGERS = "fp32", "int8"


def precision(name: str) -> Precision:
    """The precision called `name`.

    Raises:
        UserError: there is none.
    """
    if name not in PRECISIONS:
        raise UserError(f"no precision {name!r}.{did_you_mean(name, PRECISIONS)} Known: {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def in_precision(model: nn.Module, wanted: Precision) -> nn.Module:
    """A copy of a float32 model in another precision; the model itself where its floats stay float32.

    Layers become integers by `edge_tprune.reduction.quantization.quantize_layers`, before this.
    """
    if wanted.products == wanted.stream == torch.float32:
        return model
    model = copy.deepcopy(model)
    for parameter in model.parameters(recurse=False):  # class token, position embeddings
        parameter.data = parameter.data.to(wanted.stream)
    pool = getattr(model, "attn_pool", None)
    pooling = set() if pool is None else set(pool.modules())
    for module in model.modules():
        if module is model or any(True for _ in module.children()):
            continue
        if isinstance(module, QuantizedLinear):
            module.half()  # it reads floats of any type
            continue
        half = isinstance(module, _PRODUCTS) and module not in pooling
        if half:
            module.to(wanted.products)
        if half or isinstance(module, nn.LayerNorm) or any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(_reads(wanted.products if half else torch.float32))
    return model


def _reads(dtype: torch.dtype) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Any, ...]]:
    def cast(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        return (inputs[0].to(dtype), *inputs[1:])

    return cast
