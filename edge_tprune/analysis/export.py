"""The table as a file for other programs: one flat record per budget, as CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_tprune.analysis.metrics import METRICS
from edge_tprune.analysis.table import Row
from edge_tprune.errors import UserError, missing_package
from edge_tprune.files import check_own, write_bytes
from edge_tprune.text import first_line, printable

Record = dict[str, object]

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_KINDS = {"unpruned": bool, "inferences": int, "rounds": int}  #: columns that are neither measures nor text


def write_export(rows: Sequence[Row], file: Path) -> Path:
    """Writes `rows` to `file`, atomically, in the format that its name ends in, and returns `file`.

    Columns: what tells a row apart, then every metric (its unit is in its name) with `_low` and `_high` where its interval is known,
    then the conditions. Missing is empty in CSV and null elsewhere; text in CSV that a spreadsheet would run as a formula begins with
    an apostrophe.

    Raises:
        UserError: another ending than .csv, .json or .parquet, a package that is missing, a place that cannot be written.
    """
    check_place(file)
    write_bytes(file, _WRITERS[file.suffix.lower()](records(rows)))
    return file


def check_place(file: Path) -> None:
    """Refuses a file that no table can be written to.

    Raises:
        UserError: another ending than .csv, .json or .parquet, or a file there that is no such table.
    """
    if file.suffix.lower() not in _WRITERS:
        raise UserError(f"cannot export {file.name}: the name must end in {', '.join(_WRITERS)}")
    check_own(file, _OWN_FILES[file.suffix.lower()], "an exported table")


def records(rows: Sequence[Row]) -> list[Record]:
    """One flat record per row, all with the same keys in the same order."""
    conditions = dict.fromkeys(label for row in rows for label in row.conditions)
    return [
        {
            "profile": row.profile.name,
            "run_id": printable(row.profile.document.run_id),
            "started_utc": row.profile.started_utc,
            "method": row.method,
            "budget": row.budget,
            "unpruned": row.unpruned,
            "schedule": " ".join(map(str, row.schedule)),
            "inferences": row.inferences,
            "rounds": row.rounds,
            "verdict": None if row.verdict is None else row.verdict.status,
            "verdict_reasons": None if row.verdict is None else "; ".join(row.verdict.reasons),
            "unfit": row.unfit,
            **_measures(row),
            **{_key(label): row.conditions.get(label) for label in conditions},
        }
        for row in rows
    ]


def _measures(row: Row) -> Record:
    found: Record = {}
    for name in METRICS:
        interval = row.intervals.get(name)
        value = row.value(name)
        found[name] = None if value is None else float(value)
        found[f"{name}_low"] = None if interval is None else interval.low
        found[f"{name}_high"] = None if interval is None else interval.high
    return found


def _key(label: str) -> str:
    """The name of a condition's column: 'eval data hash' -> 'condition_eval_data_hash'."""
    return "condition_" + label.lower().replace(" ", "_").replace("-", "_")


def _csv(table: list[Record]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(table[0]) if table else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _defuse(value) for key, value in record.items()} for record in table)
    return stream.getvalue().encode()


def _defuse(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets an apostrophe in front, as OWASP advises ("CSV Injection"); numbers stay numbers."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def _json(table: list[Record]) -> bytes:
    return (json.dumps(table, indent=1, allow_nan=False) + "\n").encode()


def _parquet(table: list[Record]) -> bytes:
    try:
        import polars as pl
    except ImportError as error:
        raise missing_package("polars", "parquet", error) from error
    schema = {name: float if _is_measure(name) else _KINDS.get(name, str) for name in table[0]} if table else {}
    stream = io.BytesIO()
    try:
        pl.DataFrame(table, schema=schema).write_parquet(stream)
    except pl.exceptions.PanicException as error:  # it reads environment variables, and panics over what it meets there
        raise UserError(f"polars cannot make the table: {first_line(error)}") from error
    return stream.getvalue()


def _is_measure(name: str) -> bool:
    return name.removesuffix("_low").removesuffix("_high") in METRICS


_OWN_FILES: Mapping[str, re.Pattern[bytes]] = {
    ".csv": re.compile(rb"profile,run_id,started_utc,"),
    ".json": re.compile(rb'\[\n \{\n  "profile": "[^\n]*",\n  "run_id": '),
    ".parquet": re.compile(rb"PAR1(?=.*run_id)(?=.*verdict_reasons)", re.DOTALL),
}
"""How every table begins, by the ending of its name."""

_WRITERS: Mapping[str, Callable[[list[Record]], bytes]] = {".csv": _csv, ".json": _json, ".parquet": _parquet}
