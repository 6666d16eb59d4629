"""Reading weights files: the tensors in them, and what else they say of their network. Nothing in a file is ever executed."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import pickle
import re
import types
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.models.images import format_path

CONFIG = "edge_tprune_config"  #: key of a .safetensors file's metadata: a configuration as in a hub's `config.json`

_PREFERRED = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.pth",
    "model.pth",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""Of a hub's directory, in the order of timm's own loader, and the indices of files in parts."""
_EXTENSIONS = (".safetensors", ".pth", ".pt", ".pth.tar", ".ckpt", ".bin", ".npz")
_DEEPEST = 32  # levels of a configuration
_LFS = b"version https://git-lfs"
_INDEX = ".index.json"
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.")


@dataclass(frozen=True)
class WeightsFile:
    """What a file, or a directory of a hub, holds."""

    path: Path  #: the file, or the directory that was given
    content: Mapping[str, object]  #: a state dict, or whatever wraps one
    config: Mapping[str, object] = field(default_factory=dict)  #: of `config.json` beside it, in a hub's directory
    preprocessor: Mapping[str, object] = field(default_factory=dict)  #: of `preprocessor_config.json`
    metadata: Mapping[str, str] = field(default_factory=dict)  #: of a .safetensors file
    numpy: Path | None = None  #: a JAX archive, which a model of timm reads by itself
    config_source: str = ""  #: where `config` is from, in words; "" for `config.json`

    @property
    def shown(self) -> str:
        """What messages call it."""
        return format_path(self.path.name or self.path)

    @property
    def config_shown(self) -> str:
        """What messages call the configuration."""
        return self.config_source or f"config.json of {self.shown}"


def read_weights(path: Path) -> WeightsFile:
    """Reads a .safetensors file, a PyTorch checkpoint, a JAX .npz archive, or a hub's directory of them.

    Raises:
        UserError: no such file, or one that holds something else: saying what.
    """
    if path.is_dir():
        return _read_directory(path)
    if not path.exists():
        raise UserError(f"weights file {format_path(path)} does not exist")
    if path.name.endswith(_INDEX):
        return WeightsFile(path, _read_parts(path), *_read_configs(path.parent))
    if path.suffix.lower() == ".npz" and path.is_file():
        return WeightsFile(path, _read_numpy(path), numpy=path)
    if (part := _PART.search(path.name)) and int(part[2]) > 1:
        raise UserError(
            f"weights file {format_path(path)} is part {int(part[1])} of {int(part[2])}: give the directory, or the index of the parts"
        )
    content, metadata = _read_file(path)
    if CONFIG in metadata:
        config = _parse_config(metadata[CONFIG], f"the configuration in {format_path(path)}")
        return WeightsFile(path, content, config, metadata=metadata, config_source=f"the header of {format_path(path.name)}")
    config, preprocessor = _read_configs(path.parent) if path.name in _PREFERRED else ({}, {})
    return WeightsFile(path, content, config, preprocessor, metadata)


def _read_directory(path: Path) -> WeightsFile:
    file = next((path / name for name in _PREFERRED if (path / name).is_file()), None)
    if any(path.glob("*.distcp")):
        raise UserError(
            f"directory {format_path(path)} is a distributed checkpoint of torch, in parts: join them first with "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {format_path(path)} weights.pth"
        )
    if file is None and (path / "zero_to_fp32.py").is_file():
        raise UserError(
            f"directory {format_path(path)} is a checkpoint of DeepSpeed, in parts: join them first with its zero_to_fp32.py"
        )
    if file is None:
        found = sorted(f for f in path.iterdir() if f.is_file() and f.name.endswith(_EXTENSIONS) and not f.name.startswith("."))
        if not found:
            raise UserError(
                f"directory {format_path(path)} holds no weights: looked for {', '.join(_PREFERRED[:4])} and "
                f"*{', *'.join(_EXTENSIONS)}. Give the file itself"
            )
        if len(found) > 1:
            names = ", ".join(format_path(f.name) for f in found[:5]) + (" ..." if len(found) > 5 else "")
            raise UserError(
                f"directory {format_path(path)} holds {len(found)} weights files ({names}): give the one that is meant"
            )
        file = found[0]
    read = read_weights(file)
    if CONFIG in read.metadata:
        return replace(read, path=path)
    return WeightsFile(path, read.content, *_read_configs(path), read.metadata, read.numpy)


def _read_configs(directory: Path) -> tuple[Mapping[str, object], Mapping[str, object]]:
    return _read_config(directory / "config.json"), _read_config(directory / "preprocessor_config.json")


def _read_config(file: Path) -> Mapping[str, object]:
    if not file.is_file():
        return {}
    try:
        return _parse_config(file.read_bytes(), format_path(file))
    except OSError as error:
        raise UserError(f"{format_path(file)} cannot be read: {error.strerror}") from error


def _parse_config(text: str | bytes, shown: str) -> Mapping[str, object]:
    """A configuration as a hub keeps it, which messages call `shown`."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown} is not readable JSON ({' '.join(str(error).split())})") from error
    if not isinstance(document, dict):
        raise UserError(f"{shown} is not a configuration: its JSON is no object")
    if not _is_bounded(document):
        raise UserError(f"{shown} is not a configuration: it holds a number beyond 1e300, or lists nested {_DEEPEST} deep")
    return document


def _is_bounded(value: object, depth: int = 0) -> bool:
    """Whether timm and messages can use a JSON value: nothing too deep for recursion, no whole number too large for a float."""
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return depth < _DEEPEST and all(_is_bounded(each, depth + 1) for each in inner)
    return not isinstance(value, int) or abs(value) <= 1e300


def _read_parts(index: Path) -> Mapping[str, object]:
    """A checkpoint in several files, by the index that says which tensor is in which."""
    places = _read_config(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()) or not places:
        raise UserError(f"{format_path(index)} is no index of weights: it has no weight_map from tensors to files")
    tensors: dict[str, object] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            raise UserError(f"{format_path(index)} names {name!r}, which is no file beside it: it is not read")
        part = index.with_name(name)
        if not part.exists():
            raise UserError(f"{format_path(index)} names {name}, which is not there. Copy all parts of the weights")
        tensors |= _read_file(part)[0]
    if missing := [name for name in places if name not in tensors]:
        raise UserError(
            f"{format_path(index)} promises {missing[0]} in {places[missing[0]]}, which does not hold it. Copy all parts again"
        )
    return tensors


def _read_numpy(path: Path) -> Mapping[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.asarray(archive[name])) for name in archive.files}
    except Exception as error:
        raise UserError(
            f"weights file {format_path(path)} cannot be read as a JAX archive of arrays ({one_line(error)})"
        ) from error


def _read_file(path: Path) -> tuple[Mapping[str, object], Mapping[str, str]]:
    """The content of one .safetensors file or PyTorch checkpoint, whatever its name ends with, and its metadata."""
    shown = format_path(path)
    if not path.is_file():
        raise UserError(f"weights file {shown} is neither a file nor a directory")
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
    except OSError as error:
        raise UserError(f"weights file {shown} cannot be read: {error.strerror}") from error
    _refuse_other_kinds(path, start)
    if _is_safetensors(start) or path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path, start), {}


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    shown = format_path(path)
    if not start:
        raise UserError(f"weights file {shown} is empty (0 bytes). Copy or download it again")
    if start.startswith(_LFS):
        size = next(
            (line.split()[-1] for line in start.decode("ascii", "ignore").splitlines() if line.startswith("size ")), "?"
        )
        bytes_ = f" of {int(size) / 1e6:.1f} MB" if re.fullmatch(r"\d{1,15}", size, re.ASCII) else ""
        raise UserError(
            f"weights file {shown} is a Git LFS pointer, not the file{bytes_} that it stands for. Run: git lfs pull"
        )
    kinds = {
        b"<!doctype": "a web page",
        b"<html": "a web page",
        b"\x89hdf": "an HDF5 file (Keras)",
        b"gguf": "a GGUF file (llama.cpp)",
        b"\x93numpy": "a single NumPy array",
        b"\x1f\x8b": "a compressed archive: unpack it first",
        b"7z\xbc\xaf": "a compressed archive: unpack it first",
        b"\x89png": "an image",
    }
    for magic, kind in kinds.items():
        if start.lstrip().lower().startswith(magic):
            raise UserError(f"weights file {shown} is {kind}, not weights. Give a .safetensors file or a PyTorch state dict")


def _read_safetensors(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, "pt") as opened:
            metadata = dict(opened.metadata() or {})
        return load_file(path), metadata
    except Exception as error:
        raise UserError(
            f"weights file {format_path(path)} cannot be read ({one_line(error)}): it is damaged or not whole. Copy or download it again"
        ) from error


def _read_torch(path: Path, start: bytes) -> Mapping[str, object]:
    shown = format_path(path)
    _refuse_programs(path)
    # An archive, or as torch wrote before 1.6, or before 0.1.10.
    if not start.startswith((b"PK\x03\x04", b"\x80")) and start[257:262] != b"ustar":
        begin = "".join(c if c.isprintable() else "?" for c in start[:40].decode("latin-1"))
        raise UserError(
            f"weights file {shown} cannot be read as a PyTorch checkpoint: it begins with {begin!r}. Download it again if that is a message of a "
            "server; else give a .safetensors file or a PyTorch state dict"
        )
    try:
        with torch.serialization.safe_globals(_plain_types()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_describe_foreign_objects(path)) from error
    except Exception as error:
        raise UserError(
            f"weights file {shown} cannot be read ({one_line(error)}): it is damaged, or not a PyTorch checkpoint. "
            "Give a .safetensors file or a PyTorch state dict"
        ) from error
    if isinstance(loaded, (list, tuple)):
        loaded = {str(i): item for i, item in enumerate(loaded) if isinstance(item, Mapping)} or loaded
    if not isinstance(loaded, Mapping):
        what = f"one tensor of shape {tuple(loaded.shape)}" if isinstance(loaded, Tensor) else f"a {type(loaded).__name__}"
        raise UserError(f"weights file {shown} holds {what}, no state dict: expected a mapping from names to tensors")
    return loaded


def _refuse_programs(path: Path) -> None:
    """Refuses TorchScript and exported programs, which are archives as checkpoints are."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # a damaged archive makes the reader raise almost anything; torch says what is wrong with it
        return
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise UserError(
            f"weights file {format_path(path)} is a TorchScript program (torch.jit.save), which is code and is not loaded. "
            "Save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
        )
    if any(name.startswith(("models/", "archive_format")) for name in (*names, *inner)):
        raise UserError(
            f"weights file {format_path(path)} is an exported program (torch.export), not weights. "
            "Save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
        )
    if names and not any(name.endswith("data.pkl") for name in names):
        raise UserError(f"weights file {format_path(path)} is a zip archive, not a PyTorch checkpoint: unpack it first")


def _plain_types() -> list[Any]:
    """What may be in a checkpoint besides tensors: values that only hold values. Their constructors store what they are given, nothing more.

    timm's own loader allows `argparse.Namespace`, for the arguments of its training script. Numbers and arrays of NumPy and paths are in the
    records of many others.
    """
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    values: list[Any] = [argparse.Namespace, types.SimpleNamespace, list, dict, int, float, str, bool]
    values.append((_plain_dict, "collections.defaultdict"))
    values += [np.dtype, np.ndarray, *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdU")]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        values += [(scalar, f"{module}.scalar"), (array, f"{module}._reconstruct")]
    for module in ("pathlib", "pathlib._local"):
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath"):
            pure = pathlib.PureWindowsPath if "Windows" in name else pathlib.PurePosixPath
            values.append((pure, f"{module}.{name}"))  # a path that only is a name, on every system
    return values


def _plain_dict(factory: object = None) -> collections.OrderedDict[Any, Any]:
    """In place of a defaultdict, which torch's reader cannot fill."""
    return collections.OrderedDict()


def _describe_foreign_objects(path: Path) -> str:
    shown = format_path(path)
    try:
        with torch.serialization.safe_globals(_plain_types()):
            found = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:
        found = []
    save = f"torch.load({str(path.name)!r}, weights_only=False)"
    if any(name.startswith(("torch.nn.", "timm.")) for name in found):
        found.sort(key=lambda name: (name.startswith(("torch.", "timm.layers.")), not name.startswith("timm.models."), name))
        return (
            f"weights file {shown} holds a whole model ({_some(found, 1)}): that is code, and it is not loaded. Where you trust the file, "
            f"save its weights alone: torch.save({save}.state_dict(), 'weights.pth')"
        )
    what = f"objects besides tensors ({_some(found)})" if found else "something other than tensors and plain values"
    return (
        f"weights file {shown} cannot be read without running code from it: it holds {what}. Where you trust the file, "
        f"save its state dict alone: torch.save({save}['state_dict'], 'weights.pth')"
    )


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def one_line(error: BaseException) -> str:
    """An error of another library as one short line, without colours."""
    text = "".join(c if c.isprintable() else " " for c in str(error)) or type(error).__name__
    return " ".join(text.split())[:160]
