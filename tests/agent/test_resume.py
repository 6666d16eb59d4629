from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from edge_tprune.agent.accuracy import ACCURACY, ACCURACY_BEGINS
from edge_tprune.agent.profile import profile, resume
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.cli import main
from edge_tprune.errors import UserError
from edge_tprune.models.data import open_dataset
from edge_tprune.record.document import RUN
from edge_tprune.record.lines import SAMPLES, SENSORS, NoteLine
from edge_tprune.record.reader import read_run
from edge_tprune.record.settings import RunRequest
from edge_tprune.record.summarize import summarize
from edge_tprune.record.summary import read_summary
from edge_tprune.record.writer import Recorder
from tests.record.tiny_run import document, write_run
from tests.record.virtual_run import Settings, write_profile

from .conftest import MakeBundle
from .killed import KILLS, kill_and_resume, start, wait_for_turns
from .test_profile import with_int8

QUICK = RunRequest(threads=1, rounds=2, seconds_per_round=0.0, warmup_seconds=0.0, baseline_seconds=0.0)


def test_kill_9_at_random_moments_always_leaves_a_profile_that_resumes(bundle_path: Path, tmp_path: Path) -> None:
    kill_and_resume(bundle_path, tmp_path, random.Random(2), kills=KILLS)


def cut(path: Path, lines: int, junk: bytes = b'{"kind":"round","t_') -> None:
    """Leaves the first lines, as a process that was killed would have, and a part of the next."""
    whole = (path / SAMPLES).read_bytes().splitlines(keepends=True)
    (path / SAMPLES).write_bytes(b"".join(whole[:lines]) + junk)
    (path / "summary.json").unlink(missing_ok=True)


def test_only_what_is_missing_is_measured_again(bundle: Bundle, tmp_path: Path) -> None:
    path = profile(bundle, tmp_path, replace(QUICK, rounds=3), budgets=["middle", "small"])
    before = read_run(path)
    kept = (
        (path / SAMPLES)
        .read_bytes()
        .splitlines()
        .index(next(line for line in (path / SAMPLES).read_bytes().splitlines() if b'"round":1,"position":1' in line))
    )
    cut(path, kept)
    with (path / SENSORS).open("ab") as stream:
        stream.write(b'{"kind":"sens')
    assert resume(bundle, path) == path
    run = read_run(path)
    assert (run.end, run.warnings, run.sessions) == ("complete", (), 2)
    assert [(turn.round, turn.budget) for turn in run.turns] == [(turn.round, turn.budget) for turn in before.turns]
    assert [turn.session for turn in run.turns] == [0] * 3 + [1] * 3
    for old, new in zip(before.turns[:3], run.turns):
        np.testing.assert_array_equal(old.latency_ns, new.latency_ns)
    assert {reading.session for reading in run.readings} == {0, 1}
    assert [state.which for state in run.states][-1] == "end"
    assert all(budget["rounds"] == 3 for budget in json.loads((path / "summary.json").read_text())["budgets"].values())
    with pytest.raises(UserError, match="is complete: there is nothing to resume"):
        resume(bundle, path)


def test_files_of_a_person_under_the_names_of_a_profile_stay(bundle: Bundle, tmp_path: Path) -> None:
    path = profile(bundle, tmp_path, QUICK, budgets=["small"], trace=True)
    cut(path, 4)
    (path / "latency.json").write_text('{"my": "own"}')
    with pytest.raises(UserError, match=r"latency\.json is not .* of edge-tprune's, and would be lost"):
        resume(bundle, path)
    assert (path / "latency.json").read_text() == '{"my": "own"}'
    (path / "latency.json").unlink()
    ours = (path / "trace.json").read_bytes()
    (path / "trace.json").write_text("[]")
    with pytest.raises(UserError, match=r"trace\.json is not .* of edge-tprune's, and would be lost"):
        resume(bundle, path, trace=True)
    (path / "trace.json").write_bytes(ours)
    resume(bundle, path, trace=True)
    assert json.loads((path / "trace.json").read_text())["traceEvents"]


def test_what_is_not_as_it_was_is_refused_by_name(bundle: Bundle, make_bundle: MakeBundle, tmp_path: Path) -> None:
    path = profile(bundle, tmp_path / "out", QUICK, budgets=["small"])
    cut(path, 4)
    before = (path / SAMPLES).read_bytes()
    with pytest.raises(UserError, match=r"cannot be resumed.*rounds was 2 and is 5; fps was None and is 30"):
        resume(bundle, path, RunRequest(rounds=5, fps=30.0, seed=0))
    other = make_bundle({"a": (1, 16)})
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "1" * 64}))
    with pytest.raises(UserError, match=r"bundle fingerprint was 'e3b0c4.*' and is '1111"):
        resume(Bundle.open(other), path)
    run = json.loads((path / RUN).read_text())
    run["environment"]["power_mode"] = {"id": 2, "name": "MAXN"}
    (path / RUN).write_text(json.dumps(run))
    with pytest.raises(UserError, match=r"power_mode was .*MAXN.* and is None"):
        resume(bundle, path)
    run["environment"] |= {"board": "orin-nano", "board_model": "Orin Nano", "l4t_release": "36.4.0"}
    (path / RUN).write_text(json.dumps(run))
    with pytest.raises(UserError, match=r"on another board: it was made on Orin Nano, .* --sysroot that it was made with$"):
        resume(bundle, path)
    assert (path / SAMPLES).read_bytes() == before
    run["version"] = 1
    (path / RUN).write_text(json.dumps(run))
    with pytest.raises(UserError, match="version 1, which cannot be resumed"):
        resume(bundle, path)


def test_a_budget_that_was_measured_and_cannot_be_run_now_costs_nothing_that_was_measured(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    place = make_bundle({"a": (1, 16)})
    bundle, graph = Bundle.open(place), place / "onnx" / "a.onnx"
    path = profile(bundle, tmp_path / "out", QUICK)
    kinds = [json.loads(line)["kind"] for line in (path / SAMPLES).read_text().splitlines()]
    cut(path, kinds.index("round") + 1)
    whole = graph.read_bytes()
    graph.write_bytes(b"broken")
    with pytest.raises(UserError, match=r"budget a was measured before and cannot be run now: .*What was measured is kept"):
        resume(bundle, path)
    run = read_run(path)
    assert (run.end, run.sessions, run.checks["a"].golden_ok) == ("failed", 2, True)
    assert [(turn.round, turn.session) for turn in run.turns] == [(0, 0)]
    summary = read_summary(path)
    assert summary is not None
    assert summary.budgets["a"].rounds == 1
    graph.write_bytes(whole)
    resume(bundle, path)
    run = read_run(path)
    assert (run.end, [turn.session for turn in run.turns]) == ("complete", [0, 2])


def test_what_only_looks_like_a_change_is_none(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = with_int8(make_bundle({"a": (1, 16)}))
    path = profile(bundle, tmp_path / "out", replace(QUICK, rounds=1, precision="fp32,int8"))
    cut(path, 4)
    made = json.loads((path / RUN).read_text())
    memory = made["environment"]["memory_total_bytes"]

    def written_with(total: int) -> None:
        made["environment"]["memory_total_bytes"] = total
        (path / RUN).write_text(json.dumps(made))

    written_with(2 * memory)
    with pytest.raises(UserError, match="memory_total_bytes was"):
        resume(bundle, path)
    written_with(memory + 5 * 4096)
    resume(bundle, path, RunRequest(precision="int8,fp32"), budgets=["a"])
    run = read_run(path)
    assert (run.end, {turn.budget for turn in run.turns}) == ("complete", {"a", "a@int8"})


def test_a_plan_with_budgets_that_the_run_does_not_have_is_refused(
    bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path, end=None)
    made = json.loads((path / RUN).read_text())
    made["plan"]["order"][1] = ["b", "c"]
    (path / RUN).write_text(json.dumps(made))
    assert main(["profile", str(bundle_path), "--resume", str(path)]) == 2
    assert "run.json plans budgets that the run does not have" in capsys.readouterr().err


def test_a_run_that_is_going_on_is_left_alone(tmp_path: Path) -> None:
    with Recorder.create(tmp_path, "run", document()) as recorder:
        with pytest.raises(UserError, match="is being written"):
            Recorder.reopen(recorder.path)
        recorder.append(NoteLine(t_ns=1, text="still here"))
    Recorder.reopen(recorder.path).close()
    assert read_run(recorder.path).notes == ("still here",)


def test_a_run_that_went_on_until_it_was_locked_is_not_measured_twice(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may end what it measures between the first look at a run and its lock."""
    path = profile(bundle, tmp_path, QUICK, budgets=["small"])
    whole, summary = (path / SAMPLES).read_bytes(), (path / "summary.json").read_bytes()
    cut(path, 4, b"")
    reopen = Recorder.reopen

    def late(path: Path) -> Recorder:
        (path / SAMPLES).write_bytes(whole)
        (path / "summary.json").write_bytes(summary)
        return reopen(path)

    monkeypatch.setattr("edge_tprune.agent.profile.Recorder.reopen", late)
    with pytest.raises(UserError, match="is complete: there is nothing to resume"):
        resume(bundle, path)
    assert (path / SAMPLES).read_bytes() == whole
    assert (path / "summary.json").exists()


def test_long_turns_are_kept_in_parts(bundle: Bundle, tmp_path: Path) -> None:
    path = profile(bundle, tmp_path, replace(QUICK, rounds=1, seconds_per_round=2.3), budgets=["small"])
    lines = [json.loads(line) for line in (path / SAMPLES).read_text().splitlines()]
    parts = [line for line in lines if line["kind"] == "part"]
    assert len(parts) == 2
    (turn,) = read_run(path).turns
    assert turn.complete
    assert len(turn.latency_ns) == sum(len(line["latency_ns"]) for line in lines if line["kind"] in ("part", "round"))
    assert (np.diff(turn.start_ns) >= turn.latency_ns[:-1]).all()
    cut(path, [line["kind"] for line in lines].index("round"))
    (unfinished,) = read_run(path).turns
    assert not unfinished.complete
    np.testing.assert_array_equal(unfinished.latency_ns, turn.latency_ns[: len(unfinished.latency_ns)])
    assert summarize(read_run(path)).budgets["small"].rounds == 1
    resume(bundle, path)
    (again,) = read_run(path).turns
    assert (again.complete, again.session) == (True, 1)


def test_streaming_and_keeping_give_the_same_summary(tmp_path: Path) -> None:
    path, _ = write_profile(tmp_path, Settings(rounds=3, seconds=2.0, baseline_s=2.0))
    kept, streamed = read_run(path), read_run(path, keep=False)
    assert summarize(kept) == summarize(streamed)
    assert len(streamed.turns) == 3
    assert streamed.turns[-1].round == 2
    assert [turn.round for turn in streamed.turns[:2]] == [0, 1]
    with pytest.raises(IndexError):
        streamed.turns[3]
    assert list(streamed.turns[0].latency_ns) == list(kept.turns[0].latency_ns)


def write_images(folder: Path, classes: int, count: int) -> Path:
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"c{label}").mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (9, 11, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"c{label}" / f"{number}.png")
    return folder


def test_real_images_and_accuracy_on_the_device(bundle: Bundle, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", classes=10, count=3)
    path = profile(
        bundle, tmp_path / "out", QUICK, images=folder, data=open_dataset(folder, 10), trace=True, budgets=["small", "middle"]
    )
    run = read_run(path)
    recorded = run.document.settings.input
    assert recorded is not None
    assert (recorded.kind, recorded.images, recorded.name) == ("images", 30, "images")
    small, middle = (budget.accuracy for budget in run.document.budgets if budget.accuracy)
    assert small.top1_change_points is not None
    assert small.top1_change_points.value == 0
    assert middle.images == 30
    assert middle.kl_nats is not None
    assert middle.kl_nats.low is not None
    assert middle.kl_nats.low < middle.kl_nats.value
    with np.load(path / "accuracy.npz") as stored:
        assert stored["top5/middle"].shape == (30, 5)
        right = 100 * np.mean(stored["top5/middle"][:, 0] == stored["labels"])
    assert middle.top1_percent == pytest.approx(right)
    assert json.loads((path / "trace.json").read_text())["traceEvents"]
    cut(path, 9)
    with pytest.raises(UserError, match="images was"):
        resume(bundle, path)
    assert ACCURACY_BEGINS.match((path / ACCURACY).read_bytes())
    (path / ACCURACY).rename(tmp_path / "ours")
    np.savez(path / ACCURACY, mine=np.arange(3))
    with pytest.raises(UserError, match=r"accuracy\.npz is not one of edge-tprune's, and would be lost"):
        resume(bundle, path, images=folder, data=open_dataset(folder, 10))
    (tmp_path / "ours").rename(path / ACCURACY)
    resume(bundle, path, images=folder)
    assert read_run(path).end == "complete"


def test_a_fixed_rate_is_recorded_with_its_misses(bundle: Bundle, tmp_path: Path) -> None:
    path = profile(bundle, tmp_path, replace(QUICK, seconds_per_round=0.3, fps=50.0), budgets=["small"])
    run = read_run(path)
    for turn in run.turns:
        assert turn.due_ns is not None
        assert turn.missed is not None
        assert (turn.start_ns >= turn.due_ns).all()
        assert turn.end_ns - turn.t_ns >= 0.3e9
        assert len(turn.due_ns) <= 15
    fixed = summarize(run).budgets["small"].fixed_rate
    assert fixed is not None
    assert fixed.fps == 50.0
    assert fixed.missed_deadlines == sum(turn.missed or 0 for turn in run.turns)
    assert 0 < fixed.duty_cycle_percent < 100


def test_sigterm_to_the_whole_group_still_ends_cleanly(bundle_path: Path, tmp_path: Path) -> None:
    """systemd signals every process of a unit at once: the sampler must outlive the signal to write its last readings."""
    child = start(bundle_path, tmp_path)
    path = wait_for_turns(child, tmp_path, 1)
    (sampler,) = [int(json.loads(line)["pid"]) for line in (path / SENSORS).read_text().splitlines() if '"sampler"' in line]
    os.kill(sampler, signal.SIGTERM)
    time.sleep(0.05)
    child.terminate()
    child.communicate(timeout=60)
    assert child.returncode == 130
    last = json.loads((path / SENSORS).read_text().splitlines()[-1])
    assert last["kind"] == "cost"
