"""The settings of a run as options: one per field of `RunRequest`, which says what each means and which values it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_args

import typer

from edge_tprune.record.settings import RunRequest, option_flag, request_hints, setting_meta


def with_request(command: Callable[..., None]) -> Callable[..., None]:
    """One parameter `request` (a `RunRequest`) of a command becomes an option per setting."""
    signature = inspect.signature(command, eval_str=True)
    options = _options()
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name == "request":
            parameters += [parameter.replace(name=name, annotation=kind, default=None) for name, kind in options.items()]
        else:
            parameters.append(parameter)

    @wraps(command)
    def with_options(**given: Any) -> None:
        command(request=RunRequest(**{name: given.pop(name) for name in options}), **given)

    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # what typer reads
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


def _options() -> dict[str, Any]:
    """Name of each setting -> what typer needs to know of it."""
    options: dict[str, Any] = {}
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
