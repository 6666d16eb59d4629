"""The command line as a whole; each command is one file in `commands/` and registers itself here."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, TypeVar, get_args

import typer
from rich.markup import escape

from edge_tprune.cli.streams import has_answered, keep_for_answers
from edge_tprune.documents import LARGEST, show
from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.version import __version__

Command = TypeVar("Command", bound=Callable[..., Any])


def format_examples(examples: tuple[str, ...]) -> str:
    """The last part of a command's help: an example a line, each of which can be copied."""
    return "\n\n".join(escape(line) for line in ("Examples:", *examples))


KEPT: dict[str, str] = {}  #: command -> what is left of its work where it is interrupted
_EXAMPLES = (
    "edge-tprune build reference --out bundles/ref",
    "edge-tprune eval bundles/ref",
    "edge-tprune profile bundles/ref --out profiles",
    "edge-tprune select profiles --max-top1-drop 1",
)

app = typer.Typer(
    name="edge-tprune",
    help="Fit a vision transformer to an edge board: remove tokens, build one checked graph per budget, measure, and choose.",
    epilog=format_examples(_EXAMPLES),
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def command(*examples: str, name: str | None = None, kept: str = "") -> Callable[[Command], Command]:
    """Registers a function as a command: its docstring is the help, and the examples follow it.

    Args:
        examples: command lines, each at most 76 characters wide so that no terminal folds them.
        name: of the command, where the function's own will not do.
        kept: what is left of its work where it is interrupted.
    """

    def register(function: Command) -> Command:
        KEPT[name or str(getattr(function, "__name__", ""))] = kept

        @wraps(function)
        def run(*given: Any, **options: Any) -> Any:
            _check_numbers(function, options)
            with keep_for_answers():
                try:
                    return function(*given, **options)
                except NegativeAnswer as no:
                    if options.get("json") and not has_answered():
                        from edge_tprune.cli.terminal import print_json

                        print_json({"reason": str(no)})
                    raise

        app.command(name, help=read_docstring(function), epilog=format_examples(examples))(run)
        return function

    return register


def _check_numbers(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuses what is no finite number, and whole numbers that a double cannot hold: no option means one, and few libraries take one."""
    for name, value in options.items():
        if type(value) not in (int, float) or abs(value) < LARGEST:  # False for NaN, too
            continue
        (option,) = get_args(inspect.signature(function, eval_str=True).parameters[name].annotation)[1:]
        words = [word for word in (option.default, *(option.param_decls or ())) if str(word).startswith("--")]
        flag = words[0] if words else f"--{name.replace('_', '-')}"
        kind = "smaller" if value > 0 else "larger" if value < 0 else "finite"
        raise UserError(f"{flag} {show(value)} is out of range: give a {kind} number")


def read_docstring(function: Callable[..., Any]) -> str:
    """The docstring, from the source where Python leaves docstrings out (-OO)."""
    if function.__doc__:
        return inspect.cleandoc(function.__doc__)
    try:
        (definition,) = ast.parse(inspect.cleandoc(inspect.getsource(inspect.unwrap(function)))).body
    except (OSError, SyntaxError, ValueError):
        return ""
    documented = isinstance(definition, (ast.FunctionDef, ast.ClassDef))
    return (ast.get_docstring(definition) or "") if documented else ""  # type: ignore[arg-type]  # checked above


def _version(wanted: bool) -> None:
    if wanted:
        print(f"edge-tprune {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an internal error, instead of writing it to a file.")
    ] = False,
) -> None:
    pass
