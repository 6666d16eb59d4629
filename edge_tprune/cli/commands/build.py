"""`edge-tprune build`: from a model to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_tprune.cli.options import Json, Quiet
from edge_tprune.cli.parsing import parse_list, parse_pairs
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.root import command
from edge_tprune.cli.terminal import print_json, print_note, print_table, print_warning
from edge_tprune.errors import UserError


@command(
    "edge-tprune build reference --out bundles/ref",
    "edge-tprune build deit_small_patch16_224 --weights w.safetensors",
    "edge-tprune build deit_small_patch16_224 --method bat --budgets 1.0,0.8,0.5",
    "edge-tprune build deit_tiny_patch16_224 --method evit --option fuse=true",
    kept="nothing was written",
)
def build(
    model: Annotated[str, typer.Argument(help="'reference', or a timm name of a plain ViT.")],
    weights: Annotated[
        str | None,
        typer.Option(
            help="A .safetensors file or a PyTorch state dict; 'random' for speed tests; the model hub's pretrained ones by default."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="See `edge-tprune methods`; zero_tprune, or the schedule file's, by default.", show_default=False),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help="Shares of the unpruned MACs, with commas; '' for none. 1.0,0.9,0.8,0.65,0.5 by default, with a schedule file 1.0.",
            show_default=False,
        ),
    ] = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            help="Tokens after each block, with commas (may be repeated), or a file that `search` wrote. In addition to --budgets."
        ),
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Blocks that remove tokens, counted from 1; the method's own by default.")
    ] = None,
    multiple_of: Annotated[int, typer.Option(help="Make token counts multiples of this (8 suits tensor cores).")] = 1,
    option: Annotated[list[str] | None, typer.Option(help="An option of the method, name=value; may be repeated.")] = None,
    batch: Annotated[int, typer.Option(help="Images per inference, fixed in the graphs.")] = 1,
    runtime: Annotated[
        str, typer.Option(help="Runtimes to write graphs for, with commas: onnxruntime, tensorrt, tensorrt-rtx.")
    ] = "onnxruntime",
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, fp16 or mixed, with commas: what TensorRT's graphs compute in. Images, logits, norms, softmax and scores stay float32."
        ),
    ] = "fp32",
    target: Annotated[
        str | None,
        typer.Option(help="Build TensorRT-RTX engines for these GPUs now, with commas: sm75, sm80, sm86, sm89, sm120, sm121."),
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Classes of a fine-tuned checkpoint.")] = None,
    bundle: Annotated[
        Path | None, typer.Option("--out", help="The bundle's directory; bundles/MODEL-METHOD by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Rebuild even if an equal bundle is there.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Build a bundle: one checked ONNX graph per budget, sharing one weight file."""
    from edge_tprune.cli.model_views import bundle_table, engines_table, require_host

    require_host()
    from edge_tprune.bundle.engines import AHEAD, build_ahead, check_targets
    from edge_tprune.export.builder import build as build_bundle
    from edge_tprune.export.builder import make_plan
    from edge_tprune.models.loading import load_model
    from edge_tprune.reduction import registry
    from edge_tprune.search.configuration import read

    runtimes = parse_list(runtime, str, "--runtime")
    targets = parse_list(target.lower(), str, "--target") if target else []
    if targets and AHEAD not in runtimes:
        raise UserError(f"--target is for --runtime {AHEAD}: TensorRT itself builds its engines on the GPU that runs them")
    if targets:
        check_targets(targets)
    files = [text for text in schedule or [] if text.endswith(".json")]
    if len(files) > 1:
        raise UserError(f"{len(files)} schedule files are given: a bundle holds one method, give one")
    found = read(Path(files[0])) if files else None
    if found and method not in (None, found.method):
        raise UserError(f"{files[0]} is for method {found.method}, not {method}: leave --method out")
    method = found.method if found else method or "zero_tprune"
    options = registry.parse_options(registry.method(method), parse_pairs(option or [], "--option"))
    if budgets is None:
        budgets = "1.0" if found else "1.0,0.9,0.8,0.65,0.5"
    loaded = load_model(model, weights, classes)
    plan = make_plan(
        loaded,
        method,
        budgets=parse_list(budgets, float, "--budgets") if budgets.strip() else [],
        schedules=[parse_list(text, int, "--schedule") for text in schedule or [] if text not in files],
        found=found.budgets if found else None,
        blocks=parse_list(blocks, int, "--blocks") if blocks else None,
        multiple_of=multiple_of,
        options={**(found.options if found else {}), **options},
        batch=batch,
        runtimes=runtimes,
        precisions=parse_list(precision, str, "--precision"),
    )
    for remark in plan.remarks:
        print_note(f"note: {remark}")
    with show_progress("building", quiet) as advance:
        built = build_bundle(loaded, plan, bundle or Path("bundles") / f"{model}-{method}", force=force, progress=advance)
    engines = []
    if targets:
        with show_progress("building engines", quiet) as advance:
            engines = build_ahead(built.bundle, targets, force=force, progress=advance, warn=print_warning)
    up_to_date = built.reused and all(engine.reused for engine in engines)
    print_note(f"{built.bundle.path} is up to date" if up_to_date else f"built {built.bundle.path}")
    if json:
        print_json(built.bundle.manifest)
    else:
        print_table(bundle_table(built.bundle))
        if engines:
            print_table(engines_table([(engine.budget, engine.record) for engine in engines]))
