"""The command `edge-tprune`: thin commands over the rooms. Importing this loads no room that imports torch."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from edge_tprune.cli.interruption import Interruption
from edge_tprune.cli.streams import flush_stdout, prepare_streams, silence_stdout
from edge_tprune.errors import EdgeTPruneError, InternalError
from edge_tprune.placings import forget_placed, placed
from edge_tprune.processes import end_by_signal, end_signals, guard_memory, ignore_signals, memory_left
from edge_tprune.text import printable, shorten

#: What an operating system refuses for reasons that the person can do something about.
_REFUSALS = (
    errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EFBIG, errno.EIO, errno.ELOOP, errno.EMFILE, errno.ENAMETOOLONG, errno.ENFILE,
    errno.ENOMEM, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENODEV, errno.ENOTCONN, errno.ENXIO, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT,
    errno.EBADMSG, errno.EUCLEAN,
)  # fmt: skip
#: What Python and Matplotlib say where neither the home directory nor any for temporary files can be written.
_NO_PLACE = ("No usable temporary directory", "writable cache directory")
_NO_MEMORY = "out of memory: close what else uses it, or give smaller numbers"
_LITTLE = 512 << 20
_LAST_WORDS = f"edge-tprune: {_NO_MEMORY}\n".encode()
#: Of a terminal: Typer and Rich fail over what is no number, and show nothing at 0.
_SIZES = ("TERMINAL_WIDTH", "COLUMNS", "LINES")
_EMPTY_FOR_NONE = ("--budgets", "--profile")  #: options of which '' means none
_INTERRUPTED = 128 + signal.SIGINT
_BROKEN_PIPE = 128 + signal.SIGPIPE


def main(arguments: list[str] | None = None, *, last: bool = False) -> int:
    """Runs one command and returns its exit code.

    0 done, 1 the answer is no, 2 a mistake that the person can put right, 3 a fault of edge-tprune or an answer that cannot be given
    (see `edge_tprune.errors`), 141 nobody reads the output any more, 130 interrupted, 143 or 129 ended by SIGTERM or SIGHUP.

    Args:
        arguments: the command line, without the program's name; by default that of the process.
        last: nothing but the end of the process follows.
    """
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    forget_placed()
    with end_signals(last) as received:
        code = _main(arguments, received)
    return 128 + received[0] if received else code


def _main(arguments: list[str], received: Sequence[int]) -> int:
    """The exit code of a command that no signal ended."""
    try:
        code = _run(arguments)
        if code == _INTERRUPTED:  # typer turns Ctrl-C into this
            ignore_signals()
            return _fail(_describe_stop(arguments, received), code)
    except KeyboardInterrupt:
        ignore_signals()
        return _fail(_describe_stop(arguments, received), _INTERRUPTED)
    except Interruption as stop:
        ignore_signals()
        return _fail(str(stop), _INTERRUPTED)
    except BrokenPipeError:
        silence_stdout()
        return _BROKEN_PIPE
    except SystemExit:
        raise
    except BaseException as error:  # of whatever kind: nobody sees a traceback
        code = _end(error, arguments)
    refusal = flush_stdout()
    if refusal is None:
        return code
    if isinstance(refusal, BrokenPipeError):
        return _BROKEN_PIPE
    return _fail(f"the answer could not be written to stdout: {refusal.strerror}", 2)


def _run(arguments: list[str]) -> int:
    """Calls the command. What it raises on purpose, and what nobody foresaw, is left to the caller."""
    import typer

    from edge_tprune.cli.app import command_tree

    # Typer carries its own copy of click in some releases and uses the real one in others; this names its base error in both.
    if (where := _find_empty(arguments)) is not None:
        return _fail(f"{where} is empty: is a variable of the shell not set? Give it a value, or leave it out", 2)
    usage_error: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
    try:
        code = command_tree()(args=arguments, prog_name="edge-tprune", standalone_mode=False)
    except usage_error as error:
        context = getattr(error, "ctx", None)
        command = "edge-tprune" if context is None else context.command_path
        return _fail(f"{error.format_message().rstrip('.')}. See: {command} --help", 2)
    except typer.Abort:
        return _INTERRUPTED
    except SystemExit as stop:  # so typer ends where nobody reads its output
        if isinstance(stop.__context__, BrokenPipeError):
            raise stop.__context__ from None
        from edge_tprune.cli.faults import describe_plugin_fault

        if (said := describe_plugin_fault(stop)) is not None:
            return _fail(said, 2)
        raise
    return code if isinstance(code, int) else 0


def _find_empty(arguments: Sequence[str]) -> str | None:
    """Names an empty word ('the argument after --out', '--out='): as a path it would mean the current directory."""
    for before, word in zip(["edge-tprune", *arguments], arguments, strict=False):
        if re.fullmatch("--[a-z0-9-]+=", word) and word[:-1] not in _EMPTY_FOR_NONE:
            return word
        if not word and before not in _EMPTY_FOR_NONE:
            return f"the argument after {before}"
    return None


def _describe_stop(arguments: Sequence[str], received: Sequence[int]) -> str:
    """'interrupted: nothing was written'."""
    from edge_tprune.cli.root import KEPT

    first = received[0] if received else signal.SIGINT
    how = "interrupted" if first == signal.SIGINT else f"ended by {signal.Signals(first).name}"
    kept = next((KEPT[word] for word in arguments if word in KEPT), "")
    if kept.startswith("nothing") and (there := placed()):  # the signal came when all was done, or a part of it
        kept = f"written before that: {', '.join(map(str, there))}"
    return f"{how}: {kept}" if kept else how


def _end(error: BaseException, arguments: Sequence[str]) -> int:
    """Says in one line how the command failed, and returns its exit code."""
    if isinstance(error, EdgeTPruneError) and not isinstance(error, InternalError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return _fail(_NO_MEMORY, 2)
    if isinstance(error, BlockingIOError) or (isinstance(error, RuntimeError) and str(error) == "can't start new thread"):
        return _fail("no more processes or threads can be started: end others of this user, or raise the limit (ulimit -u)", 2)
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return _fail(f"{error.strerror}{f': {error.filename}' if error.filename else ''}", 2)
    if isinstance(error, OSError) and any(words in str(error) for words in _NO_PLACE):
        return _fail("there is no directory for temporary files: set TMPDIR to one that can be written", 2)
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # pathlib's, before Python 3.13
        return _fail(str(error), 2)
    if isinstance(error, ImportError) and not (error.name or "").startswith("edge_tprune"):
        return _fail(f"the package {error.name or 'that this needs'} cannot be loaded: {error}", 2)
    left = memory_left()
    if left is not None and left < _LITTLE:  # a library that was loaded in part fails in all kinds of ways
        return _fail(_NO_MEMORY, 2)
    from edge_tprune.cli.faults import describe_fault, describe_import_fault, describe_plugin_fault

    if (said := describe_plugin_fault(error) or describe_import_fault(error)) is not None:
        return _fail(said, 2)
    debug = "--debug" in takewhile(lambda word: word.startswith("-"), arguments)
    return _fail(describe_fault(error, arguments, debug), InternalError.exit_code)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch found no memory, on a GPU or here: it has no one kind of error for that."""
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("can't allocate memory", "out of memory", "bad_alloc"))
    )


def _fail(message: str, code: int) -> int:
    with suppress(OSError):  # nobody listens on stderr: the exit code is what is left
        print(printable(f"edge-tprune: {shorten(' '.join(message.split()))}"), file=sys.stderr, flush=True)  # noqa: T201
    return code


def run() -> None:
    """Entry point of the console script: ends with the exit code, or by the signal that ended the command."""
    if not prepare_streams():
        sys.exit(_fail("stdout is closed: there is nowhere to write the answer", 2))
    try:
        Path.cwd()
    except FileNotFoundError:
        sys.exit(_fail("the current directory was removed: change to another one", 2))
    os.umask(os.umask(0) & 0o077)  # what is written is for its owner to read
    for name in _SIZES:
        if re.fullmatch("[1-9][0-9]{0,4}", os.environ.get(name, "")) is None:
            os.environ.pop(name, None)
    guard_memory()
    try:
        code = main(last=True)
    except MemoryError:  # not enough even to end in order
        os.write(sys.stderr.fileno(), _LAST_WORDS)
        os._exit(2)
    if code - 128 in (signal.SIGTERM, signal.SIGHUP):
        end_by_signal(code - 128)
    sys.exit(code)
