"""The ablations of Zero-TPrune's and BAT's papers, without training: each row leaves out or changes one part of the paper's form.

    make eval-ablations                                                      (the reference model)
    make eval-ablations MODEL=deit_tiny_patch16_224 WEIGHTS=w.safetensors DATA=imagenet-sample

All rows of a method remove the same tokens at the paper's blocks, in equal shares. KL(unpruned || pruned) is in nats. `change of KL` is a row's KL less that
of the row it is compared with, paired by image, with its 95 % interval. The last column says in which direction the paper goes, where it has such a row;
Zero-TPrune's numbers are top-1 of DeiT-S at 3.1 GMACs, 0.68 of the unpruned network. BAT's paper trains with each
row; of it only the claim that both parts help is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import print_note
from edge_tprune.files import write_json
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import registry, solve_schedule
from tests.benchmarks.judge import Form, Judge, arguments, compare, describe, is_resolved, open_judge, show_interval
from tests.benchmarks.tables import write_table

PAPER, RANDOM = "the paper's form", "random tokens dropped"
BETTER, WORSE = "better", "worse"


@dataclass(frozen=True)
class Ablation:
    """One row: a method's paper form with some options, compared with another row."""

    method: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    against: str = PAPER
    paper: str = ""  #: BETTER or WORSE than `against`, as the paper has it; "" where it has no such row
    detail: str = ""
    reducer: str = ""  #: another method with the same schedule

    def form(self, tokens: tuple[int, ...]) -> Form:
        """With tokens after each block."""
        if self.reducer:
            return Form(self.reducer, tokens)
        return Form(self.method, tokens, {registry.FAITHFUL: True, **self.options})


ALONE = {"similar": 0.0}
ROWS = [
    Ablation("zero_tprune", PAPER),
    Ablation("zero_tprune", RANDOM, paper=WORSE, detail="76.8 to 79.4", reducer="random"),
    Ablation("zero_tprune", "WPR", {**ALONE, "emphasis": False, "head_filter": False}, RANDOM, BETTER, "76.8 to 78.6"),
    Ablation("zero_tprune", "WPR, EIR", {**ALONE, "head_filter": False}, "WPR", BETTER, "78.6 to 78.8"),
    Ablation("zero_tprune", "WPR, EIR, VHF: I alone", ALONE, "WPR, EIR", BETTER, "78.8 to 78.9"),
    Ablation("zero_tprune", "I alone, against I'-S-I", ALONE, PAPER, WORSE, "78.9 to 79.4"),
    Ablation("zero_tprune", "S alone", {"similar": 1.0}),
    Ablation("zero_tprune", "uniform start", {"uniform_start": True}, PAPER, WORSE, "-0.5; -2.2 at 2.2 GMACs"),
    Ablation("zero_tprune", "alternate partition", {"partition": "alternate"}, detail="sequential is its choice"),
    Ablation("zero_tprune", "random partition", {"partition": "random"}, detail="sequential is its choice"),
    Ablation("zero_tprune", "1 iteration everywhere", {"votes": 1}),
    Ablation("zero_tprune", "5 iterations everywhere", {"votes": 5}),
    Ablation("zero_tprune", "50 iterations everywhere", {"votes": 50}),
    Ablation("zero_tprune", "rows renormalised after S", {"renormalise": True}),
    Ablation("bat", PAPER),
    Ablation("bat", RANDOM, paper=WORSE, reducer="random"),
    Ablation("bat", "without matching", {"matched": 0.0}, PAPER, WORSE),
    Ablation("bat", "without clustering", {"cluster": False}, PAPER, WORSE),
    Ablation("bat", "without either: top-k", {"matched": 0.0, "cluster": False}, PAPER, WORSE),
    Ablation("bat", "k = 2", {"neighbours": 2}),
    Ablation("bat", "k = 10", {"neighbours": 10}),
    Ablation("bat", "attention proportional to size", {"proportional": True}),
]
HEADINGS = ("budget", "row", "images", "KL (nats)", "top-1 (points)", "compared with", "change of KL", "here", "in the paper")


def row_of(judge: Judge, ablation: Ablation, forms: Mapping[tuple[str, str], Form]) -> dict[str, Any]:
    """What was found for one row. `forms`: by method and label."""
    form, other = forms[ablation.method, ablation.label], forms[ablation.method, ablation.against]
    judged, reference, unpruned = judge.together(form, other)
    compared = compare(judged, reference)
    difference = compared["kl_difference"]
    here = "not resolved"
    if is_resolved(difference):
        here = BETTER if difference["value"] < 0 else WORSE
    return {
        "method": ablation.method,
        "label": ablation.label,
        "options": dict(ablation.options),
        "tokens": list(form.tokens),
        "images": len(judged.kl),
        "against": None if form is other else ablation.against,
        **describe(judged, unpruned),
        **compared,
        "here": "" if form is other else here,
        "paper": ablation.paper,
        "detail": ablation.detail,
    }


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    paper = f"{row['paper']} ({row['detail']})" if row["paper"] and row["detail"] else row["paper"] or row["detail"]
    return [
        row["budget"],
        f"`{row['method']}`: {row['label']}",
        str(row["images"]),
        show_interval(row["kl"], 4, ""),
        show_interval(row["top1_change_points"], 1),
        row["against"] or "",
        show_interval(row["kl_difference"], 4) if row["against"] else "",
        row["here"],
        paper,
    ]


def forms_at(loaded: LoadedModel, budget: float, rows: list[Ablation]) -> dict[tuple[str, str], Form]:
    """Every row's form at a budget; those of one method have one schedule."""
    schedules = {
        name: solve_schedule(loaded.model, name, budget=budget, name=loaded.name, options={registry.FAITHFUL: True}).tokens
        for name in {row.method for row in rows}
    }
    return {(row.method, row.label): row.form(schedules[row.method]) for row in rows}


def main() -> None:
    parser = arguments(__doc__, "0.65,0.5")
    parser.add_argument("--methods", default="zero_tprune,bat")
    parser.add_argument(
        "--out", type=Path, default=Path("profiles/ablations"), help="MODEL.json and MODEL.md are written there"
    )
    options = parser.parse_args()
    judge = open_judge(options)
    loaded, dataset = judge.loaded, judge.dataset
    names = parse_list(options.methods, str, "--methods")
    chosen = [row for row in ROWS if row.method in names]
    budgets = parse_list(options.budgets, float, "--budgets")
    forms = {budget: forms_at(loaded, budget, chosen) for budget in budgets}
    with show_progress("judging") as advance:
        every = [form for each in forms.values() for form in each.values()]
        judge.judge(every, options.minutes, advance)
    rows = [
        {"budget": f"{budget:g}", **row_of(judge, ablation, forms[budget])}
        for name in names
        for budget in budgets
        for ablation in chosen
        if ablation.method == name
    ]
    title = f"{loaded.name}, images of {dataset.name}"
    options.out.mkdir(parents=True, exist_ok=True)
    header = {"model": loaded.name, "weights_sha256": loaded.weights_sha256, "data": dataset.name}
    write_json(options.out / f"{loaded.name}.json", {**header, "rows": rows})
    text = ("row", "compared with", "here", "in the paper")
    write_table(options.out / f"{loaded.name}.md", HEADINGS, [cells(row) for row in rows], title, text=text)
    print_note(f"wrote {options.out}/{loaded.name}.json and .md")


if __name__ == "__main__":
    main()
