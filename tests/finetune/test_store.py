from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from edge_tprune.errors import UserError
from edge_tprune.finetune.store import ArithmeticChoice, Best, Decisions, Look, Store, need_space, write_tensors
from edge_tprune.finetune.trainer import TrainerState
from edge_tprune.statistics import Interval
from tests.finetune.conftest import RECIPE


def test_decisions_are_read_back_and_other_questions_refused(tmp_path: Path) -> None:
    store = Store.beside(tmp_path / "tuned.safetensors")
    assert store.path == tmp_path / "tuned.safetensors.run"
    decisions = store.open({"seed": 1, "method": "bat"})
    assert decisions.recipe is None
    decisions.recipe = RECIPE
    store.decide(decisions)
    assert store.open({"seed": 1, "method": "bat"}) == Decisions({"seed": 1, "method": "bat"}, recipe=RECIPE)
    with pytest.raises(UserError, match=r"seed 1 there, 2 here.*remove that directory"):
        store.open({"seed": 2, "method": "bat"})


def look(step: int) -> Look:
    return Look(step, 1e-4, 0.5, 0.1 + 0.2, {"0.5": 0.3}, Interval(-0.1, None, 0.0), "")


def test_a_line_that_a_dying_process_cut_short_is_left_out(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.log(look(1))
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"step": 2, "los')
    assert store.logged() == [look(1)]
    store.log(look(2))
    assert store.logged() == [look(1), look(2)]


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b'{"loss": 1}', b'{"step": -1}', b'{"step": NaN}', b"[" * 200_000, b"\xff", b""]
)
def test_another_damaged_line_is_refused_in_one_line(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "log.jsonl").write_bytes(line + b'\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"log\.jsonl cannot be read .*Remove the directory and run the command again"):
        Store(tmp_path).logged()


def test_special_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "state.safetensors")
    (tmp_path / "log.jsonl").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"state\.safetensors cannot be read .*named pipe"):
        Store(tmp_path).load("state", Best)
    with pytest.raises(UserError, match=r"log\.jsonl cannot be read .*device"):
        Store(tmp_path).logged()


def test_tensors_and_values_come_back_as_they_were(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.load("state", TrainerState) is None
    tensors = {"a": torch.randn(3, 4), "b.c": torch.tensor(5), "half": torch.randn(2).bfloat16()}
    values = TrainerState(3, float("inf"), 0.1 + 0.2, [{"lr": 1e-17}], {})
    store.save("state", tensors, values)
    loaded = store.load("state", TrainerState)
    assert loaded is not None
    assert loaded[1] == values
    assert all(torch.equal(loaded[0][name], value) and loaded[0][name].dtype == value.dtype for name, value in tensors.items())
    (tmp_path / "state.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match=r"state\.safetensors cannot be read"):
        store.load("state", TrainerState)
    store.clear_states()
    assert store.load("state", TrainerState) is None


def test_a_full_disk_is_said_before_and_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_space(tmp_path / "new", 1000)
    with pytest.raises(UserError, match="MB left and fine-tuning needs 1000000000 MB"):
        need_space(tmp_path, 10**15)
    if not Path("/dev/full").exists():
        pytest.skip("this machine has no /dev/full")
    whole = tmp_path / "weights.safetensors"
    write_tensors(whole, {"a": torch.ones(2)}, {"made": json.dumps([1])})
    assert load_file(whole)["a"].tolist() == [1, 1]
    real = __import__("os").fdopen
    monkeypatch.setattr("os.fdopen", lambda handle, mode: real(__import__("os").open("/dev/full", 1), mode))
    with pytest.raises(UserError, match=r"no space left while writing .*weights\.safetensors"):
        write_tensors(whole, {"a": torch.zeros(10**6)}, {})
    monkeypatch.undo()
    assert load_file(whole)["a"].tolist() == [1, 1], "the old one is still whole"
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["weights.safetensors"]


@pytest.mark.parametrize(
    ("part", "entry", "value"),
    [
        ("arithmetic", None, {}),
        ("arithmetic", "threads", 0),
        ("arithmetic", "threads", 2**40),
        ("arithmetic", "bfloat16", "x"),
        ("recipe", "draws", {}),
        ("recipe", "draws", {"1.0": 0.0, "0.6": 0.0}),
        ("recipe", "steps", 0),
        ("recipe", "batch", -1),
        ("recipe", "rate", -1.0),
        ("recipe", "temperature", 0),
        ("recipe", "train", "zzz"),
        ("recipe", "seed", 2**70),
    ],
)
def test_a_damaged_decision_is_named(tmp_path: Path, part: str, entry: str | None, value: object) -> None:
    store = Store(tmp_path)
    store.decide(Decisions({"seed": 1}, ArithmeticChoice(False, "cpu", 1), RECIPE))
    document = json.loads((tmp_path / "run.json").read_bytes())
    holder, key = (document, part) if entry is None else (document[part], entry)
    holder[key] = value
    (tmp_path / "run.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=rf"run\.json: {part}.*Remove the directory"):
        store.open({"seed": 1})


def test_an_answer_of_any_length_is_shown_in_short(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.decide(Decisions({"seed": "x" * 100_000}))
    with pytest.raises(UserError, match="asked for differently") as raised:
        store.open({"seed": 1})
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("what", ["a number", "a shape", "a name", "a value", "nothing said"])
def test_a_state_that_was_changed_is_not_trained_on(tmp_path: Path, what: str) -> None:
    """An optimiser with a state of another shape ends in a crash of the process, and one with other numbers in worse weights."""
    store, file = Store(tmp_path), tmp_path / "state.safetensors"
    store.save("state", {"a": torch.ones(2, 3), "b": torch.zeros(2)}, Best(3, 0.1, True, ""))
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        said = opened.metadata()
    if what == "a number":
        tensors["a"][1, 2] = torch.nan
    elif what == "a shape":
        tensors["a"] = tensors["a"].T
    elif what == "a name":
        tensors["c"] = tensors.pop("b")
    elif what == "a value":
        said["values"] = said["values"].replace("0.1", "0.2")
    else:
        said.pop("sha256")
    write_tensors(file, tensors, said)
    with pytest.raises(UserError, match=r"state\.safetensors cannot be read .*(content is not what was written|sha256)"):
        store.load("state", Best)


def test_what_is_said_beside_the_best_weights_is_checked(tmp_path: Path) -> None:
    class Half(msgspec.Struct):
        step: int

    store = Store(tmp_path)
    store.save("best", {"a": torch.ones(2)}, Half(3))
    with pytest.raises(UserError, match=r"best\.safetensors cannot be read .*loss"):
        store.load("best", Best)


@pytest.mark.parametrize("error", [KeyError("averaged"), RuntimeError("size mismatch\nfor a"), ZeroDivisionError("float")])
def test_a_state_that_does_not_fit_is_named(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(UserError, match=r"state\.safetensors does not fit this fine-tuning \(.*Remove the directory"),
        Store(tmp_path).fitting("state"),
    ):
        raise error


@pytest.mark.parametrize("name", ["log.jsonl", "state.safetensors", "best.safetensors"])
def test_a_persons_file_is_no_fine_tuning(tmp_path: Path, name: str) -> None:
    """A line without an end would be taken for one that was cut off."""
    (tmp_path / name).write_text("my own notes")
    with pytest.raises(UserError, match=f"holds {name} and no run.json, and so no fine-tuning: move it away"):
        Store(tmp_path).open({"a": 1})
    assert (tmp_path / name).read_text() == "my own notes"
