"""Each method as it is here by default, beside the form of its authors (`faithful=true`), at the same budgets on the same images.

    make eval-faithful                                                       (the reference model)
    make eval-faithful MODEL=deit_tiny_patch16_224 WEIGHTS=w.safetensors DATA=imagenet-sample

Both forms spend the same share of MACs, with exact savings. The default form has our options and the shipped pattern, where there is one; the authors' form has
their options, and removes equal shares at the blocks of their paper. Float32, PyTorch, no training. KL(unpruned || pruned) is in nats; changes of top-1 are
against the unpruned network; all differences are paired by image, with 95 % intervals. What was found is kept in
`edge_tprune/reduction/faithful_evidence.json`, by network; `edge-tprune methods NAME` shows it. The tables are in `profiles/faithful/`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import print_note
from edge_tprune.files import write_json
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import registry, solve_schedule
from edge_tprune.reduction.evidence import FAITHFUL_EVIDENCE
from tests.benchmarks.judge import (
    Form,
    Judge,
    arguments,
    compare,
    describe,
    is_resolved,
    open_judge,
    show_interval,
    with_other_methods,
)
from tests.benchmarks.tables import write_table

Row = dict[str, Any]
AUTHORS = {registry.FAITHFUL: True}
HEADINGS = (
    "budget",
    "method",
    "images",
    "KL, default (nats)",
    "KL, authors' form",
    "difference",
    "top-1, default (points)",
    "top-1, authors' form",
    "difference",
    "better by KL",
)
CHECKED = 4  # images whose divergences are kept one by one, for a test to make again


def forms_of(loaded: LoadedModel, name: str, budget: float) -> tuple[Form, Form, tuple[float, float]]:
    """A method's default form and its authors' at a budget, and the shares of MACs that they spend."""
    ours = solve_schedule(loaded.model, name, budget=budget, name=loaded.name)
    theirs = solve_schedule(loaded.model, name, budget=budget, name=loaded.name, options=AUTHORS)
    return Form(name, ours.tokens), Form(name, theirs.tokens, AUTHORS), (ours.share, theirs.share)


def row_of(judge: Judge, name: str, budget: float) -> Row:
    """The row of a method at a budget: both forms, and the default less the authors'."""
    default, faithful, shares = forms_of(judge.loaded, name, budget)
    ours, theirs, unpruned = judge.together(default, faithful)
    sides = {
        side: {
            "tokens": list(form.tokens),
            "share": share,
            **describe(judged, unpruned),
            "first_kl": judged.kl[:CHECKED].tolist(),
        }
        for side, form, share, judged in (("default", default, shares[0], ours), ("faithful", faithful, shares[1], theirs))
    }
    return {
        "method": name,
        "budget": f"{budget:g}",
        "images": len(ours.kl),
        "same": default.key == faithful.key,
        **sides,
        **compare(ours, theirs),
    }


def cells(row: Row) -> list[str]:
    """A row of the table."""
    default, faithful = row["default"], row["faithful"]
    if row["same"]:
        better = "the same form"
    elif not is_resolved(row["kl_difference"]):
        better = "not resolved"
    else:
        better = "default" if row["kl_difference"]["value"] < 0 else "authors'"
    return [
        row["budget"],
        f"`{row['method']}`",
        str(row["images"]),
        f"{default['kl']['value']:.4f}",
        f"{faithful['kl']['value']:.4f}",
        "0" if row["same"] else show_interval(row["kl_difference"], 4),
        show_interval(default["top1_change_points"], 1),
        show_interval(faithful["top1_change_points"], 1),
        "0" if row["same"] else show_interval(row["top1_difference_points"], 1),
        better,
    ]


def main() -> None:
    parser = arguments(__doc__, "0.8,0.65,0.5")
    parser.add_argument(
        "--methods", help="with commas; every method that has an authors' form by default; the rows of others are kept"
    )
    parser.add_argument("--out", type=Path, default=FAITHFUL_EVIDENCE, help="other networks' entries in it are kept")
    parser.add_argument("--table", type=Path, help="profiles/faithful/MODEL.md by default")
    options = parser.parse_args()
    judge = open_judge(options)
    loaded, dataset = judge.loaded, judge.dataset
    every = [name for name, method in sorted(registry.methods().items()) if method.faithful is not None]
    names = parse_list(options.methods, str, "--methods") if options.methods else every
    wanted = [(name, budget) for budget in parse_list(options.budgets, float, "--budgets") for name in names]
    with show_progress("judging") as advance:
        judge.judge([form for each in wanted for form in forms_of(loaded, *each)[:2]], options.minutes, advance)
    found = {"weights_sha256": loaded.weights_sha256, "data": dataset.name, "step": judge.parts}
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    ordered = with_other_methods([row_of(judge, *each) for each in wanted], found, kept.get(loaded.name))
    write_json(options.out, {**kept, loaded.name: {**found, "rows": ordered}})
    title = f"{loaded.name}, images of {dataset.name}"
    file = options.table or Path("profiles") / "faithful" / f"{loaded.name}.md"
    note = "Differences are the default's less the authors' form's: KL below 0 and top-1 above 0 speak for the default."
    write_table(file, HEADINGS, [cells(row) for row in ordered], title, note=note, text=("method", HEADINGS[-1]))
    print_note(f"wrote {options.out} and {file}")


if __name__ == "__main__":
    main()
