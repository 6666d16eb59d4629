"""`edge-tprune build`: from a model to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_tprune.cli.data_options import open_photos
from edge_tprune.cli.interruption import Interruption
from edge_tprune.cli.model_options import ModelChoice, Plugins, load_plugins, with_model_options
from edge_tprune.cli.options import Json, Quiet
from edge_tprune.cli.parsing import parse_list, parse_pairs
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.root import command
from edge_tprune.cli.schedules import Schedules, read_schedules
from edge_tprune.cli.terminal import print_json, print_note, print_table, print_warning
from edge_tprune.errors import UserError
from edge_tprune.text import command_line

if TYPE_CHECKING:
    from edge_tprune.export.settings import BudgetRequest


@command(
    "edge-tprune build reference --out bundles/ref",
    "edge-tprune build deit_small_patch16_224 --weights w.safetensors",
    "edge-tprune build deit_small_patch16_224 --method bat --budgets 1.0,0.8,0.5",
    "edge-tprune build reference --runtime onnxruntime,tensorrt --precision fp16",
    "edge-tprune build deit_tiny_patch16_224 --method evit --option fuse=true",
    "edge-tprune build vit_small_patch14_dinov2 --output features",
    "edge-tprune build deit_tiny_patch16_224 --precision fp32,int8 --calibration photos",
    "edge-tprune build reference --probe --method evit,bat --out bundles/probe",
    kept="nothing was written",
)
@with_model_options
def build(
    model: Annotated[
        str,
        typer.Argument(
            help="'reference', a timm model name, or 'local-dir:DIRECTORY' (a downloaded Hugging Face Hub repository)."
        ),
    ],
    choice: ModelChoice,
    method: Annotated[
        str | None,
        typer.Option(help="See `edge-tprune methods`; zero_tprune, or the schedule file's, by default.", show_default=False),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help="Shares of the unpruned MACs, comma-separated; '' for none. Default: 1.0,0.9,0.8,0.65,0.5, or 1.0 with a schedule file.",
            show_default=False,
        ),
    ] = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            help="Tokens after each block, comma-separated, as they are or behind a budget and = (may be repeated), or a file that `search` wrote. "
            "In addition to --budgets."
        ),
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Blocks that remove tokens, counted from 1; the method's own by default.")
    ] = None,
    multiple_of: Annotated[int, typer.Option(help="Make token counts multiples of this (8 suits tensor cores).")] = 1,
    option: Annotated[list[str] | None, typer.Option(help="An option of the method, name=value; may be repeated.")] = None,
    batch: Annotated[int, typer.Option(help="Images per inference, fixed in the graphs.")] = 1,
    runtime: Annotated[
        str, typer.Option(help="Runtimes to write graphs for, comma-separated: onnxruntime, tensorrt, tensorrt-rtx.")
    ] = "onnxruntime",
    precision: Annotated[
        str,
        typer.Option(
            help="Precisions of the graphs, comma-separated: fp32; fp16 or mixed (TensorRT); int8. Images, logits, norms, softmax "
            "and scores stay float32."
        ),
    ] = "fp32",
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="PHOTOS",
            help="A directory of photos for int8, with or without sub-directories: at least 32, better 200. Default for the reference "
            "model: its training canvases.",
            show_default=False,
        ),
    ] = None,
    float_layers: Annotated[
        str | None,
        typer.Option(
            help="Layers to keep in floating point in int8, comma-separated: blocks.11.mlp.fc2. Up to four are added automatically.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Build TensorRT-RTX engines for these GPUs now, comma-separated: sm75, sm80, sm86, sm89, sm120, sm121."
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option("--out", help="The bundle's directory; bundles/MODEL-METHOD by default.")
    ] = None,
    exact_savings: Annotated[
        bool,
        typer.Option(
            "--exact-savings/--no-exact-savings",
            help="Let the last block compute only what the head reads: the same output for fewer MACs. "
            "With budget 1.0, the unpruned network with only this saving is built as budget 'exact'.",
        ),
    ] = True,
    output: Annotated[
        str | None,
        typer.Option(
            help="Output of the graphs: logits, embedding (the head's input), features (a vector for every patch) or tokens; "
            "logits by default, embedding if the model has no classifier head.",
            show_default=False,
        ),
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Normalise embeddings to unit length.")] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Instead of budgets, build at most 15 graphs from which `edge-tprune latency` models the cost of any schedule of --method, "
            "which may be several, comma-separated.",
        ),
    ] = False,
    plugin: Plugins = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Rebuild even if an identical bundle exists. What eval found is kept where the files come out the same.",
        ),
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Build a bundle: one checked ONNX graph per budget, sharing one weight file."""
    from edge_tprune.cli.model_views import bundle_table, engines_table, require_host

    require_host()
    from edge_tprune.bundle.engines import AHEAD, CarriedEngine, build_ahead
    from edge_tprune.bundle.manifest import KIND
    from edge_tprune.bundle.outputs import LOGITS
    from edge_tprune.export.builder import build as build_bundle
    from edge_tprune.export.probes import decide_probes
    from edge_tprune.export.settings import decide
    from edge_tprune.models.loading import PRETRAINED
    from edge_tprune.models.records import imagenet_names
    from edge_tprune.reduction import registry

    load_plugins(plugin)
    runtimes = parse_list(runtime, str, "--runtime")
    targets = _parse_targets(target, runtimes)
    shared: dict[str, Any] = {  # of `decide` and `decide_probes`
        "batch": batch,
        "runtimes": runtimes,
        "precisions": parse_list(precision, str, "--precision"),
        "output": output,
        "normalize": normalize,
        "float_layers": parse_list(float_layers, str, "--float-layers") if float_layers else [],
    }
    if probe:
        given = {"--budgets": budgets, "--schedule": schedule, "--blocks": blocks, "--option": option}
        unwanted = [name for name, value in given.items() if value]
        unwanted += ["--multiple-of"] * (multiple_of != 1) + ["--no-exact-savings"] * (not exact_savings)
        if unwanted:
            raise UserError(f"--probe has schedules of its own: leave out {', '.join(unwanted)}")
        loaded = choice.load(model, needs_classes=False)
        shared["calibration"] = open_photos(loaded, calibration, shared["precisions"], quiet)
        settings = decide_probes(loaded, parse_list(method or "zero_tprune", str, "--method"), **shared)
    else:
        schedules = read_schedules(schedule)
        method = schedules.choose_method(method, "zero_tprune")
        options = registry.parse_options(registry.any_method(method), parse_pairs(option or [], "--option"))
        if options and schedules.own:
            raise UserError(
                f"--option is not for budgets {', '.join(schedules.own)} of the schedule file, which have methods or options of their own: "
                "leave it out, or change the file"
            )
        loaded = choice.load(model, needs_classes=False)
        shared["calibration"] = open_photos(loaded, calibration, shared["precisions"], quiet)
        requests = _request_budgets(budgets, schedules)
        unused = ["--blocks"] * bool(blocks) + ["--multiple-of"] * (multiple_of != 1)
        if unused and all(request.tokens is not None or request.share == 1 for request in requests):
            named = " and ".join(unused)
            raise UserError(
                f"{named} {'are' if len(unused) > 1 else 'is'} for pruning to a share of MACs, and no such share is asked for: add "
                f"--budgets 0.65, or leave {named} out"
            )
        settings = decide(
            loaded,
            method,
            budgets=requests,
            blocks=parse_list(blocks, int, "--blocks") if blocks else None,
            multiple_of=multiple_of,
            options={**schedules.options, **options},
            exact_savings=exact_savings,
            **shared,
        )
        if not blocks:
            _note_untried(method, loaded.name, requests)
    for remark in settings.remarks:
        print_note(f"note: {remark}")
    if loaded.weights != PRETRAINED and loaded.class_names is not None and loaded.class_names == imagenet_names(loaded.model):
        print_note(f"note: class names: {loaded.class_names.source}; --class-map FILE gives others")
    if output is None and settings.output != LOGITS:
        print_note(f"note: {loaded.name} has no classifier head: its graphs give {settings.output} (--output)")
    path = bundle or Path("bundles") / f"{loaded.name.replace('/', '-')}-{settings.label}"
    with show_progress("building", quiet) as advance:
        built = build_bundle(loaded, settings, path, force=force, progress=advance)
    for remark in built.remarks[len(settings.remarks) :]:
        print_warning(remark)
    opened, engines = built.bundle, list[CarriedEngine]()
    if targets:
        try:
            with show_progress("building engines", quiet) as advance:
                opened, engines = build_ahead(opened, targets, force=force, progress=advance, warn=print_warning)
        except KeyboardInterrupt as stop:
            again = command_line("edge-tprune", "engines", path, "--runtime", AHEAD, "--target", ",".join(targets))
            raise Interruption(f"interrupted: the bundle is built; build its engines with: {again}") from stop
    up_to_date = built.reused and all(engine.reused for engine in engines)
    print_note(f"{opened.path} is up to date" if up_to_date else f"built {opened.path}")
    if json:
        print_json(KIND.document(opened.manifest))
    else:
        print_table(bundle_table(opened))
        if engines:
            print_table(engines_table([(engine.budget, engine.record) for engine in engines]))


def _parse_targets(target: str | None, runtimes: list[str]) -> list[str]:
    """The GPUs to build engines for."""
    from edge_tprune.bundle.engines import AHEAD, check_targets

    if target is None:
        return []
    if AHEAD not in runtimes:
        raise UserError(f"--target is for --runtime {AHEAD}: TensorRT itself builds its engines on the GPU that runs them")
    targets = parse_list(target.lower(), str, "--target")
    check_targets(targets)
    return targets


def _request_budgets(budgets: str | None, schedules: Schedules) -> list[BudgetRequest]:
    """The shares of MACs that are asked for, and the schedules."""
    from edge_tprune.export.settings import BudgetRequest

    if budgets is None:
        budgets = "1.0" if schedules.found else "1.0,0.9,0.8,0.65,0.5"
    found = schedules.found.items()
    return [
        *(BudgetRequest(share) for share in (parse_list(budgets, float, "--budgets") if budgets.strip() else [])),
        *(BudgetRequest(share, tokens) for share, tokens in schedules.typed),
        *(BudgetRequest(float(share), tokens, *schedules.own.get(share, (None, None))) for share, tokens in found),
    ]


def _note_untried(method: str, network: str, requests: list[BudgetRequest]) -> None:
    """Says so where the method's own blocks were not tried on the network."""
    from edge_tprune.reduction import registry
    from edge_tprune.reduction.evidence import pattern_evidence
    from edge_tprune.reduction.tuned import is_tried

    solved = [each.share for each in requests if each.tokens is None and each.share is not None and each.share != 1]
    if not is_tried(registry.any_method(method), network, solved):
        print_note(
            f"note: where {method} removes tokens was tuned on {' and '.join(pattern_evidence(method))}; for another network, "
            "`edge-tprune search` may find better blocks"
        )
