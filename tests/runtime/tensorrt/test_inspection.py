"""Engines read from what TensorRT's inspector prints. No GPU here: the layers below follow the form of published inspector output
(NVIDIA/TensorRT issues 4020 and 4397), shortened."""

from __future__ import annotations

from typing import Any

import pytest

from edge_tprune.runtime.tensorrt.inspection import describe_engine, describe_engine_file, slowest
from edge_tprune.runtime.tensorrt.record import EngineDescription


def layer(name: str, kind: str = "Half", tactic: str = "", metadata: str = "", key: str = "Format/Datatype") -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": "gemm",
        "Inputs": [{"Name": "in", "Dimensions": [1, 197, 384], key: kind}],
        "Outputs": [{"Name": "out", "Dimensions": [1, 197, 384], key: kind}],
        "TacticName": tactic,
        "StreamId": 0,
        "Metadata": metadata,
    }


ENGINE = [
    layer(
        "model.blocks.0.attn.qkv/MatMul_6_myl0_1",
        metadata="[ONNX Layer: model.blocks.0.attn.qkv/MatMul_6][ONNX Layer: model/Split_8]",
    ),
    layer(
        "_gemm_mha_v2_myl0_2",
        tactic="_gemm_mha_v2_0x1fa3",
        metadata="[ONNX Layer: model/MatMul_16][ONNX Layer: model/Softmax_17]",
    ),
    layer(
        "__myl_AddCastMeanSub_myl0_3",
        "Float",
        "__myl_AddCastMeanSub_0x52",
        "[ONNX Layer: model.blocks.0.norm2/LayerNormalization_24]",
    ),
    layer("model.blocks.1.attn.qkv/MatMul_36_myl0_4", metadata="[ONNX Layer: model.blocks.1.attn.qkv/MatMul_36]"),
    layer("model/MatMul_46_myl0_5", "Row major linear FP16 format", "sm80_xmma_gemm_f16f16"),
    layer("__myl_MaxSubExp_myl0_6", "Row major linear FP32", "__myl_MaxSubExp_0x1"),
    layer("model.blocks.2.attn.qkv/MatMul_66_myl0_7", "Half", "sm80_xmma", "[ONNX Layer: model.blocks.2.attn.qkv/MatMul_66]"),
    layer("model.blocks.2.attn/fmha", "Half", "fmha_v2_flash_attention_fp16_S_64_sm86_kernel"),
    layer("reducers.4/TopK_159", "Int64"),
]


def test_precision_and_fused_attention() -> None:
    found = describe_engine(ENGINE)
    assert found.layers == 9
    assert found.fp16_layers_percent == pytest.approx(100 * 6 / 8)  # the indices are neither
    assert found.fused_attention == 2
    assert found.fused_attention_blocks == (0, 2)


def test_a_name_from_the_graph_is_no_kernel() -> None:
    assert describe_engine([layer("encoder.mha.query/MatMul_myl0_9", tactic="sm80_xmma_gemm")]).fused_attention == 0
    assert describe_engine([layer("encoder.mha.query/MatMul_myl0_9")]).fused_attention == 0


def test_what_the_inspector_does_not_say_is_unknown_not_zero() -> None:
    names_only = [{"Name": "a"}, {"Name": "_gemm_mha_v2_myl0_2"}]
    found = describe_engine(names_only)
    assert found.fp16_layers_percent is None
    assert found.fused_attention == 1
    assert found.fused_attention_blocks == ()
    assert describe_engine([]).fp16_layers_percent is None


def test_an_engine_file_without_source_text_tells_nothing() -> None:
    assert describe_engine_file(b"\x00binary kernels") is None
    assert describe_engine_file(b"using __myln_half = __half;") == EngineDescription(
        layers=None, fp16_layers_percent=None, fused_attention=0, fused_attention_blocks=None
    )


def test_newer_releases_call_the_data_type_otherwise() -> None:
    assert describe_engine([layer("a", "Half", key="Datatype"), layer("b", "FP32", key="Datatype")]).fp16_layers_percent == 50


def test_slowest_first() -> None:
    assert slowest({"a": 0.1, "b": 0.5, "c": 0.2}, 2) == [("b", 0.5), ("c", 0.2)]
