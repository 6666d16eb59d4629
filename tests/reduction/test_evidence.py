"""What is kept of each method's default beside the form of its authors is of today's code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from edge_tprune.models.data import open_dataset
from edge_tprune.models.loading import load_model
from edge_tprune.reduction import registry, solve_schedule
from edge_tprune.reduction.evidence import FAITHFUL_EVIDENCE, faithful_evidence
from edge_tprune.reduction.host import PrunedViT
from tests.benchmarks.ablations import ROWS

ABLATIONS = Path(__file__).parents[2] / "profiles" / "ablations"
RESULTS = Path(__file__).parents[2] / "docs" / "results.md"
KEPT: dict[str, Any] = json.loads(FAITHFUL_EVIDENCE.read_text())
SIDES: dict[str, dict[str, Any]] = {"default": {}, "faithful": {registry.FAITHFUL: True}}


@pytest.mark.parametrize("network", KEPT)
def test_token_counts_are_those_of_today(network: str) -> None:
    model = load_model(network).model if network == "reference" else timm.create_model(network)
    for row in KEPT[network]["rows"]:
        for side, options in SIDES.items():
            schedule = solve_schedule(model, row["method"], budget=float(row["budget"]), name=network, options=options)
            assert row[side]["tokens"] == list(schedule.tokens), (row["method"], row["budget"], side)


@torch.inference_mode()
def test_divergences_are_those_of_today() -> None:
    """Of the first canvases of the reference task, at one budget."""
    loaded = load_model("reference")
    rows = [row for row in KEPT["reference"]["rows"] if row["budget"] == "0.5"]
    count = 2
    # The images are taken in parts that are spread over the whole task: these are the first of the first part.
    dataset, step = open_dataset("reference", loaded.model.num_classes), KEPT["reference"]["step"]
    images = torch.stack([loaded.transform()(dataset[index * step][0]) for index in range(count)])
    expected = loaded.model(images).double().log_softmax(-1)
    for row in rows:
        method = registry.method(row["method"])
        for side, options in SIDES.items():
            found = PrunedViT(loaded.model, method, tuple(row[side]["tokens"]), options)(images).double().log_softmax(-1)
            kl = (expected.exp() * (expected - found)).sum(1)
            np.testing.assert_allclose(
                row[side]["first_kl"][:count], kl.numpy(), rtol=1e-2, atol=1e-5, err_msg=f"{row['method']} {side}"
            )


def test_a_default_that_is_worse_than_the_authors_form_says_why() -> None:
    """Beyond noise, on any network: `differs` then has the reason."""
    for network, found in KEPT.items():
        for row in found["rows"]:
            method = registry.method(row["method"])
            if (row["kl_difference"]["low"] or 0) > 0:
                assert network.split("_")[0] in method.differs.lower(), f"{method.name} at {row['budget']} on {network}"


def test_every_method_that_has_two_forms_was_compared() -> None:
    for name, method in registry.methods().items():
        compared = set(faithful_evidence(name))
        if method.faithful:
            assert compared == {"reference", "deit_tiny_patch16_224"}, name


@pytest.mark.parametrize("table", sorted(ABLATIONS.glob("*.json")), ids=lambda file: file.stem)
def test_ablations_are_of_todays_paper_forms(table: Path) -> None:
    found = json.loads(table.read_text())
    model = load_model("reference").model if found["model"] == "reference" else timm.create_model(found["model"])
    labels = {(row.method, row.label): row for row in ROWS}
    for row in found["rows"]:
        ablation = labels[row["method"], row["label"]]
        assert row["options"] == dict(ablation.options)
        budget = float(row["budget"])
        schedule = solve_schedule(model, row["method"], budget=budget, name=found["model"], options=SIDES["faithful"])
        assert row["tokens"] == list(schedule.tokens)


def test_the_table_in_the_documentation_is_what_was_kept() -> None:
    section = RESULTS.read_text().partition("## Against the authors' code")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_]+)` \| (.*) \|$", section, re.MULTILINE)
    assert {name for name, _ in rows} == {name for name, method in registry.methods().items() if method.faithful}
    columns = [(network, budget) for network in ("deit_tiny_patch16_224", "reference") for budget in ("0.65", "0.5")]
    for name, cells in rows:
        for (network, budget), cell in zip(columns, cells.split(" | "), strict=True):
            row = faithful_evidence(name)[network][budget]
            ours, theirs = (f"{getattr(row, side).kl.value:.3f}" for side in SIDES)
            resolved = row.kl_difference.excludes(0)
            assert cell == f"{ours} ({theirs}{'' if resolved else ', not resolved'})", (name, network, budget)


PARTS = {
    "PageRank (WPR) instead of random tokens": ("zero_tprune", "WPR", False),
    "emphasis on informative regions (EIR)": ("zero_tprune", "WPR, EIR", False),
    "head filter (VHF), without S": ("zero_tprune", "WPR, EIR, VHF: I alone", False),
    "S before I": ("zero_tprune", "I alone, against I'-S-I", True),
    "uniform start": ("zero_tprune", "uniform start", False),
    "BAT without matching": ("bat", "without matching", False),
    "BAT without clustering": ("bat", "without clustering", False),
}
"""Of the table of ablations in the documentation: the row that is meant, and whether it is that row's opposite."""


def test_the_ablations_in_the_documentation_are_what_was_kept() -> None:
    section = RESULTS.read_text().partition("### The ablations of two papers")[2].partition("\n## ")[0]
    cells = {row[0]: row[1:] for row in re.findall(r"^\| (.+) \| (.+) \| (.+) \| (.+) \|$", section, re.MULTILINE)}
    opposite = {"better": "worse", "worse": "better", "not resolved": "not resolved"}
    for part, (method, label, turned) in PARTS.items():
        found = []
        for network in ("deit_tiny_patch16_224", "reference"):
            rows = json.loads((ABLATIONS / f"{network}.json").read_text())["rows"]
            (row,) = [r for r in rows if (r["method"], r["label"], r["budget"]) == (method, label, "0.5")]
            found.append(row["here"])
        wanted = (row["paper"], *found)
        assert cells[part] == (tuple(opposite[each] for each in wanted) if turned else wanted), part
