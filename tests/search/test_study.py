"""The search over configurations: seeded, resumable, racing, and never outside what was asked for."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_tprune.errors import UserError
from edge_tprune.search import study as study_module
from edge_tprune.search.cost import MacsCost, MeasuredCost, total
from edge_tprune.search.space import Configuration, MethodSpace, SearchSpace
from edge_tprune.search.study import Result, hide_password, open_storage, open_study, search
from tests.schedule.test_latency import SHAPE as READS_ONE
from tests.schedule.test_latency import fitted
from tests.search.landscape import Landscape
from tests.search.spaces import OPTIONS, SHAPE, SPACE, any_count


def run(path: Path, trials: int, landscape: Any, seed: int = 0, space: SearchSpace = SPACE, **more: Any) -> list[Result]:
    study = open_study(open_storage(path, None), "0.65", {"seed": seed})
    return search(study, space, landscape, trials=trials, seed=seed, **more)


def test_it_finds_what_it_looks_for(tmp_path: Path) -> None:
    found = run(tmp_path / "found", 40, Landscape())
    assert dict(found[0].configuration.options) == {"similar": 0.5, "votes": 1}
    rng, scored = random.Random(0), []
    for _ in range(40):
        options = {name: rng.choice(values) for name, values in OPTIONS.items()}
        configuration = SPACE.from_weights("zero", [rng.random() for _ in range(12)], options)
        if configuration and (schedule := SPACE.schedule(configuration)):
            losses = [loss for part in Landscape()("zero", schedule.tokens, options) for loss in part]
            scored.append(sum(losses) / len(losses))
    assert found[0].loss < min(scored), "better than as many trials drawn blindly"
    assert [r.loss for r in found] == sorted(r.loss for r in found)


def test_the_same_seed_tries_the_same(tmp_path: Path) -> None:
    first, second, third = Landscape(), Landscape(), Landscape()
    assert run(tmp_path / "a", 14, first) == run(tmp_path / "b", 14, second)
    run(tmp_path / "c", 14, third, seed=1)
    assert first.scored == second.scored != third.scored
    assert len(set(first.scored)) == 14, "nothing is tried twice"


def test_a_finished_search_goes_on_when_more_trials_are_asked_for(tmp_path: Path) -> None:
    whole, part, rest = Landscape(), Landscape(), Landscape()
    wanted = run(tmp_path / "whole", 14, whole)
    run(tmp_path / "part", 7, part)
    assert run(tmp_path / "part", 14, rest) == wanted
    assert part.scored + rest.scored == whole.scored
    assert len(part.scored) == 7
    again = Landscape()
    assert run(tmp_path / "part", 14, again) == wanted
    assert again.scored == []


def test_an_interrupted_search_loses_one_trial(tmp_path: Path) -> None:
    class Stops(Landscape):
        def __call__(self, method: str, tokens: tuple[int, ...], options: Mapping[str, Any]) -> Iterator[list[float]]:
            if len(self.scored) == 6:
                raise KeyboardInterrupt
            return super().__call__(method, tokens, options)

    stopped, rest = Stops(), Landscape()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "found", 15, stopped)
    found = run(tmp_path / "found", 15, rest)
    assert len(stopped.scored) + len(rest.scored) == 15
    assert not set(stopped.scored) & set(rest.scored)
    assert found[0].loss == min(r.loss for r in found)


def test_a_killed_worker_loses_one_trial(tmp_path: Path) -> None:
    """Killed while it scores, in a process of its own; another worker finishes the search."""
    program = """
        import os, signal
        from pathlib import Path
        from tests.search.test_study import Landscape, run
        class Killed(Landscape):
            def __call__(self, *given):
                if len(self.scored) == 4:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__call__(*given)
        run(Path("found"), 10, Killed())
    """
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(root)}, timeout=120, check=False)
    assert done.returncode == -9
    rest = Landscape()
    run(tmp_path / "found", 10, rest)
    assert len(rest.scored) == 6


def test_what_a_full_disk_or_a_killed_process_left_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line, after which Optuna would read nothing more; and its lock, for which it would wait for ever."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    out = Path("deep/found")
    before = run(out, 3, Landscape())
    with (tmp_path / "deep/found.journal").open("a") as stream:
        stream.write('{"op_code":5,"wor')
    (tmp_path / "deep/found.journal.lock").symlink_to("deep/found.journal")
    after = run(out, 6, Landscape())
    assert {result.configuration for result in before} <= {result.configuration for result in after}
    assert run(out, 6, Landscape()) == after


@pytest.mark.parametrize(
    "damage", [lambda f: f.write_bytes(b"\xff\n{}\n"), lambda f: f.write_text("[]\n"), os.mkfifo, lambda f: f.mkdir()]
)
def test_a_damaged_journal_is_one_line(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    damage(tmp_path / "found.journal")
    with pytest.raises(UserError, match=r"found\.journal cannot be read .*: move it away to start again") as caught:
        run(tmp_path / "found", 1, Landscape())
    assert "\n" not in str(caught.value)


def test_a_link_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("whole\nwithout an end")
    (tmp_path / "found.journal").symlink_to("victim")
    with pytest.raises(UserError, match=r"found\.journal: it is a link, not a file"):
        run(tmp_path / "found", 1, Landscape())
    assert (tmp_path / "victim").read_text() == "whole\nwithout an end"


def test_two_workers_share_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    first, second = Landscape(), Landscape()
    for landscape, trials in ((first, 4), (second, 8)):
        study = open_study(open_storage(tmp_path / "x", url), "0.65", {})
        search(study, SPACE, landscape, trials=trials)
    assert (len(first.scored), len(second.scored)) == (4, 4)
    with pytest.raises(UserError, match="--storage nosuchdb://here: the database cannot be used"):
        open_storage(tmp_path / "x", "nosuchdb://here")


def test_two_searches_that_begin_at_once_make_one_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that finds the tables half made opens the database again."""
    made = study_module.RDBStorage
    refusals = [Exception("UNIQUE constraint failed: alembic_version.version_num"), Exception("table studies already exists")]

    def open_once_ready(url: str, **options: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return made(url, **options)

    monkeypatch.setattr(study_module, "RDBStorage", open_once_ready)
    monkeypatch.setattr(study_module, "_TABLE_ATTEMPT_S", 0.0)
    open_storage(tmp_path / "x", f"sqlite:///{tmp_path / 'study.db'}")
    assert not refusals


def test_worse_trials_are_dropped_early(tmp_path: Path) -> None:
    landscape = Landscape(400)
    found = run(tmp_path / "found", 25, landscape)
    assert len(found) < 25
    assert landscape.batches < 0.8 * 25 * 40, "racing saves work"
    study = open_study(open_storage(tmp_path / "found", None), "0.65", {"seed": 0})
    for trial in study.get_trials(states=[optuna.trial.TrialState.PRUNED]):
        assert trial.value > found[0].loss, "nothing better was thrown away"  # type: ignore[operator]


MODEL = fitted(READS_ONE, ["evit"])
weights = st.lists(st.floats(0, 1), min_size=11, max_size=12)


@settings(max_examples=60)
@given(weights=weights, low=st.integers(1, 3), more=st.integers(0, 5), limit=st.floats(7.0, 16.0))
def test_configurations_spend_the_limit(weights: list[float], low: int, more: int, limit: float) -> None:
    space = SearchSpace(MeasuredCost(READS_ONE, MODEL), limit, (MethodSpace("evit", any_count),), low, low + more)
    configuration = space.from_weights("evit", weights[: space.last_block], {})
    if configuration is None:
        assert sum(weight >= 0.05 for weight in weights[: space.last_block]) < low
        return
    assert low <= len(configuration.blocks) <= low + more
    schedule = space.schedule(configuration)
    if schedule is None:
        return
    READS_ONE.check(schedule.tokens)
    spent = total(space.cost, "evit", schedule.tokens)
    assert spent is not None
    assert spent <= limit
    removing = {b for b, (x, y) in enumerate(zip((197, *schedule.tokens), schedule.tokens), 1) if y < x}
    assert removing <= {*configuration.blocks, 12}
    if max(configuration.blocks) > 3 and len(removing) > 1:
        more_tokens = [min(197, n + 3) if n > 1 else n for n in schedule.tokens]
        dearer = total(space.cost, "evit", more_tokens)
        assert dearer is None or dearer > limit * 0.98 or schedule.tokens[0] == 197


def test_a_schedule_becomes_weights_and_comes_back() -> None:
    cost = MeasuredCost(READS_ONE, MODEL)
    tokens = (*[197] * 3, *[140] * 3, *[100] * 3, 60, 60, 1)
    limit = total(cost, "evit", tokens)
    assert limit is not None
    space = SearchSpace(cost, limit, (MethodSpace("evit", any_count),), 1, 4)
    configuration = space.from_schedule("evit", tokens, {})
    assert configuration is not None
    assert configuration.blocks == (4, 7, 10)
    found = space.schedule(configuration)
    assert found is not None
    assert all(abs(a - b) <= 1 for a, b in zip(found.tokens, tokens))


def test_the_defaults_run_first(tmp_path: Path) -> None:
    start = Configuration("zero", (4, 7, 10), (1.0, 1.0, 1.0), (("similar", 0.5), ("votes", 1)))
    found = run(tmp_path / "found", 1, Landscape(), first=[start])
    assert [r.configuration for r in found] == [start]


def test_what_an_interruption_cut_off_is_tried_again(tmp_path: Path) -> None:
    class Stopped(Landscape):
        def __call__(self, *given: Any, **more: Any) -> Iterator[list[float]]:
            raise KeyboardInterrupt

    start = Configuration("zero", (4, 7, 10), (1.0, 1.0, 1.0), (("similar", 0.5), ("votes", 1)))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "x", 4, Stopped(), first=[start], alone=True)
    found = run(tmp_path / "x", 4, Landscape(), first=[start], alone=True)
    assert any(result.configuration == start for result in found)


def test_several_methods_compete(tmp_path: Path) -> None:
    def score(method: str, tokens: tuple[int, ...], options: Mapping[str, Any]) -> Iterator[list[float]]:
        for batch in range(8):
            yield [(1.0 if method == "good" else 2.0) + 0.01 * batch + tokens[3] / 1e4] * 5

    methods = tuple(MethodSpace(name, any_count, "share", {"a": (1, 2)} if name == "good" else {}) for name in ("bad", "good"))
    space = SearchSpace(MacsCost(SHAPE), 0.65, methods, 1, 4)
    found = run(tmp_path / "found", 20, score, space=space)
    assert found[0].configuration.method == "good"
    assert dict(found[0].configuration.options)["a"] in (1, 2)


def test_a_limit_that_nothing_meets_is_refused(tmp_path: Path) -> None:
    space = SearchSpace(MacsCost(SHAPE), 0.05, SPACE.methods, 1, 1)
    with pytest.raises(UserError, match=r"no schedule with 1 to 1 stages meets budget 0\.05"):
        run(tmp_path / "found", 2, Landscape(), space=space)


def test_a_limit_just_below_the_cheapest_schedule_is_not_reachable() -> None:
    space = SearchSpace(MeasuredCost(READS_ONE, MODEL), 1.0, (MethodSpace("evit", any_count),), 1, 11)
    cheapest = space.cheapest(space.methods[0])
    assert cheapest is not None
    assert replace(space, limit=cheapest).reachable
    assert not replace(space, limit=0.995 * cheapest).reachable


def test_what_another_search_tried_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path / "found", 3, Landscape())
    before = (tmp_path / "found.journal").read_bytes()
    with pytest.raises(UserError, match=r"is of another search \(seed was 0, now 1\)"):
        open_study(open_storage(tmp_path / "found", None), "0.65", {"seed": 1})
    assert (tmp_path / "found.journal").read_bytes()[: len(before)] == before


def test_a_large_seed(tmp_path: Path) -> None:
    largest, other = Landscape(), Landscape()
    run(tmp_path / "a", 12, largest, seed=2**53)
    run(tmp_path / "b", 12, other, seed=12_345)
    assert largest.scored != other.scored


@pytest.mark.parametrize(
    ("directions", "parameter"), [(["minimize"], "x"), (["maximize"], "x"), (["minimize", "maximize"], None)]
)
def test_a_study_of_another_program_is_left_alone(tmp_path: Path, directions: list[str], parameter: str | None) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    theirs = optuna.create_study(storage=url, study_name="0.65", directions=directions)
    if parameter is not None:
        drawn = {parameter: optuna.distributions.FloatDistribution(0, 1)}
        theirs.add_trial(optuna.trial.create_trial(params={parameter: 0.5}, distributions=drawn, value=0.0))
    with pytest.raises(UserError, match=r"what was tried under 0\.65 is of another program: .* choose another --out"):
        open_study(open_storage(tmp_path / "x", url), "0.65", {})
    assert theirs.user_attrs == {}


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("tokens", "abc", "tokens is"),
        ("losses", [], "another number of images"),
        ("losses", [float("nan")] * 5, "losses"),
        ("losses", [1e301] * 5, "losses"),
        ("options", [1], "options is"),
    ],
)
def test_damaged_trials_are_one_line(tmp_path: Path, key: str, value: object, why: str) -> None:
    run(tmp_path / "found", 2, Landscape())
    lines = [json.loads(line) for line in (tmp_path / "found.journal").read_text().splitlines()]
    for line in lines:
        if key in line.get("user_attr", {}):
            line["user_attr"][key] = value
            break
    (tmp_path / "found.journal").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=rf"trial \d of 0\.65 is damaged, or of another program \(.*{why}"):
        run(tmp_path / "found", 3, Landscape())


@pytest.mark.parametrize("value", ["x", [], 1e999, -1, None])
def test_a_damaged_count_of_interruptions_is_one_too_many(tmp_path: Path, value: object) -> None:
    run(tmp_path / "found", 2, Landscape())
    lines = (tmp_path / "found.journal").read_text().splitlines()
    worker = json.loads(lines[-1])["worker_id"]
    damage = {"op_code": 8, "worker_id": worker, "trial_id": 1, "user_attr": {"again": value}}
    (tmp_path / "found.journal").write_text("\n".join([*lines[:-1], json.dumps(damage), ""]))  # the last one is still running
    assert len(run(tmp_path / "found", 3, Landscape())) >= 2


@pytest.mark.parametrize("values", [[], {}, ["x"], [0.5, 0.7], [None], None, [True], [float("nan")], [float("inf")]])
def test_values_that_no_search_reaches_are_one_line(tmp_path: Path, values: object) -> None:
    run(tmp_path / "found", 2, Landscape())
    lines = [json.loads(line) for line in (tmp_path / "found.journal").read_text().splitlines()]
    next(line for line in lines if line["op_code"] == 6 and line["state"] == 1)["values"] = values
    (tmp_path / "found.journal").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"is damaged, or of another program|cannot be read"):
        run(tmp_path / "found", 3, Landscape(), report=lambda done, of, best: None)


@pytest.mark.parametrize("value", ["0.5", None, [0.5], True, float("nan"), float("inf"), -0.1, 1.1])
def test_parameters_that_no_search_draws_are_one_line(tmp_path: Path, value: object) -> None:
    run(tmp_path / "found", 2, Landscape())
    lines = [json.loads(line) for line in (tmp_path / "found.journal").read_text().splitlines()]
    for line in lines:
        if line.get("param_name", "").startswith("block"):
            line["param_value_internal"] = value
            break
    (tmp_path / "found.journal").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"is damaged, or of another program|cannot be read"):
        run(tmp_path / "found", 3, Landscape())


def test_trials_on_another_number_of_images_are_one_line(tmp_path: Path) -> None:
    count = len(run(tmp_path / "found", 2, Landscape())[0].losses)
    assert run(tmp_path / "found", 3, Landscape(), images=count)
    with pytest.raises(UserError, match="another number of images"):
        run(tmp_path / "found", 4, Landscape(), images=count + 1)


def test_a_damaged_database_is_one_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    search(open_study(open_storage(tmp_path / "x", url), "0.65", {}), SPACE, Landscape(), trials=2)
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute("UPDATE trials SET state = 'NOPE'")
    with pytest.raises(UserError, match="what was tried before cannot be read"):
        search(open_study(open_storage(tmp_path / "x", url), "0.65", {}), SPACE, Landscape(), trials=3)


def test_a_damaged_report_in_a_database_is_one_line(tmp_path: Path) -> None:
    """Which only Optuna's pruner meets."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    search(open_study(open_storage(tmp_path / "x", url), "0.65", {"seed": 0}), SPACE, Landscape(), trials=4)
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute("UPDATE trial_intermediate_values SET intermediate_value = 'x'")
    with pytest.raises(UserError, match="what was tried before cannot be read"):
        search(open_study(open_storage(tmp_path / "x", url), "0.65", {"seed": 0}), SPACE, Landscape(), trials=6)


def test_a_file_of_a_persons_is_not_taken_for_a_journal(tmp_path: Path) -> None:
    file = tmp_path / "found.json.journal"
    for content in (b"my only notes without an end", b"line 1\nline 2 without an end", b"{}\n", b"[]"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"it does not begin as a journal does.*: move it away"):
            open_storage(tmp_path / "found.json", None)
        assert file.read_bytes() == content
    for content in (b"", b'{"op_'):  # of a search that was killed as it began
        file.write_bytes(content)
        open_storage(tmp_path / "found.json", None)
        assert file.read_bytes() == b""


def test_a_database_in_the_place_of_the_schedules_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in (
        "sqlite:///k.json",
        "sqlite:///./k.json",
        f"sqlite:///{tmp_path}/k.json?timeout=5",
        "sqlite:///file:k.json?uri=true",
    ):
        with pytest.raises(UserError, match="--storage and --out are the same file"):
            open_storage(tmp_path / "k.json", url)
    assert not (tmp_path / "k.json").exists()


@pytest.mark.parametrize("word", ["secret", "se/cret", "se@cret", "s:e?c#ret"])
def test_a_password_is_not_shown(word: str) -> None:
    assert hide_password(f"postgresql://me:{word}@host:5432/db") == "postgresql://me:***@host:5432/db"
    assert hide_password(f"mysql+pymysql://me:{word}@host/db?ssl=1") == "mysql+pymysql://me:***@host/db?ssl=1"
    assert hide_password("postgresql://host/db?user=me&password=se/cret&x=1") == "postgresql://host/db?user=me&password=***&x=1"


def test_an_address_without_a_password_is_shown_as_it_is() -> None:
    for url in ("sqlite:///runs/study.db", "postgresql://me@host:5432/db", "mysql://host/db?charset=utf8"):
        assert hide_password(url) == url


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
def test_a_database_in_memory_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="is a database in memory, which nothing is kept in"):
        open_storage(tmp_path / "k.json", url)


def test_an_argument_that_the_database_would_pass_over_is_refused(tmp_path: Path) -> None:
    """A person who asks for a database to be read only would find it written."""
    with pytest.raises(UserError, match="'mode' are not accepted"):
        open_storage(tmp_path / "k.json", f"sqlite:///{tmp_path}/x.db?mode=ro")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_a_database_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no search whose name is not UTF-8 text"):
        open_storage(tmp_path / os.fsdecode(b"s\xff.json"), f"sqlite:///{tmp_path}/x.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("studies", "x text"),
        ("trials", "trial_id integer"),
        ("alembic_version", "version_num text"),
        ("studies", "study_id integer"),
    ],
)
def test_a_persons_database_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, columns: str) -> None:
    monkeypatch.setattr("edge_tprune.search.study._TABLE_ATTEMPT_S", 0.01)
    file = tmp_path / "own.db"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(f"create table {table} ({columns})")
    before = file.read_bytes()
    with pytest.raises(UserError, match=f"has a table {table} of another program's"):
        open_storage(tmp_path / "k.json", f"sqlite:///{file}")
    assert file.read_bytes() == before


def test_tables_of_other_names_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "own.db"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("create table photos (x text)")
    for _ in range(2):
        open_storage(tmp_path / "k.json", f"sqlite:///{file}")
