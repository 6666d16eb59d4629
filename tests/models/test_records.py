"""What stands beside the tensors: preprocessing and the names of the classes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from msgspec.structs import asdict
from PIL import Image
from safetensors.torch import save_file

from edge_tprune.errors import UserError
from edge_tprune.models.checkpoint import CONFIG
from edge_tprune.models.loading import LoadedModel, ModelOptions, load_model
from edge_tprune.models.records import to_config
from tests.models.files import saved
from tests.models.weights import NAME, State, is_loaded, state_of


def test_preprocessing_is_the_models_own() -> None:
    loaded = load_model("vit_small_patch16_384", "random")
    assert list(loaded.preprocessing.input_size) == [3, 384, 384]
    config = timm.data.resolve_model_data_config(loaded.model)
    wanted = timm.data.create_transform(**config, is_training=False)
    image = Image.effect_noise((500, 300), 60).convert("RGB")
    assert torch.equal(loaded.transform()(image), wanted(image))


def preprocessing(loaded: LoadedModel) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(loaded.preprocessing).items()}


def test_what_the_user_says_comes_before_the_checkpoint_and_that_before_timm(tmp_path: Path, state: State) -> None:
    args = argparse.Namespace(model=NAME, mean=[0.5, 0.5, 0.5], std=None, crop_pct=0.9, interpolation="")
    path = saved(tmp_path, {"state_dict": state, "args": args})
    loaded = load_model(NAME, options=ModelOptions(path, preprocessing={"crop_pct": 1.0, "interpolation": "bilinear"}))
    found = preprocessing(loaded)
    assert (found["mean"], found["crop_pct"], found["interpolation"]) == ([0.5] * 3, 1.0, "bilinear")
    assert found["std"] == list(timm.data.resolve_model_data_config(loaded.model)["std"])
    assert "training arguments in w.pth: mean 0.5,0.5,0.5, crop_pct 0.9" in " ".join(loaded.remarks)


def save_hub(folder: Path, state: State, config: dict[str, Any], **others: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    for name, document in others.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def test_a_directory_of_timms_hub_is_read_as_timm_does(tmp_path: Path) -> None:
    own = state_of(num_classes=3, global_pool="avg", img_size=96)
    config = {
        "architecture": NAME,
        "num_classes": 3,
        "model_args": {"global_pool": "avg", "img_size": 96},
        "label_names": ["ant", "bee", "cow"],
        "label_descriptions": {"ant": "an ant, insect", "bee": "a bee", "cow": "a cow"},
        "pretrained_cfg": {
            "num_classes": 3,
            "input_size": [3, 96, 96],
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "crop_pct": 1.0,
        },
    }
    hub = save_hub(tmp_path / "hub", own, config)
    reference = timm.create_model(f"local-dir:{hub}", pretrained=True)
    expected = timm.data.resolve_model_data_config(reference)
    for name, weights in ((NAME, hub), (f"local-dir:{hub}", None), (NAME, hub / "model.safetensors")):
        loaded = load_model(name, weights)
        assert loaded.name == NAME
        assert is_loaded(loaded.model, reference.state_dict())
        assert preprocessing(loaded) == {
            key: list(value) if isinstance(value, tuple) else value for key, value in expected.items()
        }
        assert loaded.class_names is not None
        assert loaded.class_names.names == ("ant", "bee", "cow")
        assert loaded.class_names.title(0) == "an ant"


def test_a_processor_of_transformers_beside_the_weights(tmp_path: Path, state: State) -> None:
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "size": {"height": 160, "width": 160}}
    hub = save_hub(tmp_path / "hub", state, {"id2label": {"0": "LABEL_0"}}, preprocessor_config=processor)
    found = preprocessing(load_model(NAME, hub))
    assert (found["mean"], found["interpolation"], found["crop_pct"], found["crop_mode"]) == (
        [0.5] * 3,
        "bilinear",
        1.0,
        "squash",
    )


@pytest.mark.parametrize(
    "record",
    [
        {"class_names": ["ant", "bee", "cow"]},
        {"class_to_idx": {"cow": 2, "ant": 0, "bee": 1}},
        {"idx_to_class": {0: "ant", 1: "bee", 2: "cow"}},
        {"meta": {"CLASSES": ("ant", "bee", "cow")}},
        {"hyper_parameters": {"class_names": ["ant", "bee", "cow"]}},
        {"args": argparse.Namespace(class_names=["ant", "bee", "cow"])},
    ],
)
def test_class_names_are_kept_from_the_checkpoints_own_record(tmp_path: Path, record: dict[str, Any]) -> None:
    loaded = load_model(NAME, saved(tmp_path, {"state_dict": state_of(num_classes=3), **record}))
    assert loaded.class_names is not None
    assert loaded.class_names.names == ("ant", "bee", "cow")
    assert "w.pth" in loaded.class_names.source


def test_class_numbers_without_end_are_no_class_numbers(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": state_of(num_classes=1), "class_names": {float("inf"): "a"}})
    assert load_model(NAME, path).class_names is None


def test_a_header_says_how_weights_are_loaded_as_a_directory_does(tmp_path: Path) -> None:
    """As of the fine-tuned weights of a model whose directory says it."""
    own = state_of(num_classes=3, img_size=96)
    config = {
        "architecture": NAME, "model_args": {"img_size": 96}, "label_names": ["ant", "bee", "cow"],
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.8, "input_size": [3, 96, 96]},
    }  # fmt: skip
    hub = save_hub(tmp_path / "hub", own, config)
    first = load_model(NAME, hub)
    said = to_config(first.name, first.arguments, first.preprocessing, first.class_names)
    save_file(own, tmp_path / "tuned.safetensors", {CONFIG: json.dumps(said)})
    for name in (NAME, f"local-dir:{hub}"):
        tuned = load_model(name, tmp_path / "tuned.safetensors")
        assert tuned.preprocessing == first.preprocessing
        assert tuned.arguments == first.arguments
        assert first.class_names is not None
        assert tuned.class_names is not None
        assert tuned.class_names.names == first.class_names.names
    save_file(own, tmp_path / "plain.safetensors")
    assert load_model(f"local-dir:{hub}", tmp_path / "plain.safetensors").preprocessing == first.preprocessing
    save_file(own, tmp_path / "damaged.safetensors", {CONFIG: "[" * 100_000})
    with pytest.raises(UserError, match=r"the configuration in \S*damaged.safetensors is not readable JSON"):
        load_model(NAME, tmp_path / "damaged.safetensors")


def test_records_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    state = state_of(num_classes=3)
    record = {"class_names": ["ant", "bee", "cow"], "class_to_idx": {"ant": 0, "bee": 2, "cow": 1}}
    with pytest.raises(UserError, match="contradicts itself: 'cow' is class 2 by class_names"):
        load_model(NAME, saved(tmp_path, {"state_dict": state, **record}))


def test_class_numbers_that_are_not_from_zero_on_are_not_used_and_said(tmp_path: Path) -> None:
    record = {"state_dict": state_of(num_classes=3), "class_to_idx": {"ant": 1, "bee": 2, "cow": 3}}
    loaded = load_model(NAME, saved(tmp_path, record))
    assert loaded.class_names is None
    assert "its class_to_idx numbers its classes 1 to 3, not each of 0 to 2: not used" in " ".join(loaded.remarks)


def test_class_names_of_another_number_are_not_used_and_said(tmp_path: Path) -> None:
    loaded = load_model(NAME, saved(tmp_path, {"state_dict": state_of(num_classes=4), "class_names": ["a", "b", "c"]}))
    assert loaded.class_names is None
    assert "its class_names has 3 entries and the model 4 classes: not used" in " ".join(loaded.remarks)


def test_a_class_map_against_the_checkpoints_names_says_so(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": state_of(num_classes=3), "class_names": ["bird", "cat", "dog"]})
    says = "'dog' is class 0 by --class-map map.txt, and class 2 by class_names"
    for text, expected in (("dog\ncat\nbird\n", says), ("bird\ncat\ndog\n", "")):
        (tmp_path / "map.txt").write_text(text)
        loaded = load_model(NAME, options=ModelOptions(path, class_map=tmp_path / "map.txt"))
        found = [remark for remark in loaded.remarks if "and class" in remark]
        assert len(found) == bool(expected)
        assert all(expected in remark for remark in found)


def test_the_users_class_map_comes_first_and_a_thousand_classes_are_imagenets(tmp_path: Path, state: State) -> None:
    (tmp_path / "map.txt").write_text("x\ny\nz\n")
    path = saved(tmp_path, {"state_dict": state_of(num_classes=3), "class_names": ["a", "b", "c"]})
    named = load_model(NAME, options=ModelOptions(path, class_map=tmp_path / "map.txt")).class_names
    assert named is not None
    assert named.names == ("x", "y", "z")
    imagenet = load_model(NAME, saved(tmp_path, state)).class_names
    assert imagenet is not None
    assert (imagenet.names[0], imagenet.title(0)) == ("n01440764", "tench")
    assert "imagenet-1k" in imagenet.source


@pytest.mark.parametrize(
    "arguments", [{"mean": "abc"}, {"std": [None]}, {"crop_pct": [0.9]}, {"mean": ["a", "b", "c"]}, {"std": 10**400}]
)
def test_recorded_preprocessing_that_is_no_number_is_one_line(tmp_path: Path, state: State, arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is recorded .* no number"):
        load_model(NAME, saved(tmp_path, {"state_dict": state, "args": arguments}))


def test_training_arguments_may_hold_arrays(tmp_path: Path, state: State) -> None:
    arguments = {"mean": torch.tensor([0.1, 0.2, 0.3]), "std": torch.zeros(0), "crop_pct": np.float64(0.8)}
    found = load_model(NAME, saved(tmp_path, {"state_dict": state, "args": arguments})).preprocessing
    assert found.mean == pytest.approx((0.1, 0.2, 0.3))
    assert found.crop_pct == 0.8


def test_deep_brackets_in_metadata_are_no_class_names(tmp_path: Path, state: State) -> None:
    save_file(state, tmp_path / "w.safetensors", metadata={"class_names": "[" * 100_000})
    assert is_loaded(load_model(NAME, tmp_path / "w.safetensors").model, state)


@pytest.mark.parametrize(
    ("record", "mean", "std"),
    [
        ({"rescale_factor": 1 / 255}, 0.5, 0.25),
        ({"rescale_factor": 0.00392156862745098}, 0.5, 0.25),
        ({"rescale_factor": 1 / 127.5}, 0.25, 0.125),  # from 0 to 2
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [63.75] * 3}, 0.5, 0.25),
        ({"do_normalize": False, "rescale_factor": 1 / 127.5}, 0.0, 0.5),
    ],
)
def test_a_processor_that_scales_pixels_otherwise_is_followed(
    record: dict[str, Any], mean: float, std: float, tmp_path: Path, state: State
) -> None:
    """What the network gets of a pixel is what transformers gives it: (pixel * factor - mean) / std."""
    save_file(state, tmp_path / "model.safetensors")
    whole = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": 40}, "resample": "bilinear", **record}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(whole))
    found = load_model(NAME, tmp_path).preprocessing
    assert found.mean == pytest.approx((mean,) * 3)
    assert found.std == pytest.approx((std,) * 3)
    assert found.interpolation == "bilinear"
    pixel = np.arange(256.0)
    factor = record.get("rescale_factor", 1 / 255) if record.get("do_rescale", True) else 1.0
    theirs = pixel * factor
    if record.get("do_normalize", True):
        theirs = (theirs - whole["image_mean"][0]) / whole["image_std"][0]
    np.testing.assert_allclose((pixel / 255 - found.mean[0]) / found.std[0], theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("record", "mode"),
    [
        ({"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}}, "squash"),
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}, "center"),
        ({"size": 40, "crop_size": 32, "feature_extractor_type": "DeiTFeatureExtractor"}, "squash"),
        ({"size": 40, "crop_size": 32, "feature_extractor_type": "CLIPFeatureExtractor"}, "center"),
    ],
)
def test_a_processor_with_a_crop_keeps_the_shape_of_images_or_does_not(
    record: dict[str, Any], mode: str, tmp_path: Path, state: State
) -> None:
    """As transformers documents it: "shortest_edge" keeps the aspect ratio, a height and a width do not."""
    save_file(state, tmp_path / "model.safetensors")
    whole = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_center_crop": True, **record}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(whole))
    found = load_model(NAME, tmp_path).preprocessing
    assert (found.crop_pct, found.crop_mode) == (0.8, mode)


@pytest.mark.parametrize(
    "record",
    [
        {"rescale_factor": 0},
        {"rescale_factor": -1},
        {"rescale_factor": "x"},
        {"do_rescale": False, "image_std": None},
        {"resample": "best"},
        {"resample": 9},
        {"size": {"height": 256, "width": 512}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
    ],
)
def test_a_processor_that_cannot_be_followed_is_refused(record: dict[str, Any], tmp_path: Path, state: State) -> None:
    save_file(state, tmp_path / "model.safetensors")
    whole = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, **record}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match="is not as transformers writes it"):
        load_model(NAME, tmp_path)


@pytest.mark.parametrize("cfg", [{"std": 0}, {"crop_pct": 0}])
def test_a_zero_that_is_recorded_is_refused_not_left_out(cfg: dict[str, Any], tmp_path: Path, state: State) -> None:
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": NAME, "pretrained_cfg": cfg}))
    with pytest.raises(UserError, match="is out of range"):
        load_model(NAME, tmp_path)


_NO_VALUES = [
    torch.zeros(3, device="meta"),
    torch.zeros(3).to_sparse(),
    torch.nested.nested_tensor([torch.ones(2), torch.ones(1)]),
    torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
]


@pytest.mark.parametrize("value", _NO_VALUES, ids=["meta", "sparse", "nested", "quantised"])
def test_a_tensor_without_plain_values_says_nothing(tmp_path: Path, state: State, value: torch.Tensor) -> None:
    args = argparse.Namespace(mean=value, crop_pct=0.9)
    loaded = load_model(NAME, saved(tmp_path, {"model": state, "args": args}))
    assert loaded.preprocessing.mean == load_model(NAME, "random").preprocessing.mean
    assert loaded.preprocessing.crop_pct == 0.9


@pytest.mark.parametrize(
    "names",
    [
        {torch.tensor(1j): "a"},
        {torch.zeros((), device="meta"): "a"},
        {0: torch.tensor([1, 2]), "0": torch.tensor([3, 4])},
    ],
    ids=["complex", "meta", "twice"],
)
def test_class_names_that_are_tensors_are_none(tmp_path: Path, state: State, names: dict[Any, Any]) -> None:
    loaded = load_model(NAME, saved(tmp_path, {"model": state, "names": names}))
    assert is_loaded(loaded.model, state)
    assert "not used" in " ".join(loaded.remarks) or not loaded.remarks
