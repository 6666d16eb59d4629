"""`edge-tprune engines`: build a bundle's TensorRT engines, and say what they became."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edge_tprune.cli.common import out, parse_list, print_json, progress_bar, say
from edge_tprune.cli.options import BudgetNames, BundleArgument, Json
from edge_tprune.cli.root import app
from edge_tprune.errors import UserError


@app.command(
    epilog="Examples: edge-tprune engines bundles/ref --runtime tensorrt --layers · "
    "edge-tprune engines bundles/ref --runtime tensorrt-rtx --target sm86,sm89"
)
def engines(
    bundle: BundleArgument,
    runtime: Annotated[str, typer.Option(help="tensorrt or tensorrt-rtx.")] = "tensorrt",
    target: Annotated[
        str | None,
        typer.Option(help="Build for these GPUs, which need not be here, into the bundle (tensorrt-rtx only): sm86,sm89."),
    ] = None,
    budgets: BudgetNames = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16 or mixed; by default what the bundle was built for first.", show_default=False),
    ] = None,
    workspace_mb: Annotated[
        int | None,
        typer.Option(help="Most scratch memory for a layer, MB (10^6 bytes); no limit by default.", show_default=False),
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="0 (builds fast) to 5 (searches longest); TensorRT's own by default.", show_default=False)
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Time each layer; prints the ten slowest of each budget.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build anew even if a fitting engine is there.")] = False,
    json: Json = False,
) -> None:
    """Build every budget's TensorRT engine for this GPU (kept for `profile`), and report what it became.

    `profile` builds what is missing by itself; this command builds ahead, with limits, and explains: precision, fused attention, slow layers.
    """
    from edge_tprune.bundle.bundle import Bundle
    from edge_tprune.bundle.engines import build_ahead, prepare
    from edge_tprune.cli.views import engines_table, layers_table
    from edge_tprune.runtime.tensorrt.builder import Settings
    from edge_tprune.runtime.tensorrt.cache import read_record
    from edge_tprune.runtime.tensorrt.inspection import slowest
    from edge_tprune.runtime.tensorrt.library import MODULES, load
    from edge_tprune.runtime.tensorrt.runner import TensorRTEngine

    if runtime not in MODULES:
        raise UserError(f"{runtime} builds no engines: --runtime is {' or '.join(MODULES)}")
    opened = Bundle.open(bundle)
    settings = Settings(workspace_mb, optimization_level)

    def warn(text: str) -> None:
        say(f"warning: {text}")

    if target:
        if runtime != "tensorrt-rtx":
            raise UserError(
                "--target is for --runtime tensorrt-rtx: TensorRT itself builds its engines on the GPU that runs them"
            )
        if budgets or precision or layers:
            raise UserError("--target builds every graph and runs none: leave --budgets, --precision and --layers out")
        targets = parse_list(target.lower(), str, "--target")
        with progress_bar("building engines") as advance:
            built = build_ahead(opened, targets, settings=settings, force=force, progress=advance, warn=warn)
        rows = [(ahead.budget, ahead.plan, ahead.record) for ahead in built]
    else:
        library, rows = load(runtime), []
        names = parse_list(budgets, str, "--budgets") if budgets else [budget.name for budget in opened.budgets]
        for name in names:
            with progress_bar(f"budget {name}") as advance:
                plan = prepare(opened, name, runtime, precision, settings=settings, force=force, progress=advance, warn=warn)
            rows.append((name, plan, read_record(plan) or {}))
    document: list[dict[str, Any]] = []
    for name, plan, record in rows:
        times = None
        if layers:
            with TensorRTEngine(plan, library, 1, graph=False) as engine:
                times = engine.layer_times_ms(opened.golden()[0][0])
        document.append({"budget": name, "plan": str(plan), **record, "layer_times_ms": times})
    if json:
        print_json({"runtime": runtime, "engines": document})
        return
    out().print(engines_table([(name, record) for name, _, record in rows]))
    for entry in document:
        if entry["layer_times_ms"]:
            out().print(layers_table(entry["budget"], slowest(entry["layer_times_ms"])))
