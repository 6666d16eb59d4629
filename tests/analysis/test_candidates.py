from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edge_tprune.analysis.candidates import Candidates, choose_everywhere
from edge_tprune.analysis.choice import Choice, NoChoice
from edge_tprune.analysis.documents import answer_document
from edge_tprune.analysis.limits import LIMITS
from edge_tprune.analysis.table import Rows
from edge_tprune.analysis.wording import describe_refusals, list_caveats
from edge_tprune.cli.comparison_views import print_candidates
from edge_tprune.errors import UserError


def _conditions(board, mode="15W"):
    return {"board": board, "power mode": mode, "host": board.lower(), "CPU": "unknown"}


@pytest.fixture
def boards(profiles):
    def row(budget, board, mode, fps, watts):
        return profiles.row(
            budget, conditions=_conditions(board, mode), throughput_images_per_s=fps, mean_power_w=watts,
            p50_ms=1000 / fps, top1_percent=70 + 10 * float(budget), top1_drop_points=1 - float(budget),
        )  # fmt: skip

    return Rows(
        (
            row("1.0", "Nano", "15W", 40, 9), row("0.5", "Nano", "15W", 80, 8),
            row("1.0", "Nano", "MAXN", 90, 16), row("0.5", "Nano", "MAXN", 170, 14),
            row("1.0", "Xavier", "15W", 20, 9), row("0.5", "Xavier", "15W", 50, 8),
        )
    )  # fmt: skip


QUESTION = {"min_fps": 60, "max_mean_power_w": 10}


def test_which_board_and_budget(boards):
    found = choose_everywhere(boards, QUESTION)
    assert isinstance(found, Candidates)
    assert found.only is not None
    assert (found.only.row.conditions["board"], found.only.row.budget) == ("Nano", "0.5")
    document = json.loads(json.dumps(answer_document(found), allow_nan=False))
    assert document["chosen"]["budget"] == "0.5"
    assert [entry["environment"] for entry in document["candidates"]] == ["Nano · 15W"]
    assert [entry["environment"] for entry in document["without"]] == ["Nano · MAXN", "Xavier · 15W"]
    assert document["without"][1]["nearest_misses"][0]["constraint"] == "min_fps"


def test_several_that_fit_are_not_ranked_and_what_differs_is_said(boards):
    found = choose_everywhere(boards, {"min_fps": 60})
    assert isinstance(found, Candidates)
    assert [choice.row.budget for choice in found.choices] == ["0.5", "1.0"]
    assert found.only is None
    assert answer_document(found)["chosen"] is None
    text = _printed(found)
    assert "2 of 3 environments have a budget with throughput of at least 60 images/s:" in text
    assert (
        "Not ranked: these environments differ in board (Nano, Xavier), power mode (15W, MAXN) and host (nano, xavier)." in text
    )
    assert "A  Nano - 15W\n" in text
    assert "C: no budget fits" in text


def test_profiles_that_could_not_be_read_are_said(boards):
    found = choose_everywhere(Rows(boards.rows, left_out=("left out: runs/x is damaged",)), {"min_fps": 60})
    assert answer_document(found)["warnings"] == ["left out: runs/x is damaged"]
    assert "warning: left out: runs/x is damaged" in _printed(found)


def test_force_ranks_and_says_so(boards):
    choice = choose_everywhere(boards, {"min_fps": 60}, "throughput", force=True)
    assert isinstance(choice, Choice)
    assert choice.row.value("throughput_images_per_s") == 170
    assert list_caveats(choice)[0].startswith("forced: the rows differ in board")


def test_where_nothing_fits_every_environment_says_its_nearest_miss(boards):
    found = choose_everywhere(boards, {"min_fps": 500})
    assert isinstance(found, Candidates)
    assert found.choices == []
    assert answer_document(found)["chosen"] is None
    text = describe_refusals(found)
    assert "\n" not in text
    for part in ("Nano · 15W: no budget fits", "Nano · MAXN: no budget fits", "with 170.0 images/s", "Xavier"):
        assert part in text
    assert sum(len(answer.misses) for _, answer in found.refusals) == 3


def test_one_environment_is_answered_as_ever(profiles):
    rows = Rows((profiles.row("0.5", p50_ms=1.0, top1_drop_points=0.1),))
    assert isinstance(choose_everywhere(rows), Choice)
    with pytest.raises(UserError, match="nothing to choose from"):
        choose_everywhere(Rows(()))


def _printed(found):
    stream = io.StringIO()
    print_candidates(found, Console(file=stream, width=100))
    assert stream.getvalue().isascii()
    return stream.getvalue()


def test_a_terminal_of_80_columns_holds_it(boards):
    stream = io.StringIO()
    found = choose_everywhere(boards, {"min_fps": 60, "max_mean_power_w": 20, "max_top1_drop": 1})
    print_candidates(found, Console(file=stream, width=80, force_terminal=True, color_system=None))
    assert max(map(len, stream.getvalue().splitlines())) <= 80
    assert "…" not in stream.getvalue()


NUMBER = st.one_of(st.none(), st.sampled_from([1.0, 2.0, 3.0]), st.floats(0.1, 100))
METRICS_ASKED = sorted({metric for metric, _ in LIMITS.values()} | {"top1_percent"})


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.fixed_dictionaries(dict.fromkeys(METRICS_ASKED, NUMBER))), min_size=1, max_size=12
    ),
    st.dictionaries(st.sampled_from(list(LIMITS)), st.floats(0.1, 100), min_size=1, max_size=3),
)
def test_an_offer_keeps_every_constraint_and_environments_never_mix(profiles, table, constraints):
    rows = [profiles.row(str(index), conditions={"host": host}, **values) for index, (host, values) in enumerate(table)]

    def keeps(row):
        for name, bound in constraints.items():
            metric, side = LIMITS[name]
            value = row.value(metric)
            if value is None or (value > bound if side == "max" else value < bound):
                return False
        return True

    found = choose_everywhere(Rows(tuple(rows)), constraints, "latency")
    if isinstance(found, NoChoice) or (isinstance(found, Candidates) and not found.choices):
        assert not any(keeps(row) and row.value("p50_ms") is not None for row in rows)
        return
    answers = found.answers if isinstance(found, Candidates) else ((None, found),)
    for members, answer in answers:
        own = [row for row in rows if members is None or row in members.rows]
        if isinstance(answer, Choice):
            assert keeps(answer.row)
            assert {answer.row.conditions["host"]} == {row.conditions["host"] for row in own}
            front = answer.front.rows if answer.front else ()
            for other in (*answer.equals, *front, *([answer.runner_up] if answer.runner_up else [])):
                assert any(other is row for row in own)
        else:
            assert not any(keeps(row) and row.value("p50_ms") is not None for row in own)
