"""`edge-tprune fit`: the most accurate network that meets limits on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_tprune.cli.data_options import SkipUnreadable, open_data, open_photos
from edge_tprune.cli.interruption import Interruption
from edge_tprune.cli.model_options import ModelChoice, Plugins, load_plugins, with_model_options
from edge_tprune.cli.options import Json, Quiet, Seed, Threads, Workers
from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.root import command
from edge_tprune.cli.terminal import print_json, print_note, print_table
from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.text import command_line

if TYPE_CHECKING:
    from edge_tprune.models.data import Dataset, ImageFolder

_LEAST, _MOST = 1e-6, 1e12  # of a limit


@command(
    "edge-tprune fit reference --max-p95-ms 8",
    "edge-tprune fit deit_tiny_patch16_224 --data photos --max-ms 12 --methods bat,evit --precision fp32,int8",
    "edge-tprune fit deit_tiny_patch16_224 --data photos --eval-data val --max-p95-ms 8 --finetune",
    "edge-tprune fit deit_tiny_patch16_224 --data photos --max-p95-ms 8 --host jetson@orin --runtime tensorrt --precision fp16",
    kept="what was built, measured and tried is used again",
)
@with_model_options
def fit(
    model: Annotated[
        str,
        typer.Argument(
            help="'reference', a timm model name, or 'local-dir:DIRECTORY' (a downloaded Hugging Face Hub repository)."
        ),
    ],
    choice: ModelChoice,
    data: Annotated[
        str | None,
        typer.Option(
            help="A directory of images, labelled or not, to search on. Default for the reference model: its training canvases.",
            show_default=False,
        ),
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option(
            help="A directory of images to measure accuracy on; by default images of --data that the search does not use.",
            show_default=False,
        ),
    ] = None,
    max_ms: Annotated[float | None, typer.Option(help="Highest median latency, ms.")] = None,
    max_p95_ms: Annotated[float | None, typer.Option(help="Highest 95th percentile of latency, ms.")] = None,
    max_energy_mj: Annotated[float | None, typer.Option(help="Highest energy per image, idle included, mJ.")] = None,
    min_fps: Annotated[float | None, typer.Option(help="Lowest rate, images per second.")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Lowest speed-up over the unpruned network, such as 1.5.")] = None,
    methods: Annotated[str, typer.Option(help="Methods to compare, comma-separated; at most six.")] = "zero_tprune",
    images: Annotated[int, typer.Option(help="Use at most this many images.")] = 200,
    trials: Annotated[int, typer.Option(help="Configurations to try per search.")] = 30,
    seed: Seed = 0,
    workers: Workers = 1,
    batch: Annotated[int, typer.Option(help="Images per inference.")] = 1,
    runtime: Annotated[str, typer.Option(help="onnxruntime (CPU) or tensorrt (GPU).")] = "onnxruntime",
    precision: Annotated[
        str,
        typer.Option(help="fp32, fp16, mixed or int8; or fp32 and others, comma-separated, to choose among precisions too."),
    ] = "fp32",
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="PHOTOS", help="A directory of photos for int8; the images of --data by default.", show_default=False
        ),
    ] = None,
    threads: Threads = None,
    rounds: Annotated[int, typer.Option(help="How often each graph is timed.")] = 6,
    seconds: Annotated[float, typer.Option(help="How long each graph is timed in a round, s.")] = 0.5,
    host: Annotated[
        str | None,
        typer.Option(metavar="USER@HOST[:PORT]", help="Measure on this board, over SSH, instead of here.", show_default=False),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="With --host: copy every package to the board, which needs no internet then.")
    ] = False,
    ssh_config: Annotated[
        Path | None, typer.Option(help="With --host: SSH configuration to use instead of your own.", show_default=False)
    ] = None,
    finetune: Annotated[
        bool,
        typer.Option(
            "--finetune",
            help="Fine-tune the chosen network, without labels, on the images of --data that accuracy is not measured on.",
        ),
    ] = False,
    finetune_time: Annotated[
        str | None, typer.Option(help="With --finetune: time limit, such as 20m.", show_default=False)
    ] = None,
    skip_unreadable: SkipUnreadable = False,
    plugin: Plugins = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Directory in which everything is kept; fits/MODEL by default.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Continue even if other programs disturbed a run.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Find the most accurate network within a limit on latency, energy or rate, measured here or on a board.

    The steps: probe, search, build, measure, choose. Run the command again to continue after an interruption, or with
    another limit to reuse the measurements.
    """
    from edge_tprune.cli.model_views import require_host

    require_host()
    from edge_tprune.analysis.choice import Choice
    from edge_tprune.cli.comparison_views import describe_failure, print_choice
    from edge_tprune.cli.fit_runs import Runs
    from edge_tprune.cli.fit_views import answer_document, round_table
    from edge_tprune.cli.fitting import Fit, FitRequest, Tuning
    from edge_tprune.deploy.hosts import parse_target
    from edge_tprune.deploy.journey import Options
    from edge_tprune.files import sha256_json
    from edge_tprune.finetune.request import REFERENCE_CANVASES, parse_time
    from edge_tprune.models.data import ImageFolder
    from edge_tprune.record.settings import RunRequest
    from edge_tprune.reduction import registry
    from edge_tprune.reduction.code import method_code_sha256
    from edge_tprune.reduction.own import is_own
    from edge_tprune.telemetry.environment import describe_machine, read_environment

    load_plugins(plugin)
    limits = _check_limits(
        {
            "max_p50_ms": max_ms,
            "max_p95_ms": max_p95_ms,
            "max_energy_mj": max_energy_mj,
            "min_fps": min_fps,
            "min_speedup": min_speedup,
        }
    )
    precisions = _check_precisions(parse_list(precision, str, "--precision"))
    run = RunRequest(runtime=runtime, rounds=rounds, seconds_per_round=seconds, threads=threads)
    run.check()
    board = None if host is None else parse_target(host)
    if board is None and (offline or ssh_config is not None):
        raise UserError(f"{'--offline' if offline else '--ssh-config'} is for a board: add --host, or leave it out")
    if calibration is not None and "int8" not in precisions:
        raise UserError("--calibration is for int8: add --precision fp32,int8, or leave it out")
    if images < 1:
        raise UserError(f"--images {images} is out of range: give 1 or more")
    if trials < 1:
        raise UserError(f"{trials} trials are too few: give 1 or more")
    if choice.class_map is not None and eval_data is None:
        raise UserError("--class-map gives labels to the images of --eval-data: add those, or leave it out")
    if finetune_time is not None and not finetune:
        raise UserError("--finetune-time says how long to fine-tune: add --finetune")
    seconds_to_tune = None if finetune_time is None else parse_time(finetune_time, "--finetune-time")
    names = tuple(parse_list(methods, str, "--methods"))
    loaded = choice.load(model, names_classes=False)
    source = data if data is not None else ("reference" if model == "reference" else None)
    if source is None:
        raise UserError("no images to search on: give --data DIRECTORY (labels are not needed)")

    def images_of(place: str, training: bool, limit: int | None = images, labels: bool = False) -> Dataset:
        return open_data(
            place, loaded.model.num_classes, limit=limit, training=training, labels=labels, class_map=choice.class_map if labels else None,
            class_names=loaded.class_names, skip_unreadable=skip_unreadable, quiet=quiet,
        )  # fmt: skip

    photos: Dataset
    judged: Dataset
    if eval_data or source == "reference":
        photos, judged = images_of(source, True), images_of(eval_data or source, False, labels=eval_data is not None)
    else:
        folder = images_of(source, True, limit=2 * images)
        assert isinstance(folder, ImageFolder)  # whatever is not the reference task
        photos, judged = _split(folder, images)
        if judged is not photos:
            print_note(f"fit: searching on {len(photos)} of them; accuracy is measured on the other {len(judged)}")
    photos_for_int8: Dataset | None = None
    if "int8" in precisions:
        own = photos if calibration is None and data is not None else open_photos(loaded, calibration, precisions, quiet)
        photos_for_int8 = own or photos
    tuning = None
    if finetune:
        rest = _without(images_of(source, True, limit=REFERENCE_CANVASES if source == "reference" else None), judged)
        tuning = Tuning(rest, seconds_to_tune, lambda file: choice.with_weights(file).load(model, names_classes=False))
    key = sha256_json(
        {
            "model": [loaded.name, loaded.weights_sha256, loaded.settings],
            "images": [photos.fingerprint, judged.fingerprint],
            "methods": [*names, *(method_code_sha256(kind) for kind in map(registry.method, names) if is_own(kind))],
            "seed": seed,
            "calibration": photos_for_int8.fingerprint if calibration is not None and photos_for_int8 is not None else None,
            "run": [runtime, threads, rounds, seconds, batch, host],
        }
    )
    where = out or Path("fits") / loaded.name.replace("/", "-")
    request = FitRequest(where, names, limits, tuple(precisions), batch, trials, seed, force, workers)
    runs = Runs(where / "profiles", run, board, Options(offline=offline, ssh_config=ssh_config), quiet)
    try:
        with show_progress("fitting", quiet) as advance:
            machine = "" if board is not None else describe_machine(read_environment())
            work = Fit(request, loaded, photos, judged, key, runs, advance, photos_for_int8, tuning, machine)
            latest, answer = work.run()
    except KeyboardInterrupt as stop:
        raise Interruption(f"stopped; what was done is kept in {where}: run the same command again to go on") from stop
    if json:
        print_json(answer_document(where, latest, answer, work.rows(latest)))
    else:
        print_table(round_table(latest, work.rows(latest), photos.name if judged is photos else judged.name))
        if isinstance(answer, Choice):
            print_choice(answer)
    if not isinstance(answer, Choice):
        raise NegativeAnswer(describe_failure(answer))
    pruned = any(candidate.name == answer.row.budget.partition("@")[0] for candidate in latest.candidates)
    if "int8" not in precisions and pruned:
        tried = ",".join(dict.fromkeys(["fp32", *precisions, "int8"]))
        print_note(f"int8 was not tried: with --precision {tried} a network that removes fewer tokens may meet the limit")
    print_note(f"measured on {describe_machine(answer.row.profile.document.environment)}")
    print_note(
        f"bundle: {where / latest.bundle}, budget {answer.row.budget}; "
        f"report: {command_line('edge-tprune', 'report', where / (latest.profile or ''))}"
    )


def _check_limits(given: dict[str, float | None]) -> dict[str, float]:
    """Those that are given, of which one must be."""
    from edge_tprune.analysis.limits import option_name

    limits = {name: bound for name, bound in given.items() if bound is not None}
    if not limits:
        raise UserError("fit needs a limit: give --max-p95-ms, --max-ms, --max-energy-mj, --min-fps or --min-speedup")
    for name, bound in limits.items():
        if not _LEAST <= bound <= _MOST:
            option = "--max-ms" if name == "max_p50_ms" else option_name(name)
            raise UserError(f"{option} {bound:g} is no limit: give a number from {_LEAST:g} to {_MOST:g}")
    return limits


def _check_precisions(names: list[str]) -> list[str]:
    """The precisions to choose among, float32 first."""
    for name in names:
        if name not in ("fp32", "fp16", "mixed", "int8"):
            raise UserError(f"--precision {name}: fit knows fp32, fp16, mixed and int8")
    found = sorted(dict.fromkeys(names), key=lambda name: name != "fp32")
    if len(found) > 1 and found[0] != "fp32":
        raise UserError(
            f"--precision {','.join(found)}: of several precisions one must be fp32, which the others are compared with"
        )
    return found


def _split(images: ImageFolder, most: int) -> tuple[ImageFolder, ImageFolder]:
    """Images to search on, `most` of them, and images to measure accuracy on: the others, where they are at least half as many; else the same.

    Of many trials the best suits the search's images by chance, too; other images do not know that.
    """
    photos = images.first(most)
    others = images.without(set(photos.files), "searched on")
    searched = {file.resolve() for file in photos.files}
    from edge_tprune.models.images import format_path

    if twice := next((file for file in others.files if file.resolve() in searched), None):
        raise UserError(f"{format_path(twice)} is in --data more than once: it would be searched on and judged on as well")
    return photos, others if 2 * len(others) >= len(photos) else photos


def _without(photos: Dataset, judged: Dataset) -> Dataset:
    """The photos that accuracy is not measured on."""
    judged_files = {file.resolve() for file in getattr(judged, "files", ())}
    rest = photos.without(
        {file for file in getattr(photos, "files", ()) if file.resolve() in judged_files}, "measured accuracy on"
    )
    if len(rest) == 0:
        raise UserError(
            f"{photos.name}: accuracy is measured on all of its {len(photos)} images, so that none are left for --finetune: "
            "give other images with --eval-data, or a smaller --images"
        )
    return rest
