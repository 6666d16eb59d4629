"""A network with a pruned ViT inside: its one graph, and how far its answers move."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import edge_tprune
from edge_tprune.errors import InternalError, UserError
from edge_tprune.export import network as module
from edge_tprune.models.loading import LoadedModel
from tests.small import decide, mix_to_ties

PATH = "backbone.encoder"


class Depth(nn.Module):
    """Two heads over maps of a ViT."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        encoder = timm.create_model("test_vit", img_size=64, num_classes=0)
        self.backbone = nn.ModuleDict({"encoder": encoder})
        self.head = nn.Conv2d(2 * encoder.num_features, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        maps: Any = self.backbone["encoder"].forward_intermediates(x, indices=2, intermediates_only=True)  # type: ignore[operator]
        depth = functional.interpolate(self.head(torch.cat(maps, 1)), scale_factor=4.0, mode="bilinear")
        pooled = maps[-1].mean((2, 3))
        return {"depth": depth, "parts": (pooled, pooled.argmax(1)), "nothing": None}


@pytest.fixture(scope="module")
def network() -> Depth:
    return Depth().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_one_graph_answers_as_pytorch_does(network: Depth, images: Tensor, tmp_path: Path) -> None:
    """The one for TensorRT; `examples/depth_network.py`, which is tested too, makes the one for ONNX Runtime."""
    pruned = edge_tprune.prune_in(network, PATH, method="evit", budget=0.7)
    file = tmp_path / "depth.onnx"
    done = edge_tprune.export_network(pruned, torch.split(images, 1), file, runtime="tensorrt")
    assert [path.name for path in tmp_path.iterdir()] == ["depth.onnx"]
    assert done.outputs == {"depth": (1, 1, 16, 16), "parts_0": (1, 64), "parts_1": (1,)}
    assert (done.images, done.left_out) == (3, 0)
    assert done.schedules == {PATH: pruned.get_submodule(PATH).schedule}
    session = onnxruntime.InferenceSession(file)
    for image in torch.split(images, 1):
        found = dict(zip(done.outputs, session.run(list(done.outputs), {"image": image.numpy()})))
        with torch.no_grad():
            expected = pruned(image)
        np.testing.assert_allclose(found["depth"], expected["depth"].numpy(), rtol=0, atol=1e-5)
        np.testing.assert_array_equal(found["parts_1"], expected["parts"][1].numpy())
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        from tests.runtime.tensorrt.rtx import Parsed

        parsed = Parsed.of(onnx.load(file)).network
        assert [parsed.get_output(number).name for number in range(3)] == list(done.outputs)


def test_another_graph_is_not_written(images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, file = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)).eval(), tmp_path / "head.onnx"
    write = module._save

    def damaged(model: onnx.ModelProto, path: Path) -> None:
        next(t for t in model.graph.initializer if t.name.endswith("bias")).raw_data = np.array([9, 9], np.float32).tobytes()
        write(model, path)

    monkeypatch.setattr(module, "_save", damaged)
    with pytest.raises(InternalError, match="not the same network: output is off by"):
        edge_tprune.export_network(head, images[:1], file)
    for difference in (1.0, float("nan")):
        monkeypatch.setattr(module, "_difference", lambda found, expected, moved=difference: moved)
        with pytest.raises(UserError, match="Sequential answers otherwise the second time"):
            edge_tprune.export_network(head, images, file)
    assert not list(tmp_path.iterdir())


def test_images_whose_tokens_tie_prove_nothing(loaded: LoadedModel, tmp_path: Path) -> None:
    pruned = decide(loaded, "evit", budgets=[0.75], blocks=[2]).budgets[0].module
    images = torch.randn(48, 3, 48, 48, generator=torch.Generator().manual_seed(7))
    tied = mix_to_ties(pruned, images)
    assert len(tied) >= 12
    done = edge_tprune.export_network(pruned, torch.split(torch.cat([tied, images]), 1), tmp_path / "vit.onnx")
    assert len(tied) <= done.left_out <= len(tied) + 4


class Dynamic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


class Text(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "x"


class Twice(nn.Module):
    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Any:
        return torch.utils._pytree.tree_map(lambda factor: x * factor, self.outputs)


def test_mistakes_are_one_clear_line(network: Depth, images: Tensor, tmp_path: Path) -> None:
    file, pipe, in_part = tmp_path / "x.onnx", tmp_path / "pipe.onnx", Depth().eval()
    os.mkfifo(pipe)
    in_part.head.train()
    cases: list[tuple[nn.Module, Any, Any, dict[str, Any], str]] = [
        (Depth(), images, file, {}, "Depth is in training mode"),
        (network, images, tmp_path / "x.pt", {}, "ends in .onnx"),
        (network, images, tmp_path / "no" / "x.onnx", {}, "is no directory"),
        (network, [], file, {}, "give a batch of images"),
        (network, [images, images[:1]], file, {}, "several of one shape"),
        (network, images, file, {"runtime": "tensort"}, "Did you mean tensorrt"),
        (Dynamic().eval(), images, file, {}, "Dynamic cannot be exported|not a plain static operation"),
        (Text().eval(), images, file, {}, "and this one a str"),
        (Twice({"a_b": 1, "a": {"b": 2}}).eval(), images, file, {}, "2 outputs of Twice would be called 'a_b'"),
        (Twice({"image": 1}).eval(), images, file, {}, "an output of Twice is called 'image', as the graph's input is"),
        (Twice({"a": float("nan")}).eval(), images, file, {}, "a of Twice is NaN or infinite"),
        (network, torch.full_like(images, torch.nan), file, {}, "image 0 has a value that is NaN"),
        (network, ["x"], file, {}, "give a batch of images"),
        (network, images, file, {"tolerance": float("nan")}, "tolerance is nan"),
        (network, images, pipe, {}, "a graph is a file"),
        (in_part, images, file, {}, r"head \(Conv2d\) is in training mode"),
    ]
    for given, batch, where, arguments, says in cases:
        with pytest.raises(UserError, match=says):
            edge_tprune.export_network(given, batch, where, **arguments)
    assert list(tmp_path.iterdir()) == [pipe]
    with pytest.raises(UserError, match=r"head \(Conv2d\) is in training mode"):
        edge_tprune.network_error(network, in_part, [images])


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


class Named(nn.Module):
    """A ViT that is called by the second of its names."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("test_vit", img_size=64, num_classes=10)
        self.features = self.backbone

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.features(x)
        return out


@pytest.mark.parametrize("path", ["backbone", "features"])
def test_a_vit_of_two_names_is_pruned_under_both(images: Tensor, tmp_path: Path, path: str) -> None:
    network = Named().eval()
    pruned: Any = edge_tprune.prune_in(network, path, method="evit", budget=0.6)
    assert pruned.features is pruned.backbone
    assert edge_tprune.network_error(network, pruned, [images]).mean.value > 0
    schedules = edge_tprune.export_network(pruned, images, tmp_path / "x.onnx").schedules
    assert set(schedules.values()) == {pruned.features.schedule}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"network": "abc"}, "a str is no network"),
        ({"images": None}, "give a batch of images"),
        ({"images": np.zeros((1, 3, 64, 64))}, "give a batch of images"),
        ({"images": torch.zeros(0, 3, 64, 64)}, "give a batch of images"),
        ({"images": torch.zeros(3, 64, 64)}, "give a batch of images"),
        (
            {"images": torch.zeros(1, 3, 64, 64, dtype=torch.float64)},
            r"Depth fails on images \(1, 3, 64, 64\) of torch.float64",
        ),
        ({"file": None}, "no file can be called None"),
        ({"file": "a\0.onnx"}, "no file can be called"),
        ({"file": "a" * 300 + ".onnx"}, "no file can be called"),
        ({"runtime": []}, "unknown runtime"),
        ({"tolerance": "x"}, "tolerance is 'x'"),
        ({"tolerance": 10**400}, "tolerance is 1000"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"file": "/tmp/\udcff.onnx"}, "ONNX Runtime opens no file whose path is not UTF-8"),
        (
            {"images": torch.zeros(1, 3, 64, 64, dtype=torch.bfloat16)},
            r"of a kind that ONNX Runtime is not given \(torch.strided, torch.bfloat16\)",
        ),
        ({"images": torch.zeros(1, 3, 64, 64, device="meta")}, "of a kind that ONNX Runtime is not given"),
        ({"images": torch.zeros(1, 3, 64, 64).to_sparse()}, "of a kind that ONNX Runtime is not given"),
        ({"network": nn.Sequential(nn.Flatten(), Cast(torch.bfloat16)).eval()}, "output of Sequential is of torch.bfloat16"),
        ({"network": nn.Sequential(nn.Flatten(), Cast(torch.complex64)).eval()}, "output of Sequential is of torch.complex64"),
    ],
)
def test_arguments_of_another_type_are_one_clear_line(
    network: Depth, images: Tensor, tmp_path: Path, given: dict[str, Any], says: str
) -> None:
    right: dict[str, Any] = {"network": network, "images": images, "file": tmp_path / "x.onnx"}
    with pytest.raises(UserError, match=says):
        edge_tprune.export_network(**{**right, **given})


class Camera(nn.Module):
    """A network that takes bytes, and does what it must to them."""

    def __init__(self, vit: nn.Module, strict: bool) -> None:
        super().__init__()
        self.vit, self.strict = vit, strict

    def forward(self, x: Tensor) -> Tensor:
        if self.strict:
            assert x.dtype == torch.uint8
        result: Tensor = self.vit(x.float() / 255 if x.dtype == torch.uint8 else x)
        return result


@torch.inference_mode()
@pytest.mark.parametrize("strict", [False, True])
def test_ties_are_found_whatever_the_type_of_the_images(loaded: LoadedModel, tmp_path: Path, strict: bool) -> None:
    """Noise on bytes is none, or as much as a grey value."""
    pruned = decide(loaded, "evit", budgets=[0.75], blocks=[2]).budgets[0].module
    images = torch.randint(0, 256, (20, 3, 48, 48), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)
    done = edge_tprune.export_network(Camera(pruned, strict).eval(), torch.split(images, 1), tmp_path / "vit.onnx")
    assert done.left_out <= 4
    tied = mix_to_ties(pruned, images.float() / 255)
    assert len(tied)
    scaled = nn.Sequential(Scale(1 / 255), pruned).eval()
    left_out = edge_tprune.export_network(
        scaled, torch.split(torch.cat([tied * 255, images.float()]), 1), tmp_path / "b.onnx"
    ).left_out
    assert left_out >= len(tied) - 1, "a scale moves an image off its tie now and then"


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"network": None}, "a NoneType is no network"),
        ({"pruned": "x"}, "a str is no network"),
        ({"batches": None}, "give batches of images"),
        ({"batches": torch.zeros(1, 3, 64, 64)}, "give batches of images"),
        ({"batches": [torch.zeros(0, 3, 64, 64)]}, "give batches of images"),
        ({"batches": [torch.zeros(1, 3, 10, 10)]}, r"Depth fails on images \(1, 3, 10, 10\)"),
        ({"batches": []}, "no images to compare"),
        ({"batches": [torch.full((1, 3, 64, 64), float("nan"))]}, "an output is NaN or infinite"),
        ({"metric": 3}, "the metric is 3: give a function"),
        ({"metric": lambda found, expected: "x"}, "the metric fails"),
        ({"metric": lambda found, expected: found["no such"]}, "the metric fails"),
        ({"metric": lambda found, expected: [1.0, 2.0]}, r"the metric gave \(2,\) for"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(network: Depth, images: Tensor, given: dict[str, Any], says: str) -> None:
    right: dict[str, Any] = {"network": network, "pruned": network, "batches": [images]}
    with pytest.raises(UserError, match=says):
        edge_tprune.network_error(**{**right, **given})


def test_outputs_of_other_shapes_are_not_compared(images: Tensor) -> None:
    wide, narrow = Twice({"y": 1}).eval(), nn.Flatten().eval()
    with pytest.raises(UserError, match="give a metric"):
        edge_tprune.network_error(wide, narrow, [images])


class Looked(nn.Module):
    """A network whose outputs are called as the exporter calls other values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.places, self.head = nn.Conv2d(3, 4, 16, 16), nn.Embedding(16, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        pooled = (self.conv(x).flatten(2).transpose(1, 2) + self.places(torch.arange(16))).mean(1)
        scores = self.head(pooled)
        return {
            "add": scores,
            "embedding": pooled,
            "network.head.weight": pooled * 2,
            "again": scores,
            "graph_output_0": pooled.argmax(1),
        }


def test_outputs_may_be_called_as_other_values_of_the_graph(images: Tensor, tmp_path: Path) -> None:
    network = Looked().eval()
    edge_tprune.export_network(network, images, tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"))
    expected = network(images)
    assert [output.name for output in session.get_outputs()] == list(expected)
    for name, found in zip(expected, session.run(None, {"image": images.numpy()})):
        np.testing.assert_allclose(found, expected[name].detach().numpy(), atol=1e-5, err_msg=name)


def test_a_pruned_vit_that_is_called_twice_has_its_weights_once(images: Tensor, tmp_path: Path) -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = timm.create_model("test_vit", img_size=64, num_classes=0)

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x) - self.encoder(x.flip(-1))

    pruned = edge_tprune.prune_in(Siamese().eval(), "encoder", budget=0.7, method="bat")
    edge_tprune.export_network(pruned, images, tmp_path / "x.onnx")
    model = onnx.load(str(tmp_path / "x.onnx"))
    onnx.checker.check_model(model)
    weights = sum(parameter.nbytes for parameter in pruned.parameters())
    assert (tmp_path / "x.onnx").stat().st_size < 1.3 * weights


def test_an_output_whose_name_is_no_text_is_refused(images: Tensor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no UTF-8 text: rename its key"):
        edge_tprune.export_network(Twice({"\udc80": 1}).eval(), images, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_that_draws_random_numbers_is_refused_as_such(images: Tensor, tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    with pytest.raises(UserError, match="Noisy answers otherwise the second time"):
        edge_tprune.export_network(Noisy().eval(), images, tmp_path / "x.onnx")


def test_a_batch_that_gives_nan_is_refused_beside_one_that_does_not(images: Tensor, tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x.flatten(1).std(1)[:, None, None, None]

    with pytest.raises(UserError, match="output of Scaled is NaN or infinite"):
        edge_tprune.export_network(Scaled().eval(), [images, torch.zeros_like(images)], tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_images_may_be_part_of_a_training(network: Depth, images: Tensor, tmp_path: Path) -> None:
    pruned = edge_tprune.prune_in(network, PATH, method="evit", budget=0.7)
    assert edge_tprune.export_network(pruned, images.clone().requires_grad_(), tmp_path / "x.onnx").images == 3


@torch.no_grad()
def test_errors_are_those_of_a_slow_loop(network: Depth, images: Tensor) -> None:
    pruned = edge_tprune.prune_in(network, PATH, method="tome", budget=0.6)
    slow = []
    for image in torch.split(images, 1):
        off = size = 0.0
        found, expected = pruned(image), network(image)
        for one, other in ((found["depth"], expected["depth"]), (found["parts"][0], expected["parts"][0])):
            off += float((one - other).abs().sum())
            size += float(other.abs().sum())
        off += int(found["parts"][1] != expected["parts"][1])
        slow.append(off / (size + 1))
    error = edge_tprune.network_error(network, pruned, torch.split(images, 2))
    assert error.images == 3
    assert error.mean.value == pytest.approx(sum(slow) / 3, rel=1e-4)
    assert error.worst == pytest.approx(max(slow), rel=1e-4)
    assert edge_tprune.network_error(network, network, [images]).worst == 0
    own = edge_tprune.network_error(network, pruned, [images], lambda a, b: (a["depth"] - b["depth"]).abs().amax((1, 2, 3)))
    assert own.worst == pytest.approx(float((pruned(images)["depth"] - network(images)["depth"]).abs().max()))
    with pytest.raises(UserError, match=r"the metric gave \(\) for 3 images"):
        edge_tprune.network_error(network, pruned, [images], lambda a, b: a["depth"].mean())
    with pytest.raises(UserError, match="no images to compare"):
        edge_tprune.network_error(network, pruned, [])
