"""Profiles come from a machine that may be anybody's."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from edge_tprune.deploy import collect as module
from edge_tprune.deploy.answers import Done, Listing
from edge_tprune.deploy.collect import Receiver, _free, _wanted, check_listing, collect
from edge_tprune.errors import UserError
from tests.analysis.conftest import Profiles


class FakeBoard:
    """Answers as the program on a board would, with whatever a test wants it to say."""

    target = "jetson@somewhere"

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = contents
        self.sent: list[str] = []

    def call(self, do: str, kind: Any, on_frame: Any = None, **request: Any) -> Any:
        if do == "list":
            return Listing({path: len(data) for path, data in self.contents.items()})
        for path, size in request["paths"].items():
            data = self.contents[path][:size]
            self.sent.append(path)
            on_frame({"path": path, "bytes": size, "sha256": hashlib.sha256(data).hexdigest()}, io.BytesIO(data + b"{...}\n"))
        return Done()


def run_of(board: FakeBoard, out: Path) -> list[Path]:
    return collect(board, out)  # type: ignore[arg-type]


def test_a_profile_arrives_private_and_whole(tmp_path: Path) -> None:
    board = FakeBoard({"run/run.json": b"{}", "run/samples.jsonl": b"1\n2\n"})
    assert run_of(board, tmp_path / "out") == [tmp_path / "out" / "run"]
    assert (tmp_path / "out" / "run" / "samples.jsonl").read_bytes() == b"1\n2\n"
    assert (tmp_path / "out" / "run").stat().st_mode & 0o077 == 0
    assert (tmp_path / "out" / "run" / "run.json").stat().st_mode & 0o077 == 0


def test_only_what_grew_is_fetched_again_with_what_is_derived_from_it(tmp_path: Path) -> None:
    runs = {f"{name}/run.json": json.dumps({"run_id": name}).encode() for name in "ab"}
    board = FakeBoard({**runs, "a/samples.jsonl": b"1\n", "a/summary.json": b"{1}", "b/samples.jsonl": b"1\n"})
    run_of(board, tmp_path)
    assert run_of(board, tmp_path) == []
    board.sent.clear()
    board.contents.update({"a/samples.jsonl": b"1\n2\n", "a/summary.json": b"{2}"})
    assert run_of(board, tmp_path) == [tmp_path / "a"]
    assert board.sent == ["a/run.json", "a/run.json", "a/summary.json", "a/samples.jsonl"]  # first alone: whose place it is
    assert (tmp_path / "a" / "summary.json").read_bytes() == b"{2}"


@pytest.mark.parametrize("path", ["../x", "run/../../evil", "/etc/x", "run//evil", "run/./evil", "a/b/c/d/evil"])
def test_a_path_that_leaves_its_profile_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="not a profile's file"):
        run_of(FakeBoard({path: b"evil"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["notes", "my run/run.json", "run/my notes", "run/e\nvil", "run/-x", "run\\evil/x", "~/evil"])
def test_what_no_profile_is_called_stays_on_the_board(tmp_path: Path, path: str) -> None:
    board = FakeBoard({path: b"{}", "run/run.json": b"{}"})
    assert run_of(board, tmp_path) == [tmp_path / "run"]
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()] == ["run/run.json"]


def test_a_profile_that_stays_there_for_its_name_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    board = FakeBoard({"my run/run.json": b"{}", "notes of mine": b"", ".x.tmp/run.json": b"{}", "run/run.json": b"{}"})
    assert collect(board, tmp_path, said.append) == [tmp_path / "run"]  # type: ignore[arg-type]
    (line,) = said
    assert line.startswith("profile 'my run' stays there: rename it")


def test_what_its_writer_has_not_finished_stays_there(tmp_path: Path) -> None:
    board = FakeBoard({".draft.tmp/run.json": b"{}", "run/.summary.json.x.tmp": b"{", "run/run.json": b"{}"})
    run_of(board, tmp_path)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["run.json"]


@pytest.mark.parametrize("listing", [None, [], {"run/a": -1}, {"run/a": "9"}, {"run/a": True}, {"run/a": 1.5}])
def test_a_listing_that_is_none_is_refused(listing: Any) -> None:
    with pytest.raises(UserError, match="no list of files"):
        check_listing(listing, "it")


def test_a_size_bomb_is_refused_before_a_byte_is_taken() -> None:
    with pytest.raises(UserError, match="more than is collected at once"):
        check_listing({"run/a": module.LIMIT_BYTES + 1}, "it")
    with pytest.raises(UserError, match="more than is collected at once"):
        check_listing({f"run/{number}": 0 for number in range(module.LIMIT_FILES + 1)}, "it")


def test_what_does_not_fit_here_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_free", lambda out: 3)
    with pytest.raises(UserError, match="MB are free here"):
        run_of(FakeBoard({"run/run.json": b"1234"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def take(out: Path, frame: dict[str, Any], data: bytes) -> None:
    Receiver(out, {"run/a": 4}, "it")(frame, io.BytesIO(data))


def test_a_file_that_was_not_announced_or_is_larger_is_refused(tmp_path: Path) -> None:
    for frame in (
        {"path": "run/b", "bytes": 4, "sha256": "0"},
        {"path": "run/a", "bytes": 10**15, "sha256": "0"},
        {"path": ["run/a"], "bytes": 4, "sha256": "0"},
        {"path": "run/b", "sha256": "0"},
        {"path": "run//etc/b", "bytes": None, "sha256": "0"},
        {"path": "run/a", "bytes": 4.0, "sha256": "0"},
    ):
        with pytest.raises(UserError, match="not announced"):
            take(tmp_path, frame, b"1234")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_what_its_hash_says_does_not_appear(tmp_path: Path) -> None:
    frame = {"path": "run/a", "bytes": 4, "sha256": hashlib.sha256(b"1234").hexdigest()}
    for data in (b"123", b"1235"):
        with pytest.raises(UserError, match="arrived damaged"):
            take(tmp_path, frame, data)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
    take(tmp_path, frame, b"1234")
    assert (tmp_path / "run" / "a").read_bytes() == b"1234"


def test_a_link_that_lies_here_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="symbolic link"):
        run_of(FakeBoard({"run/run.json": b"1234"}), tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_collected_profile_is_data_only(tmp_path: Path) -> None:
    """Nothing that is collected is executed by reading it: the readers take JSON."""
    board = FakeBoard(
        {"run/run.json": json.dumps({"format": "evil"}).encode(), "run/sitecustomize.py": b"raise SystemExit('ran')"}
    )
    run_of(board, tmp_path)
    from edge_tprune.record.reader import read_run

    with pytest.raises(UserError):
        read_run(tmp_path / "run")


def test_a_file_that_does_not_come_is_missed(tmp_path: Path) -> None:
    class Forgetful(FakeBoard):
        def call(self, do: str, kind: Any, on_frame: Any = None, **request: Any) -> Any:
            return super().call(do, kind, on_frame, **request) if do == "list" else Done()

    with pytest.raises(UserError, match=r"did not send run/run\.json"):
        run_of(Forgetful({"run/run.json": b"{}"}), tmp_path / "out")


def test_boards_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    """The boards of a fleet may all be called ubuntu, and begin in the same second."""

    def board(run: str) -> FakeBoard:
        samples = {f"name/{log}.jsonl": b"1\n" * len(run) for log in ("samples", "sensors")}
        return FakeBoard({"name/run.json": json.dumps({"run_id": run}).encode(), **samples})

    first, second = board("one"), board("three")
    second.target = "jetson@elsewhere"
    assert run_of(first, tmp_path) == [tmp_path / "name"]
    assert run_of(second, tmp_path) == [tmp_path / "name-2"]
    assert {file.name for file in (tmp_path / "name-2").iterdir()} == {"run.json", "samples.jsonl", "sensors.jsonl"}
    assert run_of(first, tmp_path) == run_of(second, tmp_path) == []
    second.contents["name/samples.jsonl"] += b"2\n"
    assert run_of(second, tmp_path) == [tmp_path / "name-2"]
    assert json.loads((tmp_path / "name/run.json").read_text()) == {"run_id": "one"}
    (tmp_path / "name/run.json").write_text('{"run_')  # damaged here: that is what copying again is for
    assert run_of(first, tmp_path) == [tmp_path / "name"]


def test_what_is_no_profiles_stays_on_the_board(tmp_path: Path) -> None:
    others = ("run/sitecustomize.py", "run/logs/run.json", "run/deep/er/samples.jsonl", "notes/summary.json", "notes/todo.txt")
    board = FakeBoard({"run/run.json": b'{"run_id": "one"}', **dict.fromkeys(others, b"evil")})
    assert run_of(board, tmp_path) == [tmp_path / "run"]
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()] == ["run/run.json"]


@pytest.mark.parametrize("mine", ["notes.txt", "run.json", "summary.json"])
def test_a_directory_of_the_users_own_is_left_alone(tmp_path: Path, mine: str) -> None:
    """`--collect .`: a board chooses the names of its profiles."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "file").write_text("mine")
    for name in {mine, "notes.txt"} if mine == "run.json" else {mine}:
        (tmp_path / "mine" / name).write_text("mine")
    runs = {f"{name}/run.json": json.dumps({"run_id": name}).encode() for name in ("mine", "file")}
    board = FakeBoard({**runs, **{f"{name}/summary.json": b"theirs" for name in ("mine", "file")}})
    assert run_of(board, tmp_path) == [tmp_path / "file-2", tmp_path / "mine-2"]
    assert run_of(board, tmp_path) == []
    assert {file.read_text() for file in [tmp_path / "file", *(tmp_path / "mine").iterdir()]} == {"mine"}


def test_many_collections_at_once_keep_runs_apart_and_none_twice(tmp_path: Path) -> None:
    """Two boards whose runs have one name, each collected by several processes into one new directory."""
    boards = {
        run: {f"name/{f}": json.dumps({"run_id": run}).encode() for f in ("run.json", "summary.json")} for run in ("one", "two")
    }
    for attempt in range(20):
        out, start = tmp_path / str(attempt), Barrier(6)

        class Prompt(FakeBoard):
            def call(self, do: str, kind: Any, on_frame: Any = None, start: Barrier = start, **request: Any) -> Any:
                answer = super().call(do, kind, on_frame, **request)
                if do == "list":
                    start.wait()
                return answer

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda run, Board=Prompt, out=out: run_of(Board(boards[run]), out), ["one", "two"] * 3))
        found = {
            path.name: {file.name: json.loads(file.read_text())["run_id"] for file in path.iterdir()} for path in out.iterdir()
        }
        assert sorted(found) == ["name", "name-2"]
        assert {tuple(sorted(files.items())) for files in found.values()} == {
            (("run.json", run), ("summary.json", run)) for run in boards
        }


def test_a_place_that_another_run_takes_meanwhile_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at a place that is free and the claim of it."""
    looked, found = module._place_of, list[Path]()

    def look(out: Path, name: str, run: str | None) -> Path:
        place = looked(out, name, run)
        if not found:
            (place / "run.json").parent.mkdir(parents=True)
            (place / "run.json").write_text('{"run_id": "theirs"}')
        found.append(place)
        return place

    monkeypatch.setattr(module, "_place_of", look)
    (tmp_path / "mine.json").write_text('{"run_id": "mine"}')
    claimed = module._claim(tmp_path / "out", "name", tmp_path / "mine.json")
    assert claimed == tmp_path / "out" / "name-2"
    assert json.loads((claimed / "run.json").read_text())["run_id"] == "mine"
    assert json.loads((tmp_path / "out" / "name" / "run.json").read_text())["run_id"] == "theirs"


def test_raw_logs_are_fetched_last(tmp_path: Path) -> None:
    """Cut off before them, a collection fetches what was derived from them again."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/summary.json").write_text("old")
    files = {"run/samples.jsonl": 9, "run/summary.json": 3, "run/run.json": 2, "run/trace.json": 1}
    fetched = list(_wanted(files, tmp_path, {}))
    assert fetched[-1] == "run/samples.jsonl"
    for path in fetched[:-1]:
        (tmp_path / path).write_text("x" * files[path])
    assert set(_wanted(files, tmp_path, {})) == files.keys()


def test_samples_that_are_longer_here_are_kept(tmp_path: Path) -> None:
    """A board's file system lost the end of a file; or another run has this name here, and the board's is new."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples.jsonl").write_text("x" * 10)
    there = {"run/samples.jsonl": 5, "run/run.json": 3}
    assert _wanted(there, tmp_path, {"run": tmp_path / "run"}) == {"run/run.json": 3}
    assert set(_wanted(there, tmp_path, {})) == set(there)
    assert set(_wanted(there, tmp_path, {"run": tmp_path / "run-2"})) == set(there)


def test_what_was_derived_from_fewer_samples_goes(tmp_path: Path) -> None:
    """The board has no summary yet of what it measured since; the latency model was made here."""
    info = Profiles.info()
    there = Profiles.write(tmp_path / "there", info, summary=Profiles.summary(info))
    files = {f"run/{file.name}": file.read_bytes() for file in there.iterdir()}
    board = FakeBoard(files)
    (place,) = run_of(board, tmp_path / "out")
    (place / "latency.json").write_text('{"mine": 1}')
    board.contents = {name: data for name, data in files.items() if not name.endswith("summary.json")}
    board.contents["run/samples.jsonl"] += b"\n"
    assert run_of(board, tmp_path / "out") == [place]
    assert not (place / "summary.json").exists()
    assert (place / "latency.json").exists(), "none of ours"


def test_links_that_lead_in_a_circle_are_said(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    if sys.version_info >= (3, 13):
        assert _free(tmp_path / "loop" / "profiles") > 0  # what makes the directory says so
    else:
        with pytest.raises(UserError, match="its symbolic links lead in a circle"):
            _free(tmp_path / "loop" / "profiles")
