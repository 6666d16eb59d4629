"""`edge-tprune search`: where to remove how many tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_tprune.cli.costs import ENERGY, read_goal
from edge_tprune.cli.data_options import SkipUnreadable, open_data
from edge_tprune.cli.interruption import Interruption
from edge_tprune.cli.model_options import ModelChoice, Plugins, load_plugins, with_model_options, words_of_plugins
from edge_tprune.cli.options import Json, Quiet, Seed, Threads, Workers
from edge_tprune.cli.parsing import parse_pairs, parse_range
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.root import command
from edge_tprune.cli.terminal import print_json, print_note, print_table
from edge_tprune.errors import UserError
from edge_tprune.text import command_line


@command(
    "edge-tprune search reference --budgets 0.65 --out ref.json",
    "edge-tprune build reference --schedule ref.json",
    "edge-tprune search deit_tiny_patch16_224 --method bat --data photos",
    "edge-tprune search vit_small_patch14_dinov2 --img-size 224 --output features --data photos",
    "edge-tprune search reference --latency profiles/PROBES --max-ms 8",
    "edge-tprune search reference --latency profiles/PROBES --methods all --front",
    "edge-tprune search deit_tiny_patch16_224 --data photos --workers 4",
    kept="run the same command again to continue",
)
@with_model_options
def search(
    model: Annotated[
        str,
        typer.Argument(
            help="'reference', a timm model name, or 'local-dir:DIRECTORY' (a downloaded Hugging Face Hub repository)."
        ),
    ],
    choice: ModelChoice,
    method: Annotated[
        str | None, typer.Option(help="See `edge-tprune methods`; zero_tprune by default.", show_default=False)
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help="Shares of the unpruned MACs, comma-separated; the method's options are searched at the first. 0.65 by default.",
            show_default=False,
        ),
    ] = None,
    latency: Annotated[
        Path | None,
        typer.Option(
            metavar="PROFILE",
            help="Limit latency or energy instead of MACs, by the model that `edge-tprune latency` wrote into this profile.",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="With --latency: the methods to compare, comma-separated, or 'all' (every method that was measured). Default: all."
        ),
    ] = None,
    max_ms: Annotated[float | None, typer.Option(help="With --latency: highest median latency, ms.")] = None,
    max_p95_ms: Annotated[float | None, typer.Option(help="With --latency: highest 95th percentile of latency, ms.")] = None,
    max_mj: Annotated[float | None, typer.Option(help="With --latency: highest energy per image, mJ.")] = None,
    front: Annotated[
        bool,
        typer.Option(
            "--front", help="With --latency: search at eight limits, from the fastest schedule to the unpruned network."
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="A directory of images, labelled or not; not those that accuracy is measured on. The reference model has its own."
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="Use at most this many images.")] = 200,
    trials: Annotated[int, typer.Option(help="Configurations to try per budget or limit.")] = 60,
    stages: Annotated[
        str | None,
        typer.Option(
            help="How many blocks may remove tokens: 3 or 2-4; the method's own number and one more by default, any with --latency."
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="kl: divergence from the unpruned model, needs no labels (default); top1: errors. For outputs other than logits, "
            "cosine: distance from the unpruned model's vectors.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="Output of the networks: logits, embedding, features or tokens. Default: logits if there is a head, else embedding.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    option: Annotated[
        list[str] | None, typer.Option(help="A method option that is not searched, name=value; may be repeated.")
    ] = None,
    threads: Threads = None,
    workers: Workers = 1,
    skip_unreadable: SkipUnreadable = False,
    plugin: Plugins = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A database for the trials, so that several machines can share one search: sqlite:///study.db, postgresql://... By default "
            "a journal beside the schedule file.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[Path, typer.Option("--out", help="The schedule file; the trials are kept beside it.")] = Path(
        "schedule.json"
    ),
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Search where a method removes how many tokens, and its options, within a MACs budget or a board's latency.

    Run the command again to continue an interrupted search; run it with more --trials to extend a finished one.
    """
    from edge_tprune.cli.model_views import require_host, search_table

    require_host()
    import torch

    from edge_tprune.reduction import registry
    from edge_tprune.search.configuration import decide, find
    from edge_tprune.search.schedule_file import KIND
    from edge_tprune.search.study import hide_password

    load_plugins(plugin)
    goal = read_goal(latency, budgets, methods, {"p50_ms": max_ms, "p95_ms": max_p95_ms, ENERGY: max_mj}, front)
    if goal.latency is not None and method is not None:
        raise UserError(f"--latency compares --methods: give --methods {method} instead of --method")
    names = [method or "zero_tprune"] if goal.latency is None else list(goal.methods)
    options = registry.parse_options(registry.method(names[0]), parse_pairs(option or [], "--option"))
    loaded = choice.load(model, names_classes=False, needs_classes=False)
    source = data if data is not None else ("reference" if model == "reference" else None)
    if source is None:
        raise UserError("no images to search on: give --data DIRECTORY (labels are not needed)")
    if threads is not None:
        torch.set_num_threads(threads)
    dataset = open_data(
        source,
        loaded.model.num_classes,
        limit=images,
        training=True,
        labels=score == "top1",
        class_map=choice.class_map,
        class_names=loaded.class_names,
        skip_unreadable=skip_unreadable,
        quiet=quiet,
    )
    settings = decide(
        loaded,
        names,
        dataset,
        budgets=goal.budgets,
        latency=goal.latency,
        metric=goal.metric,
        limits=goal.limits,
        trials=trials,
        stages=None if stages is None else parse_range(stages, "--stages"),
        score=score,
        seed=seed,
        options=options,
        output=output,
    )
    try:
        with show_progress("searching", quiet) as advance:
            found = find(loaded, settings, dataset, file, storage=storage, workers=workers, progress=advance, warn=print_note)
    except KeyboardInterrupt as stop:
        place = f"beside {file}" if storage is None else f"in {hide_password(storage)}"
        raise Interruption(f"stopped; what was tried is kept {place}: run the same command again to continue") from stop
    if json:
        print_json(KIND.document(found))
    else:
        print_table(search_table(found))
        classes = getattr(loaded.model, "num_classes", 0)
        given = (
            choice.words_to_build(classes)
            + words_of_plugins(plugin)
            + ("" if output is None else f" {command_line('--output', output)}")
        )
        build = f"{command_line('edge-tprune', 'build', model)}{given} {command_line('--schedule', file)}"
        print_note(f"wrote {file}; build it with: {build}")
