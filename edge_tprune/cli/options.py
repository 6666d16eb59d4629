"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory that `build` wrote.")]
ProfilesArgument = Annotated[
    list[Path], typer.Argument(metavar="PROFILE...", help="Profile directories, or directories that hold some.")
]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads per engine; one per physical core by default.", show_default=False)
]
BudgetNames = Annotated[str | None, typer.Option("--budgets", help="Only these budgets of the bundle, by name, with commas.")]

MaxP50 = Annotated[float | None, typer.Option(help="Median latency, ms.")]
MaxP95 = Annotated[float | None, typer.Option(help="95th percentile of latency, ms.")]
MaxPower = Annotated[float | None, typer.Option("--max-mean-power-w", help="Mean power while it runs, W.")]
MaxEnergy = Annotated[float | None, typer.Option("--max-energy-mj", help="Energy per image, idle included, mJ.")]
MaxMissed = Annotated[
    float | None,
    typer.Option("--max-missed-percent", help="Missed deadlines at a fixed rate, per cent of the frames that were due."),
]
MaxDrop = Annotated[float | None, typer.Option(help="Points of top-1 it may lose against the unpruned model.")]
MinAgreement = Annotated[float | None, typer.Option(help="Per cent of images on which it agrees with the unpruned model.")]
MinFps = Annotated[float | None, typer.Option(help="Images per second.")]
MaxMemory = Annotated[float | None, typer.Option(help="Peak memory, MB (10^6 bytes).")]
Minimize = Annotated[
    str | None,
    typer.Option(
        "--optimize", "--minimize", "--maximize", help="latency, p95, energy, power, throughput, accuracy, memory or macs."
    ),
]
