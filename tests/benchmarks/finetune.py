"""What fine-tuning brings: methods and budgets, training-free beside tuned, on images that neither search nor training saw.

    python -m tests.benchmarks.finetune --model deit_tiny_patch16_224 --weights w.safetensors --sample imagenet-sample --more calibration
    python -m tests.benchmarks.finetune                                       (the reference model, whose test canvases judge)

The class directories of `--sample`, sorted by name, are dealt out in turn: the first, third, ... train together with the photos of `--more`, the second,
fourth, ... judge. Training sees no labels. Changes are from the unpruned network as it came, paired by image, with 95 % intervals; everything is computed in
float32. A row that is there is not computed again, and a training that was interrupted goes on. With `--tuned` and `--schedule` nothing is trained: a schedule
that `edge-tprune search --weights TUNED` found is judged beside the method's own.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file

from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import print_note
from edge_tprune.errors import NegativeAnswer
from edge_tprune.files import write_json
from edge_tprune.finetune.distill import Arithmetic, Students, Teacher
from edge_tprune.finetune.holdout import HoldOut, Scores
from edge_tprune.finetune.photos import Joined, Photos
from edge_tprune.finetune.request import Request, parse_time, schedules_of
from edge_tprune.finetune.run import finetune
from edge_tprune.finetune.store import Store
from edge_tprune.models.data import Dataset, ImageFolder, open_dataset, open_images
from edge_tprune.models.loading import LoadedModel, load_model
from edge_tprune.reduction import network_shape
from edge_tprune.search.schedule_file import read
from edge_tprune.statistics import Interval, mean_interval, paired_difference
from edge_tprune.telemetry.environment import read_environment
from tests.benchmarks.tables import write_table

Row = dict[str, Any]
EXACT = Arithmetic(torch.device("cpu"), False)


def deal(sample: Path, classes: int) -> tuple[ImageFolder, ImageFolder]:
    """(training, judging): the sorted class directories in turn, with labels."""
    whole = open_dataset(sample, classes)
    assert isinstance(whole, ImageFolder)
    names = sorted({file.relative_to(sample).parts[0] for file in whole.files})
    parts = []
    for turn in (0, 1):
        mine = set(names[turn::2])
        pick = [n for n, file in enumerate(whole.files) if file.relative_to(sample).parts[0] in mine]
        parts.append(replace(whole, files=tuple(whole.files[n] for n in pick), labels=tuple(whole.labels[n] for n in pick)))
    return parts[0], parts[1]


def data(options: argparse.Namespace, loaded: LoadedModel) -> tuple[Dataset, Dataset]:
    """(photos to train on, images to judge on)."""
    if options.sample is None:
        return (
            open_dataset("reference", loaded.model.num_classes, options.canvases, training=True),
            open_dataset("reference", loaded.model.num_classes, 1000),
        )
    training, judging = deal(options.sample, loaded.model.num_classes)
    return (Joined((training, *map(open_images, options.more))) if options.more else training), judging


def row_of(
    loaded: LoadedModel, request: Request, tuned: str, judge: HoldOut, unpruned: Scores, weights: dict[str, Any] | None
) -> list[Row]:
    """A row per budget: the network with other weights, or as it came."""
    schedules = schedules_of(loaded, request)
    students = Students(loaded.model, request.method, request.options, schedules, "all")
    if weights is not None:
        students.model.load_state_dict(weights)
    shape = network_shape(loaded.model)
    rows = []
    for budget, scores in judge.judge(students).items():
        assert scores.right is not None
        assert unpruned.right is not None
        rows.append(
            {
                "method": request.method,
                "budget": budget,
                "weights": tuned,
                "macs_share": shape.share(schedules[budget]),
                "top1_percent": float(scores.right.mean()),
                "top1_change_points": paired_difference(scores.right, unpruned.right).to_json(),
                "kl_nats": mean_interval(scores.divergence).to_json(),
                "agreement_percent": float(scores.agrees.mean()),
            }
        )
    return rows


def train(loaded: LoadedModel, photos: Dataset, request: Request, out: Path, name: str) -> dict[str, Any] | None:
    """The weights of a training, from the file where it is done; None where it brought no improvement."""
    try:
        with show_progress(name) as advance:
            result = finetune(
                loaded, photos, out, request, progress=lambda w, d, of: advance(f"{name}: {w}", d, of), say=print_note
            )
        print_note(
            f"{name}: {result.seconds:.0f} s, {result.images_per_second or 0:.1f} images/s, {100 * result.trained_share:.0f} % trained weights, "
            f"{result.recipe}"
        )
    except NegativeAnswer as no:
        print_note(f"{name}: {no}")
        return None
    return load_file(out)


HEADINGS = ("method", "budget", "weights", "MACs (%)", "top-1 (%)", "change (points)", "KL (nats)", "agreement (%)")


def cells(row: Row) -> list[str]:
    """A row of the table."""
    change, kl = Interval.from_json(row["top1_change_points"]), Interval.from_json(row["kl_nats"])
    assert change is not None
    assert kl is not None
    return [
        row["method"],
        row["budget"],
        row["weights"],
        f"{100 * row['macs_share']:.1f}",
        f"{row['top1_percent']:.1f}",
        f"{change.value:+.1f} ({change.low:+.1f} to {change.high:+.1f})",
        f"{kl.value:.3f} ({kl.low:.3f} to {kl.high:.3f})",
        f"{row['agreement_percent']:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--weights")
    parser.add_argument("--sample", type=Path, help="one sub-directory of images per class; every other one judges")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="further photos to train on, without labels")
    parser.add_argument("--canvases", type=int, default=1500, help="of the reference task, to train on")
    parser.add_argument("--methods", default="bat")
    parser.add_argument("--budgets", default="1.0,0.8,0.65,0.5")
    parser.add_argument("--blocks", help="where every method removes tokens; the methods' own by default")
    parser.add_argument("--specialists", default="", help="budgets that get weights of their own as well")
    parser.add_argument("--time", help="as for edge-tprune finetune")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--tuned", type=Path, help="weights that a training wrote, instead of a training")
    parser.add_argument("--schedule", type=Path, help="with --tuned: what a search found for one of the methods")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="out/finetune-MODEL by default")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    folder = options.out or Path("out") / f"finetune-{options.model}"
    folder.mkdir(parents=True, exist_ok=True)
    loaded = load_model(options.model, options.weights)
    photos, judging = data(options, loaded)
    whole = Photos(judging, range(len(judging)), loaded.preprocessing, 0)
    images, labels = whole.whole(loaded.transform())
    teacher = Teacher(loaded.model, EXACT)
    judge = HoldOut(images, labels, teacher, EXACT)
    budgets = tuple(parse_list(options.budgets, float, "--budgets"))
    rows: list[Row] = []
    trainings: dict[str, Any] = {}
    unpruned: Scores | None = None
    for method in options.methods.split():
        common = Request(
            method=method,
            budgets=budgets,
            blocks=tuple(parse_list(options.blocks, int, "--blocks")) if options.blocks else (),
            epochs=options.epochs,
            rate=options.rate,
            seconds=parse_time(options.time) if options.time else None,
        )
        if unpruned is None:
            alone = Students(loaded.model, "none", {}, {"1.0": network_shape(loaded.model).full_schedule()}, "all")
            unpruned = judge.judge(alone)["1.0"]
        rows += row_of(loaded, common, "training-free", judge, unpruned, None)
        if options.tuned:
            searched = read(options.schedule)
            found = msgspec.structs.replace(
                common,
                budgets=(),
                schedules={share: entry.tokens for share, entry in searched.budgets.items()},
                options=searched.options,
            )
            weights = load_file(options.tuned)
            rows += row_of(loaded, common, "tuned", judge, unpruned, weights)
            rows += row_of(loaded, found, "training-free, schedule searched", judge, unpruned, None)
            rows += row_of(loaded, found, "tuned, schedule searched", judge, unpruned, weights)
            report(folder, options, loaded, photos, judging, unpruned, rows, trainings)
            continue
        asked = {"one for all": common}
        for budget in parse_list(options.specialists, float, "--specialists") if options.specialists else []:
            asked[f"for {budget:g} alone"] = msgspec.structs.replace(common, budgets=(budget,))
        for name, request in asked.items():
            out = folder / f"{method}-{name.replace(' ', '-')}.safetensors"
            weights = train(loaded, photos, request, out, f"{method}, {name}")
            result = Store.beside(out).open_result()
            found = msgspec.to_builtins(result)
            trainings[f"{method}, {name}"] = {**found, "verdict": found["verdict"].replace(f"{out.parent}/", "")}
            if weights is not None:
                rows += row_of(loaded, request, name, judge, unpruned, weights)
        report(folder, options, loaded, photos, judging, unpruned, rows, trainings)


def report(
    folder: Path,
    options: argparse.Namespace,
    loaded: LoadedModel,
    photos: Dataset,
    judging: Dataset,
    unpruned: Scores,
    rows: list[Row],
    trainings: dict[str, Any],
) -> None:
    """Writes finetune.json and finetune.md."""
    assert unpruned.right is not None
    write_json(
        folder / "finetune.json",
        {
            "model": loaded.name,
            "weights_sha256": loaded.weights_sha256,
            "trained_on": {"name": photos.name, "images": len(photos), "sha256": photos.fingerprint},
            "judged_on": {"name": judging.name, "images": len(judging), "sha256": judging.fingerprint},
            "made_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "threads": options.threads,
            "environment": asdict(read_environment()),
            "unpruned_top1_percent": float(np.mean(unpruned.right)),
            "rows": rows,
            "trainings": trainings,
        },
    )
    title = (
        f"{loaded.name}: trained on {len(photos)} photos of {photos.name} without labels, judged on {len(judging)} images of "
        f"{judging.name}; unpruned top-1 {np.mean(unpruned.right):.1f} %"
    )
    write_table(folder / "finetune.md", HEADINGS, [cells(row) for row in rows], title, text=("method", "weights"))


if __name__ == "__main__":
    main()
