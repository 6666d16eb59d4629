"""`edge-tprune finetune`: the accuracy back, without labels."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edge_tprune.cli.interruption import Interruption
from edge_tprune.cli.model_options import ModelChoice, Plugins, load_plugins, with_model_options, words_of_plugins
from edge_tprune.cli.options import Json, Quiet, Seed, Threads
from edge_tprune.cli.parsing import parse_list, parse_pairs
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.root import command
from edge_tprune.cli.terminal import print_json, print_note, print_table
from edge_tprune.errors import UserError
from edge_tprune.text import command_line

if TYPE_CHECKING:
    from edge_tprune.models.data import Dataset
    from edge_tprune.models.loading import LoadedModel


@command(
    "edge-tprune finetune reference --budgets 1.0,0.35,0.25 --blocks 1,3,5",
    "edge-tprune finetune deit_tiny_patch16_224 --data photos --time 20m",
    "edge-tprune build deit_tiny_patch16_224 --weights tuned.safetensors",
    kept="run the same command again to continue",
)
@with_model_options
def finetune(
    model: Annotated[
        str,
        typer.Argument(
            help="'reference', a timm model name, or 'local-dir:DIRECTORY' (a downloaded Hugging Face Hub repository)."
        ),
    ],
    choice: ModelChoice,
    method: Annotated[
        str | None,
        typer.Option(help="See `edge-tprune methods`; bat, or the schedule file's, by default.", show_default=False),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help="Shares of the unpruned MACs to train for, comma-separated; 1.0,0.8,0.65,0.5 by default, with --schedule 1.0 and the file's.",
            show_default=False,
        ),
    ] = None,
    schedule: Annotated[Path | None, typer.Option(help="A file that `search` wrote: its method, options and budgets.")] = None,
    blocks: Annotated[
        str | None,
        typer.Option(help="Blocks that remove tokens, counted from 1; the method's own by default.", show_default=False),
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help="An option of the method, name=value; may be repeated.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="A directory of photos, with or without sub-directories; may be repeated. Default for the reference model: its training canvases.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[int | None, typer.Option(help="Use at most this many photos.", show_default=False)] = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="Train on labels as well: one sub-directory of photos per class.")
    ] = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Continue without photos that cannot be read.")
    ] = False,
    file: Annotated[Path, typer.Option("--out", help="The checkpoint; work in progress is kept beside it.")] = Path(
        "tuned.safetensors"
    ),
    train: Annotated[
        str, typer.Option(help="Which parameters to train: all, norm (layer norms) or late (after the first removal).")
    ] = "all",
    time: Annotated[str | None, typer.Option(help="Total time, such as 20m; the number of epochs is chosen to fit.")] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the photos; chosen automatically by default.", show_default=False)
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Highest learning rate; chosen automatically by default.", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option(help="Photos per step.")] = 32,
    seed: Seed = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; by default a GPU if there is one.", show_default=False)
    ] = None,
    threads: Threads = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train the pruned network to reproduce the unpruned network's outputs, on photos without labels.

    One set of weights serves all budgets. A network without a classifier head is trained on its embedding. A part of
    the photos is held out; weights are written only if they are better on those. Run the command again to continue
    after an interruption. Several GPUs: torchrun --nproc-per-node 2 -m edge_tprune finetune ...
    """
    from edge_tprune.cli.model_views import finetune_table, require_host

    require_host()
    import torch

    from edge_tprune.finetune.request import Request, parse_time
    from edge_tprune.finetune.run import Interrupted, join_processes
    from edge_tprune.finetune.run import finetune as run
    from edge_tprune.models.data import check_readable
    from edge_tprune.reduction import registry
    from edge_tprune.search.schedule_file import read

    load_plugins(plugin)
    begins_with = [Path(name) for name in (choice.weights, model.partition("local-dir:")[2]) if name]
    if any(
        file.resolve() == one.resolve() or (file.exists() and file.resolve().parent == one.resolve()) for one in begins_with
    ):
        raise UserError(
            f"--out {file} is a file of the weights that training begins with, or lies beside them: choose another --out"
        )
    if choice.class_map is not None and not labels:
        raise UserError("--class-map is not used without --labels: leave it out here, and give it to build")
    found = read(schedule) if schedule is not None else None
    if found and method not in (None, found.method):
        raise UserError(f"{schedule} is for method {found.method}, not {method}: leave --method out")
    own = found and {entry.method for entry in found.budgets.values() if entry.method is not None}
    if found and own:
        raise UserError(
            f"{schedule} has budgets of other methods or options ({', '.join(sorted({found.method, *own}))}), and finetune trains one method: "
            "search with one, under a budget, or leave the others out of the file"
        )
    method = found.method if found else method or "bat"
    beyond = [] if budgets is None else ["--budgets", budgets]
    budgets = budgets if budgets is not None else "1.0" if found else "1.0,0.8,0.65,0.5"
    options = registry.parse_options(registry.method(method), parse_pairs(option or [], "--option"))
    if threads is not None:
        torch.set_num_threads(threads)
    request = Request(
        method=method,
        budgets=tuple(parse_list(budgets, float, "--budgets")),
        schedules={share: entry.tokens for share, entry in found.budgets.items()} if found else {},
        blocks=tuple(parse_list(blocks, int, "--blocks")) if blocks else (),
        options={**(found.options if found else {}), **options},
        labels=labels,
        train=train,
        epochs=epochs,
        seconds=parse_time(time) if time is not None else None,
        rate=rate,
        batch=batch,
        seed=seed,
        device=device,
    )
    loaded = choice.load(model, names_classes=False, needs_classes=False)
    try:
        photos = _photos(loaded, data, images, choice.class_map, labels)
        if labels:
            print_note(f"{photos.name}: {photos.label_rule}")
        with join_processes(request, say=print_note), show_progress("fine-tuning", quiet) as advance:
            photos = check_readable(photos, skip=skip_unreadable, progress=lambda done, of: advance("reading photos", done, of))
            result = run(loaded, photos, file, request, progress=advance, say=print_note)
    except Interrupted as stop:
        raise Interruption(f"{stop}: {stop.kept}. Run the same command again to continue") from stop
    if json:
        print_json(msgspec.to_builtins(result))
    else:
        print_table(finetune_table(result))
        classes = getattr(loaded.model, "num_classes", 0)
        given = choice.words_to_build(classes, "weights", "no_ema") + words_of_plugins(plugin)
        how = ["--schedule", schedule, *beyond] if schedule is not None else ["--method", method, "--budgets", budgets]
        how += ["--blocks", blocks] if blocks else []
        how += [word for pair in option or [] for word in ("--option", pair)]
        build = f"{command_line('edge-tprune', 'build', model)}{given} {command_line('--weights', file, *how)}"
        print_note(f"{result.verdict}; build it with: {build}")


def _photos(loaded: LoadedModel, data: list[str] | None, images: int | None, class_map: Path | None, labels: bool) -> Dataset:
    """The photos of all directories."""
    from edge_tprune.finetune.photos import Joined
    from edge_tprune.finetune.request import REFERENCE_CANVASES
    from edge_tprune.models.data import REFERENCE, open_dataset, open_images
    from edge_tprune.models.images import format_path

    classes = int(getattr(loaded.model, "num_classes", 0))
    if images is not None and images < 1:
        raise UserError(f"--images {images} is out of range: give 1 or more")
    if not data:
        if loaded.name != REFERENCE:
            raise UserError("no photos to train on: give --data DIRECTORY (labels are not needed)")
        return open_dataset(REFERENCE, classes, images or REFERENCE_CANVASES, training=True)
    if labels and len(data) > 1:
        raise UserError("--labels reads one directory, with a sub-directory per class: give --data once")
    if labels or data == [REFERENCE]:
        limit = images or (REFERENCE_CANVASES if data == [REFERENCE] else None)
        return open_dataset(data[0], classes, limit, training=True, class_map=class_map, class_names=loaded.class_names)
    folders = [open_images(Path(one)) for one in data]
    places = Counter(file.resolve() for folder in folders for file in folder.files)
    if twice := next((place for place, count in places.items() if count > 1), None):
        raise UserError(
            f"photo {format_path(twice)} is in --data more than once: it might be held out and trained on as well. Give each photo once"
        )
    kept, share, seen, taken = [], min(1.0, (images or math.inf) / sum(map(len, folders))), 0, 0
    for folder in folders:  # of each its share, together exactly as many as asked for
        seen += len(folder)
        count = round(share * seen) - taken
        taken += count
        kept += [folder.first(count)] if count else []
    return kept[0] if len(kept) == 1 else Joined(tuple(kept))
