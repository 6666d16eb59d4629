"""From a pruned module to a static ONNX graph in the form its runtime runs fastest.

One module, several graphs: only the way attention is written differs (`FORMS`). Weights do not travel in the graph: they go to one
file that all graphs of a bundle share, each tensor stored once whichever graphs use it.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import onnxscript
import torch
from onnx import numpy_helper
from torch import Tensor

from edge_tprune.errors import InternalError, UserError
from edge_tprune.export.exporter import quick_exporter
from edge_tprune.export.folds import fold
from edge_tprune.export.rows import Values, write_rows
from edge_tprune.reduction import registry
from edge_tprune.reduction.attention import Attended, AttentionForm, Bias, explicit_attention
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.reduction.own import is_own
from edge_tprune.reduction.precision import DEFAULT, HALF_INTEGERS, INTEGERS, PRECISIONS, Precision
from edge_tprune.reduction.quantization import INT8, UINT8, IntegerType
from edge_tprune.reduction.registry import ATTENTION, CLASS_ROW

INPUT = "image"
UNNAMED = "graph_output"  # while it is exported: its own name may be that of another value
FORBIDDEN = {
    "Loop",
    "If",
    "Scan",
    "NonZero",
    "Unique",
    "Scatter",
    "ScatterElements",
    "ScatterND",
    "RandomUniform",
    "RandomNormal",
}
FORBIDDEN |= {"RandomUniformLike", "RandomNormalLike", "Multinomial", "Bernoulli", "Compress"}
MAX_TOPK = 3840  # TensorRT's limit

_INLINE_BYTES = 256  # smaller tensors (scalars, axes, counts) stay in the graph
_PAGE, _LINE = 4096, 64  # large external tensors start on a page, so that runtimes can map them; small ones on a cache line


class GraphError(InternalError):
    """An exported graph is not what was asked for: a fault of the exporter or of a method, not of the user."""


def operator_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, needs: frozenset[str], bias: Bias
) -> Attended:
    """ONNX's own `Attention` operator (opset 23), which can also hand out the map it computed anyway. Arguments: `AttentionForm`."""
    # ONNX Runtime wants every query's row of the bias; it finds the repeated expansions of one stage and computes one.
    batch, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    if batch == 1 and bias.keys is not None and bias.pairs is None:
        mask: Tensor | None = bias.keys.expand(queries, keys)
    else:
        mask = bias.mask()
        mask = None if mask is None else mask.expand(len(mask), mask.shape[1], queries, keys)
    want_map = not needs.isdisjoint({ATTENTION, CLASS_ROW})
    output, _, _, attention = torch.onnx.ops.attention(
        q, k, v, attn_mask=mask, q_num_heads=heads, kv_num_heads=heads, scale=scale, qk_matmul_output_mode=3 if want_map else 0
    )
    return Attended(output, attention, attention[:, :, 0]) if want_map else Attended(output)


@dataclass(frozen=True)
class Form:
    """One way to write the graph."""

    name: str
    opset: int
    attention: AttentionForm
    precisions: tuple[str, ...]  #: that are worth writing in it
    inputs: IntegerType  #: of layers that multiply integers
    integers: Precision  #: what else an INT8 graph computes in
    rows: bool = False  #: whether layers of a float32 graph take tokens as rows


_EXPLICIT = Form("explicit", 18, explicit_attention, (DEFAULT, "fp16", "mixed", INTEGERS), INT8, HALF_INTEGERS)
FORMS = {
    "onnxruntime": Form("attention-op", 23, operator_attention, (DEFAULT, INTEGERS), UINT8, PRECISIONS[INTEGERS], rows=True),
    "tensorrt": _EXPLICIT,
    "tensorrt-rtx": _EXPLICIT,
}
"""By runtime. ONNX Runtime gains from the operator; TensorRT reads it only from 10.14 and fuses the explicit pattern before that. ONNX Runtime
computes half precision on a CPU by casting to float32 and back: nothing to gain. Integers it multiplies fastest as
unsigned inputs and signed weights; TensorRT takes symmetric inputs only."""


def _translations(opset: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """How ONNX writes the operations of `edge_tprune.reduction.quantization`, and group norms (of hybrid networks)."""
    op = getattr(onnxscript, f"opset{opset}")

    def quantize(x: Any, scale: Any, zero_point: Any) -> Any:
        return op.QuantizeLinear(x, scale, zero_point)

    def dequantize(q: Any, scale: Any, zero_point: Any = None) -> Any:
        if zero_point is None:  # a weight (in, out), with a scale for each output
            return op.DequantizeLinear(q, scale, axis=1)
        return op.DequantizeLinear(q, scale, zero_point)

    def group_norm(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = True) -> Any:
        # ONNX's shape inference knows no GroupNormalization.
        ones, zeros = (op.Constant(value_floats=[value] * groups) for value in (1.0, 0.0))
        normed = op.Reshape(op.InstanceNormalization(op.Reshape(x, [0, groups, -1]), ones, zeros, epsilon=eps), op.Shape(x))
        for values, apply in ((weight, op.Mul), (bias, op.Add)):
            normed = normed if values is None else apply(normed, op.Unsqueeze(values, list(range(1, len(x.shape) - 1))))
        return normed

    operations = torch.ops.edge_tprune
    return {
        torch.ops.aten.group_norm.default: group_norm,
        operations.quantize.default: quantize,
        operations.dequantize.default: dequantize,
    }


def export(pruned: PrunedViT, form: Form, batch: int, image_shape: tuple[int, int, int]) -> onnx.ModelProto:
    """The module, in its precision, as an ONNX model with its weights inside.

    Input `image` (batch, 3, H, W) and the output, which is called what it is ("logits", "embedding", ...), are float32.

    Raises:
        GraphError: where the graph holds a node that is not static or not plain, its token counts are not the schedule's, or it computes in
            another precision than the module's.
    """
    previous, pruned.attention = pruned.attention, form.attention
    own = is_own(registry.any_method(pruned.method))
    translated = pruned.precision.integers or any(isinstance(module, torch.nn.GroupNorm) for module in pruned.modules())
    try:
        # Of what a user's method does wrong, torch prints the whole graph.
        silent = redirect_stderr(io.StringIO()) if own else nullcontext()
        with torch.no_grad(), warnings.catch_warnings(), quick_exporter(), silent:
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                pruned,
                (torch.zeros(batch, *image_shape),),
                dynamo=True,
                opset_version=form.opset,
                input_names=[INPUT],
                output_names=[UNNAMED],
                custom_translation_table=_translations(form.opset) if translated else None,
                verbose=False,
            )
    except Exception as error:
        if not own:
            raise
        raise UserError(describe_failure(pruned.method, error)) from error
    finally:
        pruned.attention = previous
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    name_outputs(model, {UNNAMED: pruned.output})
    shape_maps(model)
    if pruned.precision.name == DEFAULT:
        fold(model)
        if form.rows:
            write_rows(model, infer_values(model))
    name_nodes(model)
    try:
        check(model, pruned.schedule, pruned.precision)
    except GraphError as error:
        if not own:
            raise
        raise UserError(f"method {pruned.method} has no static graph: {error}") from error
    return model


def describe_cause(error: BaseException) -> str:
    """The first cause of what PyTorch's exporter raised, in a line: "TypeError: ..."."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())[:200]
    return f"{type(error).__name__}: {text}"


def describe_failure(method: str, error: Exception) -> str:
    """Why a method of one's own cannot be exported: the cause, of which torch's exporter says more than a screen."""
    return (
        f"method {method} cannot be exported ({describe_cause(error)}): no shape and no branch may depend on an image. "
        "Use operations on tensors alone"
    )


def name_outputs(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Calls outputs what they are, and values of those names otherwise: the exporter calls every table's look-up an embedding.

    Args:
        model: as it was exported.
        names: what an output was called while it was exported -> its name.
    """
    graph = model.graph
    outside = (*graph.input, *graph.output, *graph.initializer)
    used = {value.name for value in outside} | {name for node in graph.node for name in node.output}
    renamed = dict(names)
    for name in used & set(names.values()) - set(names):
        other = f"{name}_value"
        while other in used or other in names.values():
            other += "_"
        renamed[name] = other
        used.add(other)
    for node in graph.node:
        for values in (node.input, node.output):
            for place, value in enumerate(values):
                values[place] = renamed.get(value, value)
    for value in (*outside, *graph.value_info):
        value.name = renamed.get(value.name, value.name)


def shape_maps(model: onnx.ModelProto) -> None:
    """Says the shape of every map of an attention with bias in a Reshape, which moves nothing.

    ONNX Runtime 1.23 (the last for Python 3.10) takes such a map for a scalar, and refuses what reads it.
    """
    nodes = enumerate(model.graph.node)
    maps = [place for place, node in nodes if node.op_type == "Attention" and any(node.input[3:4]) and any(node.output[3:4])]
    values = infer_values(model) if maps else {}
    for inserted, place in enumerate(maps):
        node = model.graph.node[place + inserted]
        bare, shaped = node.output[3] + "_bare", node.output[3]
        node.output[3] = bare
        model.graph.initializer.append(numpy_helper.from_array(np.array(values[shaped][1], np.int64), shaped + "_shape"))
        reshape = onnx.helper.make_node("Reshape", [bare, shaped + "_shape"], [shaped])
        reshape.metadata_props.extend(node.metadata_props)
        model.graph.node.insert(place + inserted + 1, reshape)


def name_nodes(model: onnx.ModelProto) -> None:
    """Names every node after the module it came from, so that a profile of the graph reads like the network, and drops the rest.

    The exporter's metadata (stack traces, scopes) would be two thirds of the file.
    """
    for number, node in enumerate(model.graph.node):
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
        parts = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
        module = parts[-2] if len(parts) >= 2 and parts[-2] else "model"
        node.name = f"{module}/{node.op_type}_{number}"
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.graph.name = "edge_tprune"
    model.graph.doc_string = ""


def check(model: onnx.ModelProto, schedule: tuple[int, ...], precision: Precision) -> None:
    """Holds a graph against the promises: plain static nodes, the schedule's token counts, the precision where it belongs.

    Raises:
        GraphError: naming the first broken promise.
    """
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in FORBIDDEN or node.domain not in ("", "ai.onnx"):
            raise GraphError(
                f"the graph contains {node.domain or 'ai.onnx'}::{node.op_type} ({node.name}), which is not a plain static operation"
            )
        if node.op_type == "TopK":
            count = constants.get(node.input[1])
            if count is None or int(numpy_helper.to_array(count).item()) > MAX_TOPK:
                raise GraphError(f"{node.name}: TopK needs a constant count of at most {MAX_TOPK}")
    values = infer_values(model)
    realised = _tokens_after_blocks(model, values, len(schedule))
    if realised != tuple(schedule):
        raise GraphError(f"the graph keeps {list(realised)} tokens after its blocks, but the schedule says {list(schedule)}")
    _check_precision(model, values, precision)
    _check_integers(model, precision.integers)


_PRODUCTS = {"MatMul", "Gemm", "Conv"}
_NETWORK = ("model.patch_embed.proj", "model.blocks.", "model.head")  # of nodes whose products `Precision` speaks of
_HALF = {
    "Add",
    "Cast",
    "Concat",
    "Div",
    "Erf",
    "Expand",
    "Gather",
    "Mul",
    "Neg",
    "Reshape",
    "Sigmoid",
    "Slice",
    "Split",
    "Squeeze",
}
_HALF |= {"Sub", "Tanh", "Transpose", "Unsqueeze"} | _PRODUCTS
"""What may touch half precision: products, sums, activations, and what moves data. Not: norms, softmax, sums over tokens, comparisons, roots."""
_MOVES = {"Cast", "Concat", "Expand", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


def _check_precision(model: onnx.ModelProto, values: Values, precision: Precision) -> None:
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for value in (*model.graph.input, *model.graph.output):
        if values[value.name][0] != single:
            raise GraphError(f"the graph's {value.name} is not float32")
    for node in model.graph.node:
        types = {values[name][0] for name in (*node.input, *node.output) if name in values}
        if half in types:
            allowed = set() if precision.products == torch.float32 else _MOVES if node.name.startswith("reducers.") else _HALF
            if node.op_type not in allowed:
                raise GraphError(f"{node.name} computes in half precision, where {precision.name} asks for float32")
        elif precision.products == torch.float16 and node.op_type in _PRODUCTS and node.name.startswith(_NETWORK):
            raise GraphError(f"{node.name} computes in float32, where {precision.name} asks for half precision")


def _check_integers(model: onnx.ModelProto, wanted: bool) -> None:
    """Both operands of a product are integers, or neither; nothing but products reads integers."""
    dequantized: set[str] = set()
    found = 0
    for node in model.graph.node:
        integer = [name in dequantized for name in node.input]
        if node.op_type == "DequantizeLinear" or (node.op_type == "Cast" and all(integer)):  # to half precision
            dequantized.update(node.output)
            continue
        if any(integer) and not (node.op_type == "MatMul" and all(integer)):
            raise GraphError(f"{node.name} reads integers, which only products of integers may")
        found += any(integer)
    if wanted != bool(found):
        raise GraphError(f"the graph has {found} products of integers")


def infer_values(model: onnx.ModelProto) -> Values:
    """Element type and shape of every value, by ONNX's own inference."""
    with _without_weights(model):
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
    del bare.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True).graph
    values = {t.name: (t.data_type, tuple(t.dims)) for t in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        values[value.name] = tensor.elem_type, tuple(d.dim_value for d in tensor.shape.dim)
    return values


@contextmanager
def _without_weights(model: onnx.ModelProto) -> Iterator[None]:
    """A model without the data of its large tensors, which no shape depends on: copying them takes longer than all the rest."""
    data = {tensor.name: tensor.raw_data for tensor in model.graph.initializer if len(tensor.raw_data) >= _INLINE_BYTES}
    for tensor in model.graph.initializer:
        if tensor.name in data:
            tensor.ClearField("raw_data")
    try:
        yield
    finally:
        for tensor in model.graph.initializer:
            if tensor.name in data:
                tensor.raw_data = data[tensor.name]


def _tokens_after_blocks(model: onnx.ModelProto, values: Values, blocks: int) -> tuple[int, ...]:
    """The token counts that a graph realises.

    Raises:
        GraphError: where a shape is not static or a block has no MLP.
    """
    return tuple(tokens_in_mlp(model, values, f"model.blocks.{block}", block) for block in range(blocks))


def tokens_in_mlp(model: onnx.ModelProto, values: Values, path: str, block: int) -> int:
    """How many tokens the MLP of the block at `path`, which is number `block` from 0, works on.

    Raises:
        GraphError: where a shape is not static or a block has no MLP.
    """
    batch, seen = values[model.graph.input[0].name][1][0], set()
    for node in model.graph.node:
        if not node.name.startswith(f"{path}.mlp"):
            continue
        for shape in (values[name][1] for name in node.output if name in values):
            if len(shape) == 3:
                seen.add(shape[1])
            elif len(shape) == 2 and node.op_type in _PRODUCTS:  # of rows
                seen.add(shape[0] // batch)
    if len(seen) != 1 or 0 in seen:
        raise GraphError(
            f"the token count after block {block + 1} cannot be read from the graph: its MLP works on {sorted(seen) or 'nothing'}"
        )
    return seen.pop()


@dataclass
class SharedWeights:
    """Writes tensors into one stream, each distinct one once."""

    stream: IO[bytes]
    file_name: str
    offsets: dict[str, int] = field(default_factory=dict)

    def externalise(self, model: onnx.ModelProto) -> None:
        """Moves a model's large tensors into the shared file, from where they can be read now; the model refers to it by relative name."""
        for tensor in model.graph.initializer:
            data = tensor.raw_data or np.ascontiguousarray(numpy_helper.to_array(tensor)).tobytes()
            if len(data) < _INLINE_BYTES:
                continue
            key = hashlib.sha256(data).hexdigest()
            if key not in self.offsets:
                self.stream.write(b"\0" * (-self.stream.tell() % (_PAGE if len(data) >= _PAGE else _LINE)))
                self.offsets[key] = self.stream.tell()
                self.stream.write(data)
            onnx.external_data_helper.set_external_data(tensor, self.file_name, self.offsets[key], len(data))
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
        self.stream.flush()


def save(model: onnx.ModelProto, path: Path) -> None:
    """Writes a graph whose weights were externalised."""
    path.write_bytes(model.SerializeToString())
