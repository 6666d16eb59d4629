"""From a bundle here to a checked agent, the bundle and profiles there and back: one board's journey."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec
from packaging.requirements import Requirement

from edge_tprune.agent.doctor.finding import Diagnosis
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import MANIFEST, FileEntry
from edge_tprune.deploy import remote, wheels
from edge_tprune.deploy.answers import Done, Facts, Listing, Ran, Wanted, not_understood, read_doctor
from edge_tprune.deploy.collect import collect
from edge_tprune.deploy.hosts import Target
from edge_tprune.deploy.ssh import Connection, hang_up
from edge_tprune.errors import ConnectionLost, EdgeTPruneError, InternalError, NegativeAnswer, UserError
from edge_tprune.files import sha256_file
from edge_tprune.processes import delayed_signals, result_of, signal_name
from edge_tprune.text import one_line

_AT_ONCE = 16  #: boards
_LONGEST_NAME = 100  #: of a bundle on a board
_HANG_UP_S = 0.2
_LAST_WORDS = 100  #: pieces of what a program on a board writes, of which the last line says why it failed
_INSTALLED_OVER_WHEEL = 6  #: how much larger an installed package is than its wheel, at most (unpacked, then compiled)


@dataclass(frozen=True)
class Options:
    """What a deployment does."""

    name: str | None = None  #: of the bundle there; its directory's by default
    offline: bool = False  #: carry every wheel there, instead of letting the board ask its package index
    #: Optional parts to install: "ort", "jetson", "cuda"; what the bundle cannot do without is added.
    extras: tuple[str, ...] = ()
    profile: tuple[str, ...] | None = None  #: arguments of `profile` on the board; None: no profile is made
    anyway: bool = False  #: profile although the doctor found a blocker
    collect: Path | None = None  #: where the board's profiles are collected
    ssh_config: Path | None = None


@dataclass
class Deployment:
    """What became of one board."""

    target: Target
    steps: list[str] = field(default_factory=list)  #: what was done, in words
    warning: str | None = None  #: about what is measured there
    doctor: Diagnosis | None = None  #: by the agent on the board
    collected: list[Path] = field(default_factory=list)
    error: EdgeTPruneError | None = None


class Watcher(Protocol):
    """Receives what happens, from the thread that works on the board."""

    def step(self, text: str) -> None:
        """Something begins."""

    def advance(self, done: int, of: int) -> None:
        """`done` of `of` bytes are copied."""

    def live(self, text: str) -> None:
        """What a program on the board writes while it runs, as it comes."""


def deploy(bundle: Bundle, target: Target, options: Options, watcher: Watcher) -> Deployment:
    """Brings one board up to date with `bundle` and this package, and does what `options` ask for beyond.

    Repeating it is cheap and safe: what is there and right is left alone. Errors end the board's journey and are in the deployment.
    """
    deployment = Deployment(target)
    try:
        _journey(bundle, target, options, watcher, deployment)
    except EdgeTPruneError as error:
        deployment.error = error
    except (OSError, MemoryError) as error:
        deployment.error = UserError(f"{target}: this machine says: {_describe_refusal(error)}")
    except Exception as error:  # it ends this board's journey, and no other's
        deployment.error = InternalError(f"{target}: {type(error).__name__}: {one_line(error)}")
        deployment.error.__cause__ = error
    return deployment


def _describe_refusal(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return "out of memory"
    return f"{error.strerror or one_line(error)}{f': {error.filename}' if error.filename else ''}"


def _journey(bundle: Bundle, target: Target, options: Options, watcher: Watcher, deployment: Deployment) -> None:
    watcher.step(f"logging in to {target}")
    with Connection(target, ssh_config=options.ssh_config) as connection:
        facts = connection.call("check", Facts)
        _check(target, facts)
        deployment.warning = _unused_tensorrt(facts, options)
        deployment.steps.append(
            "agent installed" if _install(connection, facts, bundle, options, watcher) else "agent up to date"
        )
        name, copied = _copy_bundle(connection, bundle, options.name, watcher)
        deployment.steps.append(f"bundle {name}: {copied / 1e6:.1f} MB copied" if copied else f"bundle {name} up to date")
        watcher.step("running the doctor")
        deployment.doctor = _doctor(connection)
        if options.profile is not None:
            try:
                same = {"name": name, "fingerprint": bundle.manifest.fingerprint}
                _profile(connection, same, deployment.doctor, options, watcher)
            except ConnectionLost:
                raise
            except EdgeTPruneError:  # what was measured until then is worth having
                _collect(connection, options, watcher, deployment)
                raise
            deployment.steps.append("profile made")
        _collect(connection, options, watcher, deployment)


def _check(target: Target, facts: Facts) -> None:
    """Refuses a board that the agent cannot run on, before anything is changed there."""
    if facts.system != "linux":
        raise UserError(f"{target} runs {facts.system}; the agent needs Linux")
    if facts.root:
        raise UserError(f"{target}: this would install as root. Log in as a user; nothing here needs root")
    if not facts.venv:
        version = ".".join(map(str, facts.python[:2]))
        raise UserError(f"{target} has Python without its module venv. Run there: sudo apt-get install python{version}-venv")
    if not facts.writable:
        raise UserError(f"{target}: {facts.home} cannot be written by this user")


def _unused_tensorrt(facts: Facts, options: Options) -> str | None:
    """What to say where the board's GPU is there, and its CPU is measured because nobody named a runtime: the default works everywhere."""
    if options.profile is None or not facts.tensorrt or any(word.startswith("--runtime") for word in options.profile):
        return None
    return "the board has TensorRT, but this measures ONNX Runtime on its CPU; the GPU is measured with --runtime tensorrt"


def _install(connection: Connection, facts: Facts, bundle: Bundle, options: Options, watcher: Watcher) -> bool:
    """Brings the agent on the board up to date. Returns whether anything had to be done."""
    _, data = wheels.agent_wheel()
    extras = sorted({*options.extras, *_needed_extras(facts, bundle)})
    beyond = _cuda_binding(facts)
    stamp = {
        "agent": hashlib.sha256(data).hexdigest(),
        "extras": extras,
        "beyond": beyond,
        "python": [facts.executable, *facts.python[:2]],
    }
    if facts.stamp == stamp:
        return False
    watcher.step("gathering wheels")
    cache = wheels.cache_directory()
    agent = wheels.write_wheel(cache)
    kind = wheels.Kind(facts.python[:2], facts.machine, facts.glibc)
    (pip,) = [file for file in wheels.download(["pip"], kind, cache) if file.name.startswith("pip-")]
    carried = [agent, pip]
    if options.offline:
        carried += wheels.download([*_missing_requirements(facts.packages, extras), *beyond], kind, cache)
    files = {file.name: msgspec.to_builtins(FileEntry.of(file)) for file in dict.fromkeys(carried)}
    size = sum(file.stat().st_size for file in carried)
    watcher.step(f"copying the agent ({size / 1e6:.1f} MB)")
    _copy(connection, {sha256_file(file): file for file in carried}, watcher, extra_bytes=_INSTALLED_OVER_WHEEL * size)
    watcher.step("installing the agent on the board")
    connection.call(
        "install",
        Done,
        stamp=stamp,
        wheels=files,
        pip=pip.name,
        agent=agent.name,
        extras=f"[{','.join(extras)}]" if extras else "",
        requirements=beyond,
        offline=options.offline,
    )
    return True


def _needed_extras(facts: Facts, bundle: Bundle) -> set[str]:
    """ONNX Runtime, where the board has neither it nor TensorRT with a graph for it in the bundle."""
    runtimes = {artifact.runtime for budget in bundle.budgets for artifact in budget.artifacts}
    has_ort = any(name.startswith("onnxruntime") for name in facts.packages)
    return set() if has_ort or (facts.tensorrt and "tensorrt" in runtimes) else {"ort"}


def _cuda_binding(facts: Facts) -> list[str]:
    """NVIDIA's Python binding of the board's CUDA, where it has TensorRT and no binding: JetPack has none."""
    present = {"cuda-python", "cuda-bindings", "pycuda"} & set(facts.packages)
    major = (facts.cuda or "").partition(".")[0]
    return [f"cuda-python=={major}.*"] if facts.tensorrt and not present and major.isdigit() else []


def _missing_requirements(present: dict[str, str], extras: Sequence[str]) -> list[str]:
    """What the agent requires and the board's system packages do not give, as pip takes it."""
    missing = []
    for text in wheels.requirements():
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name not in present or not requirement.specifier.contains(present[name], prereleases=True):
            missing.append(f"{requirement.name}{requirement.specifier}")
    return missing


def _board_name(name: str) -> str:
    """A bundle's name on the board; a long one ends in a hash, as others may begin alike."""
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).lstrip("._+-").rstrip("-.") or "bundle"
    return (
        plain
        if len(plain) <= _LONGEST_NAME
        else f"{plain[: _LONGEST_NAME - 9]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"
    )


def _copy_bundle(connection: Connection, bundle: Bundle, name: str | None, watcher: Watcher) -> tuple[str, int]:
    """Copies what the board lacks of the bundle, and puts it into place. Returns (its name there, bytes that were sent)."""
    name = _board_name(name or bundle.path.resolve().name)
    with _unchanged(bundle):
        files = {**bundle.files, MANIFEST: FileEntry.of(bundle.path / MANIFEST)}
        if Bundle.open(bundle.path).manifest != bundle.manifest:
            raise _changed(bundle)
    watcher.step(f"copying the bundle {name}")
    sources = {entry.sha256: bundle.path / path for path, entry in files.items()}
    with _unchanged(bundle):
        copied = _copy(connection, sources, watcher, reuse=name)
    connection.call("bundle", Done, name=name, files=msgspec.to_builtins(files))
    return name, copied


@contextmanager
def _unchanged(bundle: Bundle) -> Iterator[None]:
    """Around what reads the bundle's files.

    Raises:
        UserError: one is no longer there, or shorter than it was.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise _changed(bundle) from error


def _changed(bundle: Bundle) -> UserError:
    return UserError(f"{bundle.path} was changed while it was being copied: repeat the command")


def _copy(connection: Connection, sources: dict[str, Path], watcher: Watcher, **request: Any) -> int:
    """Sends the files (by SHA-256) that the board lacks, each from where an earlier attempt stopped. Returns the bytes sent."""
    files = {digest: file.stat().st_size for digest, file in sources.items()}
    offsets = connection.call("wanted", Wanted, files=files, **request).offsets
    if any(offset > files.get(digest, -1) for digest, offset in offsets.items()):
        raise not_understood(str(connection.target), "it asks for what it was not offered")
    if not offsets:
        return 0
    total = sum(files[digest] - offset for digest, offset in offsets.items())

    def payload(stream: IO[bytes]) -> None:
        sent = 0
        for digest, offset in offsets.items():
            size = files[digest] - offset
            stream.write(json.dumps({"sha256": digest, "offset": offset, "bytes": size}).encode() + b"\n")
            with sources[digest].open("rb") as source:
                source.seek(offset)
                for block in remote.blocks(source, size):
                    stream.write(block)
                    sent += len(block)
                    size -= len(block)
                    watcher.advance(sent, total)
            if size:
                raise FileNotFoundError(errno.ENOENT, "shorter than it was", str(sources[digest]))
        stream.write(b"{}\n")

    connection.call("receive", Done, payload, files=files)
    return total


def _doctor(connection: Connection) -> Diagnosis:
    """What the doctor on the board says."""
    answer = connection.call("run", Ran, arguments=["doctor", "--json"])
    if answer.code < 0:
        raise UserError(
            f"{connection.target}: the doctor was ended there by {signal_name(-answer.code)}. Is the board's memory full?"
        )
    return read_doctor(answer.stdout, str(connection.target))


def _profile(connection: Connection, bundle: Mapping[str, str], doctor: Diagnosis, options: Options, watcher: Watcher) -> None:
    """Runs `profile` of a bundle ({name, fingerprint}) on the board and passes on what it shows."""
    blockers = [finding.text for finding in doctor.findings if finding.level == "blocker"]
    if blockers and not options.anyway:
        raise NegativeAnswer(f"{connection.target}: not profiled, because the result would be invalid: {'; '.join(blockers)}")
    watcher.step("profiling")
    before = connection.call("list", Listing, directory="profiles").files
    said: deque[str] = deque(maxlen=_LAST_WORDS)

    def live(text: str) -> None:
        said.append(text)
        watcher.live(text)

    arguments = ["profile", f"bundles/{bundle['name']}", "--out", "profiles", *(options.profile or ())]
    answer = connection.call(
        "run", Ran, on_stderr=live, arguments=arguments, alone=True, environment=_TERMINAL, bundle=dict(bundle)
    )
    if answer.code:
        lines = [
            line.strip() for line in re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "".join(said))) if line.strip()
        ]
        reason = lines[-1].removeprefix("edge-tprune: ") if lines else f"exit code {answer.code}"
        if answer.code < 0:
            reason = f"the measurement was ended there by signal {-answer.code}. Is the board's memory full?"
        # A fault of the agent's (exit code 3) asked for a report there, and wrote what belongs into it to a file on the board.
        kind: type[EdgeTPruneError] = NegativeAnswer if answer.code == 1 else UserError
        raise kind(f"{connection.target}: {reason}")
    if connection.call("list", Listing, directory="profiles").files == before:
        raise UserError(f"{connection.target}: `profile` ended there without an error, and there is no new profile")


#: Lets the progress bar on the board draw although it writes into a pipe.
_TERMINAL = {"FORCE_COLOR": "1", "COLUMNS": "100"}


def _collect(connection: Connection, options: Options, watcher: Watcher, deployment: Deployment) -> None:
    if options.collect is None:
        return
    watcher.step("collecting profiles")
    deployment.collected = collect(connection, options.collect, deployment.steps.append)
    deployment.steps.append(f"{len(deployment.collected)} profiles collected" if deployment.collected else "no new profiles")


def deploy_all(
    bundle: Bundle, targets: Sequence[Target], options: Options, watch: Callable[[Target], Watcher]
) -> list[Deployment]:
    """`deploy` to several boards at the same time; deployments in the order of `targets`. Ctrl-C ends all of them."""
    with ThreadPoolExecutor(max_workers=min(len(targets), _AT_ONCE)) as pool:
        futures = [pool.submit(deploy, bundle, target, options, watch(target)) for target in targets]
        try:
            return [result_of(future) for future in futures]
        except BaseException:
            with delayed_signals():  # a second Ctrl-C would leave all that is under way to itself, and wait for it
                pool.shutdown(wait=False, cancel_futures=True)
                hang_up()
                while wait(futures, _HANG_UP_S).not_done:  # again and again: a thread between two requests begins the next
                    hang_up()
            raise
