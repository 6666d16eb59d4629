"""From a bundle's graph to the file that a runtime runs: the graph itself, an engine file of this device, or one built ahead of time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

import msgspec

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import ENGINE_FILE, Artifact, Budget, FileEntry, Manifest
from edge_tprune.bundle.revision import LEFT_BEHIND, Revision, check_revisable, read_again, revise, work_lock
from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.files import sha256_file
from edge_tprune.runtime.cuda import open_cuda
from edge_tprune.runtime.tensorrt.build_process import EngineBuild, GraphSource
from edge_tprune.runtime.tensorrt.builder import BuildError, Progress
from edge_tprune.runtime.tensorrt.cache import Warn, build_for_device, engine_key, find_or_build, has_settings, is_there
from edge_tprune.runtime.tensorrt.library import MODULES, Library, load, rtx_targets, target_of, unserved
from edge_tprune.runtime.tensorrt.record import EngineRecord, EngineSettings, Platform, read_record, record_file
from edge_tprune.telemetry.environment import read_environment

FOLDER = "engines"  #: of a bundle, where engine files lie
AHEAD = "tensorrt-rtx"  #: the one runtime whose engine files can be built without the GPU they are for


def prepare(
    bundle: Bundle,
    budget: str,
    runtime: str,
    precision: str | None = None,
    *,
    settings: EngineSettings | None = None,
    force: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> Path:
    """The file to hand to `open_engine` for one budget.

    For ONNX Runtime that is the graph. For TensorRT it is the engine file of this very device: one that the bundle carries and that fits,
    else the cache's, else one that is built now from the bundle's graph, which takes from seconds to many minutes.

    Args:
        bundle: an opened (and verified) bundle.
        budget: its name.
        runtime: what will run it.
        precision: of the graph; by default the one that the bundle was built for first.
        settings: of a build; an engine file that was built with others is built again.
        force: build again whatever is there.
        cache: where engine files are kept; by default the user's cache.
        progress: called while building.
        warn: called with what a person should know about a build.

    Raises:
        UserError: the budget has no graph for `runtime` in `precision`; no library, driver or GPU; the build failed; the bundle carries an engine
            file that was built with other settings.
    """
    chosen = bundle.budget(budget)
    graph = chosen.artifact(runtime, precision)
    if runtime not in MODULES:
        return bundle.path / graph.file
    here = this_platform(runtime)
    if runtime == AHEAD and not force and here.sm is not None:
        carried = chosen.engine_file(graph.precision, target_of(here.sm), here.version)
        if carried is not None:
            if not has_settings(bundle.path / carried.file, settings or EngineSettings()):
                raise UserError(
                    f"budget {budget}: the bundle carries an engine for this GPU, which was built with other settings. Build that again with "
                    f"--target {carried.target}"
                )
            return bundle.path / carried.file
    source = graph_source(bundle, chosen, graph)
    return engine_of(source, runtime, settings=settings, force=force, cache=cache, progress=progress, warn=warn)


def engine_of(
    source: GraphSource,
    runtime: str,
    *,
    settings: EngineSettings | None = None,
    force: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> Path:
    """The file to hand to `open_engine` for a graph: for ONNX Runtime the graph, for TensorRT its engine file for this device. Arguments and errors as
    `prepare`."""
    if runtime not in MODULES:
        return source.graph
    build = build_for_device(source, this_platform(runtime), settings, cache)
    find_or_build(build, force=force, progress=progress, warn=warn)
    return build.file


def graph_source(bundle: Bundle, budget: Budget, graph: Artifact) -> GraphSource:
    """What an engine file of `budget` is built from."""
    folder = PurePosixPath(graph.file).parent
    weights = [
        entry.sha256
        for name, entry in sorted(bundle.manifest.files.items())
        if PurePosixPath(name).parent == folder and PurePosixPath(name).suffix == ".bin"
    ]
    return GraphSource(
        graph=bundle.path / graph.file,
        precision=graph.precision,
        graph_sha256=graph.sha256,
        weights_sha256=tuple(weights),
        blocks=len(budget.schedule),
        schedule=budget.schedule,
    )


def this_platform(runtime: str, root: Path = Path("/")) -> Platform:
    """What identifies this device and the software that builds and runs its engine files.

    Raises:
        UserError: no library, driver or GPU, or a GPU that the library does not serve: it would build an engine and then refuse to load it.
    """
    library, device, where = load(runtime), open_cuda().device, read_environment(root)
    if why := unserved(library, device.sm):
        raise UserError(why)
    return Platform(
        runtime=runtime,
        version=library.version,
        device=device.name,
        sm=device.sm,
        module=where.board_model,
        machine=where.machine,
        os=where.l4t_release or where.os,
        power_mode=None if where.power_mode is None else asdict(where.power_mode),
    )


@dataclass(frozen=True)
class CarriedEngine:
    """One engine file that a bundle carries."""

    budget: str
    target: str
    file: Path
    record: EngineRecord
    reused: bool  #: it was there already


def check_targets(targets: Sequence[str]) -> Library:
    """The library that builds for these GPUs ahead of time.

    Raises:
        UserError: it is not installed, or does not build for one of them.
    """
    library = load(AHEAD)
    offered = rtx_targets(library)
    for target in targets:
        if target not in offered:
            raise UserError(
                f"no engine can be built ahead of time for {target!r} (TensorRT-RTX {library.version} offers {', '.join(offered)})."
                f"{did_you_mean(target, offered)}"
            )
    return library


def build_ahead(
    bundle: Bundle,
    targets: Sequence[str],
    *,
    settings: EngineSettings | None = None,
    force: bool = False,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> tuple[Bundle, list[CarriedEngine]]:
    """Builds TensorRT-RTX engine files of every budget for GPUs that need not be here, and lists them in the bundle's manifest.

    Those of another version of the library are dropped; those for other targets stay. Interrupted, the bundle is what it was.

    Args:
        bundle: an opened (and verified) bundle with graphs for tensorrt-rtx.
        targets: "sm86", ...
        settings: of the build; an engine file that was built with others is built again.
        force: build again what is there already.
        progress: called while building, with the number of engine files done.
        warn: called with what a person should know.

    Returns:
        The bundle with the engine files, and what they are.

    Raises:
        UserError: a target that the library does not offer, a budget without such a graph, a failed build, a bundle that cannot be written.
    """
    targets = list(dict.fromkeys(targets))
    library = check_targets(targets)
    built = []
    with work_lock(bundle.path):
        bundle = read_again(bundle)  # engine files may have been added since it was opened
        jobs = [(budget, graph, target) for budget in bundle.budgets for graph in budget.graphs(AHEAD) for target in targets]
        if not jobs:
            bundle.budgets[0].artifact(AHEAD)  # says what to do
        if (bundle.path / FOLDER).is_symlink():
            raise UserError(f"{bundle.path / FOLDER} is a link: engine files lie in the bundle itself. Remove the link")
        check_revisable(bundle.path)
        for number, (budget, graph, target) in enumerate(jobs):
            what = f"engine of budget {budget.name} for {target}"

            def report(text: str, done: int, of: int, what: str = what, number: int = number) -> None:
                if progress is not None:
                    progress(f"{what}: {text.lower()}", number, len(jobs))

            def report_warning(text: str, what: str = what) -> None:
                if warn is not None:
                    warn(f"{what}: {text}")

            report("starting", 0, 1)
            source = graph_source(bundle, budget, graph)
            key = engine_key(source, Platform(runtime=AHEAD, version=library.version, target=target))
            there, free = _place(bundle, budget, graph, target)
            build = EngineBuild(source, key, there, settings or EngineSettings())
            if force or not is_there(build):
                build = replace(build, file=free)
            file = build.file
            new = find_or_build(build, force=force, progress=report, warn=report_warning)
            if (record := read_record(file)) is None:
                raise BuildError(f"{record_file(file)} cannot be read. Run the command again")
            built.append(CarriedEngine(budget.name, target, file, record, not new))
        revised = revise(bundle, lambda now: Revision(_with_engine_files(now, library, built)))
        for file in (
            bundle.path / FOLDER
        ).iterdir():  # of a build that was interrupted; the bundle's own lock says that none is at work
            name = f"{FOLDER}/{file.name}"
            if re.fullmatch(LEFT_BEHIND, name) and name not in revised.manifest.all_files:
                with suppress(OSError):
                    file.unlink()
    return revised, built


def _place(bundle: Bundle, budget: Budget, graph: Artifact, target: str) -> tuple[Path, Path]:
    """Where the engine file of a graph for a GPU lies, and where one that replaces it goes: never over a file that the manifest names, which stays
    whole until the manifest names the new one."""
    file = bundle.path / FOLDER / f"{Path(graph.file).name.removesuffix('.onnx')}.{target}.plan"
    other = file.with_suffix(".2.plan")
    listed = next(
        (a for a in budget.artifacts if (a.form, a.precision, a.target) == (ENGINE_FILE, graph.precision, target)), None
    )
    if listed is None:
        return file, file
    return bundle.path / listed.file, file if listed.file.endswith(other.name) else other


def _with_engine_files(bundle: Bundle, library: Library, built: Sequence[CarriedEngine]) -> Manifest:
    """The manifest with these engine files in place of those that they replace and of those of another version of the library."""
    new = {engine.file.relative_to(bundle.path).as_posix(): engine for engine in built}
    files, budgets = dict(bundle.manifest.files), []
    for budget in bundle.budgets:
        graphs = [artifact for artifact in budget.artifacts if artifact.is_graph]
        there = [artifact for artifact in budget.artifacts if not artifact.is_graph]
        replaced = {(engine.record.key.precision, engine.target) for engine in built if engine.budget == budget.name}
        kept = [a for a in there if a.version == library.version and (a.precision, a.target) not in replaced]
        added = [_artifact(file, engine, library) for file, engine in new.items() if engine.budget == budget.name]
        for dropped in {a.file for a in there} - {a.file for a in kept} - new.keys():
            files.pop(f"{dropped}.json", None)
        engine_files = sorted((*kept, *added), key=lambda artifact: artifact.file)
        budgets.append(msgspec.structs.replace(budget, artifacts=(*graphs, *engine_files)))
    for file, engine in new.items():
        described = record_file(engine.file)
        files[f"{file}.json"] = FileEntry(sha256=sha256_file(described), bytes=described.stat().st_size)
    return msgspec.structs.replace(bundle.manifest, files=files, budgets=tuple(budgets))


def _artifact(file: str, engine: CarriedEngine, library: Library) -> Artifact:
    return Artifact(
        runtime=AHEAD,
        precision=engine.record.key.precision,  # type: ignore[arg-type]  # of the graph that it was built from
        form=ENGINE_FILE,
        file=file,
        sha256=engine.record.sha256,
        bytes=engine.record.bytes,
        target=engine.target,
        version=library.version,
    )
