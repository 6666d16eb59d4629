"""Several processes that change one bundle at the same time: nothing is lost, nothing is left behind, nothing stale is stored."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import KIND, FileEntry
from edge_tprune.bundle.revision import Revision, _remove, check_revisable, revise
from edge_tprune.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240  # on a busy machine


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bundle.revising", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


@contextmanager
def evaluated(path: Path, budget: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has evaluated a budget and waits before it stores what it found."""
    process = start("evaluate", path, budget)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "evaluated\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate("go on\n", timeout=SECONDS)
    return process.returncode, err


def results(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("eval-*"))


def rebuilt(bundle: Bundle, folder: Path) -> Path:
    """A copy that is another build."""
    shutil.copytree(bundle.path, folder)
    KIND.write(folder, msgspec.structs.replace(bundle.manifest, fingerprint="b" * 64))
    return folder


def test_of_two_evaluations_at_once_both_are_kept(bundle: Bundle) -> None:
    with evaluated(bundle.path, "0.6") as first, evaluated(bundle.path, "0.8") as second:
        assert finish(second) == (0, "")
        assert finish(first) == (0, "")
    found = Bundle.open(bundle.path)  # verified: every file is listed and whole
    assert all(budget.accuracy is not None for budget in found.budgets)
    assert results(bundle.path) == [name for name in found.files if name.startswith("eval-")]
    assert len(results(bundle.path)) == 1


def test_results_of_a_bundle_that_was_rebuilt_meanwhile_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = rebuilt(bundle, tmp_path / "other")
    before = (other / "manifest.json").read_bytes()
    with evaluated(bundle.path, "0.6") as process:
        replacing = start("replace", bundle.path, other, 1, 0)
        replacing.communicate(timeout=SECONDS)
        assert replacing.returncode == 0
        code, err = finish(process)
    assert code != 0
    assert "was rebuilt in the meantime" in err
    assert (bundle.path / "manifest.json").read_bytes() == before
    assert results(bundle.path) == []
    Bundle.open(bundle.path)


def test_engine_files_that_were_added_meanwhile_stay(bundle: Bundle) -> None:
    """As do any files: what is written is what is there now with the results, not what was there when the evaluation began."""
    with evaluated(bundle.path, "0.6") as process:
        adding = start("add", bundle.path, "note", 1, 0)
        adding.communicate(timeout=SECONDS)
        assert finish(process) == (0, "")
    found = Bundle.open(bundle.path)
    assert "note-0.txt" in found.files
    assert found.budget("0.6").accuracy is not None


@pytest.mark.parametrize("seed", range(2))
def test_any_number_of_revisions_at_random_times(bundle: Bundle, seed: int) -> None:
    processes = [start("add", bundle.path, name, 10, 10 * seed + number) for number, name in enumerate("abc")]
    said = [process.communicate(timeout=SECONDS) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    found = Bundle.open(bundle.path)
    wanted = {f"{name}-{number}.txt" for name in "abc" for number in range(10)}
    assert wanted == found.files.keys() - bundle.files.keys()
    assert {file.name for file in bundle.path.glob("*.txt")} == wanted


def test_revisions_while_the_bundle_is_rebuilt_at_random_times(bundle: Bundle, tmp_path: Path) -> None:
    """Each is either in the bundle that it was meant for, or refused; what lies there in the end is whole."""
    other = rebuilt(bundle, tmp_path / "other")
    processes = [start("add", bundle.path, name, 10, number) for number, name in enumerate("ab")]
    processes.append(start("replace", bundle.path, other, 3, 5))
    said = [process.communicate(timeout=SECONDS) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    found = Bundle.open(bundle.path)
    assert found.manifest.fingerprint == "b" * 64
    assert {file.name for file in bundle.path.glob("*.txt")} == {name for name in found.files if name.endswith(".txt")}
    assert all(line.endswith(".txt") or "was rebuilt in the meantime" in line for out, _ in said for line in out.splitlines())
    assert [file for file in bundle.path.parent.glob(".*") if not file.name.endswith(".lock")] == []


def test_what_a_killed_process_left_behind_is_swept(bundle: Bundle) -> None:
    """And no results that a person put aside."""
    for name in ("eval-0123456789ab.npz", "eval-before.npz"):
        (bundle.path / name).write_bytes(b"x")
    revise(bundle, lambda now: Revision(now.manifest))
    assert results(bundle.path) == ["eval-before.npz"]


def test_a_failed_revision_leaves_what_was_there(bundle: Bundle) -> None:
    before = (bundle.path / "manifest.json").read_bytes()

    def contradict(now: Bundle) -> Revision:
        files = {name: entry for name, entry in now.manifest.files.items() if name != "golden.npz"}
        return Revision(msgspec.structs.replace(now.manifest, files=files), {"new.txt": b"x"})

    def not_a_manifest(now: Bundle) -> Revision:
        entry = FileEntry(sha256="short", bytes=1)
        return Revision(
            msgspec.structs.replace(now.manifest, files={**now.manifest.files, "new.txt": entry}), {"new.txt": b"x"}
        )

    with pytest.raises(UserError, match=r"does not list golden\.npz"):
        revise(bundle, contradict)
    with pytest.raises(ValueError, match="sha256"):
        revise(bundle, not_a_manifest)
    assert (bundle.path / "manifest.json").read_bytes() == before
    assert not (bundle.path / "new.txt").exists()


def test_nothing_is_removed_through_a_link_that_leads_out(tmp_path: Path) -> None:
    """A bundle of others may name a file of the user's as old results."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine").write_text("mine")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "eval-x").symlink_to(tmp_path / "home")
    (tmp_path / "bundle" / "eval-y.npz").touch()
    _remove(tmp_path / "bundle", {"eval-x/mine", "eval-y.npz"})
    assert (tmp_path / "home" / "mine").exists()
    assert not (tmp_path / "bundle" / "eval-y.npz").exists()


def test_an_interruption_after_the_new_manifest_leaves_what_it_names(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, or a disk that fails, while the rename of the manifest is made durable."""
    real = KIND.write

    def interrupted(*given: object) -> None:
        real(*given)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    def add(now: Bundle) -> Revision:
        entry = FileEntry(sha256=hashlib.sha256(b"x").hexdigest(), bytes=1)
        return Revision(
            msgspec.structs.replace(now.manifest, files={**now.manifest.files, "new.txt": entry}), {"new.txt": b"x"}
        )

    monkeypatch.setattr(type(KIND), "write", lambda self, *given: interrupted(*given))
    with pytest.raises(KeyboardInterrupt):
        revise(bundle, add)
    assert Bundle.open(bundle.path).manifest.files["new.txt"].bytes == 1


def test_a_link_to_a_bundle_takes_the_same_lock(bundle: Bundle, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(bundle.path)
    revise(Bundle.open(link), lambda now: Revision(now.manifest))
    assert list(link.parent.iterdir()) == [link]


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Root may write anywhere but on a disk that is mounted so."""
    if os.geteuid() != 0 or subprocess.run(["mount", "--bind", path, path], check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_bundle_that_cannot_be_written_is_found_before_the_work(bundle: Bundle) -> None:
    check_revisable(bundle.path)
    with pytest.raises(UserError, match=r"no space left while writing .* MB are free and up to .* MB are needed"):
        check_revisable(bundle.path, 10**18)
    with read_only(bundle.path), pytest.raises(UserError, match=r"cannot write .*Read-only file system"):
        check_revisable(bundle.path)
