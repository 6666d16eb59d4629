"""The settings of a run as options: one per field of `RunRequest`, which says what each means and which values it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, get_args

import typer

from edge_tprune.cli.parameters import expand_parameter
from edge_tprune.record.settings import RunRequest, option_flag, request_hints, setting_meta


def with_request(command: Callable[..., None]) -> Callable[..., None]:
    """One parameter `request` (a `RunRequest`) of a command becomes an option per setting."""
    return expand_parameter(command, "request", _options(), RunRequest)


def _options() -> dict[str, object]:
    """Name of each setting -> what typer needs to know of it."""
    options: dict[str, object] = {}
    for name, hint in request_hints().items():
        meta = setting_meta(name)
        extra = meta.extra or {}
        option = typer.Option(option_flag(name), help=meta.description, show_default=extra.get("default", False))
        options[name] = Annotated[_plain(hint) | None, option]
    return options


def _plain(hint: Any) -> Any:
    """int, float or str, from an annotation that may be optional and have bounds."""
    if hint in (int, float, str):
        return hint
    return next(found for part in get_args(hint) if (found := _plain(part)) is not None)
