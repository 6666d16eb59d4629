"""`edge-tprune eval`: accuracy per budget."""

from __future__ import annotations

from typing import Annotated

import typer

from edge_tprune.cli.data_options import ClassMapFile, SkipUnreadable, known_class_names, open_data
from edge_tprune.cli.options import BudgetNames, BundleArgument, Json, Quiet, Threads
from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.root import command
from edge_tprune.cli.terminal import print_json, print_table, print_warning
from edge_tprune.errors import UserError


@command(
    "edge-tprune eval bundles/ref",
    "edge-tprune eval bundles/deit-s --data imagenet/val --limit 5000",
    "edge-tprune eval bundles/deit-s --data imagenet/val --precision fp16",
    name="eval",
    kept="nothing was stored in the bundle",
)
def evaluate(
    bundle: BundleArgument,
    data: Annotated[
        str | None,
        typer.Option(
            help="A directory with one sub-directory of images per class, or of unlabelled images; 'reference' for the built-in task."
        ),
    ] = None,
    class_map: ClassMapFile = None,
    skip_unreadable: SkipUnreadable = False,
    limit: Annotated[int | None, typer.Option(help="Use at most this many images, spread evenly over the classes.")] = None,
    runtime: Annotated[
        str, typer.Option(help="The runtime: onnxruntime runs graphs of every precision on the CPU; tensorrt needs a GPU.")
    ] = "onnxruntime",
    precision: Annotated[
        str, typer.Option(help="Precision of the graphs: fp32, fp16, mixed or int8; compared with those in fp32.")
    ] = "fp32",
    budgets: BudgetNames = None,
    threads: Threads = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure the accuracy of each budget with the exported graphs, and store it in the bundle."""
    from edge_tprune.cli.model_views import accuracy_table, require_host

    require_host()
    import msgspec

    from edge_tprune.bundle.bundle import Bundle
    from edge_tprune.bundle.evaluate import check_request
    from edge_tprune.bundle.evaluate import evaluate as run
    from edge_tprune.bundle.outputs import EMBEDDING, LOGITS
    from edge_tprune.runtime.engine import default_threads

    opened = Bundle.open(bundle)
    source = data if data is not None else ("reference" if opened.manifest.model.name == "reference" else None)
    if source is None:
        raise UserError("no images to evaluate on: give --data DIRECTORY (one sub-directory per class, or unlabelled images)")
    names = parse_list(budgets, str, "--budgets") if budgets is not None else None
    check_request(opened, runtime=runtime, precision=precision, budgets=names)
    dataset = open_data(
        source,
        opened.manifest.model.classes,
        labels=opened.manifest.model.output.name == LOGITS,
        by_directory=opened.manifest.model.output.name == EMBEDDING,
        limit=limit,
        class_map=class_map,
        class_names=known_class_names(opened),
        skip_unreadable=skip_unreadable,
        quiet=quiet,
    )
    warnings: list[str] = []
    with show_progress("images", quiet) as advance:
        opened, records = run(
            opened,
            dataset,
            runtime=runtime,
            precision=precision,
            budgets=names,
            threads=threads if threads is not None else default_threads(),
            progress=lambda done, of: advance("images", done, of),
            warn=warnings.append,
        )
    for text in warnings:
        print_warning(text)
    if json:
        print_json({"bundle": str(bundle), "accuracy": msgspec.to_builtins(records)})
    else:
        print_table(accuracy_table(opened, records))
