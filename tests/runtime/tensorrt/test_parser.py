"""Every method's graph in every precision, held against NVIDIA's own parser and builder.

TensorRT-RTX parses and builds on a machine without a GPU. What it parsed is read back layer by layer: a strongly typed network has no other types
than these.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from edge_tprune.export.graph import FORMS, export
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.reduction.precision import HALF_INTEGERS, PRECISIONS
from edge_tprune.reduction.quantization import quantizable, quantize_layers
from tests.runtime.tensorrt.rtx import Parsed, trt

TOKENS, SCHEDULE = 17, (11, 11)  # the second block has what a reduction leaves behind: sizes in its logits
MOVES = {"CAST", "CONCATENATION", "GATHER", "SHUFFLE", "SLICE", "SQUEEZE", "UNSQUEEZE", "CONSTANT"}
#: Once for every attention that became one kernel, in the source text that this version of the library puts into its plans.
FUSED = b"struct _gemm_mha_v2_params_t"


@lru_cache(maxsize=1)
def vit() -> VisionTransformer:
    torch.manual_seed(0)
    return (
        VisionTransformer(img_size=32, patch_size=8, num_classes=7, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2)
        .eval()
        .requires_grad_(False)
    )


@lru_cache(maxsize=1)
def integer_vit() -> nn.Module:
    return quantize_layers(vit(), dict.fromkeys(quantizable(vit()), (-4.0, 4.0)), FORMS["tensorrt"].inputs)


def parse(method: str, precision: str, batch: int = 1, **options: object) -> Parsed:
    schedule = (TOKENS,) * 2 if method == "none" else SCHEDULE
    network, computes = (integer_vit(), HALF_INTEGERS) if precision == "int8" else (vit(), PRECISIONS[precision])
    pruned = PrunedViT(network, registry.method(method), schedule, options, computes)
    return Parsed.of(export(pruned, FORMS["tensorrt"], batch, (3, 32, 32)))


@pytest.mark.parametrize(
    ("method", "precision"),
    [(method, "int8") for method in sorted(registry.methods())]
    + [(method, "fp16") for method in ("bat", "zero_tprune")]
    + [(method, precision) for method in ("bat", "zero_tprune") for precision in ("fp32", "mixed")],
)
def test_every_method_becomes_what_was_asked(method: str, precision: str) -> None:
    """All in int8, which is fp16 but for the blocks' Linears: most operators change their type. That TensorRT reads their graphs in float32: `test_export`."""
    found = parse(method, precision)
    network = found.network
    image, logits = network.get_input(0), network.get_output(0)
    assert (network.num_inputs, network.num_outputs) == (1, 1)
    assert (image.name, tuple(image.shape), image.dtype) == ("image", (1, 3, 32, 32), trt.float32)
    assert (logits.name, tuple(logits.shape), logits.dtype) == ("logits", (1, 7), trt.float32)
    half = trt.float32 if precision == "fp32" else trt.float16
    if precision == "int8":
        check_integers(found)
    seen: dict[int, set[int]] = {0: set(), 1: set()}
    kinds = set()
    for kind, name, inputs, outputs in found.layers():
        kinds.add(kind)
        assert "PLUGIN" not in kind, name
        assert kind not in ("LOOP", "IF_CONDITION", "RECURRENCE", "NON_ZERO", "SCATTER"), name
        for tensor in (*inputs, *outputs):
            assert all(size > 0 for size in tensor.shape), f"{name} has a shape that is not static: {tuple(tensor.shape)}"
        types = {t.dtype for t in (*inputs, *outputs)}
        if kind in ("SOFTMAX", "NORMALIZATION", "TOPK", "REDUCE") or (name.startswith("reducers.") and kind not in MOVES):
            assert trt.float16 not in types, f"{name} ({kind}) computes in half precision"
        if kind in ("MATRIX_MULTIPLY", "CONVOLUTION") and name.startswith(("model.blocks.", "model.patch_embed", "model.head")):
            assert types == {half}, f"{name} computes in {types}"
        for block in seen:
            if name.startswith(f"model.blocks.{block}.mlp"):
                seen[block] |= {
                    t.shape[-2] for t in outputs if len(t.shape) == 3 and t.shape[-2] != 1 and "Broadcast" not in name
                }
    assert {"SOFTMAX", "NORMALIZATION"} <= kinds
    expected = (TOKENS,) * 2 if method == "none" else SCHEDULE
    assert [seen[0], seen[1]] == [{expected[0]}, {expected[1]}], "tokens after each block, in the network as TensorRT reads it"
    read_by_norm = next(i for kind, name, i, _ in found.layers() if name.startswith("model.blocks.1.norm1"))
    assert (read_by_norm[0].dtype == trt.float16) == (precision in ("fp16", "int8")), "the residual stream's type"
    if fused := found.build().count(FUSED):
        maps = registry.ATTENTION in registry.method(method).needs
        assert fused == len(SCHEDULE) - maps, "attention stays one kernel, softmax in float32 or not, unless its map is read"


def check_integers(found: Parsed) -> None:
    """Of the layers, read back: every product of a block's Linears reads two dequantized operands, and nothing else is quantized."""
    layers = list(found.layers())
    source = {tensor.name: (kind, inputs) for kind, _, inputs, outputs in layers for tensor in outputs}

    def origin(name: str) -> str:
        kind, inputs = source.get(name, ("INPUT", []))
        return origin(inputs[0].name) if kind in ("CAST", "SHUFFLE") else kind

    quantized = [name for kind, name, _, outputs in layers if kind == "QUANTIZE" and outputs[0].dtype == trt.int8]
    products = [
        name for kind, name, inputs, _ in layers if kind == "MATRIX_MULTIPLY" and origin(inputs[0].name) == "DEQUANTIZE"
    ]
    assert all(
        origin(inputs[1].name) == "DEQUANTIZE"
        for kind, name, inputs, _ in layers
        if kind == "MATRIX_MULTIPLY" and name in products
    )
    linears = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    for names in (quantized, products):
        assert {name.partition("/")[0] for name in names} >= {
            f"model.blocks.{b}.{part}" for b in (0, 1) for part in linears[1:]
        }
        assert not any("head" in name or "patch_embed" in name or name.startswith("reducers.") for name in names)
        assert 8 <= len(names) <= 10, "a fused qkv may be two products, each of a part"


@pytest.mark.parametrize("method", [name for name, method in sorted(registry.methods().items()) if method.faithful])
def test_every_faithful_form_builds(method: str) -> None:
    found = parse(method, "fp16", faithful=True)
    assert tuple(found.network.get_output(0).shape) == (1, 7)
    found.build()


@pytest.mark.parametrize("merge", [True, False])
def test_a_batch_builds(merge: bool) -> None:
    found = parse("zero_tprune", "fp16", batch=3, merge=merge)
    assert tuple(found.network.get_output(0).shape) == (3, 7)
    found.build()
