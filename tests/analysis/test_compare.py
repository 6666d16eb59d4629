from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from edge_tprune.analysis.compare import columns, describe_differences, render, speedup_text, to_document
from edge_tprune.analysis.metrics import MISSING
from edge_tprune.analysis.table import Rows, load_rows
from edge_tprune.statistics import Interval


def _printed(rows, width=80, terminal=False):
    stream = io.StringIO()
    colours = {"force_terminal": True, "color_system": "truecolor"} if terminal else {}
    render(rows, Console(file=stream, width=width, **colours))
    return stream.getvalue()


def _plain_lines(text):
    return [line for line in Console(file=io.StringIO()).render_str(text, markup=False).plain.splitlines() if line]


def test_the_table_says_everything(profile_dir):
    text = _printed(load_rows(profile_dir), width=80)
    head = next(line for line in text.splitlines() if line.startswith("budget"))
    assert " ".join(head.split()) == "budget tokens MACs MACs top-1 d top-1 p50 p95 p99 rate memory speed-up"
    assert next(line for line in text.splitlines() if line.startswith("0.65")).split()[:6] == [
        "0.65", "197>112>64>37", "0.82", "65", "95.6", "-0.8",
    ]  # fmt: skip
    assert "onnxruntime 1.23.0" in text
    assert "deit_tiny_patch16_224" in text
    assert "digits in clutter, test split, 1000 images" in text


def test_piped_output_is_plain_ascii_and_complete(profile_dir):
    text = _printed(load_rows(profile_dir), width=40)
    assert text.isascii()
    assert "\x1b" not in text
    assert "…" not in text
    assert "p99" in text


@pytest.mark.parametrize("width", [60, 72, 80, 100, 140])
def test_a_terminal_table_fits_and_cuts_nothing_off(profile_dir, width):
    rows = load_rows(profile_dir)
    stream = io.StringIO()
    render(rows, Console(file=stream, width=width, force_terminal=True, color_system=None))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in stream.getvalue()
    head = next(line for line in lines if line.startswith("budget"))
    for column in ("budget", "tokens", "Δ top-1", "p50", "p95", "speed-up"):
        assert column in head
    assert ("p99" in head) == (width >= 110)


def test_best_values_are_bold_on_a_terminal(profile_dir):
    text = _printed(load_rows(profile_dir), width=140, terminal=True)
    row = next(line for line in text.splitlines() if "197→70→25→9" in line)
    assert "\x1b[1m" in row
    assert "\x1b[1m" not in next(line for line in text.splitlines() if "197→112→64→37" in line)


def test_speedups_within_the_noise_are_equal(profiles):
    def text(*ends):
        return speedup_text(profiles.row(speedup=ends[0], intervals={"speedup": Interval(*ends)}))

    assert text(1.42, 1.40, 1.44) == "1.42 ±0.02"
    assert text(1.01, 0.99, 1.03) == "equal"
    assert text(0.93, 0.92, 0.94) == "0.93 ±0.01"
    assert text(1.42, None, None) == "1.42 ±?"
    assert speedup_text(profiles.row()) == MISSING


def test_missing_values_are_dashes_and_missing_columns_are_named(profiles, tmp_path):
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


def test_without_labels_agreement_stands_for_accuracy(profiles, tmp_path):
    info = profiles.info()
    for budget in info["budgets"]:
        for key in ("top1_percent", "top1_change_points", "top5_percent"):
            budget["accuracy"][key] = None
    names = [column.name for column in columns(load_rows(profiles.write(tmp_path / "run", info)))]
    assert "agreement_percent" in names
    assert "kl_nats" in names
    assert "top1_percent" not in names


def test_groups_have_a_table_each(profiles, tmp_path):
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


def test_methods_and_repeated_runs_are_told_apart(profiles, tmp_path):
    profiles.write(tmp_path / "a")
    profiles.write(tmp_path / "b", profiles.info("evit"))
    assert [column.name for column in columns(load_rows(tmp_path))][:2] == ["method", "budget"]
    again = profiles.info()
    again["started_utc"] = "2025-11-22T09:30:00+00:00"
    profiles.write(tmp_path / "c", again)
    text = _printed(load_rows([tmp_path / "a", tmp_path / "c"]))
    assert "2025-11-21 09:30" in text
    assert "2025-11-22 09:30" in text


def test_markup_in_names_is_printed_not_obeyed(profiles, tmp_path):
    info = profiles.info()
    info["bundle"]["model"]["name"] = "[bold red]x[/] [link=evil]"
    assert "[bold red]x[/] [link=evil]" in _printed(load_rows(profiles.write(tmp_path / "run", info)))


def test_the_document_is_complete(profile_dir):
    rows = load_rows(profile_dir)
    document = json.loads(json.dumps(to_document(rows), allow_nan=False))
    assert document["format"] == "edge-tprune-comparison"
    assert document["version"] == 1
    assert document["metrics"]["p50_ms"] == {
        "label": "p50 latency",
        "unit": "ms",
        "better": "lower",
        "aggregation": "nearest-rank percentile of all inferences",
    }
    (group,) = document["groups"]
    assert group["conditions"]["host"] == "bench-1"
    row = group["rows"][3]
    assert row["budget"] == "0.65"
    assert row["schedule"][-1] == 37
    assert row["metrics"]["top5_change_points"] is None
    assert row["metrics"]["p95_ms"] == rows[3].value("p95_ms")
    assert set(row["intervals"]["speedup"]) == {"value", "low", "high", "confidence"}
    assert document["profiles"][0]["environment"]["cpu_model"] == "Example CPU @ 2.00GHz"
    assert document["differences"] == {}


def test_differences_in_words(profiles):
    rows = [
        profiles.row(conditions={"host": "a", "threads": "1", "CPU": "x"}),
        profiles.row(conditions={"host": "b", "threads": "2", "CPU": "x"}),
    ]
    assert describe_differences(rows) == "host (a, b) and threads (1, 2)"
    assert describe_differences(rows[:1]) == ""


def test_nothing_to_show_prints_nothing():
    assert _printed(Rows(())) == ""


def test_power_and_energy_are_columns_with_their_interval_where_there_is_room(profiles, tmp_path):
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


def _terminal(rows, width):
    stream = io.StringIO()
    render(rows, Console(file=stream, width=width, force_terminal=True, color_system=None))
    return stream.getvalue()


def test_a_verdict_that_is_not_valid_is_a_column_and_its_reason_a_line(profiles, tmp_path):
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


def test_what_equals_the_best_within_the_noise_is_marked_like_it(profiles):
    def row(name, ms):
        return profiles.row(name, profile=name, p50_ms=ms, intervals={"p50_ms": Interval(ms, ms - 0.2, ms + 0.2)})

    column = next(each for each in columns([row("a", 5.0), row("b", 7.0)]) if each.name == "p50_ms")
    assert column.best([row("a", 5.0), row("b", 5.1), row("c", 7.0)]) == {"5.00", "5.10"}
    assert column.best([row("a", 5.0), row("b", 5.1)]) == set()  # a mark on everything says nothing


def test_a_doubt_about_all_is_said_once(profiles, tmp_path):
    info = profiles.info()
    doubt = {"status": "suspect", "reasons": [{"code": "swap", "text": "swap in use changed"}]}
    text = _printed(load_rows(profiles.write(tmp_path / "run", info, summary=profiles.summary(info, verdict=doubt))))
    assert text.count("Suspect: swap in use changed.") == 1
    assert "verdict" not in text
