"""Folded graphs against `Preprocessing`, which gives the bits of timm's transform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_sample_images

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.errors import UserError
from edge_tprune.export.formats.graphs import add_top_k, fold_preprocessing, fold_scale, opset, read_graph
from edge_tprune.models.preprocess import Preprocessing
from edge_tprune.runtime.tensorrt.library import Library


def run(model: onnx.ModelProto, batch: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: batch}))


def passing(preprocessing: Preprocessing, half: bool = False) -> onnx.ModelProto:
    """A graph that hands on its image: a convolution of size 1 with the unit matrix."""
    channels, height, width = preprocessing.input_size
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    unit = np.eye(channels, dtype=np.float16 if half else np.float32)[:, :, None, None]
    nodes = [helper.make_node("Cast", ["image"], ["cast"], to=kind)] if half else []
    nodes.append(helper.make_node("Conv", ["cast" if half else "image", "unit"], ["output"]))
    shape = [1, channels, height, width]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", kind, shape)],
        [numpy_helper.from_array(unit, "unit")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def make(**changes: Any) -> Preprocessing:
    record: dict[str, Any] = {
        "input_size": [3, 224, 224],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "crop_mode": "center",
    }
    return msgspec.convert(record | changes, Preprocessing)


PREPARED = [
    make(),
    make(crop_pct=0.9, interpolation="bilinear"),
    make(input_size=[3, 224, 160], crop_pct=1.0),
    make(crop_mode="squash"),
    make(crop_mode="border", crop_pct=0.9, mean=[0.5, 0.4, 0.3]),
]


@pytest.mark.parametrize("preprocessing", PREPARED, ids=["center", "bilinear", "not square", "squash", "border"])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_a_photograph_is_prepared_as_pillow_and_timm_do(preprocessing: Preprocessing, order: str) -> None:
    photograph = load_sample_images().images[0]
    model = passing(preprocessing)
    fold_preprocessing(model, preprocessing, photograph.shape[:2], order)
    frame = photograph if order == "rgb" else photograph[..., ::-1]
    (found,) = run(model, frame[None])
    expected = preprocessing(Image.fromarray(photograph))
    levels = np.abs(found[0] - expected) * 255 * np.array(preprocessing.std)[:, None, None]  # of 0 to 255
    assert levels.max() < 1.01
    assert (levels > 0.01).mean() < 0.005


def test_half_precision_keeps_its_weights_and_the_pixels_are_normalised_in_float32() -> None:
    preprocessing, photograph = make(), load_sample_images().images[1]
    model = passing(preprocessing, half=True)
    fold_preprocessing(model, preprocessing, photograph.shape[:2])
    (found,) = run(model, photograph[None])
    assert found.dtype == np.float16
    np.testing.assert_allclose(found[0], preprocessing(Image.fromarray(photograph)), atol=0.03)
    assert [t.data_type for t in model.graph.initializer if t.name == "unit"] == [TensorProto.FLOAT16]


def test_another_scale_of_the_input_is_exact(built: Path) -> None:
    bundle = Bundle.open(built)
    golden = bundle.golden()
    scale, offset = np.array([0.5, 2.0, 3.0]), np.array([1.0, -2.0, 0.25])
    for runtime in ("onnxruntime", "tensorrt"):
        model = read_graph(bundle, bundle.budget("0.6").artifact(runtime))
        fold_scale(model, scale, offset)
        (found,) = run(model, (golden.images[0] / scale[:, None, None] + offset[:, None, None]).astype(np.float32))
        np.testing.assert_allclose(found, golden.outputs["0.6"][0], atol=1e-3)
        assert all(tensor.name != "model.patch_embed.proj.weight" for tensor in model.graph.initializer)


def test_the_graph_has_its_weights_inside(built: Path) -> None:
    bundle = Bundle.open(built)
    model = read_graph(bundle, bundle.budget("0.6").artifact("tensorrt"))
    assert (opset(model), model.ir_version) == (18, 8)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    golden = bundle.golden()
    np.testing.assert_allclose(run(model, golden.images[0])[0], golden.outputs["0.6"][0], atol=1e-4)


def test_the_best_classes_in_the_graph(built: Path) -> None:
    bundle = Bundle.open(built)
    golden = bundle.golden()
    model = read_graph(bundle, bundle.budget("1.0").artifact("onnxruntime"))
    add_top_k(model, 4)
    probabilities, classes = run(model, golden.images[0])
    logits = golden.outputs["1.0"][0].astype(np.float64)
    exact = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_array_equal(classes, np.argsort(-exact, axis=1)[:, :4])
    np.testing.assert_allclose(probabilities, -np.sort(-exact)[:, :4], atol=1e-5)
    for count in (0, 7):
        with pytest.raises(UserError, match="has 6 classes"):
            add_top_k(read_graph(bundle, bundle.budget("1.0").artifact("onnxruntime")), count)


def test_graphs_of_others_that_do_not_say_enough_are_refused(built: Path) -> None:
    bundle = Bundle.open(built)
    model = read_graph(bundle, bundle.budget("1.0").artifact("onnxruntime"))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UserError, match="does not say how many images and classes"):
        add_top_k(model, 4)
    model = passing(make())
    weight = model.graph.node[0].input[1]
    model.graph.node.append(helper.make_node("Identity", [weight], ["computed"]))
    model.graph.node[0].input[1] = "computed"
    with pytest.raises(UserError, match="weights of the graph's patch embedding are computed"):
        fold_scale(model, np.ones(3), np.zeros(3))


def test_a_padding_convolution_is_refused() -> None:
    model = passing(make())
    model.graph.node[0].attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
    with pytest.raises(UserError, match="without padding"):
        fold_scale(model, np.ones(3), np.zeros(3))


def test_nvidias_parser_takes_frames_and_best_classes(built: Path, rtx: Library) -> None:
    bundle, module = Bundle.open(built), rtx.module
    model = read_graph(bundle, bundle.budget("0.6").artifact("tensorrt"))
    fold_preprocessing(model, bundle.manifest.preprocessing, (48, 64))
    add_top_k(model, 3)
    builder = module.Builder(module.Logger(module.Logger.ERROR))
    network = builder.create_network(0)
    parser = module.OnnxParser(network, module.Logger(module.Logger.ERROR))
    assert parser.parse(model.SerializeToString()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    assert tuple(network.get_input(0).shape) == (1, 48, 64, 3)
    assert [network.get_output(i).name for i in range(network.num_outputs)] == ["probabilities", "classes"]
