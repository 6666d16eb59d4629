"""What `compare` and `select` show, on terminals of any width and elsewhere."""

from __future__ import annotations

import io

import pytest

from edge_tprune.analysis.changes import find_changes
from edge_tprune.analysis.choice import choose
from edge_tprune.analysis.loading import load_rows
from edge_tprune.analysis.table import Rows
from edge_tprune.cli.comparison_views import print_changes, print_choice, print_comparison
from edge_tprune.cli.terminal import Console
from edge_tprune.report.markdown import markdown_changes
from edge_tprune.statistics import Interval
from tests.analysis.conftest import profile_dir, profiles  # noqa: F401


def _printed(rows, width=80, terminal=False):
    stream = io.StringIO()
    colours = {"force_terminal": True, "color_system": "truecolor"} if terminal else {}
    print_comparison(rows, console=Console(file=stream, width=width, **colours))
    return stream.getvalue()


def _terminal(rows, width):
    stream = io.StringIO()
    print_comparison(rows, console=Console(file=stream, width=width, force_terminal=True, color_system=None))
    return stream.getvalue()


def test_the_table_says_everything(profile_dir):  # noqa: F811
    text = _printed(load_rows(profile_dir), width=80)
    head = next(line for line in text.splitlines() if line.startswith("budget"))
    assert " ".join(head.split()) == "budget tokens MACs MACs top-1 d top-1 p50 p95 p99 rate memory speed-up"
    assert next(line for line in text.splitlines() if line.startswith("0.65")).split()[:6] == [
        "0.65", "197>112>64>37", "0.82", "65", "95.6", "-0.8",
    ]  # fmt: skip
    assert "onnxruntime 1.23.0" in text
    assert "deit_tiny_patch16_224" in text
    assert "digits in clutter, test split, 1000 images" in text


def test_piped_output_is_plain_ascii_and_complete(profile_dir):  # noqa: F811
    text = _printed(load_rows(profile_dir), width=40)
    assert text.isascii()
    assert "\x1b" not in text
    assert "…" not in text
    assert "p99" in text


@pytest.mark.parametrize("width", [60, 72, 80, 100, 140])
def test_a_terminal_table_fits_and_cuts_nothing_off(profile_dir, width):  # noqa: F811
    rows = load_rows(profile_dir)
    stream = io.StringIO()
    print_comparison(rows, console=Console(file=stream, width=width, force_terminal=True, color_system=None))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in stream.getvalue()
    head = next(line for line in lines if line.startswith("budget"))
    for column in ("budget", "tokens", "Δ top-1", "p50", "p95", "speed-up"):
        assert column in head
    assert ("p99" in head) == (width >= 110)


def test_best_values_are_bold_on_a_terminal(profile_dir):  # noqa: F811
    text = _printed(load_rows(profile_dir), width=140, terminal=True)
    row = next(line for line in text.splitlines() if "197→70→25→9" in line)
    assert "\x1b[1m" in row
    assert "\x1b[1m" not in next(line for line in text.splitlines() if "197→112→64→37" in line)


def test_missing_values_are_dashes_and_missing_columns_are_named(profiles, tmp_path):  # noqa: F811
    info = profiles.info()
    info["budgets"][1]["accuracy"] = None
    lines = profiles.lines(info)
    for line in lines:
        line.pop("peak_memory_bytes", None)
        if line["kind"] == "check":
            line["peak_memory_bytes"] = None
    rows = load_rows(profiles.write(tmp_path / "run", info, lines))
    text = _printed(rows)
    assert next(line for line in text.splitlines() if line.startswith("0.9 ")).split()[4:6] == ["-", "-"]
    assert "Not measured: mean power, energy per image (nothing on this machine measures its whole power); peak memory." in text
    assert "memory" not in next(line for line in text.splitlines() if line.startswith("budget"))


def test_groups_have_a_table_each(profiles, tmp_path):  # noqa: F811
    profiles.write(tmp_path / "a")
    other = profiles.info("evit")
    other["environment"]["hostname"] = "bench-2"
    profiles.write(tmp_path / "b", other)
    rows = load_rows([tmp_path / "a", tmp_path / "b"])
    text = _printed(rows)
    assert "group 1 of 2" in text
    assert "group 2 of 2" in text
    assert "The groups differ in host (bench-1, bench-2)." in text
    assert len([line for line in text.splitlines() if line.startswith("budget")]) == 2


def test_markup_in_names_is_printed_not_obeyed(profiles, tmp_path):  # noqa: F811
    info = profiles.info()
    info["bundle"]["model"]["name"] = "[bold red]x[/] [link=evil]"
    assert "[bold red]x[/] [link=evil]" in _printed(load_rows(profiles.write(tmp_path / "run", info)))


def test_nothing_to_show_prints_nothing():
    assert _printed(Rows(())) == ""


def test_power_and_energy_are_columns_with_their_interval_where_there_is_room(profiles, tmp_path):  # noqa: F811
    info = profiles.info()
    rows = load_rows(profiles.write(tmp_path / "run", info, summary=profiles.summary(info)))
    wide, narrow = (_terminal(rows, width) for width in (180, 80))
    row = next(line for line in wide.splitlines() if line.startswith("0.65"))
    assert "8.90 ±0.09" in row
    assert "62.0 ±0.7" in row
    assert row.split()[row.split().index("95.6") + 3].startswith("7.")  # p50, then its own interval
    row = next(line for line in narrow.splitlines() if line.startswith("0.65"))
    assert "8.90" in row.split()
    assert "62.0" in row.split()
    assert max(map(len, narrow.splitlines())) <= 80


def test_a_verdict_that_is_not_valid_is_a_column_and_its_reason_a_line(profiles, tmp_path):  # noqa: F811
    info = profiles.info()
    summary = profiles.summary(info)
    summary["budgets"]["0.8"]["verdict"] = {"status": "suspect", "reasons": [{"code": "x", "text": "the GPU was throttled"}]}
    summary["budgets"]["0.5"]["verdict"] = {"status": "invalid", "reasons": [{"code": "y", "text": "over-current"}]}
    text = _printed(load_rows(profiles.write(tmp_path / "run", info, summary=summary)))
    assert [line.split()[1] for line in text.splitlines() if line.startswith(("0.", "1.0"))] == [
        "valid", "valid", "suspect", "valid", "invalid",
    ]  # fmt: skip
    assert "Suspect (zero_tprune 0.8): the GPU was throttled." in text
    assert "Not to be used: zero_tprune 0.5: its run is invalid: over-current." in text


def test_an_answer_is_wrapped_and_plain(profile_dir):  # noqa: F811
    choice = choose(load_rows(profile_dir), {"max_p95_ms": 10, "max_top1_drop": 1})
    stream = io.StringIO()
    print_choice(choice, Console(file=stream, width=60))
    text = stream.getvalue()
    assert text.isascii()
    assert text.startswith("Budget 0.65 is the fastest with a p95 latency of at most 10 ms and a top-1 drop of at most 1 point")
    assert "Runner-up: budget 0.8" in text


def test_changes_are_a_row_per_budget_and_a_line_per_change(profiles):  # noqa: F811
    def row(ms):
        return profiles.row(p50_ms=ms, intervals={"p50_ms": Interval(ms, ms * 0.99, ms * 1.01)})

    stream = io.StringIO()
    print_changes(find_changes([row(10.0)], [row(12.0)]), Console(file=stream, width=100))
    text = stream.getvalue()
    assert text.isascii()
    assert "worse: zero_tprune 0.65: p50 latency 12.00 ms instead of 10.00 ms" in text
    assert "1 of 1 measures got worse, 0 better, 0 are equal within 3 % or 0.5 points, 0 are not resolved" in text
    stream = io.StringIO()
    once = profiles.row(p50_ms=10.0, intervals={"p50_ms": Interval(10, None, None)})
    print_changes(find_changes([once], [once]), Console(file=stream, width=100))
    assert "not resolved" in stream.getvalue()
    assert "a regression cannot be ruled out for 1 of them: too few rounds to know the noise" in stream.getvalue()


def test_a_change_of_a_distance_has_its_own_digits(profiles):  # noqa: F811
    def row(distance):
        return profiles.row(
            cosine_distance=distance, intervals={"cosine_distance": Interval(distance, distance - 0.001, distance + 0.001)}
        )

    stream = io.StringIO()
    changes = find_changes([row(0.05)], [row(0.09)], force=True)
    print_changes(changes, Console(file=stream, width=200))
    text = stream.getvalue()
    assert "0.0900 instead of 0.0500 (+0.0400, 95 % interval +0.03" in text
    assert "within 3 %, 0.5 points or 0.001 (cos. dist.)" in text
    table = markdown_changes(changes)
    assert [line.count("|") for line in table.splitlines() if line.startswith("|")] == [table.splitlines()[2].count("|")] * 3
    assert "+0.0400 ±" in table
