"""One parameter of a command that stands for many options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, get_args


def expand_parameter(
    command: Callable[..., None], name: str, options: Mapping[str, Any], collect: Callable[..., object]
) -> Callable[..., None]:
    """The command with an option for each of `options` in place of its parameter `name`.

    Args:
        command: has the parameter.
        name: of the parameter.
        options: name -> `Annotated` type with its `typer.Option`. What is not given is None, of a switch False.
        collect: makes what the command takes of all options, by name.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name == name:
            parameters += [
                parameter.replace(name=option, annotation=kind, default=False if get_args(kind)[0] is bool else None)
                for option, kind in options.items()
            ]
        else:
            parameters.append(parameter)

    @wraps(command)
    def with_options(**given: Any) -> None:
        command(**{name: collect(**{option: given.pop(option) for option in options})}, **given)

    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # what typer reads
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options
