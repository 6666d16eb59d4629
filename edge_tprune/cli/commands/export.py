"""`edge-tprune export`: what was chosen, for another program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import to_builtins

from edge_tprune.cli.options import BundleArgument, Json, Limits, Minimize, with_limits
from edge_tprune.cli.parsing import parse_pairs
from edge_tprune.cli.root import command
from edge_tprune.cli.terminal import print_json, print_note, print_text, print_warning
from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.text import printable

if TYPE_CHECKING:
    from edge_tprune.analysis.table import Row
    from edge_tprune.bundle.bundle import Bundle


@command(
    "edge-tprune export bundles/ref --budget 0.65 --format python --out ref-0.65",
    "edge-tprune export bundles/ref --budget 0.65 --fold-preprocessing --out ref",
    "edge-tprune export bundles/ref --budget 0.65 --format triton --out models",
    "edge-tprune export bundles/ref --profile profiles --max-p95-ms 8 --out chosen",
    kept="nothing was written",
)
@with_limits
def export(
    bundle: BundleArgument,
    *,
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    budget: Annotated[
        str | None, typer.Option(help="Name of the budget; optional if the bundle has only one.", show_default=False)
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --budget: export the budget and precision that `select` chooses from this profile, under the limits below."
        ),
    ] = None,
    limits: Limits,
    objective: Minimize = None,
    format: Annotated[str, typer.Option(help="onnx, python, cpp, triton, deepstream or isaac-ros.")] = "onnx",
    runtime: Annotated[
        str | None,
        typer.Option(
            help="Runtime that will run the graph: onnxruntime, tensorrt or tensorrt-rtx; with --profile that of the profile.",
            show_default="onnxruntime",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16, mixed or int8; by default the first that the bundle was built for.", show_default=False),
    ] = None,
    fold_preprocessing: Annotated[
        bool,
        typer.Option(
            "--fold-preprocessing", help="The graph takes a camera's uint8 frames and resizes, crops and normalises them."
        ),
    ] = False,
    frame_size: Annotated[
        str | None,
        typer.Option(metavar="640x480", help="Width and height of these frames; 640x480 by default.", show_default=False),
    ] = None,
    bgr: Annotated[bool, typer.Option("--bgr", help="These frames are BGR, as OpenCV gives them.")] = False,
    top_k: Annotated[
        int | None,
        typer.Option(
            help="The graph returns this many best classes and their probabilities, instead of logits.", show_default=False
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call the model.", show_default=False)] = None,
    onnxruntime_version: Annotated[
        str | None,
        typer.Option(
            metavar="1.18",
            help="Version of the target, if older than 1.23: exports a graph that it can run.",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        list[str] | None,
        typer.Option(
            metavar="8.7=FILE", help="Engine file for the GPUs of a compute capability (format triton); may be repeated."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an older export.")] = False,
    json: Json = False,
) -> None:
    """Write one budget as files for another program: graph with weights, class names, preprocessing, a test image and its output.

    Before anything is written, the exported graph runs on that image and must give the same output as the bundle's.
    """
    from edge_tprune.bundle.bundle import Bundle
    from edge_tprune.bundle.predictor import find_budget
    from edge_tprune.cli.model_views import require_host

    require_host()
    from edge_tprune.export.formats.package import export_package
    from edge_tprune.export.formats.proof import FRAME
    from edge_tprune.export.formats.request import ExportRequest

    if not fold_preprocessing and (frame_size or bgr):
        raise UserError(f"{'--frame-size' if frame_size else '--bgr'} is of frames: give --fold-preprocessing too")
    opened = Bundle.open(bundle)
    if profile is not None:
        if budget is not None or precision is not None:
            raise UserError("--profile chooses budget and precision: leave --budget and --precision out")
        chosen = choose_from(profile, opened, limits, objective)
        measured = chosen.profile.document.settings.runtime
        if runtime not in (None, measured):
            raise UserError(
                f"--runtime {runtime}: profile {chosen.profile.path} measured {measured}. Leave --runtime out, or give --budget and "
                "--precision instead of --profile"
            )
        runtime = measured
        budget, precision = chosen.budget.partition("@")[0], chosen.precision
    elif objective or any(value is not None for value in limits.values()):
        raise UserError("limits and objectives choose a budget from measurements: give --profile too")
    if plan and format != "triton":
        raise UserError(f"--plan is for --format triton, not {format}: leave it out")
    request = ExportRequest(
        budget=find_budget(opened, budget),
        format=format,
        out=out,
        runtime=runtime or "onnxruntime",
        precision=precision,
        frame=(parse_frame_size(frame_size) if frame_size else FRAME) if fold_preprocessing else None,
        channel_order="bgr" if bgr else "rgb",
        top_k=top_k,
        name=name,
        onnxruntime_version=onnxruntime_version,
        plans=tuple((key, Path(file)) for key, file in parse_pairs(plan or [], "--plan").items()),
        force=force,
    )
    exported = export_package(opened, request)
    if json:
        print_json({**to_builtins(exported.about), "path": str(exported.path), "files": list(exported.files)})
    else:
        print_text(str(exported.path))
    print_note(
        f"checked on {exported.path / 'golden.png'}: off by {exported.difference:.2g}. How to use it: {exported.path / 'README.md'}"
    )


def choose_from(profile: Path, bundle: Bundle, limits: Limits, objective: str | None) -> Row:
    """What `select` chooses from a profile of this bundle.

    Raises:
        UserError: the profile is of another build, its environments offer several budgets, or what ran of the chosen one is no graph of the bundle.
        NegativeAnswer: no budget keeps the limits.
    """
    from edge_tprune.analysis.candidates import Candidates, choose_everywhere
    from edge_tprune.analysis.choice import Choice
    from edge_tprune.analysis.loading import load_rows
    from edge_tprune.analysis.wording import list_caveats
    from edge_tprune.cli.comparison_views import describe_failure

    answer = choose_everywhere(load_rows([profile]), limits, objective)
    if isinstance(answer, Candidates) and len(answer.choices) > 1:
        raise UserError(
            f"{profile} holds profiles of {len(answer.choices)} environments that offer a budget each: name one profile"
        )
    if isinstance(answer, Choice):
        choice = answer
    elif isinstance(answer, Candidates) and answer.only is not None:
        choice = answer.only
    else:
        raise NegativeAnswer(describe_failure(answer))
    row = choice.row
    if row.profile.document.bundle.fingerprint != bundle.manifest.fingerprint:
        raise UserError(
            f"profile {row.profile.path} is of another build than bundle {bundle.path}: name the bundle that was profiled"
        )
    fallback = next((b.fallback for b in row.profile.document.budgets if printable(b.name) == row.budget), None)
    if fallback is not None:
        raise UserError(
            f"profile {row.profile.path}, budget {row.budget}: {printable(fallback.describe())}, which no graph of the bundle does. "
            "Build the bundle in a higher precision (mixed or fp32) and profile it, or choose a graph with --budget and --precision"
        )
    for caveat in list_caveats(choice):
        print_warning(caveat)
    return row


def parse_frame_size(text: str) -> tuple[int, int]:
    """(height, width) of "640x480".

    Raises:
        UserError: it is no size, or out of range.
    """
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError as error:
        raise UserError(f"--frame-size {text!r} is no width and height such as 640x480") from error
    if not (16 <= width <= 8192 and 16 <= height <= 8192):
        raise UserError(f"--frame-size {text} is out of range: each side is from 16 to 8192 pixels")
    return height, width
