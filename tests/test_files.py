"""Files are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edge_tprune import files
from edge_tprune.errors import UserError
from edge_tprune.files import (
    _umask,
    atomic_writer,
    check_movable,
    check_own,
    clear_write_errors,
    files_below,
    mark_in_use,
    open_log,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(KeyboardInterrupt), atomic_writer(file) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_json_refuses_what_is_not_a_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"latency_ms": float("nan")})
    write_json(tmp_path / "a.json", {"latency_ms": None})
    assert json.loads((tmp_path / "a.json").read_text()) == {"latency_ms": None}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "no space left"), (errno.EROFS, "cannot write"), (errno.EFBIG, "no space left")]
)
def test_refusals_become_one_clear_line(tmp_path: Path, number: int, says: str) -> None:
    with pytest.raises(UserError, match=says), clear_write_errors(tmp_path):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("what", ["named pipe", "directory", "device", "socket"])
def test_a_file_takes_the_place_of_files_alone(tmp_path: Path, what: str) -> None:
    path = tmp_path / "out"
    if what == "device":
        path.symlink_to("/dev/null")
    elif what == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        os.mkfifo(path) if what == "named pipe" else path.mkdir()
    before = path.lstat()
    with pytest.raises(UserError, match=r"cannot write .*, not a file\. Choose another --out"):
        write_text(path, "x")
    assert path.lstat().st_ino == before.st_ino
    with pytest.raises(
        UserError, match="not a file"
    ):  # a link, maybe to a file, which root could replace for the whole machine
        files.refuse_special(Path("/dev/stdout"))


def test_links_are_replaced_not_followed(tmp_path: Path) -> None:
    """A hostile bundle or profile may hold links to other files of its reader."""
    (tmp_path / "precious").write_text("old")
    for name, target in {"link": "precious", "dangling": "nothing", "loop": "loop"}.items():
        (tmp_path / name).symlink_to(target)
        write_text(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"
    assert (tmp_path / "precious").read_text() == "old"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("dangling", [False, True])
def test_lines_are_added_to_no_file_that_a_link_points_to(tmp_path: Path, dangling: bool) -> None:
    victim, log = tmp_path / "victim", tmp_path / "log"
    if not dangling:
        victim.write_text("whole\nwithout an end")
    log.symlink_to(victim)
    with pytest.raises(OSError, match="it is a link, not a file"):
        open_log(log, os.O_CREAT)
    assert victim.exists() is not dangling
    assert dangling or victim.read_text() == "whole\nwithout an end"


def test_lines_are_added_to_regular_files_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a named pipe"):
        open_log(tmp_path / "pipe")
    for data in (b"a\n", b"b\n"):
        handle = open_log(tmp_path / "log", os.O_CREAT)
        os.write(handle, data)
        os.close(handle)
    assert (tmp_path / "log").read_bytes() == b"a\nb\n"


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, used, foreign = (tmp_path / f".state.bin.{name}" for name in ("aaaaaaaa.tmp", "bbbbbbbb.tmp", "lock"))
    for file in (left, used, foreign):
        file.write_bytes(b"x")
    write_text(tmp_path / "state.bin", "old")
    assert left.exists(), "whoever made it a moment ago may not have locked it yet"
    monkeypatch.setattr(files, "_STALE_S", -1.0)
    with used.open("rb") as stream:
        mark_in_use(stream.fileno())
        with atomic_writer(tmp_path / "state.bin") as first:
            first.write(b"first")
            write_text(tmp_path / "state.bin", "second")  # another process, meanwhile
    assert (tmp_path / "state.bin").read_text() == "first"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [used.name, foreign.name, "state.bin"]
    names = files.temporary_names(".big.work-")
    for name in ("01234567", "notes", "01234567.old"):
        (tmp_path / f".big.work-{name}" / "inside").mkdir(parents=True)
    files.remove_stale(tmp_path, names)
    assert (tmp_path / ".big.work-01234567").exists()
    files.remove_stale(tmp_path, names, folders=True)
    assert sorted(entry.name for entry in tmp_path.glob(".big*")) == [".big.work-01234567.old", ".big.work-notes"]


def test_a_name_that_leaves_no_room_for_a_temporary_one_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / ("a" * 241), "x")
    with pytest.raises(UserError, match="its name has more than 241 bytes"):
        files.refuse_special(tmp_path / ("a" * 242))


def test_a_persons_draft_stays_though_it_is_called_much_as_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_STALE_S", -1.0)
    (tmp_path / ".report.html.my-draft.tmp").write_text("mine")
    (tmp_path / ".report.html.01234567.tmp").mkdir()
    write_text(tmp_path / "report.html", "x")
    assert len(list(tmp_path.iterdir())) == 3


def test_whose_a_file_is_shows_at_either_end_of_it(tmp_path: Path) -> None:
    begin, both, file = re.compile(rb"ours"), re.compile(rb"PAR1(?=.*one)(?=.*two)", re.DOTALL), tmp_path / "file"
    check_own(file, begin, "a thing")  # it is not there
    for content, own, is_ours in (
        (b"", begin, True),
        (b"ours" + bytes(5_000_000), begin, True),
        (bytes(10) + b"ours", begin, False),
        (b"PAR1" + bytes(1_500_000) + b"one two", both, True),
        (b"PAR1" + b"one " * 2_000_000, both, False),  # in no time
    ):
        file.write_bytes(content)
        if is_ours:
            check_own(file, own, "a thing")
        else:
            with pytest.raises(UserError, match="is not a thing of edge-tprune's, and would be lost"):
                check_own(file, own, "a thing")


def run_without_privileges(code: str) -> str:
    """What a program prints for which permissions count, as they do not for root."""
    drop = "-dac_override,-dac_read_search"
    command = ["setpriv", "--bounding-set", drop, "--inh-caps", drop] if os.geteuid() == 0 else []
    if command and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv")
    return subprocess.run([*command, sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_what_may_not_be_read_is_taken_for_a_persons(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("ours")
    (tmp_path / "folder" / "closed").mkdir(parents=True)
    (tmp_path / "folder" / "closed" / "note").touch()
    for path in ("mine", "folder/closed"):
        (tmp_path / path).chmod(0)
    for call, says in (
        ("files.check_own(root / 'mine', re.compile(b'ours'), 'a thing')", "mine cannot be read, so it may be yours"),
        ("files.files_below(root / 'folder')", "closed cannot be read: Permission denied. Move it away"),
        ("remote._others(root / 'folder', {})", "closed on the board cannot be read: Permission denied. Move it away"),
    ):
        room = {"files": "edge_tprune", "remote": "edge_tprune.deploy"}[call.partition(".")[0]]
        code = (
            f"import re, pathlib; from {room} import {call.partition('.')[0]}; root = pathlib.Path({str(tmp_path)!r})\n"
            f"try: {call}\nexcept Exception as error: print(error)"
        )
        assert says in run_without_privileges(code)


def test_links_and_pipes_are_files_below_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "note").touch()
    (tmp_path / "a" / "link").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "a" / "b" / "pipe")
    assert files_below(tmp_path) == ["a/b/pipe", "a/link", "a/note"]


def test_a_private_file_stays_private(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "1")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~_umask()
    (tmp_path / "a").chmod(0o600)
    write_text(tmp_path / "a", "2")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a").read_text() == "2"


def test_a_directory_that_can_be_renamed_stays_as_it_is(tmp_path: Path) -> None:
    folder, draft = tmp_path / "folder", tmp_path / "draft"
    draft.mkdir()
    check_movable(folder, draft)
    for name in ([], ["a"]):
        folder.mkdir(exist_ok=True)
        for each in name:
            write_text(folder / each, "x")
        check_movable(folder, draft)
        assert (os.listdir(folder), os.listdir(draft)) == (name, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting an overlay needs root")
def test_a_directory_of_a_containers_image_is_refused_before_the_work(tmp_path: Path) -> None:
    below, over = tmp_path / "below", tmp_path / "over"
    for folder in (below, over):
        folder.mkdir()
    # an overlay takes no overlay, as a container's own disk is one, for its upper layer
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", below], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        for name in ("image/bundle", "upper", "work"):
            (below / name).mkdir(parents=True)
        write_text(below / "image" / "bundle" / "a", "x")
        layers = f"lowerdir={below}/image,upperdir={below}/upper,workdir={below}/work"
        if subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, over], check=False).returncode:
            pytest.skip("this kernel mounts no overlay")
        try:
            (over / "draft").mkdir()
            with pytest.raises(UserError, match="bundle lies in a lower layer of an overlay"):
                check_movable(over / "bundle", over / "draft")
            assert os.listdir(over / "bundle") == ["a"]
        finally:
            subprocess.run(["umount", over], check=True)
    finally:
        subprocess.run(["umount", below], check=True)


_MOVABLE = """
import sys
from pathlib import Path
from edge_tprune.errors import UserError
from edge_tprune.files import check_movable
try:
    check_movable(Path(sys.argv[1]), Path(sys.argv[2]))
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv: to root nothing is write-protected")
def test_what_is_write_protected_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "bundle" / "onnx").mkdir(parents=True)
    (tmp_path / "draft").mkdir()
    command = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []
    command += [sys.executable, "-c", _MOVABLE, str(tmp_path / "bundle"), str(tmp_path / "draft")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""
    (tmp_path / "bundle" / "onnx").chmod(0o555)
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (tmp_path / "bundle" / "onnx").chmod(0o755)
    assert f"{tmp_path}/bundle/onnx is write-protected" in said
    assert f"chmod -R u+w {tmp_path}/bundle" in said
