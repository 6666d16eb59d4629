"""The search for a method's configuration on real images and a real network, and the file that build takes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import edge_tprune
from edge_tprune.errors import UserError
from edge_tprune.export.settings import BudgetRequest, decide
from edge_tprune.files import exclusive
from edge_tprune.models.data import Dataset, ImageFolder, ReferenceTask
from edge_tprune.models.loading import LoadedModel, load_model
from edge_tprune.reduction import network_shape
from edge_tprune.reduction.tuned import FOLDER
from edge_tprune.schedule import from_tokens
from edge_tprune.search import configuration
from edge_tprune.search.schedule_file import KIND, ScheduleFile, read
from edge_tprune.search.score import Scorer
from edge_tprune.search.study import open_storage, open_study


@pytest.fixture(scope="module")
def reference() -> LoadedModel:
    return load_model("reference", None)


def find(
    loaded: LoadedModel, method: str, budgets: list[float], images: Dataset, out: Path, warn: Any = None, **given: Any
) -> ScheduleFile:
    settings = configuration.decide(loaded, [method], images, budgets=budgets, **given)
    return configuration.find(loaded, settings, images, out, warn=warn)


def test_what_is_found_is_no_worse_than_the_defaults_and_builds(reference: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "found" / "evit.json"
    images = ReferenceTask(40, "train")
    document = find(reference, "evit", [0.6, 0.8], images, out, trials=6, stages=(2, 4), seed=1)
    assert read(out) == document
    assert json.loads(out.read_text()) == KIND.document(document)
    assert list(document.budgets) == ["0.6", "0.8"]
    for name, entry in document.budgets.items():
        assert entry.kl is not None
        assert entry.default_kl is not None
        assert entry.kl.value <= entry.default_kl.value
        assert entry.share == pytest.approx(float(name), rel=0.01)
    found = read(out)
    requests = [BudgetRequest(float(share), entry.tokens) for share, entry in found.budgets.items()]
    settings = decide(reference, found.method, budgets=[1.0, *requests], options=found.options)
    assert [budget.name for budget in settings.budgets] == ["1.0", "exact", "0.6", "0.8"]
    assert settings.budgets[2].schedule.tokens == document.budgets["0.6"].tokens
    assert settings.budgets[2].schedule.requested == 0.6
    trials = (out.parent / "evit.json.journal").read_text().count('"losses"')
    assert find(reference, "evit", [0.6, 0.8], images, out, trials=6, stages=(2, 4), seed=1) == document
    assert (out.parent / "evit.json.journal").read_text().count('"losses"') == trials, "a finished search runs nothing again"
    with exclusive(out, "search"), pytest.raises(UserError, match="another search is at work on it"):
        find(reference, "evit", [0.6], images, out, trials=6, stages=(2, 4), seed=1)
    with pytest.raises(UserError, match=r"is of another search \(images was 40, now 30\)"):
        find(reference, "evit", [0.6], ReferenceTask(30, "train"), out, trials=6, stages=(2, 4), seed=1)
    darker = msgspec.structs.replace(reference.preprocessing, mean=(0.1, 0.1, 0.1))
    with pytest.raises(UserError, match=r"is of another search \(settings_sha256 was "):
        find(replace(reference, preprocessing=darker), "evit", [0.6], images, out, trials=6, stages=(2, 4), seed=1)


def test_options_are_searched_at_the_first_budget_and_kept(reference: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "bat.json"
    document = find(
        reference, "bat", [0.6, 0.8], ReferenceTask(20, "train"), out, trials=4, stages=(3, 3), options={"matched": 0.1}
    )
    assert document.options["matched"] == 0.1
    assert set(document.options) == {"matched", "attentive"}
    assert document.found is not None
    study = open_study(open_storage(out, None), f"bat 0.8 attentive={document.options['attentive']}", {}, check=False)
    tried = [trial.user_attrs["options"] for trial in study.get_trials() if "options" in trial.user_attrs]
    assert tried
    assert all(options == {"attentive": document.options["attentive"]} for options in tried)


def test_more_trials_may_change_the_options_of_all_budgets(
    reference: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trials of the second budget under the first ones are no damage, and are kept."""
    out, images = tmp_path / "bat.json", ReferenceTask(20, "train")
    first = find(reference, "bat", [0.6, 0.8], images, out, trials=2, stages=(3, 3))
    real = configuration.search

    def other(study: Any, space: Any, *given: Any, **more: Any) -> Any:
        found = real(study, space, *given, **more)
        if study.study_name != "bat 0.6":
            return found
        best = found[0].configuration
        changed = replace(best, options=(("attentive", 0.7), ("matched", 0.4)))
        return [replace(found[0], configuration=changed), *found[1:]]

    monkeypatch.setattr(configuration, "search", other)
    second = find(reference, "bat", [0.6, 0.8], images, out, trials=3, stages=(3, 3))
    assert first.options != second.options == {"attentive": 0.7, "matched": 0.4}


def test_an_entry_with_other_options_says_so(reference: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a latency model every limit has options of its own."""
    out, images = tmp_path / "bat.json", ReferenceTask(20, "train")
    real = configuration.search_limits

    def each_its_own(*given: Any, **more: Any) -> Any:
        first, second = real(*given, **more)
        best = second.results[0]
        changed = replace(best.configuration, options=(("attentive", 0.7), ("matched", 0.4)))
        return [first, replace(second, results=[replace(best, configuration=changed), *second.results[1:]])]

    monkeypatch.setattr(configuration, "search_limits", each_its_own)
    document = find(reference, "bat", [0.6, 0.8], images, out, trials=2, stages=(3, 3))
    assert document.budgets["0.6"].options is None
    assert (document.budgets["0.8"].method, document.budgets["0.8"].options) == ("bat", {"attentive": 0.7, "matched": 0.4})


def test_options_of_an_entry_have_the_types_of_its_method(tmp_path: Path) -> None:
    entry = {"tokens": [50, 40, 30], "share": 0.6, "method": "bat", "options": {"attentive": "x"}}
    file = {"format": "edge-tprune-schedule", "version": 1, "method": "evit", "options": {}, "budgets": {"0.6": entry}}
    (tmp_path / "s.json").write_text(json.dumps(file))
    with pytest.raises(UserError, match="option attentive of bat is 'x', not a float"):
        read(tmp_path / "s.json")


def test_a_search_does_not_overwrite_the_tables(reference: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sensitivity tables are kept under that name"):
        find(reference, "evit", [0.6], ReferenceTask(4, "train"), tmp_path / configuration.TABLES, trials=1)


def test_scores_are_those_of_the_networks(reference: LoadedModel) -> None:
    shape = network_shape(reference.model)
    schedule = from_tokens(shape, [197] * 3 + [120] * 9)
    images = torch.randn(2, 3, *reference.preprocessing.input_size, generator=torch.Generator().manual_seed(0))[:, 0]
    labels = torch.tensor([0, 1])
    pruned = edge_tprune.prune(reference.model, method="evit", schedule=schedule.tokens)
    with torch.no_grad():
        p = reference.model(images).double().softmax(1)
        q = pruned(images).double().softmax(1)
    wanted = [float(sum(a * (a / b).log() for a, b in zip(p[i], q[i]))) for i in range(2)]
    (found,) = Scorer(reference.model, [images])("evit", schedule.tokens, {})
    assert found == pytest.approx(wanted, abs=1e-6)
    (errors,) = Scorer(reference.model, [images], [labels])("evit", schedule.tokens, {})
    assert errors == [100.0 * (int(q[i].argmax()) != i) for i in range(2)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"budgets": [1.0]}, "budget 1 is out of range"),
        ({"budgets": [0.02], "stages": (1, 2)}, r"no schedule with 1 to 2 stages meets budget 0\.02"),
        ({"trials": 0}, "at least one trial, not 0"),
        ({"stages": (0, 2)}, "0 to 2 stages do not fit a model of 12 blocks"),
        ({"stages": (3, 2)}, "3 to 2 stages do not fit"),
        ({"score": "f1"}, "no score 'f1' for logits: choose kl or top1"),
        ({"method": "evitt"}, "Did you mean evit"),
        ({"options": {"fusee": True}}, "Did you mean fuse"),
        ({"budgets": [0.6, 0.60]}, "a budget is given twice: 0.6, 0.6"),
        ({"out": "found"}, "a schedule file is a file whose name ends in .json"),
        ({"out": "file/x.json"}, "file"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    arguments: dict[str, object], says: str, reference: LoadedModel, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"method": "evit", "budgets": [0.6], "trials": 2} | arguments
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / str(settings.pop("out", "x.json"))
    method, budgets = settings.pop("method"), settings.pop("budgets")
    with pytest.raises(UserError, match=says):
        find(reference, method, budgets, ReferenceTask(5, "train"), out, **settings)
    assert not (tmp_path / "x.json").exists()


def good_file(**changes: object) -> str:
    document = {"format": "edge-tprune-schedule", "version": 1, "method": "zero_tprune", "options": {"similar": 0.5}}
    return json.dumps(document | {"budgets": {"0.65": {"tokens": [197] * 12}}} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"budgets": {"0.5": {"tokens": [float("inf")] * 12}}},
        {"budgets": {"0.5": {"tokens": [164.9] * 12}}},
        {"budgets": {"0.5": {"tokens": [True] * 12}}},
        {"budgets": {"fast": {"tokens": [197] * 12}}},
        {"budgets": {"nan": {"tokens": [197] * 12}}},
        {"budgets": {"1.5": {"tokens": [197] * 12}}},
        {"options": {"similar": "0.5"}},
        {"options": {"votes": 1.5}},
    ],
)
def test_schedule_files_that_lie(changes: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(good_file())
    assert read(tmp_path / "good.json").budgets["0.65"].tokens == (197,) * 12
    (tmp_path / "bad.json").write_text(good_file(**changes))
    with pytest.raises(UserError, match=r"budget|option|expected"):
        read(tmp_path / "bad.json")


@pytest.mark.parametrize(
    "text", ["notes", '{"format": "edge-tprune-latency", "version": 1}', '{"mine": {"format": "edge-tprune-schedule"}}']
)
def test_a_file_of_another_kind_is_refused_before_anything_is_searched(text: str, loaded: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    out.write_text(text)
    with pytest.raises(UserError, match=r"mine\.json exists and is not a schedule file: choose another --out, or remove it"):
        find(loaded, "tome", [0.7], ReferenceTask(6, "train"), out, trials=2)
    assert out.read_text() == text
    assert list(tmp_path.iterdir()) == [out]


def test_a_pipe_is_refused_before_anything_is_searched(loaded: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "pipe.json"
    os.mkfifo(out)
    with pytest.raises(UserError, match=r"cannot write .*pipe\.json: it is a named pipe, not a file"):
        find(loaded, "tome", [0.7], ReferenceTask(6, "train"), out, trials=2)
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_that_appears_while_it_searches_is_not_replaced(loaded: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "found.json"

    def appear(what: str, done: int, of: int) -> None:
        out.write_text("mine")

    images = ReferenceTask(6, "train")
    settings = configuration.decide(loaded, ["tome"], images, budgets=[0.7], trials=2)
    with pytest.raises(UserError, match=r"found\.json exists and is not a schedule file"):
        configuration.find(loaded, settings, images, out, progress=appear)
    assert out.read_text() == "mine"
    out.unlink()
    before = (tmp_path / "found.json.journal").read_bytes()
    configuration.find(loaded, settings, images, out)
    added = (tmp_path / "found.json.journal").read_bytes()[len(before) :]
    assert b'"op_code":4' not in added.replace(b" ", b""), "no trial is made again"
    assert read(out).method == "tome"


@pytest.mark.parametrize("text", [good_file(), good_file()[:40]], ids=["older", "damaged"])
def test_a_schedule_file_that_is_there_is_replaced(text: str, loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "found.json").write_text(text)
    document = find(loaded, "tome", [0.7], ReferenceTask(6, "train"), tmp_path / "found.json", trials=2)
    assert read(tmp_path / "found.json") == document


def test_a_schedule_that_misses_its_budget_on_this_model_is_remarked(reference: LoadedModel) -> None:
    (remark,) = decide(reference, "evit", budgets=[BudgetRequest(0.65, [197] * 6 + [120] * 6)]).remarks
    assert remark.startswith("budget 0.65: on this model its schedule comes to 0.798 of the MACs")


def test_stages_that_exclude_the_defaults_are_obeyed(reference: LoadedModel, tmp_path: Path) -> None:
    found = find(reference, "vote_mix", [0.5], ReferenceTask(10, "train"), tmp_path / "x.json", trials=3, stages=(2, 3))
    assert 2 <= len(found.budgets["0.5"].blocks or ()) <= 3
    assert found.budgets["0.5"].default_kl is None


def test_labels_are_needed_for_errors_only(reference: LoadedModel, tmp_path: Path) -> None:
    from PIL import Image

    files = tuple(tmp_path / f"{i}.png" for i in range(2))
    for file in files:
        Image.new("RGB", (224, 224), (30, 60, 90)).save(file)
    folder = ImageFolder(tmp_path, files, (-1, -1))
    with pytest.raises(UserError, match="has no labels: score by kl"):
        find(reference, "evit", [0.6], folder, tmp_path / "x.json", score="top1", trials=1)
    found = find(reference, "evit", [0.6], folder, tmp_path / "x.json", trials=1).found
    assert found is not None
    assert found.images == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read: No such file"),
        ("tokens: 3", "not readable JSON"),
        ("[1, 2]", "is not a schedule file"),
        ('{"format": "edge-tprune-schedule", "version": 2}', "format version 2, newer than the 1 this edge-tprune reads"),
        ('{"format": "edge-tprune-schedule", "version": "1"}', 'version is "1": expected a whole number'),
        ('{"format": "edge-tprune-schedule", "version": 1, "method": "evit"}', "it has no entry 'options'"),
        (
            '{"format": "edge-tprune-schedule", "version": 1, "method": "evit", "options": {}, "budgets": {"0.5": 3}}',
            r'budgets\["0\.5"\] is 3: expected object, got int',
        ),
    ],
)
def test_files_that_are_no_schedule_files(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "s.json").write_text(text)
    with pytest.raises(UserError, match=says):
        read(tmp_path / "s.json")


def test_the_patterns_that_the_package_ships_are_schedule_files() -> None:
    files = sorted(FOLDER.glob("*.json"))
    assert files
    for file in files:
        found = read(file)
        assert found.method == file.stem
        assert found.found is not None
        assert found.found.score == "kl"
        assert all(entry.blocks and entry.weights and entry.kl for entry in found.budgets.values())


def test_vectors_are_searched_by_their_cosine_distance(loaded: LoadedModel, tmp_path: Path) -> None:
    images = torch.randn(2, 3, *loaded.preprocessing.input_size[1:], generator=torch.Generator().manual_seed(0))
    for output in ("embedding", "features"):
        document = find(loaded, "tome", [0.7], ReferenceTask(6, "train"), tmp_path / f"{output}.json", trials=2, output=output)
        assert document.found is not None
        assert (document.found.score, document.found.output) == ("cosine", output)
        (entry,) = document.budgets.values()
        assert entry.kl is None
        assert entry.cosine is not None
        assert 0 < entry.cosine.value < 1
        pruned = edge_tprune.prune(loaded.model, method="tome", schedule=entry.tokens, output=output, **document.options)
        whole = edge_tprune.prune(loaded.model, method="tome", budget=1.0, output=output)
        with torch.no_grad():
            cosine = torch.nn.functional.cosine_similarity(pruned(images), whole(images), dim=1).reshape(2, -1).mean(1)
        (found,) = Scorer(loaded.model, [images], output=output)("tome", entry.tokens, document.options)
        assert found == pytest.approx((1 - cosine).tolist(), abs=1e-5)
    with pytest.raises(UserError, match="no score 'kl' for features: choose cosine"):
        find(loaded, "tome", [0.7], ReferenceTask(6, "train"), tmp_path / "x.json", score="kl", output="features")


def test_a_budget_that_exact_savings_keep_is_refused_before_any_search(reference: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"budget 0\.99: without removing any token, exact savings alone reach 0\.\d+\. Give less than that"
    ):
        find(reference, "evit", [0.6, 0.99], ReferenceTask(4, "train"), tmp_path / "s.json", trials=3)
    assert not (tmp_path / "s.json").exists()
