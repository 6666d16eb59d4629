"""From a bundle's graph to the file that a runtime runs: the graph itself, a plan of this device, or one built ahead of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edge_tprune.bundle.bundle import Artifact, Budget, Bundle, locked
from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.files import sha256_file
from edge_tprune.runtime.cuda import open_cuda
from edge_tprune.runtime.tensorrt.builder import Progress, Settings
from edge_tprune.runtime.tensorrt.cache import (
    Job,
    Source,
    Warn,
    find_or_build,
    job_for_device,
    plan_key,
    read_record,
    record_file,
)
from edge_tprune.runtime.tensorrt.library import MODULES, Library, load, rtx_targets, target_of
from edge_tprune.telemetry.environment import read_environment

AHEAD = "tensorrt-rtx"  #: the one runtime whose plans can be built without the GPU they are for


def prepare(
    bundle: Bundle,
    budget: str,
    runtime: str,
    precision: str | None = None,
    *,
    settings: Settings | None = None,
    force: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> Path:
    """The file to hand to `open_engine` for one budget.

    For ONNX Runtime that is the graph. For TensorRT it is the plan of this very device: one that the bundle carries and that fits, else the
    cache's, else one that is built now from the bundle's graph, which takes from seconds to many minutes.

    Args:
        bundle: an opened (and verified) bundle.
        budget: its name.
        runtime: what will run it.
        precision: of the graph; by default the one that the bundle was built for first.
        settings: of a build.
        force: build anew whatever is there.
        cache: where plans are kept; by default the user's cache.
        progress: called while building.
        warn: called with what a person should know about a build.

    Raises:
        UserError: the budget has no graph for `runtime` in `precision`; no library, driver or GPU; the build failed.
    """
    chosen = bundle.budget(budget)
    graph = chosen.artifact(runtime, precision)
    if runtime not in MODULES:
        return bundle.path / graph.file
    here = machine(runtime)
    if runtime == AHEAD and not force and (plan := chosen.plan(graph.precision, target_of(here["sm"]), here["version"])):
        return bundle.path / plan.file
    job = job_for_device(source(bundle, chosen, graph), here, settings, cache)
    find_or_build(job, force=force, progress=progress, warn=warn)
    return job.plan


def source(bundle: Bundle, budget: Budget, graph: Artifact) -> Source:
    """What a plan of `budget` is built from."""
    folder = PurePosixPath(graph.file).parent
    weights = [
        entry["sha256"]
        for name, entry in sorted(bundle.manifest["files"].items())
        if PurePosixPath(name).parent == folder and PurePosixPath(name).suffix == ".bin"
    ]
    return Source(
        graph=bundle.path / graph.file,
        precision=graph.precision,
        graph_sha256=graph.sha256,
        weights_sha256=tuple(weights),
        blocks=len(budget.schedule),
        schedule=budget.schedule,
    )


def machine(runtime: str, root: Path = Path("/")) -> dict[str, Any]:
    """What identifies this device and the software that builds and runs its plans.

    All Orin modules call their GPU "Orin", and tactics are chosen at the clocks of the build: so module and power mode count, too.

    Raises:
        UserError: no library, driver or GPU.
    """
    library, device, where = load(runtime), open_cuda().device, read_environment(root)
    return {
        "runtime": runtime,
        "version": library.version,
        "device": device.name,
        "sm": device.sm,
        "module": where.board_model,
        "machine": where.machine,
        "os": where.l4t_release or where.os,
        "power_mode": None if where.power_mode is None else asdict(where.power_mode),
    }


@dataclass(frozen=True)
class Ahead:
    """One plan that a bundle carries."""

    budget: str
    target: str
    plan: Path
    record: dict[str, Any]  #: how it was built; `edge_tprune.runtime.tensorrt.cache`
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
    settings: Settings | None = None,
    force: bool = False,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> list[Ahead]:
    """Builds TensorRT-RTX plans of every budget for GPUs that need not be here, and lists them in the bundle's manifest.

    Plans of another version of the library are dropped; plans for other targets stay. Interrupted, the bundle is what it was.

    Args:
        bundle: an opened (and verified) bundle with graphs for tensorrt-rtx.
        targets: "sm86", ...
        settings: of the build.
        force: build plans anew that are there already.
        progress: called while building, with the number of plans done.
        warn: called with what a person should know.

    Raises:
        UserError: a target that the library does not offer, a budget without such a graph, a failed build.
    """
    targets = list(dict.fromkeys(targets))
    library = check_targets(targets)
    graphs = [(budget, graph) for budget in bundle.budgets for graph in budget.graphs(AHEAD)]
    if not graphs:
        bundle.budgets[0].artifact(AHEAD)  # says what to do
    built: list[Ahead] = []
    with locked(bundle.path):
        for number, (budget, graph, target) in enumerate((b, g, t) for b, g in graphs for t in targets):
            what = f"engine of budget {budget.name} for {target}"

            def tell(text: str, done: int, of: int, what: str = what, number: int = number) -> None:
                if progress is not None:
                    progress(f"{what}: {text.lower()}", number, len(graphs) * len(targets))

            def tell_warning(text: str, what: str = what) -> None:
                if warn is not None:
                    warn(f"{what}: {text}")

            tell("starting", 0, 1)
            made = source(bundle, budget, graph)
            key = plan_key(made, {"runtime": AHEAD, "version": library.version, "target": target})
            file = bundle.path / "plans" / f"{made.graph.name.removesuffix('.onnx')}.{target}.plan"
            new = find_or_build(
                Job(made, key, file, settings or Settings(), target), force=force, progress=tell, warn=tell_warning
            )
            built.append(Ahead(budget.name, target, file, read_record(file) or {}, not new))
        _list(bundle, library, built)
        for lock in (bundle.path / "plans").glob(".*.lock"):  # the bundle's own lock says that nobody holds them
            lock.unlink()
    return built


def _list(bundle: Bundle, library: Library, built: Sequence[Ahead]) -> None:
    """Writes the plans into the manifest, and removes those that it no longer names."""
    old = {name for name in bundle.files if name.startswith("plans/")}
    files: dict[str, Any] = bundle.manifest["files"]
    new = {ahead.plan for ahead in built}
    for entry, budget in zip(bundle.manifest["budgets"], bundle.budgets):
        kept = [
            artifact
            for artifact in budget.artifacts
            if artifact.form != "plan" or (artifact.version == library.version and bundle.path / artifact.file not in new)
        ]
        for ahead in (ahead for ahead in built if ahead.budget == budget.name):
            relative = ahead.plan.relative_to(bundle.path).as_posix()
            kept.append(
                Artifact(
                    runtime=AHEAD,
                    precision=ahead.record["key"]["precision"],
                    form="plan",
                    file=relative,
                    sha256=ahead.record["sha256"],
                    bytes=ahead.record["bytes"],
                    target=ahead.target,
                    version=library.version,
                )
            )
            described = record_file(ahead.plan)
            files[f"{relative}.json"] = {"sha256": sha256_file(described), "bytes": described.stat().st_size}
        kept.sort(
            key=lambda artifact: (artifact.form == "plan", artifact.form == "plan" and artifact.file)
        )  # graphs stay in order
        entry["artifacts"] = [artifact.to_json() for artifact in kept]
    bundle.reload()
    gone = old - {name for budget in bundle.budgets for a in budget.artifacts for name in (a.file, f"{a.file}.json")}
    for name in gone:
        files.pop(name, None)
    bundle.save_manifest()
    for name in gone:
        (bundle.path / name).unlink(missing_ok=True)
