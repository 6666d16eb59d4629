from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_tprune.errors import UserError
from edge_tprune.record.document import RUN
from edge_tprune.record.lines import SAMPLES, CheckLine, EndLine, LogLine, NoteLine, ReadingLine
from edge_tprune.record.log import clock_ns
from edge_tprune.record.reader import read_run
from edge_tprune.record.summarize import write_summary
from edge_tprune.record.summary import SUMMARY
from edge_tprune.record.trace import write_trace
from edge_tprune.record.writer import Recorder, directory_name
from edge_tprune.schedule.latency import LATENCY

from .tiny_run import add_turn, document, in_full_disk, write_run


class NewLine(LogLine, tag="something-new", kw_only=True, frozen=True):
    """A kind of line that this version does not know."""

    surprise: int


def test_what_is_written_is_read(tmp_path: Path) -> None:
    with Recorder.create(tmp_path, "run", document()) as recorder:
        found: dict[str, Any] = {"golden_ok": True, "golden_max_abs_diff": 1e-6, "load_ms": 2.5, "peak_memory_bytes": None}
        recorder.append(CheckLine(t_ns=clock_ns(), budget="a", **found))
        recorder.append(ReadingLine(t_ns=77, source="host", read_ns=5, values={"x_bytes": 1.0, "y_mhz": None}))
        recorder.append(NoteLine(t_ns=clock_ns(), text="hello"))
        recorder.append(NewLine(t_ns=clock_ns(), surprise=1))
        add_turn(recorder, 0)
        recorder.append(EndLine(t_ns=clock_ns(), reason="complete"))
    run = read_run(recorder.path)
    assert run.document == document()
    assert run.budgets == ["a", "b"]
    assert run.checks["a"].golden_max_abs_diff == 1e-6
    assert run.checks["a"].error is None
    assert run.notes == ("hello",)
    assert (run.end, run.warnings) == ("complete", ())
    assert (run.readings[0].t_ns, run.readings[0].values) == (77, {"x_bytes": 1.0})
    assert set(run.readings[0].gaps) == {"y_mhz"}
    (turn,) = run.turns_of("a")
    np.testing.assert_array_equal(turn.latency_ns, [5, 7, 6])
    np.testing.assert_array_equal(turn.start_ns, [0, 10, 20])
    assert run.turns_of("b") == []


def test_nothing_is_overwritten_and_nothing_is_left_behind(tmp_path: Path) -> None:
    paths = [write_run(tmp_path) for _ in range(3)]
    assert [path.name for path in paths] == ["run", "run-2", "run-3"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert all(sorted(file.name for file in path.iterdir()) == [RUN, SAMPLES] for path in paths)


def test_what_was_derived_from_the_sessions_before_goes_when_another_begins(tmp_path: Path) -> None:
    path = write_run(tmp_path, end=None)
    for name in (SUMMARY, LATENCY):
        (path / name).write_text("{}")
    with Recorder.reopen(path) as recorder:
        recorder.begin_session()
    assert sorted(file.name for file in path.iterdir()) == [RUN, SAMPLES]
    assert read_run(path).sessions == 2


def test_directory_names_are_safe() -> None:
    started = datetime(2025, 3, 4, 5, 6, 7, tzinfo=timezone.utc)
    assert directory_name(started, "deit-s_zero", "orin") == "20250304T050607Z-deit-s_zero-orin"
    assert directory_name(started, "../a b/ü\n", "") == "20250304T050607Z-a-b-unnamed"
    assert len(directory_name(started, "x" * 999, "y" * 999)) < 200


def test_a_log_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    """What is written would go into a file that nobody finds any more."""
    with Recorder.create(tmp_path, "run", document()) as recorder:
        recorder.check_in_place()
        lines = (recorder.path / SAMPLES).read_bytes()
        (recorder.path / SAMPLES).unlink()
        with pytest.raises(UserError, match=r"samples\.jsonl was removed or replaced while it was being written"):
            recorder.check_in_place()
        (recorder.path / SAMPLES).write_bytes(lines)
        with pytest.raises(UserError, match="was removed or replaced"):
            recorder.check_in_place()


def test_an_unwritable_place_is_the_users_mistake(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="cannot write"):
        Recorder.create(file / "out", "run", document())


@pytest.mark.parametrize("taken", ["run", "out"])
def test_a_place_that_something_else_takes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str) -> None:
    """A file under the name of the profile makes it `run-2`; one under that of the whole directory is said, and nothing is tried for ever."""
    out, rename = tmp_path / "out", Path.rename

    def take_first(draft: Path, path: Path) -> Path:
        if draft.name.startswith(".run") and not (tmp_path / "moved").exists() and not (out / "run").is_file():
            if taken == "out":
                rename(out, tmp_path / "moved")
                out.write_text("mine")
            else:
                (out / "run").write_text("mine")
        return rename(draft, path)

    monkeypatch.setattr(Path, "rename", take_first)
    if taken == "run":
        with Recorder.create(out, "run", document()) as recorder:
            assert recorder.path == out / "run-2"
    else:
        with pytest.raises(UserError, match="cannot write"):
            Recorder.create(out, "run", document())


def test_a_file_of_a_person_under_the_name_of_a_summary_stays(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    for name, write in (("summary.json", write_summary), ("trace.json", write_trace)):
        (path / name).write_text("my notes")
        with pytest.raises(UserError, match=rf"{name} is not a .* of edge-tprune's, and would be lost"):
            write(read_run(path))
        assert (path / name).read_text() == "my notes"


def test_missing_is_null_and_never_nan(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    before = (path / SAMPLES).read_bytes()
    with Recorder.create(tmp_path, "run", document()) as recorder, pytest.raises(ValueError):
        recorder.append(NoteLine(t_ns=1, text=float("nan")))  # type: ignore[arg-type]
    assert (path / SAMPLES).read_bytes() == before


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny_run import Recorder, add_turn, document
with Recorder.create(Path(sys.argv[2]), "run", document()) as recorder:
    for number in range(1_000_000):
        add_turn(recorder, number, latency_ns=(1234567,) * 200)
"""


def test_kill_9_at_any_moment_leaves_a_readable_run(tmp_path: Path) -> None:
    moments = random.Random(0)
    for attempt in range(6):
        out = tmp_path / str(attempt)
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(Path(__file__).parent), str(out)])
        while not any(out.glob("run*")) and child.poll() is None:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        assert child.wait(timeout=60) == -signal.SIGKILL
        run = read_run(out / "run")
        assert [turn.round for turn in run.turns] == list(range(len(run.turns)))
        assert all(len(turn.latency_ns) == 200 for turn in run.turns)
        assert run.end is None


LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from edge_tprune.record.reader import read_run
from edge_tprune.errors import UserError
from edge_tprune.record.lines import EndLine
from tiny_run import Recorder, add_turn, document
recorder = Recorder.create(Path(sys.argv[2]), "run", document())
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    for number in range(1000):
        add_turn(recorder, number, latency_ns=(1234567,) * 50)
except UserError:
    recorder.append(EndLine(t_ns=1, reason="failed"))
run = read_run(recorder.path)
assert run.end == "failed", run
assert [turn.round for turn in run.turns] == list(range(number)), run.turns
assert number > 10
"""


def test_a_line_that_does_not_fit_is_taken_back_whole(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LIMITED, str(Path(__file__).parent), str(tmp_path)], check=True)


FULL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from edge_tprune.record.reader import read_run
from edge_tprune.errors import UserError
from tiny_run import Recorder, add_turn, document
recorder = Recorder.create(Path(sys.argv[2]), "run", document())
try:
    for number in range(10_000):
        add_turn(recorder, number, latency_ns=(1234567,) * 50)
except UserError as error:
    print(error)
run = read_run(recorder.path)
assert [turn.round for turn in run.turns] == list(range(number)), run.turns
assert number > 10
assert "cut short" not in str(run.warnings), run.warnings
try:
    Recorder.create(Path(sys.argv[2]), "other", document(environment={"x": "y" * 200_000}))
except UserError as error:
    print(error)
print([file.name for file in Path(sys.argv[2]).iterdir()])
"""


def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    done = in_full_disk(FULL, str(Path(__file__).parent), str(tmp_path))
    assert done.returncode == 0, done.stderr
    first, second, left = done.stdout.splitlines()
    assert first.startswith("no space left while writing")
    assert second.startswith("no space left while writing")
    assert left == "['run']"
