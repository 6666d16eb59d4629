from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_tprune.agent import session, turns
from edge_tprune.agent.loads import Timed
from edge_tprune.agent.profile import _check_turns, profile
from edge_tprune.agent.progress import Progress
from edge_tprune.agent.session import CheckFailed, NothingRan
from edge_tprune.analysis.contrast import contrast
from edge_tprune.analysis.loading import load_rows
from edge_tprune.analysis.metrics import METRICS
from edge_tprune.bundle import predictor
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.errors import UserError
from edge_tprune.record.reader import Run, read_run
from edge_tprune.record.settings import RunRequest
from edge_tprune.record.summarize import summarize
from edge_tprune.runtime.engine import Engine, default_threads
from edge_tprune.runtime.engine import open_engine as open_real_engine
from edge_tprune.telemetry.host import HostSource
from tests.record.tiny_run import in_full_disk

from .conftest import MakeBundle
from .killed import start, wait_for_turns
from .tiny_bundle import change_golden

QUICK = RunRequest(threads=1, rounds=2, seconds_per_round=0.0, warmup_seconds=0.0, baseline_seconds=0.0)


class Log(Progress):
    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []
        self.warnings: list[str] = []

    def step(self, done: int, total: int, doing: str) -> None:
        self.steps.append((done, total))

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_records_every_turn_whole(finished: Run) -> None:
    assert re.fullmatch(r"\d{8}T\d{6}Z-tiny-chain-of-products-.+", finished.path.name)
    assert (finished.end, finished.warnings) == ("complete", ())
    assert len(finished.turns) == 5 * 3
    assert all(check.golden_ok for check in finished.checks.values())
    for turn in finished.turns:
        assert len(turn.latency_ns) >= 10
        assert turn.warmup_inferences >= 10
        assert turn.start_ns[0] == 0
        assert (turn.latency_ns > 0).all()
        ends = turn.start_ns + turn.latency_ns
        assert (turn.start_ns[1:] >= ends[:-1]).all()
        assert ends[-1] >= 0.05e9 or len(ends) == 10
        assert turn.load_ms > 0


def test_the_name_of_a_profiles_directory_need_not_be_text(make_bundle: MakeBundle, tmp_path: Path) -> None:
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    run = read_run(profile(Bundle.open(make_bundle({"big": (3, 128), "small": (1, 64)})), place, QUICK))
    assert run.end == "complete"
    assert run.readings


def test_a_process_of_its_own_reads_the_sensors_from_the_first_idle_time_to_the_last(finished: Run) -> None:
    host = [reading for reading in finished.readings if reading.source == "host"]
    assert {metric.name for metric in HostSource().metrics} == set(host[0].values) | set(host[0].gaps)
    assert [idle.which for idle in finished.baselines] == ["before", "after"]
    before, after = finished.baselines
    assert before.end_ns <= finished.turns[0].t_ns
    assert finished.turns[-1].end_ns <= after.t_ns
    assert host[0].t_ns < before.end_ns
    times = [reading.t_ns for reading in host]
    assert times == sorted(times)
    summary = summarize(finished)
    assert summary.observer is not None
    assert summary.observer.cpu_percent > 0
    assert all(
        budget.min_memory_available_mb is None or budget.min_memory_available_mb > 0 for budget in summary.budgets.values()
    )


def test_the_state_of_the_machine_is_recorded_at_both_ends(finished: Run) -> None:
    assert [state.which for state in finished.states] == ["begin", "end"]
    assert (finished.states[0].values.memory_available_bytes or 0) > 0
    assert finished.checks["big"].engine is not None
    assert finished.checks["big"].engine["runtime"] == "onnxruntime"


def test_every_round_is_a_permutation_that_the_seed_decides(finished: Run) -> None:
    order = finished.document.settings.order
    assert all(sorted(names) == sorted(finished.budgets) for names in order)
    assert len({tuple(names) for names in order}) > 1
    assert tuple(tuple(turn.budget for turn in finished.turns if turn.round == number) for number in range(5)) == order
    assert [turn.position for turn in finished.turns] == [0, 1, 2] * 5
    assert order == turns.random_order(finished.budgets, 5, seed=3)
    assert order != turns.random_order(finished.budgets, 5, seed=4)


def test_the_smaller_graph_is_faster_in_every_round(finished: Run) -> None:
    summary = summarize(finished).budgets
    small, big = summary["small"], summary["big"]
    assert (small.latency_ms.p50 or 0) * 3 < (big.latency_ms.p50 or 0)
    assert list(small.round_median_ms) == ["0", "1", "2", "3", "4"]
    assert all(small.round_median_ms[number] < big.round_median_ms[number] for number in small.round_median_ms)
    for turn in finished.turns:
        assert summary[turn.budget].round_median_ms[str(turn.round)] == np.percentile(
            turn.latency_ms, 50, method="inverted_cdf"
        )


def test_says_what_ran_and_where(bundle: Bundle, finished: Run) -> None:
    document = finished.document
    assert (document.settings.precision, document.settings.threads, document.settings.mode) == ("fp32", 1, "saturation")
    assert document.bundle.fingerprint == bundle.manifest.fingerprint
    assert document.budget_names == ["big", "middle", "small"]
    assert [budget.accuracy and budget.accuracy.top1_percent for budget in document.budgets] == [None, None, 50.0]
    assert document.budgets[0].artifact.sha256 == bundle.budget("big").artifacts[0].sha256
    assert document.environment.versions["onnxruntime"]


def test_one_engine_is_alive_at_a_time_and_collection_is_off_while_timing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[weakref.ref[Any]] = []
    collecting: list[bool] = []
    real_open, real_time = open_real_engine, turns.time_load

    def open_engine(file: Path, runtime: str, *, threads: int, shared: bool = False) -> Engine:
        assert not [session for session in sessions if session() is not None], "two engines at once"
        engine = real_open(file, runtime, threads=threads)
        sessions.append(weakref.ref(engine._session))  # type: ignore[attr-defined]
        return engine

    def timed(*arguments: Any) -> tuple[int, int, Timed]:
        collecting.append(gc.isenabled())
        return real_time(*arguments)

    monkeypatch.setattr(predictor, "open_engine", open_engine)
    monkeypatch.setattr(turns, "time_load", timed)
    profile(bundle, tmp_path, QUICK)
    assert len(sessions) == 6
    assert not [session for session in sessions if session() is not None]
    assert collecting == [False] * 6
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_budget_that_fails_its_check_is_shown_and_not_timed(make_bundle: MakeBundle, tmp_path: Path) -> None:
    path = make_bundle({"good": (1, 16), "wrong": (1, 16), "broken": (1, 16)})
    change_golden(path, "wrong", 0.25)
    bundle = Bundle.open(path)
    (path / "onnx/broken.onnx").write_bytes(b"broken")
    log = Log()
    with pytest.raises(CheckFailed, match=r"budget wrong: its logits are off by 0\.25 \(allowed 0\.001\)") as failed:
        profile(bundle, tmp_path / "out", QUICK, progress=log)
    assert set(failed.value.failures) == {"wrong", "broken"}
    looked, *said = (warning for warning in log.warnings if not warning.startswith("the run is"))
    assert looked.endswith("Looking for the block at fault, and for a precision that is right")
    assert "No higher precision helps: fp32: there is no higher precision" in said[0]
    assert [re.split(" failed", warning)[0] for warning in said] == [
        "budget wrong",
        "budget broken",
    ]
    assert log.steps[-1] == (3 + 2, 3 + 2)
    run = read_run(failed.value.path)
    assert (run.end, {turn.budget for turn in run.turns}) == ("complete", {"good"})
    assert [warning.split(":")[0] for warning in run.warnings] == ["budget wrong was not timed", "budget broken was not timed"]
    summary = summarize(run).budgets
    assert summary["wrong"].latency_ms.p50 is None
    assert (summary["wrong"].golden_ok, summary["good"].golden_ok) == (False, True)


def test_where_nothing_can_be_run_the_machine_is_at_fault(make_bundle: MakeBundle, tmp_path: Path) -> None:
    path = make_bundle({"broken": (1, 16)})
    bundle = Bundle.open(path)
    (path / "onnx/broken.onnx").write_bytes(b"broken")
    with pytest.raises(NothingRan, match=r"no budget could be run on this machine: budget broken: ONNX Runtime .* cannot load"):
        profile(bundle, tmp_path / "out", QUICK)


def with_int8(path: Path) -> Bundle:
    """The bundle with a second graph for every budget, in name of another precision."""
    manifest = json.loads((path / "manifest.json").read_text())
    for budget in manifest["budgets"]:
        file = f"onnx/{budget['name']}.int8.onnx"
        shutil.copy(path / budget["artifacts"][0]["file"], path / file)
        budget["artifacts"].append({**budget["artifacts"][0], "precision": "int8", "file": file})
        budget["parity"]["onnxruntime-int8"] = budget["parity"]["onnxruntime"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(path)


def test_precisions_take_turns_in_one_run_and_are_chosen_from_together(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = with_int8(make_bundle({"large": (3, 128), "small": (1, 64)}))
    request = RunRequest(
        precision="int8,fp32", threads=1, rounds=3, seconds_per_round=0.01, warmup_seconds=0.0, baseline_seconds=0.0
    )
    path = profile(bundle, tmp_path / "profiles", request)
    run = read_run(path)
    assert run.budgets == ["large", "small", "large@int8", "small@int8"]
    assert run.document.settings.precision == "fp32,int8"
    assert [budget.artifact.file for budget in run.document.budgets][2:] == ["onnx/large.int8.onnx", "onnx/small.int8.onnx"]
    assert all(check.golden_ok for check in run.checks.values())
    for number in range(3):
        assert {turn.budget for turn in run.turns if turn.round == number} == set(run.budgets)
    rows = load_rows(path)
    assert [row.precision for row in rows] == ["fp32", "fp32", "int8", "int8"]
    assert len(rows.groups) == 1
    found = contrast(rows[1], rows[3], METRICS["p50_ms"])
    assert (found.count, found.unit) == (3, "rounds"), "paired by round"
    with pytest.raises(UserError, match="one must be fp32"):
        profile(bundle, tmp_path, RunRequest(precision="int8,fp16"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp32,fp16"}, "has no file for runtime 'onnxruntime' in fp16"),
        ({"precision": "fp16"}, "has no file for runtime 'onnxruntime' in fp16"),
        ({"budgets": ["smal"]}, "Did you mean small"),
        ({"budgets": []}, "no budget"),
        ({"threads": 0}, "threads must be a whole number, at least 1, not 0"),
        ({"rounds": 0}, "rounds must be a whole number, at least 1, not 0"),
        ({"seconds_per_round": float("inf")}, "seconds_per_round must be a finite number, not inf"),
        ({"warmup_seconds": -1.0}, "warmup_seconds must be a number, at least 0, not -1"),
        ({"baseline_seconds": -1.0}, "baseline_seconds must be a number, at least 0, not -1"),
        ({"fps": 0.0}, "fps must be a number, at least 0.001, not 0.0"),
        ({"fps": 10_001.0}, "fps must be a number, at most 10000"),
        ({"fps": float("nan")}, "fps must be a finite number, not nan"),
        ({"rounds": 10**400}, "rounds must be"),
        ({"seed": 1.5}, "seed must be a whole number, not 1.5"),
        ({"images": Path("absent")}, "image folder absent does not exist"),
        ({"runtime": "onnx"}, "Did you mean onnxruntime"),
    ],
)
def test_mistakes_leave_nothing_behind(bundle: Bundle, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    asked = {name: settings.pop(name) for name in list(settings) if name in RunRequest.__struct_fields__}
    with pytest.raises(UserError, match=message):
        profile(bundle, tmp_path / "out", msgspec.structs.replace(QUICK, **asked), **settings)
    assert not (tmp_path / "out").exists()


def test_more_turns_than_a_document_can_list_are_refused() -> None:
    names = [f"0.{number:06}" for number in range(45)]
    _check_turns(None, names)
    _check_turns(10_000, names)
    with pytest.raises(UserError, match=r"--rounds 100000: a profile can list the turns of 45 budgets for \d+ rounds"):
        _check_turns(100_000, names)


def test_runs_chosen_budgets_also_outside_the_main_thread(bundle: Bundle, tmp_path: Path) -> None:
    paths: list[Path] = []
    thread = threading.Thread(target=lambda: paths.append(profile(bundle, tmp_path, QUICK, budgets=["small", "small"])))
    thread.start()
    thread.join(timeout=120)
    assert not thread.is_alive()
    assert read_run(paths[0]).budgets == ["small"]
    assert len(read_run(paths[0]).turns) == 2


def test_default_threads_respect_the_affinity() -> None:
    assert 1 <= default_threads() <= (os.cpu_count() or 1)
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from edge_tprune.runtime.engine import default_threads; print(default_threads())"
    )
    if hasattr(os, "sched_setaffinity"):
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_it_measured(bundle_path: Path, tmp_path: Path, signal_number: int) -> None:
    child = start(bundle_path, tmp_path)
    path = wait_for_turns(child, tmp_path, 3)
    child.send_signal(signal_number)
    said, _ = child.communicate(timeout=30)
    assert child.returncode == 130
    assert str(path) in said
    run = read_run(path)
    assert run.end == "interrupted"
    assert any("was interrupted" in warning for warning in run.warnings)
    assert len(run.turns) >= 3
    assert sorted(file.name for file in path.iterdir()) == ["run.json", "samples.jsonl", "sensors.jsonl", "summary.json"]


def test_a_bundle_that_is_rebuilt_meanwhile_ends_the_run(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later rounds would time the graphs of another network."""
    copy = Path(shutil.copytree(bundle_path, tmp_path / "bundle"))
    take, taken = session.take_turn, []

    def take_and_rebuild(*arguments: Any) -> Any:
        taken.append(take(*arguments))
        document = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps(document | {"fingerprint": "b" * 64}))
        return taken[-1]

    monkeypatch.setattr(session, "take_turn", take_and_rebuild)
    with pytest.raises(UserError, match="was rebuilt in the meantime"):
        profile(Bundle.open(copy), tmp_path / "out", QUICK, budgets=["small"])
    run = read_run(next((tmp_path / "out").glob("[0-9]*")))
    assert (len(taken), len(run.turns), run.end) == (1, 1, "failed")


FULL = """
import sys
from pathlib import Path
from edge_tprune.agent.profile import _check_turns, profile
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.errors import UserError
from edge_tprune.record.settings import RunRequest
out = Path(sys.argv[2])
try:
    profile(Bundle.open(sys.argv[1]), out, RunRequest(threads=1, rounds=2), budgets=["small"])
except UserError as error:
    print(error)
assert not list(out.iterdir()), list(out.iterdir())
"""


def test_a_disk_without_space_is_refused_before_anything_is_measured(bundle_path: Path, tmp_path: Path) -> None:
    done = in_full_disk(FULL, str(bundle_path), str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no space left for a record: 0.1 MB are free at")
    assert len(done.stdout.splitlines()) == 1


FILLING = """
import sys
from pathlib import Path
import edge_tprune.agent.session as session
from edge_tprune.agent.profile import _check_turns, profile
from edge_tprune.record.reader import read_run
from edge_tprune.record.settings import RunRequest
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.errors import UserError
out = Path(sys.argv[2])
take = session.take_turn
def fill(*arguments):
    (out / "other").write_bytes(bytes(1 << 20))
    return take(*arguments)
session.take_turn = fill
request = RunRequest(threads=1, rounds=3, seconds_per_round=0.02, warmup_seconds=0.0, baseline_seconds=0.0)
try:
    profile(Bundle.open(sys.argv[1]), out, request, budgets=["small"])
except UserError as error:
    print(error)
run = read_run(next(out.glob("[0-9]*")))
assert [turn.round for turn in run.turns] == [0], run.turns
assert run.end == "failed", run.end
assert (run.path / "summary.json").exists()
"""


def test_a_disk_that_fills_up_ends_the_run_with_one_clear_line(bundle_path: Path, tmp_path: Path) -> None:
    done = in_full_disk(FILLING, str(bundle_path), str(tmp_path), size="8704k")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no space left for a record")
    assert len(done.stdout.splitlines()) == 1
