"""`python -m edge_tprune.simulator orin-nano DIR` keeps a simulated board alive; `... fault DIR KIND FILE` breaks it."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

from edge_tprune.documents import LARGEST_BYTES
from edge_tprune.errors import UserError
from edge_tprune.files import clear_write_errors, exclusive, files_below, read_regular, write_json
from edge_tprune.processes import end_signals
from edge_tprune.simulator.boards import BOARDS
from edge_tprune.simulator.faults import KINDS, FileFault
from edge_tprune.simulator.tree import FAULTS, Tree, is_running, run
from edge_tprune.simulator.truth import true_energy_mj
from edge_tprune.text import command_line, printable

_MOST = 1e9  #: of sensors' noise, and of seconds
_PATIENCE_S = 10.0  #: for other faults that are being asked for


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code."""
    commands = {"fault": _fault, "energy": _energy}
    command, received = None, list[int]()
    try:
        command = commands.get(arguments[0]) if arguments else None
        with end_signals() as received:
            return command(arguments[1:]) if command else _simulate(arguments)
    except UserError as error:
        print(printable(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # a board runs until then
        return 128 + (received[0] if received else signal.SIGINT) if command else 0


def _simulate(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m edge_tprune.simulator",
        description="Keeps a directory like a board's /sys and /proc up to date. Its power is a known function of this machine's CPU load.",
        epilog="fault DIR KIND FILE [--seconds S] [--value V] makes a file fail; energy DIR BEGIN_NS END_NS prints the energy used.",
    )
    parser.add_argument("board", help=", ".join(BOARDS))
    parser.add_argument("directory", type=Path, help="new, empty, or left by an earlier simulation")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sensors' phases and noise")
    parser.add_argument("--noise", type=_amount, default=0.5, help="noise of the sensors, in steps (default: 0.5)")
    parser.add_argument("--locked", action="store_true", help="lock the clocks at their maximum")
    parser.add_argument("--seconds", type=_amount, help="how long to run; by default until Ctrl-C")
    options = parser.parse_args(arguments)
    tree = Tree(
        options.directory,
        options.board,
        time.perf_counter_ns(),
        seed=options.seed,
        noise_steps=options.noise,
        locked=options.locked,
    )
    with clear_write_errors(options.directory):
        try:
            doctor = command_line("edge-tprune", "doctor", "--sysroot", options.directory)
            print(printable(f"{tree.law.model} in {options.directory}. Try: {doctor}"), flush=True)
            run(tree, seconds=options.seconds)
        finally:
            tree.close()
    return 0


def _amount(text: str) -> float:
    """A number from 0, as argparse reads it."""
    with suppress(ValueError):
        if 0 <= (amount := float(text)) < _MOST:
            return amount
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {_MOST:g}")


def _fault(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m edge_tprune.simulator fault")
    parser.add_argument("directory", type=Path)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("file", help="pattern over the paths below the directory: '*/1-0040/*/curr1_input'")
    parser.add_argument("--seconds", type=float, help="how long the fault lasts; by default until faults.json is changed")
    parser.add_argument("--value", help="new content of the file (set), or amount added to its number (jump)")
    options = parser.parse_args(arguments)
    if not is_running(options.directory):
        raise UserError(f"no simulated board runs in {options.directory}")
    fault = FileFault(options.kind, options.file, options.seconds, options.value)
    file = options.directory / FAULTS
    with exclusive(file, "fault", _PATIENCE_S):
        try:
            asked = json.loads(read_regular(file, LARGEST_BYTES)) if file.exists() else []
            if not isinstance(asked, list):
                raise ValueError("it is no list of faults")
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file} is not readable JSON ({error}): delete it") from None
        if not asked and not any(fnmatchcase(name, options.file) for name in files_below(options.directory)):
            raise UserError(
                f"no file of the simulated board matches {options.file!r}"
            )  # one that an earlier fault took away may
        write_json(file, [*asked, asdict(fault)])
    return 0


def _energy(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m edge_tprune.simulator energy")
    parser.add_argument("directory", type=Path)
    parser.add_argument("begin_ns", type=int)
    parser.add_argument("end_ns", type=int)
    options = parser.parse_args(arguments)
    print(f"{true_energy_mj(options.directory, options.begin_ns, options.end_ns):.3f} mJ")
    return 0
