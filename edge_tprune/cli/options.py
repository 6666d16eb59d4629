"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from edge_tprune.cli.parameters import expand_parameter
from edge_tprune.errors import UserError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory that `build` wrote.")]
ProfilesArgument = Annotated[
    list[Path], typer.Argument(metavar="PROFILE...", help="Profile directories, or directories that contain profiles.")
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="CPU threads per engine; one per physical core by default.", show_default=False),
]
Seed = Annotated[int, typer.Option(min=0, max=2**53, help="Seed of everything that is drawn at random.")]
Workers = Annotated[
    int,
    typer.Option(
        min=1, max=1024,
        help="Processes that score networks at once; they share the CPU threads, and each needs memory for the network and the images.",
    ),
]  # fmt: skip
BudgetNames = Annotated[
    str | None, typer.Option("--budgets", help="Only these budgets of the bundle, by name, comma-separated.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
EqualWithin = Annotated[
    str | None,
    typer.Option(
        metavar="2%",
        help="Differences below this count as equal: in per cent for amounts, in points for percentages, or both: 2%,0.5points. "
        "That is the default; to compare OLD and NEW it is 3%,0.5points.",
        show_default=False,
    ),
]

#: name as in `analysis.limits.LIMITS` -> its option
_LIMITS: dict[str, object] = {
    "max_p50_ms": typer.Option(help="Highest median latency, ms."),
    "max_p95_ms": typer.Option(help="Highest 95th percentile of latency, ms."),
    "max_mean_power_w": typer.Option(help="Highest mean power while it runs, W."),
    "max_energy_mj": typer.Option(help="Highest energy per image, idle included, mJ."),
    "max_top1_drop": typer.Option(help="Largest loss of top-1 against the unpruned model, percentage points."),
    "min_agreement": typer.Option(help="Lowest agreement with the unpruned model, per cent of images."),
    "max_cosine_distance": typer.Option(
        help="Largest mean distance (1 - cosine) of embeddings, features or tokens from the unpruned model's."
    ),
    "min_fps": typer.Option(help="Lowest rate, images per second."),
    "min_speedup": typer.Option(help="Lowest speed-up over the unpruned network, such as 1.5."),
    "max_peak_memory_mb": typer.Option(help="Highest peak memory, MB (10^6 bytes)."),
    "max_missed_percent": typer.Option(help="Most missed deadlines at a fixed rate, per cent of the frames."),
}
Limits = dict[str, float | None]
Minimize = Annotated[
    str | None,
    typer.Option(
        "--optimize",
        "--minimize",
        "--maximize",
        help="What to optimise: latency, p95, energy, power, throughput, accuracy, divergence, memory or macs. The names mean the same; the last one counts.",
    ),
]


def with_limits(command: Callable[..., None]) -> Callable[..., None]:
    """One parameter `limits` (name -> bound, None where not given) of a command becomes an option per limit."""
    options = {name: Annotated[float | None, option] for name, option in _LIMITS.items()}
    return expand_parameter(command, "limits", options, dict)


def check_root(sysroot: Path) -> None:
    """Refuses a directory that is no machine's: nothing would be known of what disturbs it.

    Raises:
        UserError: naming it.
    """
    if not (sysroot / "sys").is_dir() or not (sysroot / "proc").is_dir():
        raise UserError(f"--sysroot {sysroot}: there are no sys and proc in it")
