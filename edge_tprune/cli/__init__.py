"""The command `edge-tprune`: thin commands over the rooms. Importing this loads no room that imports torch."""

from __future__ import annotations

import os
import sys
from typing import Any

from edge_tprune.errors import EdgeTPruneError, UserError


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 the honest answer is no, 2 the user's mistake, 130 interrupted."""
    import typer

    from edge_tprune.cli.app import app
    from edge_tprune.cli.common import Stopped

    # Typer carries its own copy of click in some releases and uses the real one in others; this names its base error in both.
    usage_error: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        stopped = app(args=arguments or ["--help"], prog_name="edge-tprune", standalone_mode=False)
        if stopped == 130:  # typer turns Ctrl-C into this
            return _fail("interrupted", 130)
        return stopped if isinstance(stopped, int) else 0
    except Stopped as stop:
        return _fail(str(stop), 130)
    except usage_error as error:
        return _fail(f"{error.format_message().rstrip('.')}. See: edge-tprune --help", 2)
    except UserError as error:
        return _fail(str(error), 2)
    except EdgeTPruneError as error:  # an honest no, or a graph that broke a promise
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort) as stop:
        return _fail(str(stop) or "interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains again while exiting
        return 141


def _fail(message: str, code: int) -> int:
    print(f"edge-tprune: {' '.join(message.split())}", file=sys.stderr)
    return code


def run() -> None:
    """Entry point of the console script."""
    sys.exit(main())
