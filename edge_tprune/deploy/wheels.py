"""What is installed on the board: the agent as a wheel made from this very installation, and the wheels that it needs."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edge_tprune.deploy.ssh import until_hang_up
from edge_tprune.errors import UserError
from edge_tprune.files import (
    in_use,
    remove_stale,
    sha256_file,
    sha256_json,
    temporary_names,
    user_cache,
    write_bytes,
    write_json,
)
from edge_tprune.processes import child_environment
from edge_tprune.version import __version__

_DISTRIBUTION = "edge-tprune"
_TAG = "py3-none-any"
_DRAFT = ".download-"
_NOT_CARRIED = (".pyc", ".safetensors")
_OLDEST_GLIBC = 17  #: minor version; pip's oldest kind of wheels for arm64
_EPOCH = (1980, 1, 1, 0, 0, 0)  #: the same files give the same bytes


def agent_wheel() -> tuple[str, bytes]:
    """(file name, bytes) of a wheel that holds the package as it runs here, from a checkout or from an installation.

    Weights are left out: a board builds no models. Deterministic: the same files give the same wheel, so a board that has it needs nothing.

    Raises:
        UserError: the package is not installed (only found on the path), so its metadata is not known.
    """
    # A checkout that was installed in place also holds an egg-info, which comes first where the checkout is on the path.
    installed = (found for found in importlib.metadata.distributions(name=_DISTRIBUTION) if found.read_text("METADATA"))
    distribution = next(installed, None)
    if distribution is None:
        raise UserError("edge-tprune is not installed here, so no wheel can be made of it. Run: pip install -e '.[host]'")
    texts = {name: distribution.read_text(name) for name in ("METADATA", "entry_points.txt", "licenses/LICENSE")}
    version = __version__
    if distribution.version != version:
        raise UserError(
            f"edge-tprune {version} runs here, but {distribution.version} is installed. Run: pip install -e '.[host]'"
        )
    package = Path(__file__).parents[1]
    files = {
        f"{package.name}/{file.relative_to(package).as_posix()}": file.read_bytes()
        for file in sorted(package.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts and file.suffix not in _NOT_CARRIED
    }
    info = f"{_DISTRIBUTION.replace('-', '_')}-{version}.dist-info"
    files.update({f"{info}/{name}": text.encode() for name, text in texts.items() if text})
    files[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: {_DISTRIBUTION} {version}\nRoot-Is-Purelib: true\nTag: {_TAG}\n".encode()
    )
    record = f"{info}/RECORD"
    files[record] = (
        "".join(f"{name},{_digest(data)},{len(data)}\n" for name, data in files.items()).encode() + f"{record},,\n".encode()
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return f"{info.removesuffix('.dist-info')}-{_TAG}.whl", buffer.getvalue()


def _digest(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def requirements() -> list[str]:
    """What the agent requires, extras included, as its metadata says."""
    return importlib.metadata.requires(_DISTRIBUTION) or []


def cache_directory() -> Path:
    """Where downloaded wheels are kept: the user's cache directory."""
    return user_cache() / "wheels"


@dataclass(frozen=True)
class Kind:
    """What decides which wheels a board can load."""

    python: tuple[int, int]  #: (3, minor)
    machine: str  #: "aarch64", "x86_64"
    glibc: str | None  #: "2.35"; None where it is not known: then the oldest is taken

    @property
    def platforms(self) -> list[str]:
        """pip's names for what it can load: wheels for its C library and for every older one."""
        major, _, minor = (self.glibc or "").partition(".")
        newest = int(minor) if major == "2" and minor.isdigit() else _OLDEST_GLIBC
        tags = [f"manylinux_2_{number}_{self.machine}" for number in range(newest, _OLDEST_GLIBC - 1, -1)]
        return [*tags, f"manylinux2014_{self.machine}", f"linux_{self.machine}"]


def download(requirements: Sequence[str], kind: Kind, cache: Path) -> list[Path]:
    """The wheels that such a board needs for `requirements` (as pip takes them), dependencies included; fetched once into `cache`.

    Raises:
        UserError: pip is missing here, or something has no wheel for that board.
    """
    python = f"{kind.python[0]}.{kind.python[1]}"
    key = {"requirements": sorted(requirements), "python": python, "platforms": kind.platforms}
    directory = cache / sha256_json(key)[:16]
    complete = directory / "complete.json"
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        wheels = dict(json.loads(complete.read_text())["wheels"])
        # A disk may have damaged one.
        if wheels and all(sha256_file(directory / name) == digest for name, digest in wheels.items()):
            return [directory / name for name in wheels]
    if importlib.util.find_spec("pip") is None:
        raise UserError("downloading wheels for the board needs pip here. Run: python -m ensurepip")
    directory.mkdir(parents=True, exist_ok=True)
    options = ["--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    options += [word for abi in (f"cp{python.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)]
    options += [word for platform in kind.platforms for word in ("--platform", platform)]
    remove_stale(directory, temporary_names(_DRAFT), folders=True)
    with tempfile.TemporaryDirectory(prefix=_DRAFT, dir=directory) as draft, in_use(Path(draft)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", draft]
        with tempfile.TemporaryFile("w+", errors="replace") as out:  # what is left running would keep a pipe open
            pip = subprocess.Popen(
                [*command, *options, *requirements],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=child_environment(),
            )
            with pip, until_hang_up(pip):
                pip.wait()
            out.seek(0)
            said = out.read()
        if pip.returncode:
            lines = [line for line in said.splitlines() if line.strip()] or ["it says nothing"]
            errors = [line for line in lines if line.startswith("ERROR")] or lines
            raise UserError(
                f"pip cannot find wheels of {', '.join(requirements)} for Python {python} on {kind.machine}: {errors[-1]}"
            )
        names = sorted(wheel.name for wheel in Path(draft).glob("*.whl"))
        for name in names:
            (Path(draft) / name).replace(directory / name)
    write_json(complete, {**key, "wheels": {name: sha256_file(directory / name) for name in names}})
    return [directory / name for name in names]


def write_wheel(directory: Path) -> Path:
    """The agent's wheel as a file in `directory`."""
    name, data = agent_wheel()
    write_bytes(directory / name, data)
    return directory / name
