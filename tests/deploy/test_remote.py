"""The program that runs on the board, run here: as a process of its own with a home directory of its own, spoken to over pipes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_tprune.bundle import revision
from edge_tprune.bundle.manifest import KIND, MANIFEST
from edge_tprune.deploy import remote

Talk = Callable[..., dict[str, Any]]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def start(home: Path, request: dict[str, Any]) -> subprocess.Popen[bytes]:
    """The program with one request, as SSH starts it."""
    source = Path(remote.__file__).read_bytes()
    code = f"import sys; exec(compile(sys.stdin.buffer.read({len(source)}), 'remote.py', 'exec'))"
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ, "HOME": str(home)}
    )
    assert process.stdin
    process.stdin.write(source + json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    return process


@pytest.fixture
def talk(tmp_path: Path) -> Talk:
    """One request and its answer; `payload` follows the request."""

    def run(do: str, payload: bytes = b"", **request: Any) -> dict[str, Any]:
        process = start(tmp_path, {"do": do, **request})
        out, err = process.communicate(payload)
        assert not err, err.decode()
        _, _, answer = out.partition(remote.MARK)
        found: dict[str, Any] = json.loads(answer.splitlines()[-1])
        assert process.returncode == ("error" in found)
        return found

    return run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / ".edge-tprune"


def frame(data: bytes, offset: int = 0, name: str | None = None) -> bytes:
    header = {"sha256": name or digest(data), "offset": offset, "bytes": len(data) - offset}
    return json.dumps(header).encode() + b"\n" + data[offset:]


def send(talk: Talk, *datas: bytes) -> dict[str, Any]:
    files = {digest(data): len(data) for data in datas}
    return talk("receive", b"".join(map(frame, datas)) + b"{}\n", files=files)


def test_check_says_what_is_here_and_changes_nothing(talk: Talk, home: Path) -> None:
    facts = talk("check")
    assert facts["python"] == list(sys.version_info[:3])
    assert facts["venv"]
    assert facts["packages"]["numpy"]
    assert facts["stamp"] is None
    assert not home.exists()


def test_a_package_without_a_version_is_left_out(talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, version in (
        ("broken", ""),
        ("whole", "Version: 2\n"),
        ("x" * 201, "Version: 2\n"),
        ("long", f"Version: {'1' * 101}\n"),
    ):
        (folder := tmp_path / "site" / f"{name}-1.dist-info").mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\n{version}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    packages = talk("check")["packages"]
    assert {name for name in packages if name in ("broken", "whole", "long") or "xx" in name} == {"whole"}


def test_received_files_are_checked_and_private(talk: Talk, home: Path) -> None:
    data = os.urandom(1_000_000)
    assert talk("wanted", files={digest(data): len(data)})["offsets"] == {digest(data): 0}
    assert send(talk, data) == {"received": 1}
    file = home / "incoming" / digest(data)
    assert file.read_bytes() == data
    assert file.stat().st_mode & 0o077 == 0
    assert home.stat().st_mode & 0o077 == 0
    assert talk("wanted", files={digest(data): len(data)})["offsets"] == {}


def test_a_cut_off_transfer_goes_on_where_it_stopped(talk: Talk) -> None:
    data = os.urandom(600_000)
    files = {digest(data): len(data)}
    assert "in the middle" in talk("receive", frame(data)[:-250_000], files=files)["error"]
    offset = talk("wanted", files=files)["offsets"][digest(data)]
    assert offset == len(data) - 250_000
    assert talk("receive", frame(data, offset) + b"{}\n", files=files) == {"received": 1}
    assert talk("wanted", files=files)["offsets"] == {}


def test_a_damaged_file_is_refused_and_fetched_anew(talk: Talk, home: Path) -> None:
    data = b"x" * 1000
    files = {digest(data): len(data)}
    answer = talk("receive", frame(b"y" * 1000, name=digest(data)) + b"{}\n", files=files)
    assert "arrived damaged" in answer["error"]
    assert list((home / "incoming").iterdir()) == []
    (home / "incoming" / digest(data)).write_bytes(b"z" * 1000)  # as long, but wrong
    assert talk("wanted", files=files)["offsets"] == {digest(data): 0}
    assert send(talk, data) == {"received": 1}


def test_only_announced_files_in_announced_sizes_are_taken(talk: Talk, home: Path) -> None:
    data = b"x" * 1000
    for payload in (
        frame(data),  # not announced at all
        json.dumps({"sha256": "../../evil", "offset": 0, "bytes": 4}).encode() + b"\nevil",
        json.dumps({"sha256": digest(b"a"), "offset": 0, "bytes": 10**12}).encode() + b"\n",  # larger than announced
        json.dumps({"sha256": digest(b"a"), "offset": -5, "bytes": 6}).encode() + b"\n",
    ):
        assert "not announced" in talk("receive", payload, files={digest(b"a"): 1})["error"]
    assert list((home / "incoming").iterdir()) == []
    assert "not a list of files" in talk("wanted", files={"../../evil": 4})["error"]


def test_a_link_in_the_way_is_not_followed(talk: Talk, home: Path, tmp_path: Path) -> None:
    data = b"x" * 100
    (home / "incoming").mkdir(parents=True)
    (home / "incoming" / digest(data)).symlink_to(tmp_path / "victim")
    assert "error" in send(talk, data)
    assert not (tmp_path / "victim").exists()


def test_a_full_disk_is_said_before_anything_is_sent(talk: Talk) -> None:
    assert "too full" in talk("wanted", files={digest(b"a"): 10**15})["error"]


def bundle_files(**contents: bytes) -> dict[str, dict[str, Any]]:
    return {name.replace("__", "/"): {"sha256": digest(data), "bytes": len(data)} for name, data in contents.items()}


def test_a_bundle_appears_whole_or_not_at_all(talk: Talk, home: Path) -> None:
    first, second = b"1" * 5000, b"2" * 6000
    files = bundle_files(a=first, onnx__b=second)
    send(talk, first)
    assert "onnx/b did not arrive" in talk("bundle", name="net", files=files)["error"]
    assert not (home / "bundles" / "net").exists()
    send(talk, second)
    assert talk("bundle", name="net", files=files)["path"] == str(home / "bundles" / "net")
    assert (home / "bundles" / "net" / "onnx" / "b").read_bytes() == second
    assert list((home / "incoming").iterdir()) == []


def test_two_deployments_may_send_one_file_at_once(talk: Talk, home: Path, tmp_path: Path) -> None:
    data = os.urandom(600_000)
    first = start(tmp_path, {"do": "receive", "files": {digest(data): len(data)}})
    assert first.stdin
    sent = frame(data)
    first.stdin.write(sent[:300_000])
    first.stdin.flush()
    file = home / "incoming" / digest(data)
    deadline = time.monotonic() + 60
    while not (file.exists() and file.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert send(talk, data) == {"received": 1}
    out, _ = first.communicate(sent[300_000:] + b"{}\n")
    assert json.loads(out.splitlines()[-1]) == {"received": 1}
    assert file.read_bytes() == data


def test_bundles_are_put_into_place_one_after_the_other(talk: Talk, home: Path, tmp_path: Path) -> None:
    data = b"k" * 5000
    send(talk, data)
    with (home / "bundles.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start(tmp_path, {"do": "bundle", "name": "net", "files": bundle_files(a=data)})
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=2)
        assert not (home / "bundles" / "net").exists()
    process.communicate()
    assert (home / "bundles" / "net" / "a").read_bytes() == data


def test_an_updated_bundle_reuses_what_it_has_and_loses_what_it_had(talk: Talk, home: Path) -> None:
    kept, old, new = b"k" * 5000, b"o" * 6000, b"n" * 7000
    send(talk, kept, old)
    talk("bundle", name="net", files=bundle_files(**{"golden.npz": kept, "onnx/old.onnx": old}))
    files = {digest(kept): len(kept), digest(new): len(new)}
    assert talk("wanted", files=files, reuse="net")["offsets"] == {digest(new): 0}
    send(talk, new)
    talk("bundle", name="net", files=bundle_files(**{"onnx/kept.onnx": kept, "manifest.json": new}))
    assert sorted(
        str(file.relative_to(home / "bundles"))
        for file in (home / "bundles").rglob("*")
        if file.is_file() and file.suffix != ".lock"
    ) == [
        "net/manifest.json",
        "net/onnx/kept.onnx",
    ]


def test_what_a_person_put_into_a_bundle_stays(talk: Talk, home: Path) -> None:
    """`profile .` in a bundle's directory writes its profile there."""
    target = home / "bundles" / "net"
    graphs = [{f"onnx/{number}.onnx": b"x" * (60 + number)} for number in range(2)]
    versions = [{"manifest.json": manifest_of(graph), **graph} for graph in graphs]
    for data in (versions[0], versions[0], versions[1]):
        send(talk, *data.values())
        talk("bundle", name="net", files=bundle_files(**data))
        (target / "profiles" / "run").mkdir(parents=True, exist_ok=True)
        (target / "profiles" / "run" / "run.json").touch()
        if not (target / "link").is_symlink():
            (target / "notes.txt").write_text("mine")
            (target / "link").symlink_to("/nowhere")
            inode = (target / "notes.txt").stat().st_ino
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_symlink() or path.is_file()}
    assert found == {"manifest.json", "onnx/1.onnx", "profiles/run/run.json", "notes.txt", "link"}
    assert (target / "notes.txt").read_text() == "mine"
    assert (target / "notes.txt").stat().st_ino == inode, "what is open there goes on being written"
    assert (target / "link").readlink() == Path("/nowhere")


def manifest_of(files: dict[str, bytes], accuracy: object = None, results: dict[str, bytes] | None = None) -> bytes:
    """As much of a manifest as the board reads: one budget whose graph is the first file."""
    (graph, data), *_ = files.items()
    artifact = {"file": graph, "sha256": digest(data), "bytes": len(data)}
    budget = {"name": "0.65", "accuracy": accuracy, "artifacts": [artifact]}
    others = {name: {"sha256": digest(content), "bytes": len(content)} for name, content in (results or {}).items()}
    return json.dumps({"fingerprint": "f", "budgets": [budget], "files": others}).encode()


def test_files_of_a_person_beside_the_graphs_stay(talk: Talk, home: Path) -> None:
    target, graphs = home / "bundles" / "net", {"onnx/a.onnx": b"a" * 100}
    for number in range(2):
        data = {**graphs, "manifest.json": manifest_of(graphs) + b" " * number}
        send(talk, *data.values())
        talk("bundle", name="net", files=bundle_files(**data))
        for name in ("onnx/mine.onnx", "onnx/mine.bin", "engines/my.plan"):
            assert number == 0 or (target / name).read_text() == "mine"
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).write_text("mine")
    more = {**graphs, "onnx/mine.onnx": b"m" * 100}
    data = {**more, "manifest.json": manifest_of(more)}
    send(talk, *data.values())
    assert (
        "onnx/mine.onnx is no file of the bundle there, and would be lost"
        in talk("bundle", name="net", files=bundle_files(**data))["error"]
    )
    assert (target / "onnx/mine.onnx").read_text() == "mine"
    graphs = {"onnx/b.onnx": b"b" * 100}
    data = {**graphs, "manifest.json": manifest_of(graphs)}
    send(talk, *data.values())
    assert "path" in talk("bundle", name="net", files=bundle_files(**data))
    assert not (target / "onnx/a.onnx").exists(), "the manifest there said that it was the bundle's"


@pytest.mark.parametrize("again", ["the same", "rebuilt", "another", "evaluated here", "damaged there"])
def test_what_eval_found_on_the_board_stays_with_the_same_graphs(talk: Talk, home: Path, again: str) -> None:
    target, graphs, results = home / "bundles" / "net", {"onnx/a.onnx": b"a" * 100}, {"eval-0123456789ab.npz": b"r" * 50}
    first = {**graphs, "manifest.json": manifest_of(graphs)}
    send(talk, *first.values())
    talk("bundle", name="net", files=bundle_files(**first))
    (target / "manifest.json").write_bytes(manifest_of(graphs, {"images": 20}, results))
    (target / "eval-0123456789ab.npz").write_bytes(b"r" * (49 if again == "damaged there" else 50))
    if again == "another":
        graphs = {"onnx/a.onnx": b"c" * 100}
    manifest = manifest_of(graphs, {"images": 1000} if again == "evaluated here" else None) + b" " * (again == "rebuilt")
    data = {**graphs, "manifest.json": manifest}
    for _ in range(2):
        send(talk, *data.values())
        talk("bundle", name="net", files=bundle_files(**data))
        found = json.loads((target / "manifest.json").read_bytes())["budgets"][0]["accuracy"]
        kept = again in ("the same", "rebuilt")
        assert found == ({"images": 20} if kept else {"images": 1000} if again == "evaluated here" else None)
        assert (target / "eval-0123456789ab.npz").exists() == kept
        assert not list((home / "incoming").iterdir())


def test_what_eval_stores_while_the_next_version_is_made_stays(talk: Talk, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, so that the evaluation can end at the last moment before the swap; its lock is that of the bundle's manifest."""
    target, graphs, results = home / "bundles" / "net", {"onnx/a.onnx": b"a" * 100}, {"eval-0123456789ab.npz": b"r" * 50}
    first, second = ({**graphs, "manifest.json": manifest_of(graphs) + b" " * number} for number in range(2))
    third = {"onnx/a.onnx": b"c" * 100, "manifest.json": manifest_of({"onnx/a.onnx": b"c" * 100})}
    send(talk, *first.values())
    talk("bundle", name="net", files=bundle_files(**first))
    sync, stored = remote._sync, []

    def late(directory: Path) -> None:
        if not stored:
            with revision.manifest_lock(target):
                (target / "eval-0123456789ab.npz").write_bytes(b"r" * 50)
                (target / "manifest.json").write_bytes(manifest_of(graphs, {"images": 20}, results))
            stored.append(directory)
        sync(directory)

    monkeypatch.setattr(remote, "_sync", late)
    send(talk, *second.values())
    remote.bundle(home, {"name": "net", "files": bundle_files(**second)}, io.BytesIO(), io.BytesIO())
    assert stored
    assert json.loads((target / "manifest.json").read_bytes())["budgets"][0]["accuracy"] == {"images": 20}
    assert (target / "eval-0123456789ab.npz").read_bytes() == b"r" * 50
    with revision.manifest_lock(target), monkeypatch.context() as patch:
        patch.setattr(remote, "STOP_S", 0.2)
        send(talk, *third.values())
        with pytest.raises(remote.Refused, match="another command is at work on bundle net there"):
            remote.bundle(home, {"name": "net", "files": bundle_files(**third)}, io.BytesIO(), io.BytesIO())


DAMAGED = b'{"format": "edge-tprune-bundle", "budg'


@pytest.mark.parametrize("manifest", [b"mine", b'{"format": "mine"}', DAMAGED, b""])
def test_what_no_manifest_names_is_not_lost(talk: Talk, home: Path, manifest: bytes) -> None:
    target, graphs = home / "bundles" / "net", {"onnx/a.onnx": b"a" * 100}
    (target / "onnx").mkdir(parents=True)
    (target / "manifest.json").write_bytes(manifest)
    (target / "onnx" / "detector.onnx").write_text("mine")
    data = {**graphs, "manifest.json": manifest_of(graphs)}
    send(talk, *data.values())
    answer = talk("bundle", name="net", files=bundle_files(**data))
    assert (target / "onnx" / "detector.onnx").read_text() == "mine"
    if manifest in (DAMAGED, b""):
        assert (target / "manifest.json").read_bytes() == data["manifest.json"]
    else:
        assert "manifest.json is no file of the bundle there, and would be lost" in answer["error"]
        assert (target / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize(
    ("damage"),
    [
        {"files": {"golden.npz": {"sha256": ["x"]}}},
        {"budgets": [{"name": ["x"], "accuracy": {"images": 3}, "artifacts": []}]},
        {
            "budgets": [
                {"name": "a", "artifacts": [{"file": "eval-0123456789ab.npz", "sha256": "x"}], "accuracy": {"images": 3}}
            ],
            "files": {},
        },
    ],
)
def test_a_manifest_of_wrong_types_there_is_replaced(talk: Talk, home: Path, damage: dict[str, Any]) -> None:
    target, graphs = home / "bundles" / "net", {"onnx/a.onnx": b"a" * 100}
    first = {**graphs, "manifest.json": manifest_of(graphs)}
    send(talk, *first.values())
    talk("bundle", name="net", files=bundle_files(**first))
    there = {"format": "edge-tprune-bundle", **json.loads(first["manifest.json"]), **damage}
    (target / "manifest.json").write_text(json.dumps(there))
    data = {**graphs, "manifest.json": manifest_of(graphs) + b" "}
    send(talk, *data.values())
    assert "path" in talk("bundle", name="net", files=bundle_files(**data))
    assert (target / "onnx" / "a.onnx").read_bytes() == graphs["onnx/a.onnx"]


def test_a_name_that_is_no_text_is_shown_in_a_refusal(talk: Talk, home: Path) -> None:
    data = {"onnx/a.onnx": b"a" * 100}
    send(talk, *data.values())
    answer = talk("bundle", name="x\udcff", files=bundle_files(**data))
    assert answer["error"].isprintable()


def test_the_board_knows_what_commands_leave_behind_as_the_host_does() -> None:
    """The program on the board imports nothing of this package."""
    assert remote.LEFT_BEHIND.pattern == revision.LEFT_BEHIND
    assert remote.MANIFEST == MANIFEST
    assert KIND.begins == remote.BEGINS


def test_a_pipe_in_the_place_of_a_manifest_is_not_read(talk: Talk, home: Path) -> None:
    data = {"manifest.json": b"m" * 50}
    (home / "bundles" / "net").mkdir(parents=True)
    os.mkfifo(home / "bundles" / "net" / "manifest.json")
    send(talk, *data.values())
    assert "path" in talk("bundle", name="net", files=bundle_files(**data))
    assert (home / "bundles" / "net" / "manifest.json").read_bytes() == b"m" * 50


def test_pipes_in_the_place_of_a_stamp_or_of_a_transfer_keep_nobody_waiting(talk: Talk, home: Path) -> None:
    data = b"w" * 50
    (home / "venv").mkdir(parents=True)
    (home / "incoming").mkdir()
    os.mkfifo(home / "venv" / remote.STAMP)
    os.mkfifo(home / "incoming" / digest(data))
    assert talk("check")["stamp"] is None
    assert "error" in send(talk, data)
    assert talk("wanted", files={digest(data): len(data)})["offsets"] == {digest(data): 0}
    assert "error" not in send(talk, data)
    assert (home / "incoming" / digest(data)).read_bytes() == data


def test_a_changed_file_on_the_board_is_not_reused(talk: Talk, home: Path) -> None:
    data = b"k" * 5000
    send(talk, data)
    talk("bundle", name="net", files=bundle_files(a=data))
    (home / "bundles" / "net" / "a").write_bytes(b"?" * 5000)
    assert talk("wanted", files={digest(data): len(data)}, reuse="net")["offsets"] == {digest(data): 0}


@pytest.mark.parametrize("disk", [None, "/dev/shm"])
def test_a_bundle_that_a_person_moved_to_another_disk_comes_back(
    talk: Talk, home: Path, tmp_path: Path, disk: str | None
) -> None:
    """A link is neither followed nor left in the way of the next deployment."""
    versions = [{"kept": b"k" * 5000, "new": bytes([number]) * 100} for number in range(3)]
    elsewhere = Path(tempfile.mkdtemp(dir=disk or tmp_path))
    for data in versions:
        send(talk, *data.values())
        talk("bundle", name="net", files=bundle_files(**data))
        assert [path.name for path in (home / "bundles").iterdir() if path.suffix != ".lock"] == ["net"]
        assert not (home / "bundles" / "net").is_symlink()
        if data is versions[0]:
            shutil.move(home / "bundles" / "net", elsewhere)
            os.mkfifo(elsewhere / "net" / "control")
            (elsewhere / "net" / "notes.txt").write_text("mine")
            (elsewhere / "net" / "to come" / "soon").mkdir(parents=True)
            (elsewhere / "net" / "to come" / "soon").chmod(0o700)
            (home / "bundles" / "net").symlink_to(elsewhere / "net")
            (home / "bundles" / ".net.old").symlink_to(elsewhere / "net")
    assert (home / "bundles" / "net" / "new").read_bytes() == versions[2]["new"]
    assert (elsewhere / "net" / "new").read_bytes() == versions[0]["new"], "it is the person's now"
    assert (home / "bundles" / "net" / "notes.txt").read_text() == "mine"
    assert (home / "bundles" / "net" / "to come" / "soon").stat().st_mode & 0o777 == 0o700
    shutil.rmtree(elsewhere)


def test_a_swap_that_was_cut_off_is_put_right(talk: Talk, home: Path) -> None:
    data = b"k" * 5000
    send(talk, data)
    talk("bundle", name="net", files=bundle_files(**{"onnx/a.onnx": data}))
    (home / "bundles" / "net").rename(home / "bundles" / ".net.old")  # the power went off between two renames
    talk("bundle", name="net", files=bundle_files(**{"golden.npz": data}))
    assert [file.name for file in (home / "bundles" / "net").iterdir()] == ["golden.npz"]


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", "a//b", "", "a\\b", "."])
def test_a_bundle_cannot_write_outside_its_directory(talk: Talk, home: Path, path: str) -> None:
    data = b"evil" * 100
    send(talk, data)
    assert "not a path" in talk("bundle", name="net", files={path: {"sha256": digest(data), "bytes": len(data)}})["error"]
    assert not (home / "bundles" / "net").exists()
    assert not list(home.parent.rglob("evil"))


@pytest.mark.parametrize("name", ["../x", ".hidden", "", "a/b", "-x", "x" * 200])
def test_a_bundle_cannot_take_any_name(talk: Talk, name: str) -> None:
    assert "not a usable name" in talk("bundle", name=name, files={})["error"]


@given(st.text(max_size=30))
def test_no_accepted_path_leaves_its_directory(text: str) -> None:
    try:
        parts = remote._inside(text)
    except remote.Refused:
        return
    assert Path("/base", *parts).resolve(strict=False).is_relative_to("/base")
    assert Path(*parts).parts == tuple(parts)


def test_an_unfinished_installation_is_thrown_away(talk: Talk, home: Path) -> None:
    wheels = {"agent.whl": b"no wheel", "pip.whl": b"no pip"}
    send(talk, *wheels.values())
    request = {
        "stamp": {"agent": "new"},
        "wheels": bundle_files(**wheels),
        "pip": "pip.whl",
        "agent": "agent.whl",
        "extras": "",
        "requirements": [],
        "offline": True,
    }
    answer = talk("install", **request)
    assert "could not be installed" in answer["error"]
    assert not (home / "venv").exists()
    assert not (home / "wheels").exists()
    assert talk("check")["stamp"] is None


@pytest.mark.parametrize("moved", [False, True])
def test_a_failed_installation_leaves_the_agent_that_was_there(talk: Talk, home: Path, tmp_path: Path, moved: bool) -> None:
    fake_agent(home, "")
    (home / "venv" / remote.STAMP).write_text('{"agent": "old"}')
    if moved:  # by a person, to a larger disk; and an earlier installation left its link
        shutil.move(home / "venv", tmp_path / "large")
        (home / "venv").symlink_to(tmp_path / "large")
        (home / "venv.old").symlink_to(tmp_path / "large")
    wheels = {"agent.whl": b"no wheel", "pip.whl": b"no pip"}
    send(talk, *wheels.values())
    request = {
        "stamp": {"agent": "new"},
        "pip": "pip.whl",
        "agent": "agent.whl",
        "extras": "",
        "requirements": [],
        "offline": True,
    }
    assert "could not be installed" in talk("install", wheels=bundle_files(**wheels), **request)["error"]
    assert talk("check")["stamp"] == {"agent": "old"}
    assert (home / "venv" / "bin" / "python").exists()
    assert not (home / "venv.old").exists()
    # Killed half-way: the new one is not finished, the old one set aside.
    (home / "venv").rename(home / "venv.old")
    (home / "venv").mkdir()
    send(talk, *wheels.values())
    talk("install", wheels=bundle_files(**wheels), **request)
    assert talk("check")["stamp"] == {"agent": "old"}


def test_what_comes_into_a_bundle_while_it_is_replaced_is_kept(talk: Talk, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, so that a person can be quick."""
    target = home / "bundles" / "net"
    versions = [{"manifest.json": b"", "onnx/1.onnx": bytes([number]) * 50} for number in range(2)]
    send(talk, *versions[0].values())
    talk("bundle", name="net", files=bundle_files(**versions[0]))
    (target / "log").write_text("old")
    sync = remote._sync

    def late(directory: Path) -> None:
        if not (target / "mine").exists():
            (target / "mine").mkdir()
            (target / "mine" / "note").write_text("late")
            (target / "log").unlink()
            (target / "log").write_text("new")
        sync(directory)

    monkeypatch.setattr(remote, "_sync", late)
    send(talk, *versions[1].values())
    remote.bundle(home, {"name": "net", "files": bundle_files(**versions[1])}, io.BytesIO(), io.BytesIO())
    assert (target / "onnx" / "1.onnx").read_bytes() == versions[1]["onnx/1.onnx"]
    assert (target / "mine" / "note").read_text() == "late"
    assert (target / "log").read_text() == "new"


def test_a_persons_copy_of_a_bundles_file_stays_a_file_of_its_own(talk: Talk, home: Path) -> None:
    target = home / "bundles" / "net"
    data = {"manifest.json": DAMAGED, "golden.npz": b"g" * 50}
    send(talk, *data.values())
    talk("bundle", name="net", files=bundle_files(**data))
    (target / "golden.npz").unlink()
    (target / "mine").mkdir(mode=0o755)
    (target / "mine").chmod(0o755)
    (target / "mine" / "copy").write_bytes(data["golden.npz"])
    talk("bundle", name="net", files=bundle_files(**data))
    assert (target / "golden.npz").read_bytes() == data["golden.npz"]
    assert (target / "golden.npz").stat().st_ino != (target / "mine" / "copy").stat().st_ino
    assert (target / "mine").stat().st_mode & 0o777 == 0o755


def test_another_package_of_the_same_name_does_not_measure(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHONPATH of a login script may lead to TensorRT, and to an edge_tprune of a person's."""
    (tmp_path / "theirs" / "edge_tprune").mkdir(parents=True)
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(tmp_path / "theirs"), str(tmp_path / "tensorrt")]))
    (home / "venv" / "bin").mkdir(parents=True)
    python = home / "venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$PYTHONPATH"\n')
    python.chmod(0o755)
    process = start(tmp_path, {"do": "run", "arguments": []})
    assert process.stdout
    assert process.stdin
    answer = json.loads(process.stdout.read().partition(remote.MARK)[2].splitlines()[-1])
    process.stdin.close()
    process.wait()
    assert answer == {"code": 0, "stdout": f"{tmp_path / 'tensorrt'}\n"}


@pytest.mark.parametrize(
    ("setting", "offline", "error"),
    [
        ("user", False, None),
        ("dry-run", False, None),
        ("target", False, "pip is set up on the board to put packages into"),
        ("target", True, None),  # which pip does not look at then
    ],
)
def test_a_configuration_of_pip_leads_no_package_astray(
    talk: Talk, home: Path, tmp_path: Path, setting: str, offline: bool, error: str | None
) -> None:
    """With the pip of these tests and a wheel made by hand."""
    pip = pytest.importorskip("pip")
    data = {"pip.whl": io.BytesIO(), (agent := "edge_tprune-9.9-py3-none-any.whl"): io.BytesIO()}
    with zipfile.ZipFile(data["pip.whl"], "w") as wheel:
        for file in sorted(Path(pip.__file__).parent.rglob("*.py")) + sorted(Path(pip.__file__).parent.rglob("*.pem")):
            wheel.write(file, file.relative_to(Path(pip.__file__).parents[1]))
    with zipfile.ZipFile(data[agent], "w") as wheel:
        for name in ("edge_tprune/__init__.py", "edge_tprune/agent/__init__.py", "edge_tprune/agent/profile.py"):
            wheel.writestr(name, "")
        info = "edge_tprune-9.9.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: edge-tprune\nVersion: 9.9\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    files = {name: stream.getvalue() for name, stream in data.items()}
    mine = tmp_path / "mine"
    value = str(mine) if setting == "target" else "true"
    (tmp_path / ".config" / "pip").mkdir(parents=True)
    (tmp_path / ".config" / "pip" / "pip.conf").write_text(f"[install]\n{setting} = {value}\n")
    send(talk, *files.values())
    answer = talk(
        "install",
        stamp={"agent": "new"},
        wheels=bundle_files(**files),
        pip="pip.whl",
        agent=agent,
        extras="",
        requirements=[],
        offline=offline,
    )
    if error is None:
        assert answer == {"installed": True}
        assert list((home / "venv").glob("lib/python*/site-packages/edge_tprune/agent/profile.py"))
        assert talk("check")["stamp"] == {"agent": "new"}
    else:
        assert error in answer["error"]
        assert talk("check")["stamp"] is None
    assert not list((tmp_path / ".local").glob("lib/python*/site-packages/*"))
    assert not mine.exists()


def test_the_agent_is_not_replaced_under_a_measurement(talk: Talk, home: Path, tmp_path: Path) -> None:
    fake_agent(home, WAITING)
    first = start(tmp_path, {"do": "run", "arguments": [], "alone": True})
    assert first.stdout
    assert first.stdin
    assert b"begun" in next(first_line(first.stdout))
    second = start(tmp_path, {"do": "install", "stamp": {"agent": "new"}, "wheels": {}})
    assert second.stdout
    assert second.stdin
    time.sleep(0.5)
    assert second.poll() is None
    assert (home / "venv" / "bin" / "python").exists()
    first.stdin.close()
    first.wait()
    second.communicate()  # only now; what it was sent is no installation
    assert second.returncode == 1
    assert (home / "venv" / "bin" / "python").exists()


def fake_agent(home: Path, code: str) -> None:
    """A venv whose `edge_tprune` is `code`: what is supervised here is any program."""
    (home / "venv" / "bin").mkdir(parents=True)
    package = home / "site" / "edge_tprune"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(code)
    python = home / "venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={home}/site exec {sys.executable} "$@"\n')
    python.chmod(0o755)


@pytest.mark.parametrize("manifest", [None, "{", "[]", '{"fingerprint": "1"}', '{"fingerprint": "0"}'])
def test_another_bundle_of_the_same_name_is_not_measured(talk: Talk, home: Path, manifest: str | None) -> None:
    fake_agent(home, "print('measured')")
    (home / "bundles" / "b").mkdir(parents=True)
    if manifest is not None:
        (home / "bundles" / "b" / "manifest.json").write_text(manifest)
    answer = talk("run", arguments=[], alone=True, bundle={"name": "b", "fingerprint": "0"})
    refused = answer.get("error", "").startswith("bundle b was replaced there by another deployment before it was measured")
    assert refused == (manifest != '{"fingerprint": "0"}')


def test_what_a_program_says_comes_as_it_is_said(talk: Talk, home: Path, tmp_path: Path) -> None:
    fake_agent(home, "import sys; print('working \\u2501', file=sys.stderr); print(sys.argv[1:]); sys.exit(3)")
    process = start(tmp_path, {"do": "run", "arguments": ["a b", "$HOME;", "'"]})
    assert process.stdout
    assert process.stdin
    lines = process.stdout.read().partition(remote.MARK)[2].splitlines()
    assert "".join(json.loads(line)["stderr"] for line in lines[:-1]) == "working ━\n"
    assert json.loads(lines[-1]) == {"code": 3, "stdout": str(["a b", "$HOME;", "'"]) + "\n"}
    process.stdin.close()
    process.wait()


WAITING = """
import pathlib, signal, sys, time
pathlib.Path("pid").write_text("running")
def end(*_):
    pathlib.Path("ended").write_text("politely")
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
print("begun", file=sys.stderr, flush=True)
while True:
    time.sleep(60)
"""


def first_line(stream: IO[bytes]) -> Iterator[bytes]:
    for line in stream:
        if line == remote.MARK:
            yield stream.readline()


def start_waiting(home: Path, tmp_path: Path) -> subprocess.Popen[bytes]:
    """A measurement on the board that has begun, and goes on until it is ended."""
    fake_agent(home, WAITING)
    process = start(tmp_path, {"do": "run", "arguments": [], "alone": True})
    assert process.stdout
    assert process.stdin
    assert b"begun" in next(first_line(process.stdout))
    return process


def test_a_program_is_ended_when_the_host_hangs_up(home: Path, tmp_path: Path) -> None:
    process = start_waiting(home, tmp_path)
    assert process.stdout
    assert process.stdin
    process.stdin.close()  # the host is gone
    assert b"connection was lost" in process.stdout.read()
    process.wait()
    assert (home / "ended").read_text() == "politely"


def test_what_a_program_leaves_running_is_not_waited_for(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the pipes open, and writes on; and the host goes on sending what says that it is there."""
    fake_agent(home, "import subprocess; subprocess.Popen(['sh', '-c', 'sleep 60; echo late'])\nprint('done')")
    process = start(tmp_path, {"do": "run", "arguments": []})
    assert process.stdin
    monkeypatch.setattr(remote, "HEARTBEAT_S", 0.1)
    with remote.beating(process.stdin, contextlib.nullcontext()):
        started = time.monotonic()
        assert process.stdout
        answer = json.loads([line for line in process.stdout if line.strip()][-1])
    assert answer == {"code": 0, "stdout": "done\n"}
    assert time.monotonic() - started < 30
    process.wait()


def test_what_an_installation_leaves_running_is_not_waited_for() -> None:
    started = time.monotonic()
    assert remote._run(["sh", "-c", "sleep 60 & echo done"]) == "done\n"
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("points_to", "is_ours"), [(".edge-tprune/venv/bin/edge-tprune", True), ("usb/tools/edge-tprune", False), (None, True)]
)
def test_only_a_link_of_ours_is_replaced(tmp_path: Path, points_to: str | None, is_ours: bool) -> None:
    link, program = tmp_path / "bin" / "edge-tprune", tmp_path / "new"
    link.parent.mkdir()
    if points_to is not None:
        link.symlink_to(tmp_path / "gone" / points_to)
    remote._link(link, program)
    assert (link.readlink() == program) == is_ours


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may remove what belongs to others")
def test_an_agent_that_cannot_be_removed_is_named(home: Path) -> None:
    """As `sudo edge-tprune` leaves it: files of root's in it."""
    kept = home / "venv.old" / "site"
    kept.mkdir(parents=True)
    (kept / "x.pyc").touch()
    if subprocess.run(["chattr", "+i", kept], check=False, capture_output=True).returncode:
        pytest.skip("this file system knows no such attribute")
    try:
        with pytest.raises(remote.Refused, match=r"venv\.old holds what this user may not remove: .* sudo rm -r "):
            remote._make_room(home / "venv.old")
    finally:
        subprocess.run(["chattr", "-i", kept], check=True)


def test_a_measurement_ends_with_the_program_that_watches_it(home: Path, tmp_path: Path) -> None:
    process = start_waiting(home, tmp_path)
    assert process.stdout
    assert process.stdin
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while not (home / "ended").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.stdin.close()
    process.stdout.close()


def test_a_second_measurement_waits_for_the_first(home: Path, tmp_path: Path) -> None:
    fake_agent(home, WAITING)
    first = start(tmp_path, {"do": "run", "arguments": [], "alone": True})
    assert first.stdout
    assert first.stdin
    assert b"begun" in next(first_line(first.stdout))
    second = start(tmp_path, {"do": "run", "arguments": [], "alone": True})
    assert second.stdout
    assert second.stdin
    assert second.stdout.readline() == b"\n"
    assert second.stdout.readline() == remote.MARK
    first.stdin.close()
    first.wait()
    assert b"begun" in second.stdout.readline()  # only now
    assert (home / "ended").exists()
    second.stdin.close()
    second.wait()


def test_files_come_back_as_they_were_listed(talk: Talk, home: Path, tmp_path: Path) -> None:
    run = home / "profiles" / "run"
    run.mkdir(parents=True)
    (run / "samples.jsonl").write_bytes(b"0123456789")
    (run / "link").symlink_to("/etc/passwd")
    (home / "profiles" / "run" / os.fsdecode(b"notes-\xff")).touch()  # a person's; the answer is text
    assert talk("list", directory="profiles") == {"files": {"run/samples.jsonl": 10}}
    assert talk("list", directory="nothing") == {"files": {}}
    process = start(tmp_path, {"do": "send", "directory": "profiles", "paths": {"run/samples.jsonl": 7}})
    out, _ = process.communicate()
    header, _, rest = out.partition(remote.MARK)[2].partition(b"\n")
    assert json.loads(header) == {"path": "run/samples.jsonl", "bytes": 7, "sha256": digest(b"0123456")}
    assert rest.startswith(b"0123456{")


def test_nothing_outside_the_directory_is_sent(talk: Talk, home: Path) -> None:
    (home / "profiles").mkdir(parents=True)
    assert "not a path" in talk("send", directory="profiles", paths={"../../../etc/passwd": 10})["error"]
    assert "not a path" in talk("list", directory="../..")["error"]


def test_a_killed_host_leaves_no_orphan(home: Path, tmp_path: Path) -> None:
    """The host's end dies without a word: the pipe closes, and the program on the board ends with it."""
    fake_agent(home, WAITING)
    process = start(tmp_path, {"do": "run", "arguments": []})
    assert process.stdout
    assert process.stdin
    assert b"begun" in next(first_line(process.stdout))
    process.stdout.close()
    process.stdin.close()
    assert process.wait(timeout=120) in (0, 1)
    deadline = time.monotonic() + 240
    while not (home / "ended").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_nobody_continues_to_send_is_removed(talk: Talk, home: Path) -> None:
    """Of a copy that was cut off, with wheels or files that no later deployment has any more."""
    (home / "incoming").mkdir(parents=True)
    forgotten, recent = (home / "incoming" / digest(text) for text in (b"forgotten", b"recent"))
    for file in (forgotten, recent):
        file.write_bytes(b"half")
    os.utime(forgotten, (0, 0))
    assert "error" not in talk("bundle", name="ref", files={})
    assert list((home / "incoming").iterdir()) == [recent]
