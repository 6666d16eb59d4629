"""The commands. Each parses its arguments, calls its room and prints; rooms are imported when their command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_tprune import __version__
from edge_tprune.cli.common import Stopped, err, out, parse_list, parse_pairs, parse_range, print_json, progress_bar, say
from edge_tprune.errors import UserError

app = typer.Typer(
    name="edge-tprune",
    help="Fit a vision transformer to an edge board: remove tokens without training, build one checked graph per budget, measure, choose.",
    epilog="Example: edge-tprune build reference --out bundles/ref && edge-tprune eval bundles/ref && edge-tprune profile bundles/ref",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory that `build` wrote.")]
ProfilesArgument = Annotated[
    list[Path], typer.Argument(metavar="PROFILE...", help="Profile directories, or directories that hold some.")
]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads per engine; one per physical core by default.", show_default=False)
]
BudgetNames = Annotated[str | None, typer.Option("--budgets", help="Only these budgets of the bundle, by name, with commas.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"edge-tprune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Examples: edge-tprune methods · edge-tprune methods --json")
def methods(json: Json = False) -> None:
    """List the reduction methods: paper, the evidence they need, where they reduce, their options; and which are absent, and why."""
    from edge_tprune.cli.views import absent_table, methods_document, methods_table

    document = methods_document()
    if json:
        print_json(document)
    else:
        out().print(methods_table(document))
        out().print(absent_table(document))


@app.command(
    epilog="Examples: edge-tprune build reference --out bundles/ref · "
    "edge-tprune build deit_small_patch16_224 --weights w.safetensors --method zero_tprune --budgets 1.0,0.8,0.65,0.5 --out bundles/deit-s · "
    "edge-tprune build deit_tiny_patch16_224 --method evit --option fuse=true --blocks 4,7,10 --multiple-of 8"
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
        str, typer.Option(help="Runtimes to write graphs for, with commas: onnxruntime, tensorrt.")
    ] = "onnxruntime",
    classes: Annotated[int | None, typer.Option(help="Classes of a fine-tuned checkpoint.")] = None,
    bundle: Annotated[
        Path | None, typer.Option("--out", help="The bundle's directory; bundles/MODEL-METHOD by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Rebuild even if an equal bundle is there.")] = False,
    json: Json = False,
) -> None:
    """Build a bundle: one checked ONNX graph per budget, sharing one weight file."""
    from edge_tprune.cli.views import need_host

    need_host()
    from edge_tprune.build.builder import build as build_bundle
    from edge_tprune.build.builder import make_plan
    from edge_tprune.build.configuration import read
    from edge_tprune.cli.views import bundle_table
    from edge_tprune.models.loading import load_model
    from edge_tprune.reduction import registry

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
        runtimes=[part.strip() for part in runtime.split(",") if part.strip()],
    )
    for remark in plan.remarks:
        say(f"note: {remark}")
    with progress_bar("building") as advance:
        built = build_bundle(loaded, plan, bundle or Path("bundles") / f"{model}-{method}", force=force, progress=advance)
    say(f"{built.bundle.path} is up to date" if built.reused else f"built {built.bundle.path}")
    if json:
        print_json(built.bundle.manifest)
    else:
        out().print(bundle_table(built.bundle))


@app.command(
    epilog="Examples: edge-tprune search reference --budgets 0.65 --out ref.json && edge-tprune build reference --schedule ref.json · "
    "edge-tprune search deit_tiny_patch16_224 --weights w.safetensors --method bat --data photos --budgets 0.8,0.65,0.5 --stages 2-4"
)
def search(
    model: Annotated[str, typer.Argument(help="'reference', or a timm name of a plain ViT.")],
    weights: Annotated[str | None, typer.Option(help="As for `build`.")] = None,
    method: Annotated[str, typer.Option(help="See `edge-tprune methods`.")] = "zero_tprune",
    budgets: Annotated[
        str, typer.Option(help="Shares of the unpruned MACs, with commas; options are searched at the first.")
    ] = "0.65",
    data: Annotated[
        str | None,
        typer.Option(
            help="A directory of images, labelled or not, that accuracy is not judged on; training canvases for the reference model."
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="Use at most this many of them.")] = 200,
    trials: Annotated[int, typer.Option(help="Configurations to try per budget.")] = 60,
    stages: Annotated[
        str | None,
        typer.Option(help="How many blocks may remove tokens: 3 or 2-4; the method's own number and one more by default."),
    ] = None,
    score: Annotated[str, typer.Option(help="kl: divergence from the unpruned model, needs no labels; top1: errors.")] = "kl",
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    option: Annotated[list[str] | None, typer.Option(help="An option to hold fixed, name=value; may be repeated.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", show_default=False)] = None,
    classes: Annotated[int | None, typer.Option(help="Classes of a fine-tuned checkpoint.")] = None,
    file: Annotated[Path, typer.Option("--out", help="The schedule file; what was tried is logged beside it.")] = Path(
        "schedule.json"
    ),
    json: Json = False,
) -> None:
    """Search where a method should remove how many tokens, and its options, at a budget. Run again to continue a search cut short."""
    from edge_tprune.cli.views import need_host

    need_host()
    import torch

    from edge_tprune.build.configuration import find
    from edge_tprune.cli.views import search_table
    from edge_tprune.models.data import open_dataset
    from edge_tprune.models.loading import load_model
    from edge_tprune.reduction import registry

    options = registry.parse_options(registry.method(method), parse_pairs(option or [], "--option"))
    loaded = load_model(model, weights, classes)
    source = data if data is not None else ("reference" if model == "reference" else None)
    if source is None:
        raise UserError("no images to search on: give --data DIRECTORY (labels are not needed)")
    if threads is not None:
        if threads < 1:
            raise UserError(f"--threads {threads} is out of range: give 1 or more")
        torch.set_num_threads(threads)
    try:
        with progress_bar("searching") as advance:
            found = find(
                loaded,
                method,
                parse_list(budgets, float, "--budgets"),
                open_dataset(source, loaded.model.num_classes, images, training=True),
                file,
                trials=trials,
                stages=parse_range(stages, "--stages") if stages else None,
                score=score,
                seed=seed,
                options=options,
                progress=advance,
            )
    except KeyboardInterrupt as stop:
        raise Stopped(f"stopped; what was tried is kept beside {file}: run the same command again to go on") from stop
    if json:
        print_json(found)
    else:
        out().print(search_table(found))
        given = "".join(
            f" --{name} {value}" for name, value in (("weights", weights), ("classes", classes)) if value is not None
        )
        say(f"wrote {file}; build it with: edge-tprune build {model}{given} --schedule {file}")


@app.command(
    epilog="Examples: edge-tprune explain reference:17 --methods zero_tprune,evit,tome --budgets 0.65,0.5 · "
    "edge-tprune explain cat.jpg --model deit_tiny_patch16_224 --weights w.safetensors --method zero_tprune --budgets 0.8,0.65,0.5 "
    "--out explain.png · edge-tprune explain cat.jpg --model deit_tiny_patch16_224 --methods tome,vote_mix --out explain.html"
)
def explain(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="An image file, or 'reference:17' for a canvas of the built-in task.")
    ],
    model: Annotated[str, typer.Option(help="'reference', or a timm name of a plain ViT.")] = "reference",
    weights: Annotated[
        str | None, typer.Option(help="As for build: a file, 'random', or the pretrained ones by default.")
    ] = None,
    method: Annotated[
        str, typer.Option("--method", "--methods", help="One, or several with commas to compare.")
    ] = "zero_tprune",
    budgets: Annotated[str, typer.Option(help="Shares of the unpruned MACs, with commas.")] = "0.8,0.65,0.5",
    blocks: Annotated[
        str | None, typer.Option(help="Blocks that remove tokens, counted from 1; the method's own by default.")
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help="name=value, for the methods that have it; may be repeated.")] = None,
    classes: Annotated[int | None, typer.Option(help="Classes of a fine-tuned checkpoint.")] = None,
    picture: Annotated[
        Path, typer.Option("--out", help="What to draw: a .png, or an .html page that needs nothing else.")
    ] = Path("explain.png"),
    json: Json = False,
) -> None:
    """Draw which patches of an image every stage keeps, drops or merges, one row per method and budget."""
    from edge_tprune.cli.views import explanation_table, need_host

    need_host()
    from edge_tprune.build.explain import check_suffix, open_image, write
    from edge_tprune.build.explain import explain as follow
    from edge_tprune.models.loading import load_model
    from edge_tprune.reduction import registry

    check_suffix(picture)
    names = list(dict.fromkeys(parse_list(method, str, "--methods")))
    for name in names:
        registry.method(name)  # before a model is loaded
    pixels = open_image(image)
    explanation = follow(
        load_model(model, weights, classes),
        pixels,
        names,
        parse_list(budgets, float, "--budgets"),
        name=Path(image).name,
        blocks=parse_list(blocks, int, "--blocks") if blocks else None,
        options=parse_pairs(option or [], "--option"),
    )
    write(explanation, picture)
    say(f"drew {picture}")
    if json:
        print_json(explanation.to_json() | {"out": str(picture)})
    else:
        out().print(explanation_table(explanation.to_json()))


@app.command(
    "eval",
    epilog="Examples: edge-tprune eval bundles/ref · edge-tprune eval bundles/deit-s --data imagenet/val --limit 5000",
)
def evaluate(
    bundle: BundleArgument,
    data: Annotated[
        str | None,
        typer.Option(
            help="A directory with one sub-directory of images per class, or of unlabelled images; 'reference' for the built-in task."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most this many images, spread over the classes.")] = None,
    budgets: BudgetNames = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure accuracy per budget through the built graphs and store it in the bundle."""
    from edge_tprune.cli.views import need_host

    need_host()
    from edge_tprune.agent.profile import default_threads
    from edge_tprune.build.bundle import Bundle
    from edge_tprune.build.evaluate import evaluate as run
    from edge_tprune.cli.views import accuracy_table
    from edge_tprune.models.data import open_dataset

    opened = Bundle.open(bundle)
    source = data if data is not None else ("reference" if opened.manifest["model"]["name"] == "reference" else None)
    if source is None:
        raise UserError("no images to evaluate on: give --data DIRECTORY (one sub-directory per class, or unlabelled images)")
    dataset = open_dataset(source, opened.manifest["model"]["classes"], limit)
    names = parse_list(budgets, str, "--budgets") if budgets else None
    with progress_bar("images") as advance:
        records = run(
            opened,
            dataset,
            budgets=names,
            threads=threads if threads is not None else default_threads(),
            progress=lambda done, of: advance("images", done, of),
        )
    if json:
        print_json({"bundle": str(bundle), "accuracy": records})
    else:
        out().print(accuracy_table(opened, records))


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


@app.command(
    epilog="Examples: edge-tprune compare profiles/RUN · edge-tprune compare profiles --json · edge-tprune compare profiles --markdown"
)
def compare(
    profiles: ProfilesArgument,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table, for a README.")] = False,
    json: Json = False,
) -> None:
    """Show one row per budget: tokens, MACs, accuracy, latency, throughput, memory, speed-up with its uncertainty."""
    from edge_tprune.analysis.compare import render, to_document
    from edge_tprune.analysis.report import markdown_table
    from edge_tprune.analysis.table import load_rows

    rows = load_rows(profiles)
    if json:
        print_json(to_document(rows))
    elif markdown:
        print(markdown_table(rows), end="")
    else:
        render(rows, out())


MaxP50 = Annotated[float | None, typer.Option(help="Median latency, ms.")]
MaxP95 = Annotated[float | None, typer.Option(help="95th percentile of latency, ms.")]
MaxDrop = Annotated[float | None, typer.Option(help="Points of top-1 it may lose against the unpruned model.")]
MinAgreement = Annotated[float | None, typer.Option(help="Per cent of images on which it agrees with the unpruned model.")]
MinFps = Annotated[float | None, typer.Option(help="Images per second.")]
MaxMemory = Annotated[float | None, typer.Option(help="Peak memory, MB (10^6 bytes).")]
Minimize = Annotated[
    str | None,
    typer.Option("--optimize", "--minimize", "--maximize", help="latency, p95, throughput, accuracy, memory or macs."),
]


@app.command(
    epilog="Examples: edge-tprune select profiles/RUN · edge-tprune select profiles/RUN --max-p95-ms 8 --max-top1-drop 1 --minimize latency · "
    "edge-tprune select profiles/RUN --min-fps 60 --maximize accuracy"
)
def select(
    profiles: ProfilesArgument,
    max_p50_ms: MaxP50 = None,
    max_p95_ms: MaxP95 = None,
    max_top1_drop: MaxDrop = None,
    min_agreement: MinAgreement = None,
    min_fps: MinFps = None,
    max_peak_memory_mb: MaxMemory = None,
    objective: Minimize = None,
    force: Annotated[bool, typer.Option("--force", help="Choose among rows that should not be compared, and say so.")] = False,
    json: Json = False,
) -> None:
    """Choose a budget under constraints, with the reason, the room it leaves and the runner-up. Exit code 1: nothing fits."""
    from edge_tprune.analysis.select import NothingFits, choose, render_choice
    from edge_tprune.analysis.table import load_rows

    limits = {
        "max_p50_ms": max_p50_ms,
        "max_p95_ms": max_p95_ms,
        "max_top1_drop": max_top1_drop,
        "min_agreement": min_agreement,
        "min_fps": min_fps,
        "max_peak_memory_mb": max_peak_memory_mb,
    }
    try:
        choice = choose(load_rows(profiles), limits, objective, force)
    except NothingFits as no:
        if json:
            print_json(no.to_document())
        raise
    if json:
        print_json(choice.to_document())
    else:
        render_choice(choice, out())


@app.command(
    epilog="Examples: edge-tprune report profiles/RUN --out report.html · edge-tprune report profiles/RUN --picture --max-top1-drop 2"
)
def report(
    profiles: ProfilesArgument,
    page: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("report.html"),
    picture: Annotated[
        bool, typer.Option("--picture", help="Also write accuracy against latency as an SVG beside it.")
    ] = False,
    max_p95_ms: MaxP95 = None,
    max_top1_drop: MaxDrop = None,
    min_fps: MinFps = None,
    max_peak_memory_mb: MaxMemory = None,
    objective: Minimize = None,
    json: Json = False,
) -> None:
    """Write one self-contained HTML page: the answer, the table, the plots, the environment, how to reproduce."""
    from edge_tprune.analysis.report import write_report

    limits = {
        "max_p95_ms": max_p95_ms,
        "max_top1_drop": max_top1_drop,
        "min_fps": min_fps,
        "max_peak_memory_mb": max_peak_memory_mb,
    }
    written = write_report(profiles, page, constraints=limits, objective=objective, picture=picture)
    print_json({"report": str(written), "picture": str(written.with_suffix(".svg")) if picture else None}) if json else print(
        written
    )
