"""What a user says of the model, and what the commands say of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from edge_tprune.cli.model_options import ModelChoice, with_model_options
from edge_tprune.errors import UserError
from edge_tprune.models.loading import ModelOptions
from edge_tprune.reduction import registry
from tests.cli.conftest import Outcome
from tests.models.folders import save_classes
from tests.models.weights import NAME, state_of

Command = Callable[..., Outcome]


def chosen(*words: str) -> ModelChoice:
    """What a command that takes these options is given."""
    app = typer.Typer()
    seen: list[ModelChoice] = []

    @app.command()
    @with_model_options
    def command(choice: ModelChoice, more: bool = False) -> None:
        """A command."""
        seen.append(choice)

    assert CliRunner().invoke(app, list(words)).exit_code == 0
    return seen[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ModelOptions()),
        (["--weights", "w.pth", "--no-ema"], ModelOptions("w.pth", use_ema=False)),
        (["--img-size", "384"], ModelOptions(img_size=(384, 384))),
        (["--img-size", "224,320"], ModelOptions(img_size=(224, 320))),
        (["--img-size", "224,320", "--classes", "5"], ModelOptions(img_size=(224, 320), classes=5)),
        (
            ["--model-kwargs", "class_token=False", "--model-kwargs", "init_values=1e-5", "--model-kwargs", "act_layer=gelu"],
            ModelOptions(model_kwargs={"class_token": False, "init_values": 1e-5, "act_layer": "gelu"}),
        ),
        (["--mean", "0.5", "--std", "0.1,0.2,0.3"], ModelOptions(preprocessing={"mean": (0.5,), "std": (0.1, 0.2, 0.3)})),
        (
            ["--interpolation", "bilinear", "--crop-pct", "1.0", "--crop-mode", "squash"],
            ModelOptions(preprocessing={"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}),
        ),
        (["--class-map", "a b.txt"], ModelOptions(class_map=Path("a b.txt"))),
    ],
)
def test_options_are_read_and_can_be_typed_again(words: list[str], expected: ModelOptions) -> None:
    choice = chosen(*words)
    assert choice.options() == expected
    assert chosen(*shlex.split(choice.words)).options() == expected


@pytest.mark.parametrize(
    "value", ["{1}", "1j", "b'x'", "1e999", "[{2}]", "{[1]: 2}", "{[1]}", "{None: 2}", "{True: 1}", "[" * 90 + "1" + "]" * 90]
)
def test_a_literal_that_no_bundle_can_state_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"--model-kwargs .*: give true, false"):
        chosen("--model-kwargs", f"qkv_bias={value}").options()


@pytest.mark.parametrize("size", ["big", "0", "-3", "1,2,3", ""])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(UserError, match="--img-size"):
        chosen(f"--img-size={size}").options()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three classes with names, as training scripts write them."""
    path = tmp_path_factory.mktemp("weights") / "tuned.pth"
    state = {f"module.{key}": value for key, value in state_of(num_classes=3, img_size=64).items()}
    torch.save({"state_dict": state, "class_names": ["cow", "ant", "bee"]}, path)
    return path


@pytest.fixture(scope="module")
def bundle(weights: Path) -> Path:
    from edge_tprune.cli import main

    out = weights.parent / "bundle"
    words = ["build", NAME, "--weights", weights, "--method", "evit", "--budgets", "1.0,0.7", "--mean", "0.4", "--out", out]
    assert main([str(word) for word in words]) == 0
    return out


def model_of(bundle: Path) -> dict[str, Any]:
    document = json.loads((bundle / "manifest.json").read_text())
    return {**document["model"], "preprocessing": document["preprocessing"], "class_names": document["class_names"]}


def test_a_bundle_keeps_class_names_arguments_and_preprocessing(bundle: Path) -> None:
    model = model_of(bundle)
    assert model["class_names"]["names"] == ["cow", "ant", "bee"]
    assert "tuned.pth" in model["class_names"]["source"]
    assert (model["classes"], model["arguments"]["img_size"], model["arguments"]["num_classes"]) == (3, 64, 3)
    assert model["preprocessing"]["input_size"] == [3, 64, 64]
    assert model["preprocessing"]["mean"] == [0.4] * 3


def test_what_was_taken_from_the_checkpoint_is_said(command: Command, weights: Path, tmp_path: Path) -> None:
    picture = tmp_path / "e.png"
    outcome = command(
        "explain", "reference:1", "--model", NAME, "--weights", weights, "--method", "tome", "--out", picture, "--json"
    )
    assert outcome.code == 0, outcome.err
    assert "note: tuned.pth: 3 classes, as its head has" in outcome.err
    assert "note: tuned.pth: images of 64 x 64 pixels" in outcome.err
    document = json.loads(outcome.out)
    assert document["unpruned"]["name"] in {"cow", "ant", "bee"}
    assert len(document["rows"]) == 3


def test_eval_finds_labels_by_the_names_in_the_bundle_and_says_so(command: Command, bundle: Path, tmp_path: Path) -> None:
    save_classes(tmp_path / "d", ["ant", "bee", "cow"], 2)
    (tmp_path / "d/ant/notes.txt").write_text("")
    outcome = command("eval", bundle, "--data", tmp_path / "d", "--json")
    assert outcome.code == 0, outcome.err
    assert "names of the model's classes (class_names in tuned.pth)" in outcome.err
    assert "left out 1 .txt" in outcome.err
    assert json.loads(outcome.out)["accuracy"]["1.0"]["data"]["labelled"]


def test_eval_takes_a_class_map(command: Command, bundle: Path, tmp_path: Path) -> None:
    for name in ("train", "val"):
        save_classes(tmp_path / "d", [name], 2)
    refused = command("eval", bundle, "--data", tmp_path / "d")
    assert refused.code == 2
    assert "the parts of a data set" in refused.err
    (tmp_path / "map.txt").write_text("".join(f"{part}/{i}.png {i}\n" for part in ("train", "val") for i in range(2)))
    outcome = command("eval", bundle, "--data", tmp_path / "d", "--class-map", tmp_path / "map.txt")
    assert outcome.code == 0, outcome.err
    assert "labels: images by class map" in outcome.err


@pytest.mark.parametrize("name", ["eval", "profile"])
def test_unreadable_images_are_named_together_before_anything_runs(
    command: Command, bundle: Path, tmp_path: Path, name: str
) -> None:
    root = save_classes(tmp_path / "d", ["ant", "bee", "cow"], 2)
    for broken in ("ant/0.png", "cow/1.png"):
        (root / broken).write_bytes(b"")
    quick = ["--rounds", "1", "--seconds", "0.01", "--warmup", "0", "--out", tmp_path / "p"] if name == "profile" else []
    outcome = command(name, bundle, "--data", root, *quick)
    assert outcome.code == 2
    assert "2 of 6 images in d cannot be read" in outcome.err
    assert "ant/0.png" in outcome.err
    assert "cow/1.png" in outcome.err
    assert not (tmp_path / "p").exists()
    outcome = command(name, bundle, "--data", root, "--skip-unreadable", *quick)
    assert outcome.code == 0, outcome.err
    assert "left out 2 unreadable" in outcome.err


def test_search_says_how_to_build_with_the_same_model(command: Command, weights: Path, tmp_path: Path) -> None:
    images = save_classes(tmp_path / "d", ["any", "folders"], 3)
    file = tmp_path / "s.json"
    words = [
        "--weights",
        weights,
        "--method",
        "evit",
        "--budgets",
        "0.7",
        "--data",
        images,
        "--trials",
        "1",
        "--crop-pct",
        "1.0",
    ]
    outcome = command("search", NAME, *words, "--out", file)
    assert outcome.code == 0, outcome.err
    assert f"build {NAME} --weights {weights} --crop-pct 1.0 --schedule {file}" in outcome.err
    assert "no labels are used" in outcome.err
    explained = command(
        "explain", "reference", "--model", NAME, "--weights", weights, "--schedule", file, "--out", tmp_path / "e.png", "--json"
    )
    assert explained.code == 0, explained.err
    (row,) = json.loads(explained.out)["rows"]
    assert row["schedule"] == json.loads(file.read_text())["budgets"]["0.7"]["tokens"]


def test_a_wrong_checkpoint_is_refused_before_anything_is_built(command: Command, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 5\n")
    outcome = command("build", NAME, "--weights", tmp_path / "w.pth", "--out", tmp_path / "b")
    assert outcome.code == 2
    assert "Git LFS pointer" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "b").exists()


PLUGIN = '''
from edge_tprune.reduction import Keep, Reducer, register, top

@register
class KeepLongest(Reducer):
    """Keeps the tokens with the longest feature vectors."""

    name, paper = "keep_longest_of_a_plugin", "nobody's"

    def forward(self, x, evidence):
        return Keep(top(x.norm(dim=-1) + self.bonus, self.stage.tokens_out))
'''


def test_a_plugins_method_builds_evaluates_and_profiles(
    command: Command, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # other tests look at every method
    (tmp_path / "own.py").write_text(PLUGIN)
    plugin = ["--plugin", tmp_path / "own.py"]
    bundle = tmp_path / "bundle"
    words = [
        "build",
        NAME,
        "--weights",
        weights,
        "--method",
        "keep_longest_of_a_plugin",
        "--budgets",
        "1.0,0.7",
        "--out",
        bundle,
    ]
    assert "no method 'keep_longest_of_a_plugin'" in command(*words).err
    assert "keep_longest_of_a_plugin" in command("methods", *plugin).out
    built = command(*words, *plugin)
    assert built.code == 0, built.err
    assert "is up to date" in command(*words, *plugin).err
    (tmp_path / "own.py").write_text(PLUGIN.replace("x.norm(dim=-1)", "-x.norm(dim=-1)"))
    assert "is up to date" not in command(*words, *plugin).err
    images = save_classes(tmp_path / "d", ["ant", "bee", "cow"], 2)
    assert command("eval", bundle, "--data", images).code == 0
    profiled = command("profile", bundle, "--out", tmp_path / "p", "--rounds", "1", "--seconds", "0.01", "--warmup", "0")
    assert profiled.code == 0, profiled.err
