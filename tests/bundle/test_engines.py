"""From a bundle to engines: built ahead of time by the real TensorRT-RTX, listed in the manifest, and found again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from edge_tprune.bundle import engines
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.engines import build_ahead, prepare, this_platform
from edge_tprune.bundle.manifest import KIND, Artifact
from edge_tprune.cli import main
from edge_tprune.errors import UserError
from edge_tprune.runtime.cuda import Device
from edge_tprune.runtime.engine import open_engine
from edge_tprune.runtime.tensorrt.build_process import EngineBuild
from edge_tprune.runtime.tensorrt.cache import find_or_build
from edge_tprune.runtime.tensorrt.library import Library
from edge_tprune.runtime.tensorrt.record import EngineSettings, read_record


@pytest.fixture(scope="module")
def ahead(rtx: Library, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with engines for two GPUs."""
    path = tmp_path_factory.mktemp("ahead") / "bundle"
    shutil.copytree(built, path)
    keep(path, "1.0", "0.6")
    build_ahead(Bundle.open(path), ["sm86", "sm120"])
    return path


def keep(path: Path, *names: str) -> Bundle:
    """The bundle with fewer budgets, so that less is built."""
    manifest = Bundle.open(path).manifest
    KIND.write(path, replace(manifest, budgets=tuple(budget for budget in manifest.budgets if budget.name in names)))
    return Bundle.open(path)


def with_artifacts(bundle: Bundle, change: Callable[[Artifact], Artifact | None]) -> Bundle:
    """The bundle with other artifacts in its manifest."""
    budgets = [
        replace(budget, artifacts=tuple(new for old in budget.artifacts if (new := change(old)) is not None))
        for budget in bundle.budgets
    ]
    KIND.write(bundle.path, replace(bundle.manifest, budgets=tuple(budgets)))
    return Bundle.open(bundle.path)


def test_every_budget_gets_an_engine_per_gpu_and_the_manifest_stays_true(ahead: Path, rtx: Library) -> None:
    bundle = Bundle.open(ahead)  # hashes every file that the manifest names
    plans = [artifact for budget in bundle.budgets for artifact in budget.artifacts if not artifact.is_graph]
    assert {(plan.runtime, plan.target, plan.version, plan.precision) for plan in plans} == {
        ("tensorrt-rtx", target, rtx.version, "fp32") for target in ("sm86", "sm120")
    }
    assert len(plans) == 2 * len(bundle.budgets)
    on_disk = {file.relative_to(ahead).as_posix() for file in (ahead / "engines").iterdir()}
    assert on_disk == {name for name in bundle.files if name.startswith("engines/")}
    assert on_disk == {name for plan in plans for name in (plan.file, f"{plan.file}.json")}


def test_what_is_written_beside_an_engine_names_no_path(ahead: Path) -> None:
    for file in (ahead / "engines").glob("*.json"):
        assert str(ahead.parent) not in file.read_text()
        record = json.loads(file.read_text())
        assert record["network"]["tokens_after_blocks"]
        assert record["target"] in ("sm86", "sm120")


def test_the_graph_is_still_what_a_runtime_gets(ahead: Path) -> None:
    for budget in Bundle.open(ahead).budgets:
        assert budget.artifact("tensorrt-rtx").form == "explicit"
        assert budget.artifact("tensorrt-rtx").file == budget.artifact("tensorrt").file


def test_nothing_is_built_twice_unless_forced(ahead: Path) -> None:
    bundle = Bundle.open(ahead)
    before = (ahead / "manifest.json").read_bytes()
    assert all(engine.reused for engine in build_ahead(bundle, ["sm86", "sm86"])[1])
    assert (ahead / "manifest.json").read_bytes() == before
    assert len(list((ahead / "engines").glob("*.plan"))) == 4  # those for sm120 stay


@pytest.mark.parametrize(
    "again", [{"force": True}, {"settings": EngineSettings(optimization_level=1)}], ids=["forced", "other settings"]
)
def test_engine_files_stay_whole_until_all_that_replace_them_are_built(
    ahead: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: dict[str, Any]
) -> None:
    path = Path(shutil.copytree(ahead, tmp_path / "bundle"))
    before, calls = Bundle.open(path).manifest, []

    def stop_at_the_second(build: EngineBuild, **options: Any) -> bool:
        calls.append(build)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return find_or_build(build, **options)

    with monkeypatch.context() as patch:
        patch.setattr(engines, "find_or_build", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            build_ahead(Bundle.open(path), ["sm86"], **again)
    assert Bundle.open(path).manifest == before
    _, built = build_ahead(Bundle.open(path), ["sm86"], **again)
    named = {name for name in Bundle.open(path).files if name.startswith("engines/")}
    replaced = {engine.file.relative_to(path).as_posix() for engine in built}
    assert replaced <= named - before.all_files.keys()
    assert len(replaced) == 2
    assert len(named) == 8, "two budgets for two GPUs, each with its record"
    assert {file.relative_to(path).as_posix() for file in (path / "engines").iterdir()} == named


def test_engine_files_of_another_version_are_dropped(bundle: Bundle, rtx: Library) -> None:
    bundle = keep(bundle.path, "0.6")
    bundle, _ = build_ahead(bundle, ["sm89"])
    with_artifacts(bundle, lambda artifact: artifact if artifact.is_graph else replace(artifact, version="0.9"))
    build_ahead(Bundle.open(bundle.path), ["sm86"])
    again = Bundle.open(bundle.path)
    assert {file.name.split(".")[-2] for file in (bundle.path / "engines").glob("*.plan")} == {"sm86"}
    assert {a.version for b in again.budgets for a in b.artifacts if not a.is_graph} == {rtx.version}


def test_what_a_person_keeps_beside_the_engines_stays(ahead: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(ahead, tmp_path / "bundle"))
    engines_of = path / "engines"
    mine = [engines_of / name for name in ("mine.plan", "old.plan.bak", ".my.lock", "plans.plan.d")]
    for file in mine[:-1]:
        file.write_text("mine")
    mine[-1].mkdir()
    left_behind = engines_of / "1.0.explicit.sm89.2.plan"
    left_behind.touch()
    build_ahead(Bundle.open(path), ["sm86"])  # which is there: nothing is built
    assert all(file.exists() for file in mine)
    assert not left_behind.exists()
    engines_of.rename(tmp_path / "elsewhere")
    engines_of.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="engines is a link"):
        build_ahead(Bundle.open(path), ["sm86"])


@pytest.fixture
def gpu_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a PC with an RTX 3080: which GPU is there is all that `prepare` asks of it before it finds a plan."""

    class Here:
        device = Device("NVIDIA GeForce RTX 3080", "8.6", False, 10**10, "13.0")

    monkeypatch.setattr(engines, "open_cuda", Here)


def test_prepare_finds_the_engine_that_the_bundle_carries(ahead: Path, gpu_here: None) -> None:
    bundle = Bundle.open(ahead)
    assert prepare(bundle, "0.6", "tensorrt-rtx") == ahead / "engines" / "0.6.explicit.sm86.plan"
    assert prepare(bundle, "0.6", "onnxruntime") == ahead / "onnx" / "0.6.attention-op.onnx"


def test_settings_that_the_engine_in_the_bundle_does_not_have_are_refused(ahead: Path, gpu_here: None) -> None:
    bundle = Bundle.open(ahead)
    with pytest.raises(UserError, match=r"built with other settings\. Build that again with --target sm86"):
        prepare(bundle, "0.6", "tensorrt-rtx", settings=EngineSettings(optimization_level=5))


def test_a_gpu_that_the_library_does_not_serve_is_refused_before_anything_is_built(
    bundle: Bundle, rtx: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As seen on an H200: TensorRT-RTX builds an engine for it, and then does not load it."""

    class Here:
        device = Device("NVIDIA H200", "9.0", False, 10**11, "13.0")

    monkeypatch.setattr(engines, "open_cuda", Here)
    monkeypatch.setattr(engines, "find_or_build", lambda *_, **__: pytest.fail("it builds"))
    assert main(["engines", str(bundle.path), "--runtime", "tensorrt-rtx"]) == 2
    assert "and this GPU is sm90: use --runtime tensorrt" in capsys.readouterr().err


def test_prepare_does_not_take_one_of_another_version(
    ahead: Path, gpu_here: None, monkeypatch: pytest.MonkeyPatch, rtx: Library, tmp_path: Path
) -> None:
    newer = Library("tensorrt-rtx", rtx.module, "99.0")
    monkeypatch.setattr(engines, "load", lambda runtime: newer)
    asked = []
    monkeypatch.setattr(engines, "find_or_build", lambda build, **_: asked.append(build))
    file = prepare(Bundle.open(ahead), "0.6", "tensorrt-rtx", cache=tmp_path)
    (build,) = asked
    assert file == build.file
    assert file.is_relative_to(tmp_path / "engines")
    assert build.key.version == "99.0"
    assert build.key.device == "NVIDIA GeForce RTX 3080"
    assert build.key.target is None  # for the GPU at hand


def test_the_machine_is_told_apart_by_module_and_power_mode(gpu_here: None, rtx: Library, tmp_path: Path) -> None:
    for file, text in {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n",
        "var/lib/nvpmodel/status": "pmode:0002",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    found = this_platform("tensorrt-rtx", tmp_path)
    assert found.module == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found.os == "36.4.3"
    assert found.power_mode is not None
    assert found.power_mode["id"] == 2
    assert found.version == rtx.version
    assert found.sm == "8.6"


def test_mistakes(bundle: Bundle, rtx: Library) -> None:
    with pytest.raises(UserError, match=r"'sm87' \(TensorRT-RTX .* offers sm75.*Did you mean sm8"):
        build_ahead(bundle, ["sm86", "sm87"])
    assert not (bundle.path / "engines").exists()
    bundle = with_artifacts(bundle, lambda artifact: None if artifact.runtime == "tensorrt-rtx" else artifact)
    with pytest.raises(UserError, match="build with --runtime tensorrt-rtx"):
        build_ahead(bundle, ["sm86"])


def test_a_failed_build_names_the_budget_and_leaves_the_bundle_as_it_was(bundle: Bundle, rtx: Library) -> None:
    with pytest.raises(UserError, match=r"no FP32 matrix products for this GPU"):
        build_ahead(bundle, ["sm75"])
    assert len(Bundle.open(bundle.path).budgets[0].artifacts) == 3


def test_without_a_gpu_prepare_says_so_at_once(bundle: Bundle, rtx: Library, no_gpu: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no CUDA driver|too old|sees no GPU|no Python binding"):
        prepare(bundle, "0.6", "tensorrt-rtx", cache=tmp_path)
    assert list(tmp_path.iterdir()) == [bundle.path]


def test_the_command_reports_what_the_engines_are(ahead: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["engines", str(ahead), "--runtime", "tensorrt-rtx", "--target", "sm86,sm120"]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [entry["budget"] for entry in document["engines"]] == ["1.0", "1.0", "0.6", "0.6"]
    for entry in document["engines"]:
        assert Path(entry["engine_file"]).stat().st_size == entry["bytes"]
        assert entry["layer_times_ms"] is None
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "sm120" in out
    assert "0 of 4" in out  # fused attention, in float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runtime", "onnxruntime"], "onnxruntime builds no engines"),
        (["--target", "sm86"], "--target is for --runtime tensorrt-rtx"),
        (["--runtime", "tensorrt-rtx", "--target", "sm86", "--layers"], "leave --budgets, --precision and --layers out"),
        (["--runtime", "tensorrt-rtx", "--target", ""], "--target is empty"),
        (["--runtime", "tensorrt-rtx", "--target", "gtx1080"], "no engine can be built ahead of time for 'gtx1080'"),
        (["--workspace-mb", "0"], "a workspace of 0 MB is out of range"),
    ],
)
def test_mistakes_on_the_command_line(
    ahead: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["engines", str(ahead), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "sm86"], "--target is for --runtime tensorrt-rtx"),
        (["--runtime", "tensorrt-rtx", "--target", ""], "--target is empty"),
    ],
)
def test_build_refuses_a_target_that_it_cannot_build_for_before_it_does_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["build", "reference", *arguments, "--out", str(tmp_path / "b")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


# With a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_of_this_gpu_is_built_once_runs_and_is_the_golden_network(
    bundle: Bundle, tmp_path: Path, runtime: str
) -> None:
    try:
        this_platform(runtime)
    except UserError as error:
        pytest.skip(str(error))
    golden = bundle.golden()
    for budget in bundle.budgets:
        plan = prepare(bundle, budget.name, runtime, cache=tmp_path)
        record = read_record(plan)
        assert record is not None
        assert record.engine is not None
        assert record.engine.layers > 0
        written = plan.stat().st_mtime_ns
        assert prepare(bundle, budget.name, runtime, cache=tmp_path).stat().st_mtime_ns == written
        with open_engine(plan, runtime, threads=1) as engine:
            for image, expected in zip(golden.images, golden.outputs[budget.name]):
                np.testing.assert_allclose(engine.run(image), expected, atol=1e-3)
            assert engine.info.built is not None
            assert engine.info.built.key.runtime == runtime
