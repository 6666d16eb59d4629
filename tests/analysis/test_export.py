from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest

from edge_tprune.analysis.export import check_place, records, write_export
from edge_tprune.analysis.loading import load_rows
from edge_tprune.errors import UserError


@pytest.fixture
def rows(profiles, tmp_path):
    info = profiles.info()
    info["budgets"][1]["accuracy"] = None
    summary = profiles.summary(info)
    summary["budgets"]["0.5"]["verdict"] = {"status": "suspect", "reasons": [{"code": "x", "text": "throttled"}]}
    return load_rows(profiles.write(tmp_path / "run", info, summary=summary))


def test_all_three_formats_hold_the_same(rows, tmp_path):
    import polars as pl

    expected = records(rows)
    table = json.loads(write_export(rows, tmp_path / "rows.json").read_text())
    assert table == expected
    assert pl.read_parquet(write_export(rows, tmp_path / "rows.parquet")).to_dicts() == expected
    with write_export(rows, tmp_path / "rows.csv").open(newline="") as stream:
        read = list(csv.DictReader(stream))
    assert [list(record) for record in read] == [list(record) for record in expected]
    assert float(read[3]["p95_ms"]) == rows[3].value("p95_ms")
    assert read[1]["top1_percent"] == ""  # missing, not zero


def test_a_record_is_flat_and_says_what_it_is(rows):
    record = records(rows)[4]
    assert (record["method"], record["budget"], record["verdict"], record["verdict_reasons"]) == (
        "zero_tprune", "0.5", "suspect", "throttled",
    )  # fmt: skip
    assert record["energy_mj_per_image_low"] < record["energy_mj_per_image"] < record["energy_mj_per_image_high"]
    assert record["condition_eval_data"] == "digits in clutter, test split, 1000 images"
    assert all(value is None or isinstance(value, (str, int, float, bool)) for value in record.values())


def test_columns_keep_their_type_where_everything_is_missing(profiles, tmp_path):
    import polars as pl

    rows = load_rows(profiles.write(tmp_path / "run"))
    frame = pl.read_parquet(write_export(rows, tmp_path / "rows.parquet"))
    assert frame.schema["mean_power_w"] == pl.Float64
    assert frame.schema["verdict"] == pl.String
    assert frame.schema["inferences"] == pl.Int64


def test_another_ending_is_refused_and_nothing_written(rows, tmp_path):
    with pytest.raises(UserError, match=r"rows\.xlsx: the name must end in \.csv, \.json, \.parquet"):
        write_export(rows, tmp_path / "rows.xlsx")
    assert not (tmp_path / "rows.xlsx").exists()


def test_a_spreadsheet_runs_nothing_and_numbers_stay_numbers(profiles, tmp_path):
    evil = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1)"]
    info = profiles.info()
    info["run_id"] = "1\n=2\x1b]0;x\x07"
    for budget, name in zip(info["budgets"], evil):
        budget["name"] = name
    lines = profiles.lines(info, {budget["name"]: 10.0 for budget in info["budgets"]})
    rows = load_rows(profiles.write(tmp_path / "=run", info, lines))
    with write_export(rows, tmp_path / "rows.csv").open(newline="") as stream:
        read = list(csv.DictReader(stream))
    assert [record["budget"] for record in read[:4]] == [f"'{name}" for name in evil]
    assert {record["profile"] for record in read} == {"'=run"}
    assert all(value.isprintable() for record in read for value in record.values())
    assert float(read[3]["top1_change_points"]) < 0, "a negative number is no formula"
    for record in read:
        assert not any(value.startswith(("=", "+", "@", "\t", "\r")) for value in record.values())
    table = json.loads(write_export(rows, tmp_path / "rows.json").read_text())
    assert table[0]["budget"] == evil[0], "JSON and Parquet hold what is"


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_only_an_earlier_table_is_replaced(rows, tmp_path, ending):
    file = tmp_path / f"rows.{ending}"
    notes = (b"notes\nprofile,run_id,started_utc,mine\n", b'{"runs": [\n {\n  "profile": "x"}]}', b"PAR1 mine verdict_reasons")
    for content in (
        b"",
        None,
        *notes,
        b"mine",
        (tmp_path / "run" / "run.json").read_bytes(),
        b'[{"name": "mine"}]',
        b"name,age\n",
    ):
        if content is not None:
            file.write_bytes(content)
        if not content:
            write_export(rows, file)
            continue
        for attempt in (lambda: check_place(file), lambda: write_export(rows, file)):
            with pytest.raises(
                UserError, match=rf"rows\.{ending} is not an exported table of edge-tprune's, and would be lost"
            ):
                attempt()
        assert file.read_bytes() == content


@pytest.mark.parametrize("megabytes", [400, 450, 500])
def test_with_too_little_memory_for_parquet_nothing_crashes(megabytes: int) -> None:
    code = (
        "import resource\n"
        "from edge_tprune.analysis.export import _parquet\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({megabytes} << 20,) * 2)\n"
        "from edge_tprune.processes import guard_memory; guard_memory()\n"
        "print(_parquet([{'profile': 'x'}])[:4])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "b'PAR1'\n" if done.returncode == 0 else done.stderr.endswith("MemoryError\n")
