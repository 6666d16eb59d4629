from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import edge_tprune
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.export.builder import build
from edge_tprune.export.formats import package, proof
from edge_tprune.export.formats.package import FORMATS, export_package
from edge_tprune.export.formats.request import ExportRequest
from edge_tprune.files import sha256_file
from edge_tprune.models.class_names import ClassNames
from edge_tprune.models.images import read_image
from tests.export.formats.alone import run_alone
from tests.small import RUNTIMES, decide, small_model

COMMON = {"README.md", "golden.json", "golden.png", "labels.txt", "model.json", "model.onnx"}
LABELS = ("Tinca tinca, tench", "goldfish", "white\nshark", "tiger\x1b[31m\x85shark", "hammerhead", "rock")


@pytest.fixture(scope="module")
def named(built: Path) -> Bundle:
    """The bundle, with names of its classes."""
    bundle = Bundle.open(built)
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, class_names=ClassNames(LABELS, "test", LABELS)))


def request(out: Path, **changes: Any) -> ExportRequest:
    return ExportRequest(**{"budget": "0.6", "format": "onnx", "out": out} | changes)


@pytest.mark.parametrize("more", [{}, {"top_k": 1}, {"format": "deepstream", "runtime": "tensorrt"}])
def test_a_network_of_one_output_is_exported(tmp_path: Path, more: dict[str, Any]) -> None:
    loaded = small_model()
    loaded.model.reset_classifier(1)  # type: ignore[operator]  # timm's
    bundle = build(loaded, decide(loaded, "evit", budgets=[0.6], blocks=[2], runtimes=RUNTIMES), tmp_path / "bundle").bundle
    exported = export_package(bundle, request(tmp_path / "out", **more))
    golden = json.loads((exported.path / "golden.json").read_text())
    assert golden["top"][0]["probability"] == pytest.approx(1 / (1 + math.exp(-golden["logits"][0])), abs=1e-6)


def test_one_file_runs_without_its_bundle(named: Bundle, tmp_path: Path) -> None:
    exported = export_package(named, request(tmp_path / "out"))
    assert set(exported.files) == COMMON == {file.name for file in exported.path.iterdir()}
    shutil.move(tmp_path / "out", tmp_path / "moved")
    about, golden = (json.loads((tmp_path / "moved" / name).read_text()) for name in ("model.json", "golden.json"))
    session = onnxruntime.InferenceSession(str(tmp_path / "moved/model.onnx"), providers=["CPUExecutionProvider"])
    assert about["input"] == {"name": "image", "dtype": "float32", "shape": [1, 3, 48, 48]}
    picture = Image.open(tmp_path / "moved/golden.png")
    (logits,) = session.run(None, {"image": named.manifest.preprocessing(picture)[None]})
    np.testing.assert_allclose(logits[0], golden["logits"], atol=1e-4)
    assert (tmp_path / "moved/labels.txt").read_text().splitlines()[:5] == [
        *("Tinca tinca", "goldfish", "white shark", "tiger\N{REPLACEMENT CHARACTER}[31m shark", "hammerhead")
    ]
    assert golden["top"][0]["label"] in (tmp_path / "moved/README.md").read_text()
    assert len((tmp_path / "moved/README.md").read_text().splitlines()) < 30


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_photographs_through_the_folded_graph_and_through_pillow_get_the_same_answer(
    named: Bundle, tmp_path: Path, runtime: str
) -> None:
    photographs = load_sample_images().images  # two JPEGs of 640 x 427
    exported = export_package(named, request(tmp_path / "out", runtime=runtime, frame=photographs[0].shape[:2]))
    assert exported.difference < 0.1
    session = onnxruntime.InferenceSession(str(exported.path / "model.onnx"), providers=["CPUExecutionProvider"])
    with edge_tprune.open(named, budget=0.6, threads=1) as model:
        for photograph in photographs:
            (logits,) = session.run(None, {"frames": photograph[None]})
            np.testing.assert_allclose(logits[0], model(photograph), atol=proof.PIXEL_TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"frame": (48, 64), "top_k": 3, "channel_order": "bgr"}], ids=["plain", "folded"])
def test_the_python_loader_needs_its_requirements_alone(named: Bundle, tmp_path: Path, options: dict[str, Any]) -> None:
    exported = export_package(named, request(tmp_path / "out", format="python", **options))
    assert set(exported.files) == COMMON | {"classify.py", "images.py", "requirements.txt"}
    program, needs = exported.path / "classify.py", exported.path / "requirements.txt"
    photograph = tmp_path / "photograph.jpg"
    Image.fromarray(load_sample_images().images[1]).resize((64, 48)).save(photograph)
    done = run_alone(program, str(photograph), str(exported.path / "golden.png"), requirements=needs, folder=tmp_path / "site")
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    golden = json.loads((exported.path / "golden.json").read_text())
    count = options.get("top_k", 5)
    with edge_tprune.open(named, budget=0.6, threads=1) as model:
        expected = [(" ".join(label.split()), p) for label, p in model.top(model(photograph), count)]
    for lines, answers in (
        (printed[1 : 1 + count], expected),
        (printed[2 + count :], [(a["label"], a["probability"]) for a in golden["top"][:count]]),
    ):
        assert [line.split(None, 1)[1] for line in lines] == [label for label, _ in answers]
        assert [float(line.split("%")[0]) / 100 for line in lines] == pytest.approx([p for _, p in answers], abs=0.002)


def test_the_python_loader_prepares_images_as_timm_does_in_every_mode(
    named: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_package(named, request(tmp_path / "out", format="python"))
    monkeypatch.syspath_prepend(str(tmp_path / "out"))
    import images  # type: ignore[import-not-found]

    photograph = Image.fromarray(load_sample_images().images[0])
    for mode in ("center", "squash", "border"):
        for size in ((48, 48), (48, 32)):
            for shape in ((640, 427), (100, 300), (48, 48)):
                changed = {"crop_mode": mode, "input_size": [3, *size], "mean": [0.5, 0.4, 0.3]}
                record = msgspec.to_builtins(named.manifest.preprocessing) | changed
                picture = photograph.resize(shape)
                expected = msgspec.convert(record, type(named.manifest.preprocessing))(picture)
                np.testing.assert_array_equal(images.prepare(picture, {"preprocessing": record}), expected)


def test_the_python_loader_scales_sixteen_bits_of_grey_as_every_command_does(
    named: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(Path(package.__file__).parent / "templates" / "images.py", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import images  # type: ignore[import-not-found]

    file, preprocessing = tmp_path / "deep.png", named.manifest.preprocessing
    Image.fromarray(np.random.default_rng(4).integers(0, 65536, (60, 50)).astype(np.uint16)).save(file)
    prepared = images.prepare(images.open_image(str(file)), {"preprocessing": msgspec.to_builtins(preprocessing)})
    np.testing.assert_array_equal(prepared, preprocessing(read_image(file)))


def test_nothing_is_written_over(named: Bundle, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("precious")
    with pytest.raises(UserError, match=r"mine exists: choose another --out$"):
        export_package(named, request(tmp_path / "mine"))
    with pytest.raises(UserError, match="is no export of edge-tprune"):
        export_package(named, request(tmp_path / "mine", force=True))
    for name, write in {"pipe": os.mkfifo, "deep": lambda file: file.write_text("[" * 200_000)}.items():
        (tmp_path / "mine" / name).mkdir()
        write(tmp_path / "mine" / name / "model.json")
        with pytest.raises(UserError, match="is no export of edge-tprune"):
            export_package(named, request(tmp_path / "mine" / name, force=True))
    (tmp_path / "empty").mkdir()
    export_package(named, request(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"empty exists: choose another --out, or give --force to replace it$"):
        export_package(named, request(tmp_path / "empty"))
    (tmp_path / "empty/__pycache__").mkdir()
    (tmp_path / "empty/__pycache__/a.pyc").write_text("of an import")
    export_package(named, request(tmp_path / "empty", budget="1.0", force=True))
    assert json.loads((tmp_path / "empty/model.json").read_text())["budget"] == "1.0"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "mine"]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda out: (out / "notes.txt").write_text("mine"), r"notes\.txt"),
        (lambda out: (out / "README.md").write_text("mine"), r"README\.md"),
        (lambda out: (out / "link").symlink_to("/dev/null"), "link"),
        (lambda out: os.mkfifo(out / "pipe"), "pipe"),
        (
            lambda out: (out / "model.json").write_text((out / "model.json").read_text().replace("{", '{"note":"mine",', 1)),
            r"model\.json",
        ),
        (lambda out: [(out / "__pycache__").mkdir(), (out / "__pycache__/notes.txt").write_text("mine")], "__pycache__/notes"),
        (lambda out: [(out / name).write_text("") for name in "ab"], "a and 1 more"),
        (lambda out: (out / "mine").mkdir(), "mine"),
    ],
)
def test_an_export_to_which_a_person_added_something_is_not_replaced(
    named: Bundle, tmp_path: Path, change: Callable[[Path], object], names: str
) -> None:
    out = tmp_path / "out"
    first = export_package(named, request(out, format="python"))
    assert first.about.sha256 == {name: sha256_file(out / name) for name in first.files if name != "model.json"}
    change(out)
    before = {path: path.lstat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(UserError, match=rf"or what was changed since: {names}.* It is not replaced"):
        export_package(named, request(out, budget="1.0", force=True))
    assert {path: path.lstat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_link_is_not_replaced(named: Bundle, tmp_path: Path) -> None:
    export_package(named, request(tmp_path / "real"))
    (tmp_path / "out").symlink_to("real")
    with pytest.raises(UserError, match="out is a link: give the directory itself"):
        export_package(named, request(tmp_path / "out", force=True))
    assert sorted(os.listdir(tmp_path)) == ["out", "real"]


def test_an_export_that_does_not_say_which_files_are_its_own_is_not_replaced(named: Bundle, tmp_path: Path) -> None:
    export_package(named, request(tmp_path / "out"))
    said = json.loads((tmp_path / "out/model.json").read_text())
    del said["sha256"]
    (tmp_path / "out/model.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="of an older version, which does not say"):
        export_package(named, request(tmp_path / "out", force=True))


def test_an_export_that_was_killed_while_it_took_its_place_loses_none(named: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_package(named, request(out))
    before = (out / "model.json").read_bytes()
    out.rename(tmp_path / ".out.exporting-01234567.old")
    with pytest.raises(UserError, match="give --force to replace it"):
        export_package(named, request(out))
    assert (out / "model.json").read_bytes() == before
    assert os.listdir(tmp_path) == ["out"]


def test_every_file_is_on_the_disk_before_it_takes_its_place(
    named: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut the old export is gone, and the new one must not be empty."""
    synced, really, out = set[int](), os.fsync, tmp_path / "out"

    def note(handle: int) -> None:
        really(handle)
        if not out.exists():
            synced.add(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", note)
    export_package(named, request(out))
    files = [file for file in out.rglob("*") if file.is_file()]
    assert files
    assert {file.stat().st_ino for file in files} <= synced


def test_a_path_that_onnx_runtime_cannot_open_is_refused_at_the_start(named: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "\udcff"
    with pytest.raises(UserError, match="not UTF-8 text: choose another"):
        export_package(named, request(out))
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_written_leaves_no_empty_directories(named: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        export_package(named, request(tmp_path / "new" / "deep", format="triton", name="x" * 250))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("force", [False, True])
def test_of_two_at_once_neither_is_written_over(
    named: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """The other one ends between the look at the place and the move."""
    look = package._check_place

    def look_and_be_late(target: Path, about: str, force: bool) -> None:
        look(target, about, force)
        target.mkdir()
        (target / "model.json").write_text("the other one's")

    monkeypatch.setattr(package, "_check_place", look_and_be_late)
    why = "is no export of edge-tprune" if force else "out was written by another export in the meantime"
    with pytest.raises(UserError, match=why):
        export_package(named, request(tmp_path / "out", force=force))
    assert (tmp_path / "out" / "model.json").read_text() == "the other one's"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_exported_is_said_and_leaves_nothing(
    named: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for changes, message in (
        ({"format": "onyx"}, r"unknown format 'onyx'\. Did you mean onnx\?"),
        ({"budget": "0.7"}, "no budget '0.7'"),
        ({"precision": "fp16"}, "no file for runtime 'onnxruntime' in fp16 .*Build with --runtime tensorrt --precision fp16"),
        ({"precision": "int9"}, r"no precision 'int9'\. Did you mean int8\? Known: fp32, fp16, mixed, int8"),
        ({"name": " "}, "--name is empty"),
        ({"top_k": 7}, "--top-k 7 is out of range: the model has 6 classes"),
        ({"top_k": 3841, "runtime": "tensorrt"}, "--top-k 3841 is out of range: TensorRT takes at most 3840"),
        ({"format": "python", "runtime": "tensorrt-rtx"}, "no loader for tensorrt-rtx"),
        ({"onnxruntime_version": "1.9"}, "opset 23, which ONNX Runtime has from 1.23 on, and the target has 1.9"),
        ({"onnxruntime_version": "new"}, "--onnxruntime-version 'new'"),
        ({"onnxruntime_version": "1.18", "runtime": "tensorrt"}, "is of ONNX Runtime, and this is for tensorrt: leave it out"),
    ):
        with pytest.raises(UserError, match=message) as error:
            export_package(named, request(tmp_path / "out", **changes))
        assert "\n" not in str(error.value)
    monkeypatch.setattr(proof, "run_graph", lambda file, batch: {"logits": np.zeros((1, 6), np.float32)})
    with pytest.raises(NegativeAnswer, match="does not answer as the bundle's"):
        export_package(named, request(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_fails_its_golden_check_is_not_exported(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copy(bundle.path / "onnx/1.0.attention-op.onnx", bundle.path / "onnx/0.6.attention-op.onnx")
    with pytest.raises(NegativeAnswer, match=r"budget 0\.6 failed its golden check"):
        export_package(bundle, request(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_older_onnxruntime_gets_a_graph_that_it_can_run(named: Bundle, tmp_path: Path) -> None:
    old = export_package(named, request(tmp_path / "old", onnxruntime_version="1.18"))
    new = export_package(named, request(tmp_path / "new", onnxruntime_version="1.23"))
    assert [(e.about.opset, e.about.onnxruntime) for e in (old, new)] == [(18, "1.14"), (23, "1.23")]


def test_every_format_says_what_it_is() -> None:
    for name, form in FORMATS.items():
        assert f"Format `{name}`" in (sys.modules[type(form).__module__].__doc__ or "")


def test_the_python_loader_ends_in_one_line(named: Bundle, tmp_path: Path) -> None:
    exported = export_package(named, request(tmp_path / "out", format="python"))
    program = exported.path / "classify.py"

    def run(words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", f"set -o pipefail; {shlex.quote(sys.executable)} {shlex.quote(str(program))} {words}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert run("").returncode == 0
    unread = run(f"{exported.path / 'golden.png'} | true")
    assert (unread.returncode in (0, 141), unread.stderr) == (True, "")
    for words, says in ((">&-", "stdout is closed"), (">/dev/full", "No space left on device")):
        done = run(words)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert says in done.stderr
    for name, says in (("model.onnx", "Fail|InvalidProtobuf|InvalidGraph"), ("model.json", "model.json cannot be read")):
        whole = (exported.path / name).read_bytes()
        (exported.path / name).write_bytes(whole[:100])
        done = run("")
        (exported.path / name).write_bytes(whole)
        assert done.returncode == 1
        assert re.search(says, done.stderr)
        assert done.stderr.count("\n") == 1
    command = [sys.executable, "classify.py", *["golden.png"] * 3000]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=exported.path, stdout=pipe, stderr=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        _, said = child.communicate()
        assert (child.returncode, said) == (-signal.SIGINT, b"")


def test_an_export_that_lost_its_place_is_kept_where_no_other_one_sweeps(
    named: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    export_package(named, request(target, format="onnx"))

    def take(folder: Path, place: Path) -> None:
        place.mkdir()
        (place / "mine").touch()

    with monkeypatch.context() as patch:
        patch.setattr(package, "note_placing", take)
        with pytest.raises(UserError, match=r"was taken by something else .* is in .*out\.old-") as caught:
            export_package(named, request(target, format="onnx", force=True))
    kept = Path(str(caught.value).rpartition(" is in ")[2])
    shutil.rmtree(target)
    monkeypatch.setattr("edge_tprune.files._STALE_S", -1)
    export_package(named, request(target, format="onnx"))
    assert (kept / "model.onnx").exists()
