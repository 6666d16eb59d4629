"""Kept results are of today's code: what they name exists, and gives the token counts that they state."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import timm
from torch import nn

from edge_tprune.models.loading import load_model
from edge_tprune.record.reader import read_run
from edge_tprune.reduction import network_shape, registry, solve_schedule
from tests.benchmarks import latency, reduction
from tests.benchmarks.quantize import table
from tests.benchmarks.reduction import chosen

PROFILES = Path(__file__).parents[1] / "profiles"
TABLES = sorted([*PROFILES.glob("methods-*/methods.json"), *PROFILES.glob("dense-*/dense.json")])
TUNED = sorted(PROFILES.glob("finetune-*/finetune.json"))
SAVINGS = sorted(PROFILES.glob("savings/*.json"))
RUNS = sorted(path.parent for path in PROFILES.glob("*/run.json"))


@lru_cache
def network(name: str) -> nn.Module:
    return load_model(name).model if name == "reference" else timm.create_model(name)


def test_there_are_some() -> None:
    assert len(TABLES) >= 2


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.parent.name)
def test_a_table_of_methods_is_what_the_methods_do_today(table: Path) -> None:
    document = json.loads(table.read_text(encoding="utf-8"))
    for row in (row for row in document["rows"] if "failed" not in row):
        name, blocks, options = chosen(row["method"])
        known = registry.options(registry.method(name))
        assert set(row["options"]) | set(options) <= set(known), row["method"]
        exact = document.get("exact_savings", False)  # absent in tables older than exact savings
        output = document.get("output")
        model = network(document["model"])
        today = solve_schedule(
            model, name, budget=row["budget"], blocks=blocks, options=options, exact_savings=exact, output=output
        )
        assert list(today.tokens) == row["tokens"], f"{row['method']} at {row['budget']}: make eval-methods again"


@pytest.mark.parametrize("table", TUNED, ids=lambda path: path.parent.name)
def test_a_table_of_fine_tuning_is_of_todays_schedules(table: Path) -> None:
    document = json.loads(table.read_text(encoding="utf-8"))
    model = network(document["model"])
    for row in document["rows"]:
        today = solve_schedule(model, row["method"], budget=float(row["budget"]))
        assert today.share == pytest.approx(row["macs_share"], abs=1e-6), f"{row['method']} at {row['budget']}: train again"


@pytest.mark.parametrize("table", SAVINGS, ids=lambda path: path.stem)
def test_a_table_of_exact_savings_is_of_todays_schedules_and_in_the_documentation(table: Path) -> None:
    document = json.loads(table.read_text(encoding="utf-8"))
    model = network(document["model"])
    for row in document["rows"]:
        for side, exact in (("with", True), ("without", False)):
            today = solve_schedule(model, row["method"], budget=float(row["budget"]), exact_savings=exact)
            assert list(today.tokens) == row[side]["tokens"], f"{row['method']} at {row['budget']}: make eval-savings again"
    text = (PROFILES.parent / "docs" / "results.md").read_text(encoding="utf-8")
    section = text[text.index("## What exact savings buy") :].partition("\n## ")[0]
    assert all(line in section for line in short_table(document))


def short_table(document: dict[str, Any]) -> list[str]:
    """The rows of the documentation."""
    return [
        f"| {document['model']} | {row['budget']} | `{row['method']}` | {row['with']['kl']['value']:.4f} | {row['without']['kl']['value']:.4f} | "
        f"{row['with']['top1_change_points']['value']:+.1f} | {row['without']['top1_change_points']['value']:+.1f} |"
        for row in document["rows"]
    ]


def test_the_table_of_stages_is_of_todays_schedules() -> None:
    document = json.loads((PROFILES / "stages-deit_small" / "stages.json").read_text(encoding="utf-8"))
    schedules = {row["method"]: row["tokens"] for row in document["rows"]}
    model, exact = network(document["model"]), document["exact_savings"]
    for method, tokens in schedules.items():
        today = solve_schedule(model, method, budget=document["budget"], exact_savings=exact)
        assert list(today.tokens) == tokens, f"{method}: make the table of stages again"


def test_the_tables_of_reductions_are_of_the_kept_rounds_and_todays_schedules() -> None:
    folder = PROFILES / "reduction-deit_small"
    document = json.loads((folder / "reduction.json").read_text(encoding="utf-8"))
    kept = (folder / "reduction.md").read_text(encoding="utf-8")
    assert kept == reduction.describe(document)
    model, exact = network(document["model"]), document["exact_savings"]
    for method, tokens in document["schedules"].items():
        today = solve_schedule(model, method, budget=document["budget"], exact_savings=exact)
        assert list(today.tokens) == tokens, f"{method}: run the benchmark again"
    text = (PROFILES.parent / "docs" / "results.md").read_text(encoding="utf-8")
    over, *faster = (part.split("\n\n")[1] for part in re.split(r"\n\n(?=Time|How)", kept)[1:])
    assert over in text
    for faster_table, label in zip(faster, ("the unpruned graph", "PyTorch's export"), strict=True):
        for name in ("exact savings alone", "`zero_tprune`"):
            row = next(line for line in faster_table.splitlines() if line.startswith(f"| {name} |"))
            assert row.replace(name, f"{name} over {label}", 1) in text


@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.name)
def test_a_profile_is_of_a_network_that_build_makes_today(run: Path) -> None:
    read_run(run)
    document = json.loads((run / "run.json").read_text(encoding="utf-8"))
    method = document["bundle"]["method"]
    assert set(method["options"]) <= set(registry.options(registry.method(method["name"])))
    model = network(document["bundle"]["model"]["name"])
    for budget in document["budgets"]:
        if budget["requested"] is not None:
            today = solve_schedule(model, method["name"], budget=budget["requested"], exact_savings=budget["requested"] != 1.0)
            assert list(today.tokens) == budget["schedule"], f"{run.name} at {budget['name']}: profile it again"


Columns = tuple[tuple[str, float] | None, ...]

IN_DOCS: list[tuple[str, str, str, Columns]] = [
    (
        "README.md",
        "## Accuracy and speed",
        "methods-deit_tiny-2-core-server",
        (("top1", 0.65), ("top1", 0.5), ("kl", 0.65), ("speedup", 0.65)),
    ),
    (
        "docs/results.md",
        "## Accuracy and speed",
        "methods-deit_tiny-2-core-server",
        (None, ("top1", 0.65), ("top1", 0.5), ("kl", 0.65), ("kl", 0.5), ("speedup", 0.65), ("speedup", 0.5)),
    ),
    ("docs/results.md", "## The reference", "methods-reference", (("top1", 0.65), ("top1", 0.5), ("kl", 0.65), ("kl", 0.5))),
    (
        "docs/results.md",
        "## A dense task",
        "dense-reference",
        (*(("miou", budget) for budget in (0.8, 0.65, 0.5)), *(("speedup", budget) for budget in (0.8, 0.65, 0.5))),
    ),
]


@pytest.mark.parametrize(("page", "heading", "table", "columns"), IN_DOCS)
def test_a_table_of_the_documentation_is_the_kept_one(page: str, heading: str, table: str, columns: Columns) -> None:
    (file,) = (PROFILES / table).glob("*.json")
    kept = json.loads(file.read_text(encoding="utf-8"))["rows"]
    by_name = {(row["method"], row["budget"]): row for row in kept}
    text = (PROFILES.parent / page).read_text(encoding="utf-8")
    section = text[text.index(heading) :].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)`[^|]* \| (.*) \|$", section, re.MULTILINE)
    assert len(rows) >= 3
    for method, cells in rows:
        for column, cell in zip(columns, cells.split(" | "), strict=True):
            if column is not None:
                assert cell.split()[0] == shown(by_name[method, column[1]], column[0]), f"{method}, {column}"


def test_the_dense_result_of_the_readme_is_the_kept_one() -> None:
    rows = json.loads((PROFILES / "dense-reference" / "dense.json").read_text(encoding="utf-8"))["rows"]
    own = {row["budget"]: row for row in rows if row["method"] == "zero_tprune"}
    sentence = readme_entry("- [Segmentation]")
    changes, speedups = re.findall(r"([+-][\d.]+) ±", sentence), re.findall(r"([\d.]+) \(", sentence)
    assert changes == [shown(own[budget], "miou") for budget in (0.8, 0.65, 0.5)]
    assert speedups == [shown(own[budget], "speedup") for budget in (0.8, 0.65, 0.5)]


def test_the_exact_savings_of_the_readme_are_the_kept_ones() -> None:
    document = json.loads((PROFILES / "savings" / "deit_tiny_patch16_224.json").read_text(encoding="utf-8"))
    kept = {(row["method"], row["budget"]): row for row in document["rows"]}
    stated = re.findall(r"from (0\.\d+) to (0\.\d+)", readme_entry("- [Exact savings]"))
    rows = [kept[method, budget] for method in ("zero_tprune", "bat") for budget in ("0.65", "0.5")]
    assert stated == [tuple(f"{row[which]['kl']['value']:.3f}" for which in ("without", "with")) for row in rows]


def test_fit_against_the_methods_is_the_kept_one() -> None:
    kept = json.loads((PROFILES / "equal-latency-deit_tiny" / "equal_latency.json").read_text(encoding="utf-8"))
    text = (PROFILES.parent / "docs" / "fit.md").read_text(encoding="utf-8")
    readme = (PROFILES.parent / "README.md").read_text(encoding="utf-8")
    for limit, rows in kept["rows"].items():
        (answer,) = (row for row in rows if row.get("answer"))
        rivals = sorted((row for row in rows if not row["network"].startswith("fit")), key=lambda row: row["kl_nats"]["value"])
        assert len(rivals) == 14
        assert all(row["kl_over_fit"]["low"] > 0 for row in rivals), limit
        best = rivals[0]
        further = best["kl_over_fit"]
        assert (
            f"| {limit.rpartition(' ')[2]} | {answer['kl_nats']['value']:.4f} at {answer['time_over_fit']['value']:.2f} of the time | "
            f"`{best['method']}`: {best['kl_nats']['value']:.4f}, {further['value']:+.4f} ({further['low']:+.4f} to {further['high']:+.4f}) |"
        ) in readme
        shown = [row for row in rows if row["network"].startswith("fit")] + rivals[:5]
        for row in shown:
            assert f"| {row['kl_nats']['value']:.4f} ({row['kl_nats']['low']:.4f} to {row['kl_nats']['high']:.4f}) |" in text
        for row in rivals[:5]:
            further = row["kl_over_fit"]
            assert f"| {further['value']:+.4f} ({further['low']:+.4f} to {further['high']:+.4f}) |" in text


@pytest.mark.parametrize("name", ["deit_small", "deit_tiny", "deit_small-batch-8", "deit_tiny-batch-8"])
def test_the_table_of_the_latency_model_is_what_todays_code_makes_of_the_kept_turns(name: str) -> None:
    folder = PROFILES / "latency-2-core-server"
    kept = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    text = (folder / "README.md").read_text(encoding="utf-8")
    shape = network_shape(load_model(kept["model"], "random").model)
    for run in kept["runs"]:
        for batch, threads, turns, probes, _, ms, median, worst, held, reach, noise in latency.judge(run, shape):
            row = f"| {batch} | {threads} | {turns} | {probes} | {ms} | {median} | {worst} | {float(held):.0f} | {reach} | {noise} |"
            assert row in text
            assert turns != "medians" or (float(median) <= 2 and float(worst) <= 5 and float(held) >= 90), row


def readme_entry(begin: str) -> str:
    """An entry of a list in the README, as one line."""
    text = (PROFILES.parent / "README.md").read_text(encoding="utf-8")
    return " ".join(re.split(r"\n- |\n\n", text[text.index(begin) + 2 :])[0].split())


def shown(row: dict[str, Any], what: str) -> str:
    """The first word of a cell."""
    if what in ("top1", "miou"):
        return f"{row[f'{what}_change_points']['value']:+.1f}"
    return f"{row['kl_nats']['value']:.3f}" if what == "kl" else f"{row['speedup']['value']:.2f}"


@pytest.mark.parametrize("method", ["zero_tprune", "bat"])
def test_the_table_of_int8_is_the_kept_one(method: str) -> None:
    folder = PROFILES / f"int8-deit_tiny-{method}-2-core-server"
    kept = json.loads((folder / "int8.json").read_text(encoding="utf-8"))
    text = (PROFILES.parent / "docs" / "precision-and-engines.md").read_text(encoding="utf-8")
    rows = table(folder, {row["budget"]: row["against_fp32"]["kl_nats"]["value"] for row in kept["rows"]})
    assert len(rows) == len(kept["rows"]) == 3
    assert all(f"| `{method}` {row}" in text for row in rows), rows
    assert all(row["gate"]["loss"] <= row["gate"]["allowed_loss"] for row in kept["rows"])


def test_the_table_of_int8_by_batch_is_the_kept_one() -> None:
    text = (PROFILES.parent / "docs" / "precision-and-engines.md").read_text(encoding="utf-8")
    shown = []
    for name in ("2-core-server", "batch-8"):
        lines = (PROFILES / f"int8-deit_tiny-zero_tprune-{name}" / "table.md").read_text(encoding="utf-8").splitlines()[2:]
        cells = [[cell.strip(" *") for cell in line.strip("| ").split(" | ")] for line in lines]
        shown.append({(row[0], row[1]): row[-1].replace("±", "± ").strip() for row in cells})
    for budget in ("1.0", "0.65", "0.5"):
        row = " | ".join(run[budget, precision] for run in shown for precision in ("fp32", "int8"))
        assert f"| {budget} | {row} |" in text


def test_the_rules_for_ranges_are_the_kept_ones() -> None:
    kept = json.loads((PROFILES / "int8-deit_tiny-bat-2-core-server" / "int8.json").read_text(encoding="utf-8"))
    text = (PROFILES.parent / "docs" / "precision-and-engines.md").read_text(encoding="utf-8")
    distances = kept["quantization"]["rules"]["uint8"]["distances"]
    assert all(f"{distance:.3f}" in text for distance in distances.values())


def test_int8_in_the_readme_is_the_kept_one() -> None:
    folder = PROFILES / "int8-deit_tiny-zero_tprune-2-core-server"
    rows, sentence = table(folder, dict.fromkeys(("1.0", "0.65", "0.5"), 0.0)), readme_entry("- [INT8]")
    differences, speedups = re.findall(r"[+-][\d.]+ \([^)]*\)", sentence), re.findall(r"[\d.]+ ± [\d.]+", sentence)
    assert differences == [row.split(" | ")[3] for row in rows]
    assert speedups == [row.split(" | ")[5].removesuffix(" |") for row in rows]
