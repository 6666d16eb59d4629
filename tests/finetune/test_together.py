"""Two processes under torchrun, over gloo."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from edge_tprune.errors import UserError
from edge_tprune.finetune.distill import Students, Teacher
from edge_tprune.finetune.holdout import HoldOut
from edge_tprune.finetune.photos import Photos, split
from edge_tprune.finetune.run import finetune, join_processes
from edge_tprune.finetune.store import Store
from edge_tprune.models.data import ImageFolder
from edge_tprune.models.loading import LoadedModel
from tests.finetune.conftest import PLAIN, RECIPE, REQUEST, SCHEDULES
from tests.finetune.test_trainer import trainer

ONE_BUDGET = replace(RECIPE, draws={"0.6": 1.0}, class_tokens=0.0)
_SCRIPT = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from safetensors.torch import save_file
torch.set_num_threads(1)
from edge_tprune.errors import NegativeAnswer
from edge_tprune.finetune.photos import Photos
from edge_tprune.finetune.run import finetune, join_processes
from edge_tprune.models.data import open_images
from tests.finetune.conftest import REQUEST
from tests.finetune.test_together import ONE_BUDGET
from tests.finetune.test_trainer import trainer
from tests.small import small_model

network, dataset, folder = small_model(seed=3), open_images(Path(sys.argv[1])), Path(sys.argv[2])
with join_processes(REQUEST):
    photos = Photos(dataset, range(32), network.preprocessing, seed=0, workers=1)
    photos.read()
    one = trainer(network, photos, ONE_BUDGET)
    list(one.run(1))
    if dist.get_rank() == 0:
        save_file(one.state()[0], folder / "step.safetensors")
    try:
        finetune(network, dataset, folder / "tuned.safetensors", REQUEST)
    except NegativeAnswer:
        pass  # gradients that are added up in another order may leave eight held-out photos undecided
"""

# the first process takes two seconds to write what all of them read
_SLOW = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from msgspec.structs import replace
from edge_tprune.errors import NegativeAnswer
from edge_tprune.finetune.run import finetune, join_processes
from edge_tprune.finetune.store import Store
from edge_tprune.models.data import open_images
from tests.finetune.conftest import REQUEST
from tests.small import small_model

save = Store.save
def save_late(*given):
    time.sleep(2)
    save(*given)
Store.save = save_late
with join_processes(REQUEST):
    try:
        out = Path(sys.argv[2]) / "tuned.safetensors"
        finetune(small_model(seed=3), open_images(Path(sys.argv[1])), out, replace(REQUEST, epochs=0.25))
    except NegativeAnswer:
        pass  # one step improves little
"""


def run_in_two(script: str, photos: Path, folder: Path) -> None:
    """Runs a script in two processes, with both paths as its arguments."""
    file, root = folder / "train.py", Path(__file__).parents[2]
    file.write_text(script)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*launcher, str(file), str(photos), str(folder)],
        timeout=280,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_take_the_step_that_one_takes(
    network: LoadedModel, photos: Photos, dataset: ImageFolder, tmp_path: Path
) -> None:
    run_in_two(_SCRIPT, dataset.root, tmp_path)
    alone = trainer(network, photos, ONE_BUDGET)
    list(alone.run(1))
    expected, found = alone.state()[0], load_file(tmp_path / "step.safetensors")
    assert expected.keys() == found.keys()
    moments = [name for name in expected if name.endswith("exp_avg")]
    assert len(moments) == len(alone.trained)
    for name in moments:
        assert torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-4 * float(expected[name].abs().max()) + 1e-9), (
            name
        )
    result = Store.beside(tmp_path / "tuned.safetensors").open_result()
    assert result is not None
    assert result.written == (tmp_path / "tuned.safetensors").exists()
    students = Students(network.model, "evit", {}, SCHEDULES, "all")
    held_out = Photos(dataset, split(40, 8, REQUEST.seed)[1], network.preprocessing, 0, workers=1)
    before = HoldOut(held_out.whole(network.transform())[0], None, Teacher(network.model, PLAIN), PLAIN).judge(students)
    for row in result.rows:
        assert row.divergence_before == pytest.approx(float(before[row.budget].divergence.mean()), rel=1e-3, abs=1e-6), (
            "each process judges a part of the held-out photos"
        )
    assert result.rows[1].divergence < result.rows[1].divergence_before
    assert [file.name for file in tmp_path.glob("*.run/*.safetensors")] == []


@pytest.mark.slow
def test_all_judge_the_weights_that_the_first_has_written(dataset: ImageFolder, tmp_path: Path) -> None:
    run_in_two(_SLOW, dataset.root, tmp_path)
    result = Store.beside(tmp_path / "tuned.safetensors").open_result()
    assert result is not None
    assert (result.recipe.steps, result.best_step) == (1, 1)


def test_a_batch_that_leaves_a_process_without_a_photo_is_refused(
    network: LoadedModel, dataset: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_tprune.finetune.run.processes", lambda: (0, 9))
    with pytest.raises(UserError, match="--batch 8 does not give each of 9 processes a photo: give a larger one"):
        finetune(network, dataset, tmp_path / "tuned.safetensors", REQUEST)


def test_partners_that_do_not_come_are_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    with pytest.raises(UserError, match="cannot be joined"), join_processes(REQUEST, 2, said.append):
        pass
    assert said == ["RANK and WORLD_SIZE are set: waiting up to 2 s for all of 2 processes"]


def test_a_wait_for_partners_hears_a_signal(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    others = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = [
        "finetune",
        "reference",
        "--budgets",
        "1.0,0.35",
        "--blocks",
        "1,3,5",
        "--images",
        "60",
        "--out",
        str(tmp_path / "t.safetensors"),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "edge_tprune", *words], env={**os.environ, **others}, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stderr is not None
        said = ""
        while "waiting up to" not in said:
            said = child.stderr.readline()
            assert said, "it ended"
        time.sleep(1)  # it is inside the library now
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130


def test_what_a_launcher_left_in_the_environment_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"RANK and WORLD_SIZE are set, .* or unset both"), join_processes(REQUEST):
        pass


def test_a_rank_beyond_the_number_of_processes_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="RANK is 1 of a WORLD_SIZE of 1"), join_processes(REQUEST):
        pass
    monkeypatch.setenv("MASTER_ADDR", "no such.host.invalid")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="cannot be joined"), join_processes(REQUEST):
        pass
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("WORLD_SIZE", str(1 << 31))
    with pytest.raises(UserError, match="cannot be joined"), join_processes(REQUEST):
        pass
