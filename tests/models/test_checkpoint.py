"""Files of weights: what is read, what is named and refused, and that nothing in a file ever runs."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from edge_tprune.errors import UserError
from edge_tprune.models.checkpoint import read_weights
from tests.models.weights import NAME, State, state_of


@pytest.fixture(scope="module")
def state() -> State:
    return state_of()


PLAIN_VALUES: dict[str, Any] = {
    "namespace": argparse.Namespace(model=NAME, lr=1e-3, betas=(0.9, 0.99), output=None),
    "numpy number": np.float64(77.1),
    "numpy float32": np.float32(0.5),
    "numpy array": np.arange(3),
    "path": pathlib.Path("runs/1"),
    "default dict": collections.defaultdict(list, a=[1]),
    "counter": collections.Counter("aab"),
    "set": {1, 2},
    "dtype": torch.float16,
    "size": torch.Size([1, 2]),
}


@pytest.mark.parametrize("kind", PLAIN_VALUES)
def test_plain_values_beside_the_tensors_are_read(tmp_path: Path, kind: str) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "args": PLAIN_VALUES[kind]}, tmp_path / "w.pth")
    content = read_weights(tmp_path / "w.pth").content
    assert torch.equal(content["state_dict"]["a"], torch.ones(2))
    if kind == "default dict":
        assert content["args"] == {"a": [1]}
    else:
        assert str(content["args"]) == str(PLAIN_VALUES[kind])


def test_paths_of_other_systems_are_read_as_names(tmp_path: Path) -> None:
    torch.save({"args": pathlib.PureWindowsPath("C:/x"), "a": torch.ones(1)}, tmp_path / "w.pth")
    assert str(read_weights(tmp_path / "w.pth").content["args"]) == "C:\\x"


@pytest.mark.parametrize("old", [False, True])
def test_both_formats_of_torch_are_read_whatever_the_name(tmp_path: Path, state: State, old: bool) -> None:
    for name in ("w.pth", "w.pt", "w.bin", "w.ckpt", "w.pth.tar", "w"):
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=not old)
        assert read_weights(tmp_path / name).content.keys() == state.keys()


def test_safetensors_by_content(tmp_path: Path, state: State) -> None:
    save_file(state, tmp_path / "w.safetensors", metadata={"class_names": "[]"})
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.safetensors").read_bytes())
    for name in ("w.safetensors", "w.bin"):
        file = read_weights(tmp_path / name)
        assert file.content.keys() == state.keys()
        assert file.metadata == {"class_names": "[]"}


def save_in_parts(folder: Path, state: State, save: Callable[[Any, Path], None], name: str) -> None:
    stem, _, end = name.partition(".")
    keys, places = list(state), {}
    for number, some in enumerate((keys[::2], keys[1::2]), 1):
        file = f"{stem}-{number:05d}-of-00002.{end}"
        save({key: state[key] for key in some}, folder / file)
        places |= dict.fromkeys(some, file)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_parts(tmp_path: Path, state: State, name: str) -> None:
    save_in_parts(tmp_path, state, save_file if name.endswith("safetensors") else torch.save, name)
    for path in (tmp_path, tmp_path / f"{name}.index.json"):
        assert read_weights(path).content.keys() == state.keys()
    part = next(tmp_path.glob("*-00002-of-*"))
    with pytest.raises(UserError, match="is part 2 of 2: give the directory"):
        read_weights(part)
    part.unlink()
    with pytest.raises(UserError, match="which is not there"):
        read_weights(tmp_path)


def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, state: State) -> None:
    save_file(state, tmp_path / "outside.safetensors")
    (tmp_path / "in").mkdir()
    for name in ("../outside.safetensors", "", ".", "..", "a\0b", "/outside.safetensors"):
        (tmp_path / "in/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(UserError, match="which is no file beside it"):
            read_weights(tmp_path / "in")


def test_directories_of_a_hub(tmp_path: Path, state: State) -> None:
    with pytest.raises(UserError, match="holds no weights"):
        read_weights(tmp_path)
    torch.save(state, tmp_path / "epoch1.pth")
    assert read_weights(tmp_path).content.keys() == state.keys()
    torch.save({}, tmp_path / "epoch2.pth")
    with pytest.raises(UserError, match=r"holds 2 weights files \(epoch1\.pth, epoch2\.pth\)"):
        read_weights(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "test_vit"}')
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert read_weights(path).config == {"architecture": "test_vit"}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not readable JSON"):
        read_weights(tmp_path)
    for value in ("9" * 400, "[" * 500 + "]" * 500, '{"a": [-' + "1" * 301 + "]}"):
        (tmp_path / "config.json").write_text(f'{{"architecture": "test_vit", "model_args": {value}}}')
        with pytest.raises(UserError, match=r"config\.json is not a configuration: it holds a number beyond 1e300, or lists"):
            read_weights(tmp_path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 22883432\n"
OTHER_KINDS = {
    "empty": (b"", "is empty"),
    "lfs-of-a-damaged-size": (LFS.replace(b"22883432", b"9" * 350), "is a Git LFS pointer, not the file that it stands for"),
    "lfs": (LFS, r"is a Git LFS pointer, not the file of 22\.9 MB .* Run: git lfs pull"),
    "web page": (b"<!DOCTYPE html><html>Not found</html>", "is a web page"),
    "keras": (b"\x89HDF\r\n\x1a\n" + b"\0" * 20, "is an HDF5 file"),
    "gguf": (b"GGUF\x03\0\0\0", "is a GGUF file"),
    "gzip": (b"\x1f\x8b\x08\0" + b"\0" * 20, "unpack it first"),
    "text": (b"not weights at all", "cannot be read"),
    "answer of a server": (b'{"message": "404: Not found"}', "cannot be read"),
    "graph": (b"\x08\x07\x12\x07pytorch", "cannot be read"),
    "text with colours": (b"\x1b[31mred\x1b[0m" * 9, "cannot be read"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_files_of_other_kinds_are_named(tmp_path: Path, kind: str, name: str) -> None:
    content, message = OTHER_KINDS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_weights(tmp_path / name)
    assert str(error.value).isprintable()
    assert "weights_only" not in str(error.value), "running a foreign file is no advice"


def test_a_pointer_among_the_parts_is_named(tmp_path: Path, state: State) -> None:
    save_in_parts(tmp_path, state, save_file, "model.safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(LFS)
    with pytest.raises(UserError, match="Git LFS pointer"):
        read_weights(tmp_path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.npz"])
def test_a_huge_file_of_zeros_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as stream:
        stream.truncate(100 * 2**30)  # sparse: it takes no space
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_files_that_are_not_whole(tmp_path: Path, state: State, share: float) -> None:
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: int(share * len(data))])
        with pytest.raises(UserError, match=r"cannot be read .* damaged"):
            read_weights(tmp_path / name)


def test_code_is_refused_in_words_of_our_own(tmp_path: Path) -> None:
    model = timm.create_model(NAME).eval()
    torch.save(model, tmp_path / "whole.pth")
    torch.save({"model": model, "epoch": 1}, tmp_path / "wrapped.pth")
    for name in ("whole.pth", "wrapped.pth"):
        with pytest.raises(UserError, match=r"holds a whole model \(timm\.models\.vision_transformer\.") as error:
            read_weights(tmp_path / name)
        assert "weights_only" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("inner", ["code/x.py", "constants.pkl"])
def test_programs_are_named(tmp_path: Path, inner: str) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
        archive.writestr(f"archive/{inner}", b"")
    with pytest.raises(UserError, match="is a TorchScript program"):
        read_weights(tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w.pth", b"")
    with pytest.raises(UserError, match="is a zip archive"):
        read_weights(tmp_path / "w.pt")


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "owned",)

    (tmp_path / "w.pt").write_bytes(pickle.dumps({"a": Attack()}))
    torch.save({"a": Attack()}, tmp_path / "v.pt")
    torch.save({"a": Attack()}, tmp_path / "u.pt", _use_new_zipfile_serialization=False)
    for name in ("w.pt", "v.pt", "u.pt"):
        with pytest.raises(UserError, match="cannot be read"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)] * 2, 5])
def test_what_is_no_mapping_is_named(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="no state dict: expected a mapping"):
        read_weights(tmp_path / "w.pth")
    with pytest.raises(UserError, match="does not exist"):
        read_weights(tmp_path / "absent.pth")


def test_a_pair_of_weights_and_something_else_is_read(tmp_path: Path, state: State) -> None:
    torch.save((state, 3), tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").content["0"].keys() == state.keys()


@pytest.mark.parametrize(
    ("name", "message"), [("__0_0.distcp", "join them first with python -m torch"), ("zero_to_fp32.py", "of DeepSpeed")]
)
def test_checkpoints_in_parts_are_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path)


@pytest.mark.parametrize("offset", range(46))
def test_a_damaged_index_of_an_archive_is_one_line(tmp_path: Path, offset: int) -> None:
    """Of every byte of the last entry: a version that no reader knows, a name that is no text, a place outside."""
    file = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(3)}, file)
    whole = file.read_bytes()
    at = whole.rindex(b"PK\x01\x02") + offset
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    with suppress(UserError):  # a byte that nobody reads may be anything
        read_weights(file)
