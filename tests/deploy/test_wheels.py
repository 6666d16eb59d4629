from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edge_tprune
from edge_tprune.deploy import wheels
from edge_tprune.deploy.wheels import Kind, agent_wheel, download, write_wheel
from edge_tprune.errors import UserError


def test_the_wheel_is_this_package_and_pip_installs_it(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target"]
    subprocess.run([*command, str(tmp_path / "site"), str(wheel)], check=True)
    installed = tmp_path / "site" / "edge_tprune"
    package = Path(edge_tprune.__file__).parent
    for file in package.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".safetensors":
            assert (installed / file.relative_to(package)).read_bytes() == file.read_bytes()
    # pip wrote the command from the wheel's entry points, and every hash of its RECORD agreed.
    assert (tmp_path / "site" / "bin" / "edge-tprune").is_file()


def test_the_same_files_give_the_same_wheel() -> None:
    assert agent_wheel() == agent_wheel()


def test_nothing_compiled_no_weights_and_the_license(tmp_path: Path) -> None:
    names = zipfile.ZipFile(write_wheel(tmp_path)).namelist()
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".safetensors"))]
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_the_board_loads_wheels_for_its_c_library_and_older_ones() -> None:
    tags = Kind((3, 10), "aarch64", "2.35").platforms
    assert tags[0] == "manylinux_2_35_aarch64"
    assert {"manylinux_2_17_aarch64", "manylinux2014_aarch64", "linux_aarch64"} <= set(tags)
    assert "manylinux_2_36_aarch64" not in tags
    assert "manylinux_2_18_aarch64" not in Kind((3, 10), "aarch64", None).platforms


def test_wheels_that_were_fetched_are_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = write_wheel(tmp_path / "index")
    kind = Kind((3, 11), "aarch64", "2.36")
    monkeypatch.setenv("PIP_NO_DEPS", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    first = download([str(local)], kind, tmp_path / "cache")
    assert [file.name for file in first] == [local.name]
    (said,) = tmp_path.glob("cache/*/complete.json")
    content = local.read_bytes()
    local.unlink()
    assert download([str(local)], kind, tmp_path / "cache") == first
    local.write_bytes(content)
    for damage in ("null", "[]", '{"wheels": null}', '{"wheels": [1]}', '{"wheels": []}', "[" * 100_000):
        said.write_text(damage)
        assert download([str(local)], kind, tmp_path / "cache") == first
    (cached,) = first
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 0xFF  # where no reader of the archive's end sees it
    cached.write_bytes(damaged)
    assert download([str(local)], kind, tmp_path / "cache") == first
    assert cached.read_bytes() == content


def test_what_has_no_wheel_for_the_board_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"cannot find wheels of no-such-thing for Python 3\.10 on aarch64"):
        download(["no-such-thing"], Kind((3, 10), "aarch64", None), tmp_path)


def test_requirements_name_the_extras() -> None:
    assert any("onnxruntime" in text and "extra" in text for text in wheels.requirements())
