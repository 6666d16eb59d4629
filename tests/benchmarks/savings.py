"""What exact savings buy in accuracy: each method at the same share of MACs, with them and without them, on the same images.

    make eval-savings                                                        (the reference model)
    make eval-savings MODEL=deit_tiny_patch16_224 WEIGHTS=w.safetensors DATA=imagenet-sample

Exact savings (the last block computes what the head reads) spend about 7 % fewer MACs and change no value; at the same share of MACs the network keeps more
tokens for them. Float32, PyTorch, no training. KL(unpruned || pruned) is in nats; changes of top-1 are against the unpruned network; differences
are paired by image, with 95 % intervals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import print_note
from edge_tprune.files import write_json
from edge_tprune.reduction import solve_schedule
from tests.benchmarks.judge import Form, Judge, arguments, compare, describe, open_judge, show_interval
from tests.benchmarks.tables import write_table

SIDES = {"with": True, "without": False}
HEADINGS = (
    "budget",
    "method",
    "KL, with (nats)",
    "KL, without",
    "difference",
    "top-1, with (points)",
    "top-1, without",
    "difference",
)


def row_of(judge: Judge, name: str, budget: float, forms: dict[str, Form], shares: dict[str, float]) -> dict[str, Any]:
    """The row of a method at a budget: both sides, and `with` less `without`."""
    *judged, unpruned = judge.together(*forms.values())
    sides = {
        side: {"tokens": list(form.tokens), "share": shares[side], **describe(found, unpruned)}
        for (side, form), found in zip(forms.items(), judged)
    }
    return {"method": name, "budget": f"{budget:g}", "images": len(unpruned.kl), **sides, **compare(*judged)}


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    with_them, without = row["with"], row["without"]
    return [
        row["budget"],
        f"`{row['method']}`",
        f"{with_them['kl']['value']:.4f}",
        f"{without['kl']['value']:.4f}",
        show_interval(row["kl_difference"], 4),
        show_interval(with_them["top1_change_points"], 1),
        show_interval(without["top1_change_points"], 1),
        show_interval(row["top1_difference_points"], 1),
    ]


def main() -> None:
    parser = arguments(__doc__, "0.65,0.5")
    parser.add_argument("--methods", default="zero_tprune,bat,tome")
    parser.add_argument("--out", type=Path, default=Path("profiles/savings"), help="MODEL.json and MODEL.md are written there")
    options = parser.parse_args()
    judge = open_judge(options)
    loaded, dataset = judge.loaded, judge.dataset
    wanted = [
        (name, budget)
        for budget in parse_list(options.budgets, float, "--budgets")
        for name in parse_list(options.methods, str, "--methods")
    ]
    schedules = {
        (name, budget, side): solve_schedule(loaded.model, name, budget=budget, name=loaded.name, exact_savings=exact)
        for name, budget in wanted
        for side, exact in SIDES.items()
    }
    forms = {key: Form(key[0], schedule.tokens) for key, schedule in schedules.items()}
    with show_progress("judging") as advance:
        judge.judge(list(forms.values()), options.minutes, advance)
    rows = [
        row_of(
            judge,
            name,
            budget,
            {side: forms[name, budget, side] for side in SIDES},
            {side: schedules[name, budget, side].share for side in SIDES},
        )
        for name, budget in wanted
    ]
    *_, unpruned_judged = judge.together(*forms.values())
    images, unpruned = len(unpruned_judged.right), float(unpruned_judged.right.mean())
    title = f"{loaded.name}, {images} images of {dataset.name}, unpruned top-1 {unpruned:.1f} %"
    options.out.mkdir(parents=True, exist_ok=True)
    header = {"model": loaded.name, "weights_sha256": loaded.weights_sha256, "data": dataset.name, "images": images}
    write_json(options.out / f"{loaded.name}.json", {**header, "unpruned_top1_percent": unpruned, "rows": rows})
    note = "Differences are those with exact savings less those without, at the same share of MACs."
    write_table(options.out / f"{loaded.name}.md", HEADINGS, [cells(row) for row in rows], title, note=note)
    print_note(f"wrote {options.out}/{loaded.name}.json and .md")


if __name__ == "__main__":
    main()
