"""`finetune`, and `build` from what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edge_tprune.errors import NegativeAnswer
from edge_tprune.finetune.request import Request, schedules_of
from edge_tprune.finetune.run import Interrupted
from edge_tprune.models.loading import LoadedModel
from tests.cli.conftest import Outcome
from tests.models.folders import save_image
from tests.small import small_model

Command = Callable[..., Outcome]
QUICK = ["finetune", "reference", "--weights", "random", "--method", "evit", "--budgets", "1.0,0.4"]
QUICK += ["--images", "48", "--batch", "8", "--rate", "1e-4"]


def test_what_was_tuned_builds(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "tuned.safetensors"
    asked = [*QUICK, "--blocks", "3,6", "--option", "fuse=false", "--epochs", "1", "--out", out]
    done = command(*asked)
    assert done.code == 0, done.err
    assert "held-out photos" in done.out
    how = "--method evit --budgets 1.0,0.4 --blocks 3,6 --option fuse=false"
    assert f"edge-tprune build reference --weights {out} {how}" in done.err.replace("\n", " ")
    again = json.loads(command(*asked, "--json").out)
    assert again["written"] is True
    assert [row["budget"] for row in again["rows"]] == ["1.0", "0.4"]
    assert again["rows"][1]["divergence"] < again["rows"][1]["divergence_before"]
    built = command("build", "reference", "--weights", out, *how.split(), "--out", tmp_path / "b", "--json")
    assert built.code == 0, built.err
    assert json.loads(built.out)["model"]["weights"] == "tuned.safetensors"


def test_no_improvement_is_a_no(command: Command, tmp_path: Path) -> None:
    done = command(*QUICK[:-1], "1e-9", "--epochs", "0.3", "--out", tmp_path / "tuned.safetensors")
    assert done.code == 1
    assert "no clear improvement: nothing was written" in done.err.replace("\n", " ")
    assert not (tmp_path / "tuned.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["deit_tiny_patch16_224", "--weights", "random"], "no photos to train on: give --data"),
        (["deit_tiny_patch16_224", "--weights", "random", "--data", "absent"], "absent does not exist"),
        (["reference", "--time", "soon"], "--time 'soon' is not a time"),
        (["reference", "--time", "5m", "--epochs", "1"], "give one"),
        (["reference", "--method", "bta"], "Did you mean bat"),
        (["reference", "--method", "evit", "--option", "fuze=true"], "has no option 'fuze'"),
        (["reference", "--budgets", "1.0"], "names none that removes tokens"),
        (["reference", "--budgets", "0.05"], "cannot be reached"),
        (["reference", "--blocks", "13"], "block"),
        (["reference", "--out", "tuned.pth"], "ends in .safetensors"),
        (["reference", "--class-map", "names.txt"], "--class-map is not used without --labels"),
        (["reference", "--train", "head"], "choose all, norm, late"),
        (["reference", "--images", "20"], "do not fill a batch of 32"),
        (["reference", "--schedule", "absent.json"], "absent.json cannot be read"),
        (["reference", "--device", "tpu"], "--device 'tpu'"),
        (["reference", "--device", "cuda:x"], "--device 'cuda:x'"),
        (["reference", "--schedule", "two.json"], "has budgets of other methods or options (evit, tome)"),
        (["reference", "--weights", "other.safetensors"], "are not those of reference"),
        (["reference", "--data", "photos", "--labels", "--data", "photos"], "give --data once"),
        (["reference", "--data", "photos", "--labels"], "has 1 class directory but the model has 10 classes"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], says: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.ones(2)}, "other.safetensors")
    Path("two.json").write_text(
        json.dumps(
            {
                "format": "edge-tprune-schedule", "version": 1, "method": "evit", "options": {},
                "budgets": {
                    "0.8": {"tokens": [65, 50, 50, 50, 50, 50, 50, 1], "share": 0.8},
                    "0.6": {"tokens": [65, 30, 30, 30, 30, 30, 30, 1], "share": 0.6, "method": "tome", "options": {}},
                },
            }
        )
    )  # fmt: skip
    Path("photos/some").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save("photos/some/a.png")
    before = sorted(tmp_path.rglob("*"))
    outcome = command("finetune", *arguments)
    assert outcome.code == 2, outcome.err
    assert says in outcome.err.replace("\n", " ")
    assert "Traceback" not in outcome.err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_weights_that_training_begins_with_are_not_written_over(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"mine")
    done = command("finetune", "reference", "--weights", file, "--out", f"{tmp_path}/../{tmp_path.name}/w.safetensors")
    assert done.code == 2
    assert "choose another --out" in done.err
    assert file.read_bytes() == b"mine"
    (tmp_path / "hub").mkdir()
    inside = tmp_path / "hub" / "model.safetensors"
    inside.write_bytes(b"mine")
    for words in (("reference", "--weights", tmp_path / "hub"), (f"local-dir:{tmp_path / 'hub'}",)):
        done = command("finetune", *words, "--out", inside)
        assert (done.code, "choose another --out" in done.err) == (2, True)
    assert inside.read_bytes() == b"mine"


def test_a_schedule_file_alone_says_what_is_trained(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"tokens": [197] * 3 + [100] * 9, "share": 0.6}
    document = {"format": "edge-tprune-schedule", "version": 1, "method": "evit", "options": {}, "budgets": {"0.6": entry}}
    (tmp_path / "found.json").write_text(json.dumps(document))
    trained: list[str] = []

    def stop(loaded: LoadedModel, photos: Any, out: Path, request: Request, **more: Any) -> None:
        trained.extend(schedules_of(loaded, request))
        raise NegativeAnswer("stopped")

    monkeypatch.setattr("edge_tprune.finetune.run.finetune", stop)
    asked = ["finetune", "reference", "--schedule", tmp_path / "found.json", "--images", "48"]
    assert command(*asked, "--out", tmp_path / "tuned.safetensors").code == 1
    assert trained == ["1.0", "0.6"]


@pytest.mark.parametrize("images", [1, 2, 4])
def test_as_many_photos_as_asked_for_are_taken_from_several_directories(images: int, tmp_path: Path) -> None:
    from edge_tprune.cli.commands.finetune import _photos

    for name, count in {"a": 1, "b": 1, "c": 7}.items():
        for number in range(count):
            save_image(tmp_path / name / f"{number}.png", number)
    assert len(_photos(small_model(), [str(tmp_path / name) for name in "abc"], images, None, False)) == images


def test_an_interrupted_fine_tuning_is_an_interruption_in_other_commands_too() -> None:
    assert issubclass(Interrupted, KeyboardInterrupt)  # `fit` trains as well, and says what it keeps


def test_a_photo_that_is_given_twice_is_refused(command: Command, tmp_path: Path) -> None:
    """It could be held out and trained on."""
    for number in range(3):
        save_image(tmp_path / "a" / "b" / f"{number}.png", number)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "link.png").symlink_to(tmp_path / "a" / "b" / "0.png")
    for folders in (("a", "a"), ("a", "a/b"), ("a", "c")):
        given = [word for name in folders for word in ("--data", tmp_path / name)]
        outcome = command("finetune", "reference", *given, "--out", tmp_path / "w.safetensors")
        assert outcome.code == 2
        assert "is in --data more than once" in " ".join(outcome.err.split())
