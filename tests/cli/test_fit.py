"""`fit`, from nothing to an answer with the real parts on a small network; and mistakes that it names first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_tprune.agent.profile import profile
from edge_tprune.analysis import latency
from edge_tprune.analysis.choice import Choice
from edge_tprune.analysis.latency import model_latency
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.cli import fit_runs, fitting
from edge_tprune.deploy.hosts import parse_target
from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.files import exclusive
from edge_tprune.models.data import Dataset, ImageFolder, ReferenceTask
from edge_tprune.record.reader import read_run
from edge_tprune.record.settings import RunRequest
from edge_tprune.reduction import network_shape
from edge_tprune.schedule.latency import KIND as LATENCY_KIND
from edge_tprune.schedule.latency import Latency
from edge_tprune.search.configuration import network_record
from edge_tprune.search.fit import KIND, Candidate, FitState, Round, needs_no_pruning
from tests.agent.tiny_bundle import write_bundle
from tests.analysis.conftest import Profiles
from tests.cli.conftest import Outcome
from tests.models.folders import save_image
from tests.schedule.test_latency import fitted
from tests.small import small_model

Command = Callable[..., Outcome]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "fit needs a limit: give --max-p95-ms, --max-ms, --max-energy-mj, --min-fps or --min-speedup"),
        (["--max-ms", "-3"], "--max-ms -3 is no limit"),
        (["--max-ms", "3", "--rounds", "0"], "rounds must be"),
        (["--max-ms", "3", "--methods", "evti"], "Did you mean evit"),
        (["--max-ms", "3", "--methods", "evit,slice"], "method slice chooses no tokens"),
        (["--max-ms", "3", "--methods", "none"], "method none chooses no tokens"),
        (["--max-ms", "3", "--precision", "int4"], "--precision int4: fit knows fp32, fp16, mixed and int8"),
        (["--max-ms", "3", "--precision", "fp16,int8"], "of several precisions one must be fp32"),
        (["--max-ms", "3", "--host", "-oProxyCommand=x"], "does not name a board"),
        (["--max-ms", "3", "--finetune-time", "5m"], "add --finetune"),
        (["--max-ms", "3", "--class-map", "map.txt"], "--class-map gives labels to the images of --eval-data"),
        (["--min-speedup", "0"], "--min-speedup 0 is no limit"),
        (["--min-fps", "1e-308"], "--min-fps 1e-308 is no limit: give a number from 1e-06 to 1e+12"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], says: str, command: Command, tmp_path: Path) -> None:
    outcome = command("fit", "reference", "--images", "2", "--out", tmp_path / "fit", *arguments)
    assert outcome.code == 2
    assert says in outcome.err.replace("\n", " ")
    assert not (tmp_path / "fit" / "fit.json").exists()


@pytest.mark.parametrize("path", ["../x", "/etc", "a/../../b", "..", "", "a\nb", "C:\\x"])
def test_its_state_names_nothing_outside_its_directory(path: str, tmp_path: Path) -> None:
    document = {"format": KIND.format, "version": KIND.version, "key": "k", "probes": {"fp32": path}}
    (tmp_path / "fit.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"probes\.fp32 is .*Delete it"):
        KIND.read(tmp_path)


def test_two_in_one_directory_do_not_overwrite_each_other(tmp_path: Path) -> None:
    from edge_tprune.cli.fit_runs import Runs
    from edge_tprune.cli.fitting import Fit, FitRequest

    images, out = ReferenceTask(2, "train"), tmp_path / "fit"
    request = FitRequest(out, ("evit",), {"max_p50_ms": 3.0}, ("fp32",), 1, 4, 0, True)
    fit = Fit(request, small_model(channels=48), images, images, "key", Runs(out, RunRequest()), lambda what, done, of: None)
    out.mkdir()
    with exclusive(out / "fit.json", "fit"), pytest.raises(UserError, match="another fit is at work on it"):
        fit.run()
    for file, noun in (("manifest.json", "bundle"), ("run.json", "profile")):
        (out / file).touch()
        with pytest.raises(UserError, match=f"is a {noun}: give a directory of the fit's own"):
            fit.run()
        (out / file).unlink()
    assert not (out / "fit.json").exists()


def test_a_rate_and_a_speedup_bound_the_median() -> None:
    from edge_tprune.cli.fitting import FitRequest

    def bounds(**limits: float) -> dict[str, float]:
        return FitRequest(Path(), ("evit",), limits, ("fp32",), 4, 1, 0, False).bounds(30.0)

    assert bounds(max_p95_ms=7.0) == {"p95_ms": 7.0}
    assert bounds(min_speedup=1.5) == {"p50_ms": 20.0}
    assert bounds(min_fps=100.0) == {"p50_ms": 40.0}, "batches of four images"
    assert bounds(min_fps=100.0, min_speedup=2.0, max_p50_ms=17.0, max_energy_mj=3.0) == {
        "p50_ms": 15.0, "energy_mj_per_image": 3.0,
    }  # fmt: skip


def test_a_fit_is_of_one_machine(tmp_path: Path) -> None:
    from edge_tprune.cli.fit_runs import Runs
    from edge_tprune.cli.fitting import Fit, FitRequest

    images, model = ReferenceTask(2, "train"), small_model(channels=48)
    request = FitRequest(tmp_path, ("evit",), {"max_p50_ms": 3.0}, ("fp32",), 1, 4, 0, True)
    KIND.write(tmp_path, FitState(key="key", machine="Orin, power mode 25W"))

    def fit(machine: str) -> Fit:
        runs = Runs(tmp_path, RunRequest())
        return Fit(request, model, images, images, "key", runs, lambda what, done, of: None, machine=machine)

    assert fit("Orin, power mode 25W").state().key == "key"
    with pytest.raises(
        UserError, match=r"was measured on Orin, power mode 25W, and this is Orin, power mode MAXN: choose another"
    ):
        fit("Orin, power mode MAXN").run()


def test_no_photo_is_both_trained_and_judged_on(tmp_path: Path) -> None:
    from edge_tprune.cli.commands.fit import _without

    for number in range(5):
        (tmp_path / f"{number}.png").touch()
    photos = ImageFolder(tmp_path, tuple(sorted(tmp_path.iterdir())), (-1,) * 5)
    (tmp_path / "link").symlink_to(tmp_path)
    judged = ImageFolder(tmp_path / "link", tuple(tmp_path / "link" / f"{number}.png" for number in (1, 3)), (-1, -1))
    assert [file.name for file in _without(photos, judged).files] == ["0.png", "2.png", "4.png"]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="none are left for --finetune"):
        _without(photos, photos)


def test_accuracy_is_measured_on_images_that_the_search_did_not_see(tmp_path: Path) -> None:
    from edge_tprune.cli.commands.fit import _split

    folder = ImageFolder(tmp_path, tuple(tmp_path / f"{number}.png" for number in range(10)), (-1,) * 10)
    photos, judged = _split(folder, 5)
    assert len(photos) == len(judged) == 5
    assert {*photos.files, *judged.files} == set(folder.files)
    assert [len(part) for part in _split(folder, 6)] == [6, 4]
    photos.files[0].touch()
    judged.files[0].symlink_to(photos.files[0])
    with pytest.raises(UserError, match="is in --data more than once"):
        _split(folder, 5)
    judged.files[0].unlink()
    for most in (7, 10, 20):  # too few others
        photos, judged = _split(folder, most)
        assert judged is photos
        assert len(photos) == min(most, 10)


@pytest.mark.parametrize(
    ("known", "objective"), [("top1_percent", "accuracy"), ("kl_nats", "divergence"), ("cosine_distance", "divergence")]
)
def test_without_labels_the_divergence_decides(
    known: str, objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That more answers stay the same, on a few images, says less."""
    from edge_tprune.cli.fit_runs import Runs

    class Known:
        def value(self, name: str) -> float | None:
            return 1.0 if name == known else None

    images = ReferenceTask(2, "train")
    request = fitting.FitRequest(tmp_path, ("evit",), {"max_p50_ms": 1e3}, ("fp32",), 1, 4, 0, True)
    runs = Runs(tmp_path, RunRequest())
    fit = fitting.Fit(request, small_model(channels=48), images, images, "key", runs, lambda what, done, of: None)
    monkeypatch.setattr(fitting, "choose", lambda rows, limits, objective: objective)
    assert fit._choose_among([Known()]) == objective  # type: ignore[list-item,comparison-overlap]


def small_fit(out: Path, **limits: float) -> fitting.Fit:
    images, runs = ReferenceTask(2, "train"), fit_runs.Runs(out / "profiles", RunRequest())
    request = fitting.FitRequest(out, ("evit",), limits, ("fp32",), 1, 4, 0, True)
    return fitting.Fit(request, small_model(channels=48), images, images, "key", runs, lambda what, done, of: None)


def begin(fit: fitting.Fit, latest: Round) -> None:
    """Gives it probes, of a latency that is made up, and a round."""
    out, shape = fit.request.out, network_shape(fit.loaded.model)
    if not (out / "probes").exists():
        Profiles.write(out / "probes", Profiles.info())
    run_id = json.loads((out / "probes" / "run.json").read_text())["run_id"]
    model = Latency(
        run_id=run_id, network=network_record(fit.loaded, shape), runtime="onnxruntime", precision="fp32", batch=1, threads=1,
        power_mode=None, machine="x", status="valid", costs={"p50_ms": fitted(shape, ["evit"])},
    )  # fmt: skip
    LATENCY_KIND.write(out / "probes", model)
    for name in filter(None, (latest.bundle, latest.profile)):
        (out / name).mkdir(exist_ok=True)
    KIND.write(out, FitState(key="key", probes={"fp32": "probes"}, rounds={fit.request.words: (latest,)}))


def test_where_another_round_cannot_be_the_answer_is_that_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting.Fit, "_choose", lambda self, of: f"the choice of {of.bundle}")
    fit = small_fit(tmp_path, max_p50_ms=2.5)
    before = Round(aims={"fp32": 2.5}, candidates=(), bundle="b-1", profile="p-1", again={"fp32": 0.1})
    begin(fit, before)
    assert fit.run() == (msgspec.structs.replace(before, again={}), "the choice of b-1")
    with pytest.raises(NegativeAnswer, match=r"no schedule of this network meets p50_ms 0\.1 in fp32"):
        small_fit(tmp_path, max_p50_ms=0.1).run()


@pytest.mark.parametrize(
    ("limits", "says"),
    [({"min_fps": 100.0}, 12.5), ({"min_fps": 100.0, "max_p95_ms": 10.0}, 13.0), ({"max_p50_ms": 10.0}, 9.0)],
)
def test_what_is_held_against_the_bound_is_the_limit_that_is_furthest_exceeded(
    limits: dict[str, float], says: float, tmp_path: Path
) -> None:
    row = Profiles.row("fit-1", p50_ms=9.0, p95_ms=13.0, throughput_images_per_s=80.0)
    assert small_fit(tmp_path, **limits)._bounded(row, "p50_ms", 10.0) == pytest.approx(says)


def test_a_network_that_removes_nothing_is_not_fine_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edge_tprune.finetune.run.finetune", lambda *given, **more: pytest.fail("it is trained"))
    rows = [Profiles.row("1.0", p50_ms=10.0, kl_nats=0.0), Profiles.row("fit-1", p50_ms=9.0, kl_nats=0.0)]
    monkeypatch.setattr(fitting.Fit, "rows", lambda self, of: rows)
    fit = small_fit(tmp_path, max_p50_ms=9.5)
    fit = replace(fit, tuning=fitting.Tuning(fit.photos, None, lambda weights: fit.loaded))
    whole = network_shape(fit.loaded.model).full_schedule()
    found = Candidate(name="fit-1", method="evit", options={}, tokens=whole, precision="fp32", predicted=None)
    begin(fit, Round(aims={"fp32": 9.5}, candidates=(found,), bundle="b-1", profile="p-1"))
    _, answer = fit.run()
    assert isinstance(answer, Choice)
    assert answer.row.budget == "fit-1"
    (tuned,) = KIND.read(tmp_path).tuned.values()
    assert (tuned.verdict, tuned.bundle) == ("nothing was pruned: there is nothing to fine-tune", None)
    for _ in range(2):  # asked again, it says so again
        assert "without fine-tuning: nothing was pruned" in " ".join(capsys.readouterr().err.split())
        fit.run()


def copied(run: Path, to: Path, status: str) -> Path:
    """A run with another verdict."""
    shutil.copytree(run, to)
    summary = json.loads((to / "summary.json").read_text())
    for each in (summary, *summary["budgets"].values()):
        each["verdict"] = {"status": status, "reasons": []}
    (to / "summary.json").write_text(json.dumps(summary))
    return to


@pytest.fixture
def unmeasured(journey: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fitting.Fit:
    """A fit whose candidates, the graphs of another bundle, are to be measured next."""
    fit = small_fit(tmp_path, max_p50_ms=1e3)
    shutil.copytree(journey[0], tmp_path / "b-1")
    copied(journey[1], tmp_path / "probes", "valid")
    begin(fit, Round(aims={"fp32": 1e3}, candidates=(), bundle="b-1"))
    built = Bundle.open(tmp_path / "b-1")
    monkeypatch.setattr(fitting.Fit, "_build_networks", lambda self, loaded, candidates, name: (built, ["fp32"]))
    monkeypatch.setattr(fitting.Fit, "_judge", lambda self, bundle, precisions: bundle)
    return fit


def test_an_invalid_run_of_candidates_is_said_and_measured_again(
    unmeasured: fitting.Fit, journey: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = iter(["invalid", "valid"])

    def measure(bundle: Bundle, place: Path, request: RunRequest, **more: Any) -> Path:
        status = next(verdicts)
        return copied(journey[1], place / status, status)

    monkeypatch.setattr(fit_runs, "start_run", measure)
    with pytest.raises(UserError, match=r"profiles/invalid: its run is invalid: .*run the same command again to measure it"):
        unmeasured.run()
    latest, answer = unmeasured.run()
    assert latest.profile == "profiles/valid"
    assert isinstance(answer, Choice)


@pytest.mark.parametrize(
    ("change", "machine"),
    [({"board_model": "Another board"}, "Another board"), ({"power_mode": {"id": 1, "name": "15W"}}, "power mode 15W")],
)
def test_candidates_and_probes_are_measured_on_one_machine_in_one_power_mode(
    change: dict[str, Any], machine: str, unmeasured: fitting.Fit, journey: tuple[Path, Path]
) -> None:
    kept = copied(journey[1], unmeasured.request.out / "profiles" / "kept", "valid")
    document = json.loads((kept / "run.json").read_text())
    document["environment"] |= change
    (kept / "run.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=rf"profiles/kept was measured on .*{machine}.*, and .*/probes on .*: remove the one"):
        unmeasured.run()


def test_the_bundles_of_a_fit_are_named_after_it_on_a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def refuse(bundle: Bundle, targets: Any, options: Any, watch: Any) -> None:
        names.append(options.name)
        raise UserError("no board here")

    monkeypatch.setattr(fit_runs, "deploy_all", refuse)
    bundle = Bundle.open(write_bundle(tmp_path / "kitchen" / "candidates-1", {"big": (3, 128), "small": (1, 64)}))
    runs = fit_runs.Runs(tmp_path / "kitchen" / "profiles", RunRequest(), parse_target("jetson@orin"))
    with pytest.raises(UserError, match="no board here"):
        runs.profile(bundle, "fp32")
    assert names == ["kitchen-candidates-1"]


def test_a_profile_that_lacks_one_of_the_networks_is_not_used(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "candidates-1", {"big": (3, 128), "small": (1, 64)}))
    request = RunRequest(rounds=2, seconds_per_round=0.02, warmup_seconds=0.0, baseline_seconds=0.0, threads=1)
    part = profile(bundle, tmp_path / "profiles", msgspec.structs.replace(request, precision="fp32"), budgets=["big"])
    runs = fit_runs.Runs(tmp_path / "profiles", request)
    whole = runs.profile(bundle, "fp32")
    assert whole != part
    assert read_run(whole).budgets == ["big", "small"]
    assert runs.profile(bundle, "fp32") == whole


def test_int8_of_the_reference_model_is_calibrated_on_images_that_are_given(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        save_image(tmp_path / "photos" / f"{number}.png", number)
    seen: list[Dataset] = []

    def stop(*given: Any, calibration: Dataset, **more: Any) -> None:
        seen.append(calibration)
        raise UserError("stopped")

    monkeypatch.setattr(fitting, "decide_probes", stop)
    asked = ["fit", "reference", "--data", tmp_path / "photos", "--max-ms", "3", "--precision", "int8"]
    assert command(*asked, "--out", tmp_path / "fit").code == 2
    assert [images.name for images in seen] == ["photos"]


def check_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """latency.json and the profile that it was made from."""
    probes = folder / KIND.read(folder).probes["fp32"]
    found, run = LATENCY_KIND.read(probes), json.loads((probes / "run.json").read_text())
    assert model_latency(probes, force=True) == found
    assert (found.network.name, found.batch, found.runtime, found.threads) == ("small-test", 1, "onnxruntime", 1)
    methods = {budget["name"]: (budget["method"] or run["bundle"]["method"])["name"] for budget in run["budgets"]}
    assert methods["exact"] == "slice"
    assert methods["evit-1"] == "evit"
    for metric in ("p50_ms", "p95_ms"):
        model = found.costs[metric]
        assert model.exact
        assert set(model.steps) == {"evit"}
        assert model.tokens[-1] == 37
        assert len(model.probes) == len(run["budgets"]) - 1
    with monkeypatch.context() as patch:
        patch.setattr(latency, "_verdict", lambda rows: ("suspect", "1.0: other programs were running"))
        with pytest.raises(UserError, match=r"was disturbed while it measured \(suspect: 1.0: other programs were running\)"):
            model_latency(probes)
        assert model_latency(probes, force=True).status == "suspect"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_nothing_to_an_answer_and_again_with_another_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_tprune.cli.fit_runs import Runs
    from edge_tprune.cli.fitting import Fit, FitRequest

    monkeypatch.setattr("edge_tprune.search.fit.MOST_ROUNDS", 1)  # how many there are depends on how busy the machine is
    loaded, images = small_model(channels=48, depth=3), ReferenceTask(8, "train")
    run = RunRequest(rounds=3, seconds_per_round=0.02, warmup_seconds=0.0, baseline_seconds=0.0, threads=1)
    seen: list[str] = []

    def fit(**limits: float) -> Fit:
        request = FitRequest(tmp_path, ("evit",), limits, ("fp32",), 1, 4, 0, True)
        runs = Runs(tmp_path / "profiles", run)
        return Fit(request, loaded, images, images, "key", runs, lambda what, done, of: seen.append(what))

    first = fit(max_p50_ms=1000.0)
    latest, answer = first.run()
    assert latest.candidates == (), "nothing needs to be removed"
    assert isinstance(answer, Choice)
    assert {row.budget for row in first.rows(latest)} == {"1.0", "exact"}
    check_model(tmp_path, monkeypatch)
    full = first.latency(first.state(), "fp32").cost("p50_ms").full
    assert (tmp_path / "fit.json").exists()
    # Another limit: the probes are there, a search begins.
    probes = (tmp_path / "probe-fp32" / "manifest.json").stat().st_mtime_ns
    second = fit(max_p50_ms=0.8 * full)
    latest, _ = second.run()
    # The same as a speed-up: what is chosen has it in the run itself, whatever the pace of the machine.
    faster = fit(min_speedup=1.25)
    found = [row for row in faster.rows(faster.run()[0]) if row.budget.startswith("fit-")]
    answer = faster.run()[1]
    assert found
    assert not isinstance(answer, Choice) or (answer.row.value("speedup") or 0) >= 1.25
    assert (tmp_path / "probe-fp32" / "manifest.json").stat().st_mtime_ns == probes
    assert 1 <= len(latest.candidates) <= 4
    assert all(candidate.method == "evit" for candidate in latest.candidates)
    assert {c.name for c in latest.candidates} < {row.budget for row in second.rows(latest)}
    assert second.run()[0] == latest, "what is done is not done again"
    # What was taken by force is not taken without it: three rounds are too few to trust.
    assert second.latency(second.state(), "fp32").status == "suspect"
    unforced = replace(second, request=replace(second.request, force=False)).state()
    assert (unforced.probes, unforced.rounds) == ({}, {})
    step = partial(FitState.next_step, limits=second.request.words, precisions=("fp32",))
    (tmp_path / latest.bundle).rename(tmp_path / "away")
    assert step(second.state()) == "measure", "what somebody removed is made again"
    (tmp_path / "away").rename(tmp_path / latest.bundle)
    assert step(second.state()) == "answer"
    graph = next((tmp_path / latest.bundle / "onnx").glob("*.onnx"))
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-9])
    with pytest.raises(UserError, match="is damaged: remove it, and run the command again"):
        second.run()
    graph.write_bytes(whole)
    # It seemed to need no pruning, and missed the limit when it was measured: that is no answer.
    # Before the search it seems so, and afterwards no longer: measured numbers of a network this small would say either.
    real, said = needs_no_pruning, [False, True]
    monkeypatch.setattr("edge_tprune.cli.fitting.needs_no_pruning", lambda *given: said.pop() if said else real(*given))
    with monkeypatch.context() as aimed:
        aimed.setattr("edge_tprune.cli.fitting.next_aim", lambda aim, bound, *measured: 0.9 * bound)
        latest, _ = fit(min_speedup=2.0).run()
    assert latest.candidates == ()
    assert latest.again["fp32"] == pytest.approx(0.9 * full / 2)
    with pytest.raises(NegativeAnswer, match="no schedule of this network meets p50_ms"):
        fit(max_p50_ms=0.001 * full).run()
    # Other images and other rounds, as after somebody removed fit.json: nothing that was measured otherwise is used.
    (tmp_path / "fit.json").unlink()
    runs = Runs(tmp_path / "profiles", msgspec.structs.replace(run, rounds=4))
    third = replace(second, judged=ReferenceTask(9, "test"), runs=runs)
    latest, _ = third.run()
    (document,) = {id(row.profile): row.profile.document for row in third.rows(latest)}.values()
    assert document.settings.rounds == 4
    assert {budget.accuracy.images for budget in document.budgets if budget.accuracy} == {9}
    # The latency model, or the whole profile, of other probes in their place.
    probes = tmp_path / third.state().probes["fp32"]
    model = LATENCY_KIND.read(probes)
    LATENCY_KIND.write(probes, msgspec.structs.replace(model, run_id="another"))
    with pytest.raises(UserError, match="was made of run another, and the profile is of run"):
        third.latency(third.state(), "fp32")
    LATENCY_KIND.write(probes, model)
    for change in ({"threads": 2}, {"rounds": 7}):
        document = json.loads((probes / "run.json").read_text())
        (probes / "run.json").write_text(json.dumps({**document, "plan": {**document["plan"], **change}}))
        with pytest.raises(UserError, match=r"is not of .*probe-fp32, or not as this fit measures: remove it"):
            third.run()
        (probes / "run.json").write_text(json.dumps(document))
    # A profile of something else in its place.
    assert latest.profile is not None
    shutil.rmtree(tmp_path / latest.profile)
    shutil.copytree(tmp_path / third.state().probes["fp32"], tmp_path / latest.profile)
    with pytest.raises(UserError, match=r"is not of .*: remove it"):
        third.run()
