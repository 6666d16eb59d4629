"""The command `edge-tprune`: thin commands over the rooms. Importing this loads no room that imports torch."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from edge_tprune.errors import EdgeTPruneError, InternalError
from edge_tprune.processes import end_signals

#: What an operating system refuses for reasons that the person can do something about.
_REFUSALS = (
    errno.EACCES, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EPERM, errno.EROFS,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0 done, 1 the answer is no, 2 a mistake that the person can put right, 3 a fault of edge-tprune or an answer that cannot be given
    (see `edge_tprune.errors`), 130 interrupted, 143 or 129 ended by SIGTERM or SIGHUP, 141 nobody reads the output any more.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    with end_signals() as received:
        code = _main(arguments)
    return 128 + received[0] if received else code


def _main(arguments: list[str]) -> int:
    try:
        return _run(arguments or ["--help"])
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains again while exiting
        return 141
    except Exception as error:
        return _end(error, arguments)


def _run(arguments: list[str]) -> int:
    """Calls the command; what it raises on purpose, and what nobody foresaw, is left to the caller."""
    import typer

    from edge_tprune.cli.app import app
    from edge_tprune.cli.stopping import Interruption

    # Typer carries its own copy of click in some releases and uses the real one in others; this names its base error in both.
    usage_error: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
    try:
        code = app(args=arguments, prog_name="edge-tprune", standalone_mode=False)
    except Interruption as stop:
        return _fail(str(stop), 130)
    except usage_error as error:
        context = getattr(error, "ctx", None)
        command = "edge-tprune" if context is None else context.command_path
        return _fail(f"{error.format_message().rstrip('.')}. See: {command} --help", 2)
    except (KeyboardInterrupt, typer.Abort) as stop:
        return _fail(str(stop) or "interrupted", 130)
    if code == 130:  # typer turns Ctrl-C into this
        return _fail("interrupted", 130)
    return code if isinstance(code, int) else 0


def _end(error: Exception, arguments: Sequence[str]) -> int:
    """Says in one line how the command failed, and returns its exit code."""
    from edge_tprune.cli.faults import describe_fault

    if isinstance(error, EdgeTPruneError) and not isinstance(error, InternalError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, MemoryError):
        return _fail("out of memory: close what else uses it, or give smaller numbers", 2)
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return _fail(f"{error.strerror}{f': {error.filename}' if error.filename else ''}", 2)
    debug = "--debug" in takewhile(lambda word: word.startswith("-"), arguments)
    return _fail(describe_fault(error, arguments, debug), InternalError.exit_code)


def _fail(message: str, code: int) -> int:
    print(f"edge-tprune: {' '.join(message.split())}", file=sys.stderr)
    return code


def run() -> None:
    """Entry point of the console script: ends with the exit code, or by the signal that ended the command."""
    code = main()
    ended_by = {128 + number: number for number in (signal.SIGTERM, signal.SIGHUP)}.get(code)
    if ended_by is not None:
        signal.signal(ended_by, signal.SIG_DFL)
        os.kill(os.getpid(), ended_by)
    sys.exit(code)
