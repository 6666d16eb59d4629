"""Seeded damage to the files that commands keep: every field of every document, every region of every file.

python -m tests.mutations --count 100000      damages a small bundle, a profile, a search, a fine-tuning and a fit that often in all; stops at the
                                              first wrong answer
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from edge_tprune.cli import fit_runs, fitting, main
from edge_tprune.errors import UserError
from edge_tprune.export import builder
from edge_tprune.finetune.run import _Run
from edge_tprune.finetune.trainer import Trainer
from edge_tprune.schedule.latency import KIND as LATENCY_KIND
from edge_tprune.search.fit import KIND as FIT_KIND

CODES = (0, 1, 2)
_DEEP = "\0deep"  # stands for JSON that Python's own writer refuses to write
_HUGE = "\0huge"
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 1e15, -1e-300, 10**30, float("nan"), float("inf"), -float("inf")),
    *("", "x", "\x1b[31m", "\ud800", "\0", "[/nope]", "../../etc/passwd", "1e400", "a" * 5000),
    *([], {}, [None], [[]], {"a": 1}, [0] * 50, _DEEP, _HUGE),
)
_BYTES = (b"", b"\0", b"\0" * 300, b"\xff\xfe", b'"', b"}", b"[" * 50, b"9" * 400, b"-", b"\n", b"\r\n", b"NaN", b"PK\x03\x04")


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Other bytes: a field of a document or of one line changed, doubled or removed; or a region cut, doubled or overwritten."""
    if chance.random() < 0.6:
        with contextlib.suppress(ValueError):
            return _mutate_document(data, chance)
    begin = chance.randrange(len(data) + 1)
    end = min(len(data), begin + chance.choice([0, 1, 1, 4, 64, 4096, len(data)]))
    new = chance.choice([chance.choice(_BYTES), data[begin:end] * 2, bytes(chance.choices(range(256), k=4))])
    return data[:begin] + new + data[end:]


def _mutate_document(data: bytes, chance: random.Random) -> bytes:
    text = data.decode()
    try:
        document = json.loads(text)
    except ValueError:
        lines = text.splitlines()
        number = chance.randrange(len(lines))
        if chance.random() < 0.1:
            lines[number:number] = lines[chance.randrange(len(lines)) :]
        else:
            lines[number] = _write(_mutate_field(json.loads(lines[number]), chance))
        return ("\n".join(lines) + "\n").encode(errors="surrogatepass")
    return _write(_mutate_field(document, chance)).encode(errors="surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)


def _mutate_field(document: Any, chance: random.Random) -> Any:
    places = list(_places(document))
    if not places:
        return chance.choice(_VALUES)
    container, key = chance.choice(places)
    action = chance.random()
    if action < 0.15:
        del container[key]
    elif action < 0.25 and isinstance(container, list):
        container.append(container[key])
    elif action < 0.4 and isinstance(container[key], (int, float)) and not isinstance(container[key], bool):
        container[key] *= chance.choice([-1, 0, 10, 1e9, 0.5])
    else:
        container[key] = chance.choice(_VALUES)
    return document


def _write(document: Any) -> str:
    text = json.dumps(document, ensure_ascii=False)
    return text.replace(json.dumps(_DEEP), "[" * 20_000 + "]" * 20_000).replace(json.dumps(_HUGE), "9" * 400)


def damage(path: Path, chance: random.Random) -> tuple[Path, bytes]:
    """Damages one file below `path`; the file and what it held before."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    # Documents count for more than their size: what is in them is believed.
    file = chance.choice([file for file in files for _ in range(6 if file.suffix in (".json", ".jsonl") else 1)])
    before = file.read_bytes()
    if chance.random() < 0.03:
        file.unlink()
    else:
        file.write_bytes(mutate(before, chance))
    return file, before


def wrong_answer(arguments: Sequence[str]) -> str:
    """Runs a command in this process: what is wrong with how it ended, or ''."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(arguments))
        except BaseException as error:  # nothing may come out of a command
            return f"{type(error).__name__}: {error}"
    text = err.getvalue()
    if code not in CODES:
        return f"exit code {code}: {text}"
    if "Traceback" in text or "report it" in text or any(ord(c) < 32 and c not in "\n\t" for c in text):
        return f"exit code {code}, and wrote {text!r}"
    return ""


def attack(path: Path, commands: Sequence[Sequence[str]], count: int, seed: int) -> None:
    """Damages what is at `path` `count` times, and runs one of `commands` each time; the files are put back.

    Raises:
        AssertionError: a command ended in a way that none may.
    """
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(shutil.copytree(path, Path(scratch) / "kept"))
        for number in range(count):
            chance = random.Random(f"{seed} {number}")
            file, _ = damage(path, chance)
            command = chance.choice(commands)
            after = file.read_bytes() if file.exists() else None
            with _nothing_made():
                wrong = wrong_answer(command)
            _put_back(path, kept)
            if not wrong:
                continue
            where = Path(tempfile.mkdtemp(prefix="mutation-")) / file.name
            where.write_bytes(after or b"")
            raise AssertionError(f"seed {seed}, number {number}: {' '.join(command)} with {file.name} as in {where}: {wrong}")


@contextlib.contextmanager
def _nothing_made() -> Iterator[None]:
    """Ends commands that have read everything, and begin to build, measure or train: that takes seconds and finds no damage."""

    def stop(*arguments: object, **options: object) -> None:
        raise UserError("stopped before files are made")

    with contextlib.ExitStack() as stack:
        for place, maker in ((builder, "build"), (fitting, "build"), (fit_runs, "start_run"), (_Run, "_stretch")):
            stack.enter_context(patch.object(place, maker, stop))
        yield


def _put_back(path: Path, kept: Path) -> None:
    """Makes the files at `path` those of `kept`, where they are not."""
    for file in path.rglob("*"):
        if not file.is_dir() and not (kept / file.relative_to(path)).exists():
            file.unlink()
    for file in kept.rglob("*"):
        place = path / file.relative_to(kept)
        if file.is_dir():
            place.mkdir(exist_ok=True)
        elif not place.exists() or _differ(place, file):
            shutil.copy2(file, place)


def _differ(file: Path, kept: Path) -> bool:
    now, then = file.stat(), kept.stat()
    return (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns)


def profile_commands(profile: Path) -> list[list[str]]:
    """Commands that read a profile."""
    return [
        ["compare", str(profile), "--json"],
        ["select", str(profile), "--max-top1-drop", "1", "--json"],
        ["compare", str(profile), str(profile)],
    ]


def bundle_commands(bundle: Path) -> list[list[str]]:
    """Commands that read a bundle, and one that would write it."""
    return [["engines", str(bundle), "--json"], ["eval", str(bundle), "--limit", "1", "--quiet"]]


def search_command(place: Path) -> list[str]:
    """A small search, which goes on from what is in `place`."""
    size = ["--trials", "3", "--images", "8", "--threads", "1", "--quiet"]
    return ["search", "reference", "--weights", "random", "--method", "evit", *size, "--out", str(place / "schedule.json")]


def search_commands(place: Path) -> list[list[str]]:
    """Commands that read what a search left."""
    build = ["build", "reference", "--weights", "random", "--schedule", str(place / "schedule.json"), "--out", str(place / "x")]
    return [search_command(place), build]


def finetune_command(place: Path) -> list[str]:
    """A small fine-tuning, which goes on from what is in `place`."""
    size = [
        "--budgets",
        "1.0,0.65",
        "--epochs",
        "1",
        "--images",
        "64",
        "--batch",
        "8",
        "--rate",
        "1e-4",
        "--threads",
        "1",
        "--quiet",
    ]
    return ["finetune", "reference", "--method", "evit", *size, "--out", str(place / "tuned.safetensors")]


def finetune_commands(place: Path) -> list[list[str]]:
    """Commands that read what a fine-tuning left."""
    weights = str(place / "tuned.safetensors")
    return [finetune_command(place), ["build", "reference", "--weights", weights, "--out", str(place / "x"), "--quiet"]]


def fit_command(place: Path, max_ms: float) -> list[str]:
    """A small fit, which goes on from what is in `place`."""
    size = ["--trials", "2", "--images", "8", "--rounds", "2", "--seconds", "0.02", "--threads", "1", "--quiet", "--force"]
    return [
        "fit",
        "reference",
        "--weights",
        "random",
        "--methods",
        "evit",
        *size,
        "--max-ms",
        f"{max_ms:.4f}",
        "--out",
        str(place),
    ]


def fit_commands(place: Path) -> list[list[str]]:
    """Commands that read what a fit left."""
    probes = place / FIT_KIND.read(place).probes["fp32"]
    limit = next(iter(FIT_KIND.read(place).rounds)).partition("=")[2].partition(" ")[0]
    return [fit_command(place, float(limit)), ["latency", str(probes), "--json", "--force"]]


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle, profile = make_journey(Path(scratch))
        search, fit = make_search(Path(scratch) / "search"), make_fit(Path(scratch) / "fit")
        begun, tuned = make_tuned(Path(scratch) / "begun", 2), make_tuned(Path(scratch) / "tuned", 99)
        places = (
            (profile, profile_commands(profile), 0.4),
            (bundle, bundle_commands(bundle), 0.37),
            (search, search_commands(search), 0.1),
            (begun, finetune_commands(begun)[:1], 0.05),
            (tuned, finetune_commands(tuned), 0.05),
            (fit, fit_commands(fit), 0.03),
        )
        for place, commands, share in places:
            attack(place, commands, round(share * options.count), options.seed)
    print(f"{options.count} mutations from seed {options.seed}: no wrong end")


def make_journey(root: Path) -> tuple[Path, Path]:
    """(bundle, profile): a small bundle after build and eval, and a short profile of it."""
    bundle = root / "bundle"
    build = ["build", "reference", "--weights", "random", "--method", "evit", "--budgets", "1.0,0.5", "--out", str(bundle)]
    short = ["--rounds", "3", "--seconds", "0.1", "--warmup", "0.1"]
    assert main([*build, "--quiet"]) == 0
    assert main(["eval", str(bundle), "--limit", "30", "--quiet"]) == 0
    assert main(["profile", str(bundle), "--out", str(root / "profiles"), *short]) == 0
    (profile,) = (root / "profiles").iterdir()
    return bundle, profile


def make_search(place: Path) -> Path:
    """A finished search."""
    assert main(search_command(place)) == 0
    return place


def make_tuned(place: Path, stretches: int) -> Path:
    """A fine-tuning that was interrupted after so many of its stretches, or is finished, and then may have brought nothing."""
    train, left = _Run._stretch, iter(range(stretches))

    def train_or_stop(run: _Run, trainer: Trainer) -> Trainer:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return train(run, trainer)

    with patch.object(_Run, "_stretch", train_or_stop):
        assert main(finetune_command(place)) in (0, 1, 130)
    return place


def make_fit(place: Path) -> Path:
    """A finished fit, which may have missed its limit: measurements this short decide nothing."""
    assert main(fit_command(place, 1e6)) == 0
    probes = place / FIT_KIND.read(place).probes["fp32"]
    full = LATENCY_KIND.read(probes).cost("p50_ms").full
    assert main(fit_command(place, 0.85 * full)) in (0, 1)
    return place


if __name__ == "__main__":
    _main()
