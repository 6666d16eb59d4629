"""Opening bundles: what is damaged, newer or hostile is refused in one line."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_tprune.bundle.bundle import Bundle, set_aside
from edge_tprune.errors import UserError
from edge_tprune.files import write_bytes


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], None]) -> Path:
    file = bundle.path / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    write_bytes(file, json.dumps(manifest).encode())  # as a whole, as builds and evaluations do
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
    with pytest.raises(UserError, match=r"format version 3, newer than the 2 .*pip install -U"):
        Bundle.open(edit(bundle, lambda m: m.update(version=3)))


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
        (lambda m: m.pop("budgets"), "it has no entry 'budgets'"),
        (lambda m: m.update(batch=0), "batch is 0: expected int >= 1"),
        (lambda m: m["budgets"][0].update(schedule=[]), "budgets[0].schedule is a list of 0"),
        (lambda m: m["budgets"][0].update(name="../x"), 'budgets[0].name is "../x"'),
        (lambda m: m["model"].update(tokens="many"), 'model.tokens is "many": expected int, got str'),
        (lambda m: m["budgets"][0]["artifacts"][0].update(sha256="short"), 'artifacts[0].sha256 is "short"'),
        (lambda m: m["budgets"][0].update(macs_share=float("nan")), "budgets[0].macs_share is nan"),
        (lambda m: m["budgets"][0].update(macs=10**399), "budgets[0].macs is a number of more than 60 digits"),
        (lambda m: m["budgets"][1]["parity"]["onnxruntime"].update(images="8"), "parity.onnxruntime.images is"),
        (lambda m: m["budgets"][1].update(accuracy={"top1_percent": 50}), "budgets[1].accuracy has no entry 'data'"),
        (lambda m: m["preprocessing"].update(std=[1.0, 1.0, 0.0]), "preprocessing.std[2] is 0.0"),
        (
            lambda m: m["preprocessing"].update(mean=[0.5]),
            "preprocessing is an object: mean and std need one value for each of 3 channels",
        ),
        (lambda m: m["preprocessing"].update(crop_pct=0), "preprocessing.crop_pct is 0"),
        (lambda m: m["preprocessing"].update(interpolation="magic"), 'preprocessing.interpolation is "magic"'),
        # What holds between entries.
        (lambda m: m["files"].pop("golden.npz"), "it does not list golden.npz"),
        (lambda m: m["budgets"][1].update(name="1.0"), "budget 1.0 is there twice"),
        (
            lambda m: m.update(budgets=[m["budgets"][0] | {"name": f"b{number}"} for number in range(1001)]),
            "it has 1001 budgets, more than 1000",
        ),
        (lambda m: m["budgets"][1]["schedule"].pop(), "budget 0.8 has 3 token counts for 4 blocks"),
        (lambda m: m["budgets"][1]["parity"].clear(), "budget 0.8 has a graph for onnxruntime, and no parity of it"),
        (lambda m: m["preprocessing"].update(input_size=[3, 32, 32]), "graphs take (1, 3, 48, 48), and images"),
        (lambda m: m.update(batch=4), "graphs take (1, 3, 48, 48), and images are prepared as (4, 3, 48, 48)"),
        (lambda m: m["model"].update(prefix_tokens=500), "500 of its 37 tokens are prefix tokens"),
        (lambda m: m["model"]["output"].update(shape=[2, 6]), "graphs take 1 image and give logits of shape (2, 6)"),
        (lambda m: m["model"]["output"].update(shape=[]), "graphs take 1 image and give logits of shape ()"),
        (lambda m: m["model"]["output"].update(shape=[1, 6, 1]), "graphs take 1 image and give logits of shape (1, 6, 1)"),
        (
            lambda m: m["model"]["output"].update(shape=[1, 10**12]),
            "graphs give logits of shape (1, 1000000000000) and there are 6",
        ),
        (lambda m: m["budgets"][0].update(name="1.0\n"), 'budgets[0].name is "1.0\\n"'),
        (lambda m: m["budgets"][0]["artifacts"][1].update(sha256="0" * 64), "onnx/1.0.explicit.onnx is there twice"),
    ],
)
def test_a_manifest_that_cannot_be_names_the_entry(bundle: Bundle, change: Callable[[dict[str, Any]], None], says: str) -> None:
    with pytest.raises(UserError) as caught:
        Bundle.open(edit(bundle, change))
    assert f"manifest.json: {says}" in str(caught.value) or says in str(caught.value)
    assert str(caught.value).endswith("Copy the bundle again, or rebuild it")


def test_a_bundle_of_version_1_is_read(bundle: Bundle) -> None:
    """It called engine files plans; nothing else differs."""
    plan = {"runtime": "tensorrt-rtx", "precision": "fp32", "form": "plan", "file": "plans/1.0.explicit.sm86.plan"}
    plan |= {"sha256": "0" * 64, "bytes": 3, "target": "sm86", "version": "1.7"}
    path = edit(bundle, lambda m: (m.update(version=1), m["budgets"][0]["artifacts"].append(plan)))
    opened = Bundle.open(path, verify=False)
    assert opened.manifest.budgets[1:] == bundle.manifest.budgets[1:]
    assert opened.budgets[0].artifacts[:-1] == bundle.budgets[0].artifacts
    engine_file = opened.budgets[0].engine_file("fp32", "sm86", "1.7")
    assert engine_file is not None
    assert engine_file.file == "plans/1.0.explicit.sm86.plan"
    assert not engine_file.is_graph


@pytest.mark.parametrize("name", ["onnx/weights.bin", "golden.npz"])
def test_what_a_bundle_needs_must_be_listed(bundle: Bundle, name: str) -> None:
    """Else it could be changed and nothing would notice."""
    path = edit(bundle, lambda m: m["files"].pop(name))
    with pytest.raises(UserError, match=rf"(takes weights from|does not list) {name}"):
        Bundle.open(path)


def test_a_bundle_that_is_moved_into_place_meanwhile_is_waited_for(bundle: Bundle) -> None:
    """Between the two renames of a build there is no bundle for a moment."""
    aside = set_aside(bundle.path)
    bundle.path.rename(aside)
    timer = threading.Timer(0.2, lambda: aside.rename(bundle.path))
    timer.start()
    assert Bundle.open(bundle.path).manifest == bundle.manifest
    timer.join()


@pytest.mark.parametrize("path", ["/", "/..", "."])
def test_a_directory_without_a_name_is_no_bundle(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="bundle"):
        Bundle.open(path)


def test_another_bundle_in_its_place_is_noticed(bundle: Bundle) -> None:
    bundle.check_unchanged()
    edit(bundle, lambda m: m.update(created_utc="later"))  # as an evaluation writes: still the same graphs
    bundle.check_unchanged()
    edit(bundle, lambda m: m.update(fingerprint="b" * 64))
    with pytest.raises(UserError, match=r"was rebuilt in the meantime\. Run the command again"):
        bundle.check_unchanged()


@pytest.mark.parametrize("special", ["fifo", "directory"])
def test_special_files_are_refused_at_once(bundle: Bundle, special: str) -> None:
    file = bundle.path / "onnx" / "weights.bin"
    file.unlink()
    os.mkfifo(file) if special == "fifo" else file.mkdir()
    with pytest.raises(UserError, match=r"weights\.bin cannot be read: it is a (named pipe|directory), not a file"):
        Bundle.open(bundle.path)


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


def test_a_manifest_that_would_fill_the_memory_is_not_read(bundle: Bundle) -> None:
    with (bundle.path / "manifest.json").open("r+b") as file:
        file.truncate(10**12)  # sparse: it takes no space
    with pytest.raises(UserError, match="it has more than 64 MB"):
        Bundle.open(bundle.path)
