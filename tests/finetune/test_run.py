from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save

from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.files import exclusive
from edge_tprune.finetune import choose, holdout, trainer
from edge_tprune.finetune.distill import Students, Teacher
from edge_tprune.finetune.photos import Photos, split
from edge_tprune.finetune.run import RESTARTS, Interrupted, Progress, finetune
from edge_tprune.finetune.store import KIND, Result, Store
from edge_tprune.models.data import ImageFolder, open_dataset, open_images
from edge_tprune.models.loading import LoadedModel
from tests.finetune.conftest import PLAIN, REQUEST, SCHEDULES


@pytest.fixture(scope="module")
def tuned(network: LoadedModel, dataset: ImageFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("tuned") / "tuned.safetensors"
    return out, finetune(network, dataset, out, REQUEST)


def same_weights(a: Path, b: Path) -> bool:
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_result_is_better_and_an_ordinary_checkpoint(tuned: tuple[Path, Result], network: LoadedModel) -> None:
    out, result = tuned
    assert result.written
    assert result.change.high is not None
    assert result.change.high < 0
    assert [row.budget for row in result.rows] == ["1.0", "0.6"]
    assert result.rows[1].divergence < result.rows[1].divergence_before
    assert (result.photos, result.held_out, result.recipe.steps) == (32, 8, 16)
    state = load_file(out)
    wanted = network.model.state_dict()
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in wanted.items()}
    assert any(not torch.equal(state[name], wanted[name]) for name in wanted)
    with safe_open(out, "pt") as opened:
        made = json.loads(opened.metadata()["edge_tprune_finetune"])
    assert made["method"] == "evit"
    assert made["from_weights_sha256"] == network.weights_sha256
    assert sorted(file.name for file in Store.beside(out).path.iterdir()) == ["log.jsonl", "run.json"]


def test_two_with_one_output_do_not_mix(network: LoadedModel, dataset: ImageFolder, tmp_path: Path) -> None:
    out = tmp_path / "tuned.safetensors"
    with exclusive(out, "fine-tuning"), pytest.raises(UserError, match="another fine-tuning is at work on it"):
        finetune(network, dataset, out, REQUEST)
    assert not Store.beside(out).path.exists()


def test_asked_again_it_answers_without_training(
    tuned: tuple[Path, Result], network: LoadedModel, dataset: ImageFolder
) -> None:
    out, result = tuned
    before = out.stat().st_mtime_ns
    assert finetune(network, dataset, out, REQUEST) == result
    assert out.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="asked for differently"):
        finetune(network, dataset, out, replace(REQUEST, seed=1))
    darker = replace(network.preprocessing, mean=(0.1, 0.1, 0.1))
    with pytest.raises(UserError, match=r"asked for differently .*preprocessing"):
        finetune(dataclasses.replace(network, preprocessing=darker), dataset, out, REQUEST)


def test_what_was_changed_since_is_not_passed_off_as_the_result(
    tuned: tuple[Path, Result], network: LoadedModel, dataset: ImageFolder, tmp_path: Path
) -> None:
    out = tmp_path / "tuned.safetensors"
    shutil.copytree(Store.beside(tuned[0]).path, Store.beside(out).path)
    out.write_text("notes")
    with pytest.raises(UserError, match=r"tuned\.safetensors was changed since this fine-tuning wrote it: move it away"):
        finetune(network, dataset, out, REQUEST)
    assert out.read_text() == "notes"


@pytest.mark.parametrize(
    "content",
    [
        b"notes",
        save({"head.bias": torch.ones(6)}),
        save({"head.bias": torch.ones(6)}, metadata={"edge_tprune_finetune": "[" * 200_000}),
    ],
    ids=["text", "weights", "nested"],
)
def test_a_file_that_it_did_not_write_is_refused_before_training(
    content: bytes, network: LoadedModel, dataset: ImageFolder, tmp_path: Path
) -> None:
    out = tmp_path / "tuned.safetensors"
    out.write_bytes(content)
    with pytest.raises(UserError, match=r"tuned\.safetensors exists, and finetune did not write it: choose another --out"):
        finetune(network, dataset, out, REQUEST)
    assert out.read_bytes() == content
    assert not Store.beside(out).path.exists()


def test_what_it_wrote_before_is_no_reason_not_to_train(
    tuned: tuple[Path, Result], network: LoadedModel, dataset: ImageFolder, tmp_path: Path
) -> None:
    out = Path(shutil.copy(tuned[0], tmp_path))
    with pytest.raises(NegativeAnswer, match="no clear improvement"):
        finetune(network, dataset, out, replace(REQUEST, rate=1e-9, epochs=0.5))
    assert same_weights(out, tuned[0])


def judged(network: LoadedModel, dataset: ImageFolder, weights: Path | None) -> dict[str, holdout.Scores]:
    """The photos that REQUEST holds out, answered by the network with other weights."""
    _, places = split(len(dataset), REQUEST.held_out(len(dataset)), REQUEST.seed)
    images, _ = Photos(dataset, places, network.preprocessing, REQUEST.seed).whole(network.transform())
    students = Students(network.model, REQUEST.method, {}, SCHEDULES, "all")
    if weights is not None:
        students.model.load_state_dict(load_file(weights))
    return holdout.HoldOut(images, None, Teacher(network.model, PLAIN), PLAIN).judge(students)


_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from edge_tprune.finetune.run import finetune
from edge_tprune.models.data import open_images
from tests.finetune.conftest import PLAIN, REQUEST, SCHEDULES
from tests.small import small_model
def progress(what, done, of):
    if what.startswith("training") and done == 11:
        os.kill(os.getpid(), signal.SIGKILL)
finetune(small_model(seed=3), open_images(Path(sys.argv[1])), Path(sys.argv[2]), REQUEST, progress=progress)
"""


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_weights(
    tuned: tuple[Path, Result], network: LoadedModel, dataset: ImageFolder, tmp_path: Path
) -> None:
    out = tmp_path / "tuned.safetensors"
    command = [sys.executable, "-c", _KILLED, str(dataset.root), str(out)]
    ended = subprocess.run(command, timeout=240, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not out.exists()
    said: list[str] = []
    result = finetune(network, dataset, out, REQUEST, say=said.append)
    assert any("continuing after step 9 of 16" in text for text in said)
    assert same_weights(out, tuned[0])
    assert result.rows == tuned[1].rows
    steps = [line.step for line in Store.beside(out).logged()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 16


def interrupt_at(step: int) -> Progress:
    """Ctrl-C once so many steps are trained."""

    def interrupt(what: str, done: int, of: int) -> None:
        if what.startswith("training") and done == step:
            raise KeyboardInterrupt

    return interrupt


def test_ctrl_c_keeps_the_best_so_far_and_the_rest_follows(
    tuned: tuple[Path, Result], network: LoadedModel, dataset: ImageFolder, tmp_path: Path
) -> None:
    out = tmp_path / "tuned.safetensors"

    with pytest.raises(Interrupted, match="step 14 of 16") as stopped:
        finetune(network, dataset, out, REQUEST, progress=interrupt_at(14))
    best = min(Store.beside(out).logged(), key=lambda line: line.loss)
    assert stopped.value.written == out.exists() == (best.change.high < 0 and not best.refused)
    finetune(network, dataset, out, REQUEST)
    assert same_weights(out, tuned[0])


def test_weights_on_the_way_do_not_replace_finished_ones(
    tuned: tuple[Path, Result], network: LoadedModel, dataset: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copy(tuned[0], tmp_path))
    before = out.read_bytes()
    monkeypatch.setattr(holdout, "is_improvement", lambda change, before: True)

    with pytest.raises(Interrupted) as stopped:
        finetune(network, dataset, out, REQUEST, progress=interrupt_at(14))
    assert "holds other weights, which only a finished training replaces" in stopped.value.kept
    assert (stopped.value.written, out.read_bytes()) == (False, before)
    monkeypatch.undo()
    assert finetune(network, dataset, out, REQUEST).written


def test_a_second_training_after_the_weights_were_moved_away_can_be_interrupted(
    tuned: tuple[Path, Result], network: LoadedModel, dataset: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tuned.safetensors"
    shutil.copytree(Store.beside(tuned[0]).path, Store.beside(out).path)
    monkeypatch.setattr(holdout, "is_improvement", lambda change, before: True)

    with pytest.raises(Interrupted) as stopped:
        finetune(network, dataset, out, REQUEST, progress=interrupt_at(14))
    assert stopped.value.written
    monkeypatch.undo()
    assert finetune(network, dataset, out, REQUEST).written
    assert same_weights(out, tuned[0])


def test_a_file_that_appears_while_it_trains_is_not_replaced(
    tuned: tuple[Path, Result], network: LoadedModel, dataset: ImageFolder, tmp_path: Path
) -> None:
    out = tmp_path / "tuned.safetensors"

    def appear(what: str, done: int, of: int) -> None:
        out.write_text("mine")

    with pytest.raises(
        UserError, match=r"tuned\.safetensors exists, and finetune did not write it: move it away, and run the same"
    ):
        finetune(network, dataset, out, REQUEST, progress=appear)
    assert out.read_text() == "mine"
    out.unlink()
    assert finetune(network, dataset, out, REQUEST).written
    assert same_weights(out, tuned[0])


def test_a_run_that_goes_on_keeps_its_threads_and_says_so(network: LoadedModel, dataset: ImageFolder, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "tuned.safetensors"
    with pytest.raises(Interrupted):
        finetune(network, dataset, out, REQUEST, progress=interrupt_at(2), say=said.append)
    assert not any("CPU threads" in text for text in said)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with suppress(NegativeAnswer):
            finetune(network, dataset, out, REQUEST, say=said.append)
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
    assert sum(f"goes on with {before} CPU threads" in text for text in said) == 1


def test_no_improvement_is_said_and_not_written(network: LoadedModel, dataset: ImageFolder, tmp_path: Path) -> None:
    out = tmp_path / "tuned.safetensors"
    for _ in range(2):
        with pytest.raises(NegativeAnswer, match=r"no clear improvement: nothing was written"):
            finetune(network, dataset, out, replace(REQUEST, rate=1e-9, epochs=0.5))
        assert not out.exists()


def test_held_out_photos_that_are_answered_worse_are_said(network: LoadedModel, dataset: ImageFolder, tmp_path: Path) -> None:
    """Sixteen photos at sixty times the rate: the last weights are not the best, and the unpruned network is spoiled."""
    said: list[str] = []
    out = tmp_path / "tuned.safetensors"
    with pytest.raises(
        NegativeAnswer, match=r"the unpruned network's changed answers are expected to cost .*nothing was written"
    ):
        finetune(network, dataset.first(16), out, replace(REQUEST, rate=3e-3, epochs=12), say=said.append)
    assert not out.exists()
    logged = Store.beside(out).logged()
    best = min(logged, key=lambda line: (bool(line.refused), line.loss))
    assert best.step < logged[-1].step == 12
    assert any(f"after step {best.step} of 12 the held-out photos were answered worse" in text for text in said)
    assert any("16 photos are few" in text for text in said)


def test_a_part_of_a_training_that_went_too_far_is_kept(
    network: LoadedModel, dataset: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times as far as training goes is worse than nothing; a part of the way there is an improvement. In the arithmetic in which it is clear."""
    monkeypatch.setattr(choose, "bfloat16_gains", lambda device: True)
    averaged, came = trainer.Trainer.averaged, network.model.state_dict()
    monkeypatch.setattr(trainer.Trainer, "averaged", lambda self: choose.mixed(came, averaged(self), 4.0))
    said: list[str] = []
    out = tmp_path / "tuned.safetensors"
    result = finetune(network, dataset, out, REQUEST, say=said.append)
    assert min(line.change.value for line in Store.beside(out).logged()) > 0
    assert result.written
    assert result.trained_share in choose.SHARES
    assert not holdout.gate(judged(network, dataset, out), judged(network, dataset, None))
    assert any(f"{100 * result.trained_share:.0f} % of the way from the untrained" in text for text in said)
    with safe_open(out, "pt") as opened:
        assert json.loads(opened.metadata()["edge_tprune_finetune"])["trained_share"] == result.trained_share


def test_a_loss_that_is_not_finite_goes_back_and_slows_down(
    network: LoadedModel, dataset: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step breaks once; the work begins again where the state was saved, at half the rate."""
    real, broken = trainer.loss_of, []

    def breaks(recipe: Any, *answers: Any) -> torch.Tensor:
        if recipe.rate == REQUEST.rate and len(broken) < 8:
            broken.append(recipe.rate)
        return real(recipe, *answers) * (float("nan") if len(broken) == 8 and recipe.rate == REQUEST.rate else 1)

    monkeypatch.setattr(trainer, "loss_of", breaks)
    said: list[str] = []
    with suppress(NegativeAnswer):  # whether half the rate is enough is not asked here
        finetune(network, dataset, tmp_path / "tuned.safetensors", REQUEST, say=said.append)
    result = Store.beside(tmp_path / "tuned.safetensors").open_result()
    assert result is not None
    assert result.recipe.rate == REQUEST.rate / 2
    assert any("the loss of step 8 is nan: going back" in text for text in said)
    assert [line.rate < 0.51 * REQUEST.rate for line in Store.beside(tmp_path / "tuned.safetensors").logged()][-1]


def test_a_loss_that_is_never_finite_gives_up(network: LoadedModel, dataset: ImageFolder, tmp_path: Path) -> None:
    spoiled = LoadedModel(network.name, _broken(network), "random", "0" * 64, network.preprocessing)
    with pytest.raises(UserError, match=r"the weights random of small-test give answers that are not finite"):
        finetune(spoiled, dataset, tmp_path / "tuned.safetensors", REQUEST)
    assert RESTARTS > 0


def test_pruned_outputs_that_are_not_finite_are_said_before_training(
    network: LoadedModel, dataset: ImageFolder, tmp_path: Path, not_finite: str
) -> None:
    out = tmp_path / "tuned.safetensors"
    with pytest.raises(UserError, match=rf"method {not_finite}: the pruned network's outputs are not finite at budget 0\.6"):
        finetune(network, dataset, out, replace(REQUEST, method=not_finite))
    assert not Store.beside(out).path.exists()


def _broken(network: LoadedModel) -> Any:
    model = copy.deepcopy(network.model)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[0, 0] = float("nan")
    return model


def test_an_unreadable_photo_stops_it_before_it_begins(network: LoadedModel, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "photos")
    (tmp_path / "photos" / "07.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"07\.png cannot be read"):
        finetune(network, open_images(tmp_path / "photos"), tmp_path / "tuned.safetensors", REQUEST)
    assert not (tmp_path / "tuned.safetensors").exists()


def test_labels_are_learned(network: LoadedModel, tmp_path: Path) -> None:
    """Photos of six colours, a class each, to a network that has never seen them: cross-entropy is what must fall."""
    draw = np.random.default_rng(2)
    for number in range(48):
        (tmp_path / "photos" / f"class{number % 6}").mkdir(parents=True, exist_ok=True)
        colour = np.array([number % 2, number // 2 % 3 / 2, number % 3 / 2]) * 200
        pixels = (colour + draw.uniform(0, 50, (50, 50, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"class{number % 6}" / f"{number:02}.png")
    labelled = open_dataset(tmp_path / "photos", 6)
    result = finetune(network, labelled, tmp_path / "tuned.safetensors", replace(REQUEST, labels=True, rate=3e-4, epochs=6))
    assert result.recipe.labels > 0
    assert result.change.value < -0.3, "nats"
    assert all(row.top1_change_points is not None for row in result.rows)


def test_a_network_without_a_head_is_trained_to_give_its_embedding(
    network: LoadedModel, dataset: ImageFolder, tmp_path: Path
) -> None:
    model: Any = copy.deepcopy(network.model)
    model.reset_classifier(0)
    headless, out = dataclasses.replace(network, model=model), tmp_path / "tuned.safetensors"
    labelled = ImageFolder(dataset.root, dataset.files, tuple(range(len(dataset))))
    with pytest.raises(UserError, match=r"--labels: .* has no classifier head"):
        finetune(headless, labelled, out, replace(REQUEST, labels=True))
    with suppress(NegativeAnswer):  # half an epoch need not be enough
        finetune(headless, dataset, out, replace(REQUEST, epochs=0.5, rate=1e-4))
    result = KIND.read(Store.beside(out).path).result
    assert result is not None
    assert result.output == "embedding"
    assert all(0 <= row.divergence_before <= 4 for row in result.rows)


def test_a_network_with_one_output_is_refused(network: LoadedModel, dataset: ImageFolder, tmp_path: Path) -> None:
    model: Any = copy.deepcopy(network.model)
    model.reset_classifier(1)
    with pytest.raises(UserError, match="small-test has one output: fine-tuning compares the probabilities of classes"):
        finetune(dataclasses.replace(network, model=model), dataset, tmp_path / "tuned.safetensors", REQUEST)
    assert list(tmp_path.iterdir()) == []
