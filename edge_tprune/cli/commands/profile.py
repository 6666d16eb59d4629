"""`edge-tprune profile`: measure on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_tprune.cli.common import Stopped, err, parse_list, print_json
from edge_tprune.cli.options import BudgetNames, BundleArgument, Json, Threads
from edge_tprune.cli.root import app


@app.command(
    epilog="Examples: edge-tprune profile bundles/ref --out profiles · edge-tprune profile bundles/ref --rounds 30 --seconds 2 --budgets 1.0,0.5"
)
def profile(
    bundle: BundleArgument,
    profiles: Annotated[Path, typer.Option("--out", help="Where profile directories are collected.")] = Path("profiles"),
    runtime: Annotated[str, typer.Option(help="Which of the bundle's graphs to run.")] = "onnxruntime",
    rounds: Annotated[int, typer.Option(help="How often each budget has its turn.")] = 10,
    seconds: Annotated[float, typer.Option(help="Length of one turn.")] = 1.0,
    warmup: Annotated[float, typer.Option(help="Seconds of warm-up before each turn, at least.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the order within the rounds.")] = 0,
    budgets: BudgetNames = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Run every budget's engine in randomised rounds and record raw latencies, memory and sensors."""
    from edge_tprune.agent.profile import Interrupted
    from edge_tprune.agent.profile import profile as run
    from edge_tprune.agent.progress import TerminalProgress
    from edge_tprune.build.bundle import Bundle

    opened = Bundle.open(bundle)
    names = parse_list(budgets, str, "--budgets") if budgets else None
    try:
        with TerminalProgress(err()) as progress:
            path = run(
                opened,
                profiles,
                runtime=runtime,
                threads=threads,
                rounds=rounds,
                seconds_per_round=seconds,
                warmup_seconds=warmup,
                seed=seed,
                budgets=names,
                progress=progress,
            )
    except Interrupted as stop:
        raise Stopped(str(stop)) from stop
    print_json({"profile": str(path)}) if json else print(path)
