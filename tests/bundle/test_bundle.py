"""Opening bundles: what is damaged, newer or hostile is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.errors import UserError


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], None]) -> Path:
    file = bundle.path / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    return bundle.path


@pytest.mark.parametrize("name", ["onnx/weights.bin", "golden.npz", "onnx/0.8.attention-op.onnx"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_every_damaged_file_is_found(bundle: Bundle, name: str, damage: str) -> None:
    file = bundle.path / name
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(data[:-1])
    else:
        file.unlink()
    with pytest.raises(UserError, match=rf"{name} is (corrupt|missing)"):
        Bundle.open(bundle.path)


def test_a_newer_format_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UserError, match=r"format version 2, newer than the 1 .*pip install -U"):
        Bundle.open(edit(bundle, lambda m: m.update(version=2)))


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", "..\\outside"])
def test_paths_that_leave_the_bundle_are_refused(bundle: Bundle, path: str) -> None:
    digest = "0" * 64
    with pytest.raises(UserError, match="lies outside the bundle"):
        Bundle.open(edit(bundle, lambda m: m["files"].update({path: {"sha256": digest, "bytes": 1}})))
    with pytest.raises(UserError, match="lies outside the bundle"):
        Bundle.open(edit(bundle, lambda m: m["budgets"][0]["artifacts"][0].update(file=path)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.pop("budgets"), "budgets"),
        (lambda m: m.update(batch=0), "batch"),
        (lambda m: m["budgets"][0].update(schedule=[]), "schedule"),
        (lambda m: m["budgets"][0].update(name="../x"), "name"),
        (lambda m: m["model"].update(tokens="many"), "tokens"),
        (lambda m: m["budgets"][0]["artifacts"][0].update(sha256="short"), "sha256"),
    ],
)
def test_a_manifest_that_does_not_fit_the_schema_names_the_entry(
    bundle: Bundle, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    with pytest.raises(UserError, match=rf"manifest.json is not valid: .*{says}"):
        Bundle.open(edit(bundle, change))


def test_foreign_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{ half")
    with pytest.raises(UserError, match="not readable JSON"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "something else"}')
    with pytest.raises(UserError, match="does not say format"):
        Bundle.open(tmp_path)


def test_an_unreadable_manifest_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").rmdir()
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not readable JSON"):
        Bundle.open(tmp_path)


def test_unknown_budgets_and_runtimes_are_named(bundle: Bundle) -> None:
    with pytest.raises(UserError, match=r"no budget '0\.81' .*Did you mean 0\.8"):
        bundle.budget("0.81")
    with pytest.raises(UserError, match="build with --runtime openvino"):
        bundle.budgets[0].artifact("openvino")


def test_golden_values_that_could_become_larger_than_their_file_are_refused(bundle: Bundle) -> None:
    with np.load(bundle.path / "golden.npz") as data:
        arrays: dict[str, Any] = dict(data)
    np.savez_compressed(bundle.path / "golden.npz", **arrays)
    with pytest.raises(UserError, match=r"golden\.npz is compressed"):
        bundle.golden()


def test_a_manifest_that_would_fill_the_memory_is_not_read(bundle: Bundle) -> None:
    with (bundle.path / "manifest.json").open("r+b") as file:
        file.truncate(10**12)  # sparse: it takes no space
    with pytest.raises(UserError, match="it has more than 64 MB"):
        Bundle.open(bundle.path)
