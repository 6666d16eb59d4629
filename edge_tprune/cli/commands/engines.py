"""`edge-tprune engines`: build a bundle's TensorRT engines, and say what they became."""

from __future__ import annotations

from typing import Annotated

import typer

from edge_tprune.cli.options import BudgetNames, BundleArgument, Json, Quiet
from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.root import command
from edge_tprune.cli.terminal import print_json, print_table, print_warning
from edge_tprune.errors import UserError


@command(
    "edge-tprune engines bundles/ref --runtime tensorrt --layers",
    "edge-tprune engines bundles/ref --runtime tensorrt-rtx --target sm86,sm89",
    kept="engines that were finished are kept",
)
def engines(
    bundle: BundleArgument,
    runtime: Annotated[str, typer.Option(help="tensorrt or tensorrt-rtx.")] = "tensorrt",
    target: Annotated[
        str | None,
        typer.Option(
            help="Build for these GPUs, comma-separated, and store the engines in the bundle (tensorrt-rtx only; needs no GPU): sm86,sm89."
        ),
    ] = None,
    budgets: BudgetNames = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16, mixed or int8; by default the first that the bundle was built for.", show_default=False),
    ] = None,
    workspace_mb: Annotated[
        int | None,
        typer.Option(help="Largest scratch memory of a layer, MB (10^6 bytes); no limit by default.", show_default=False),
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="0 (builds fast) to 5 (searches longest); TensorRT's own by default.", show_default=False)
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Time each layer; prints the ten slowest of each budget.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build again even if a matching engine exists.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Build the TensorRT engine of each budget for this GPU, and report how TensorRT runs each graph.

    `profile` builds missing engines itself. This command builds them ahead of time, and reports precision, fused attention and slow layers.
    """
    import msgspec

    from edge_tprune.bundle.bundle import Bundle
    from edge_tprune.bundle.engines import build_ahead, prepare
    from edge_tprune.cli.model_views import engines_table, layers_table
    from edge_tprune.runtime.tensorrt.inspection import slowest
    from edge_tprune.runtime.tensorrt.library import MODULES, load
    from edge_tprune.runtime.tensorrt.record import EngineSettings, read_record
    from edge_tprune.runtime.tensorrt.runner import TensorRTEngine

    if runtime not in MODULES:
        raise UserError(f"{runtime} builds no engines: --runtime is {' or '.join(MODULES)}")
    opened = Bundle.open(bundle)
    settings = EngineSettings(workspace_mb, optimization_level)

    if target is not None:
        if runtime != "tensorrt-rtx":
            raise UserError(
                "--target is for --runtime tensorrt-rtx: TensorRT itself builds its engines on the GPU that runs them"
            )
        if budgets is not None or precision is not None or layers:
            raise UserError("--target builds every graph and runs none: leave --budgets, --precision and --layers out")
        targets = parse_list(target.lower(), str, "--target")
        with show_progress("building engines", quiet) as advance:
            _, built = build_ahead(opened, targets, settings=settings, force=force, progress=advance, warn=print_warning)
        rows = [(engine.budget, engine.file, engine.record) for engine in built]
    else:
        library, rows = load(runtime), []
        names = parse_list(budgets, str, "--budgets") if budgets is not None else [budget.name for budget in opened.budgets]
        for name in names:
            with show_progress(f"budget {name}", quiet) as advance:
                file = prepare(
                    opened, name, runtime, precision, settings=settings, force=force, progress=advance, warn=print_warning
                )
            if (record := read_record(file)) is None:
                raise UserError(f"{file} has no readable record beside it. Build it again with --force")
            rows.append((name, file, record))
    times_ms: dict[str, dict[str, float]] = {}
    for name, file, _ in rows if layers else ():
        with TensorRTEngine(file, library, 1, graph=False) as engine:
            times_ms[name] = engine.layer_times_ms(opened.golden().images[0])
    if json:
        document = [
            {
                "budget": name,
                "engine_file": str(file),
                **msgspec.to_builtins(record),
                "layer_times_ms": times_ms.get(name),
            }
            for name, file, record in rows
        ]
        print_json({"runtime": runtime, "engines": document})
        return
    print_table(engines_table([(name, record) for name, _, record in rows]))
    for name, times in times_ms.items():
        print_table(layers_table(name, slowest(times)))
