"""Creating timm's models, and finding out from a checkpoint how its model was created."""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import _builder
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.models.checkpoint import one_line
from edge_tprune.models.hub import no_retries

Arguments = Mapping[str, Any]
"""Keyword arguments of timm's models, by name: which there are, and of which type, each model decides."""
Filter = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]

_DEEPEST = 1000  #: blocks of a network
_FACTORY = threading.Lock()


@dataclass(frozen=True)
class Created:
    """A model that timm created."""

    model: nn.Module
    arguments: Arguments  #: keyword arguments with which timm creates it again
    filter: Filter | None  #: what timm applies to checkpoints of this very model


def check_name(name: str) -> None:
    """Refuses a name that timm does not know.

    Raises:
        UserError: with near matches.
    """
    base = name.split(".")[0]
    if not timm.is_model(base):
        known = [n for n in timm.list_models() if n.startswith(("deit", "vit_"))]
        hint = did_you_mean(base, known) or did_you_mean(base, timm.list_models())
        raise UserError(
            f"no model {name!r} in timm {timm.__version__}.{hint} Use 'reference' or a ViT (deit_*, deit3_*, vit_*)"
        )


def create(name: str, arguments: Arguments, *, random: bool = False, shape_only: bool = False) -> Created:
    """A model without pretrained weights, of a fixed image size.

    Args:
        name: timm's.
        arguments: keyword arguments for timm.
        random: with weights as for training. Otherwise they are whatever was in memory, until all of them are loaded.
        shape_only: without memory for weights, where torch can: its names and shapes.

    Raises:
        UserError: timm cannot create it so.
    """
    for key, value in arguments.items():
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:  # timm builds heads of a negative number of channels
            raise UserError(f"{name} with {key}={value}: give a number that is not negative")
        if key in ("img_size", "patch_size") and isinstance(value, (tuple, list)) and len(value) != 2:
            raise UserError(f"{name} with {key}={value}: give one number, or height and width")
        if key == "depth" and isinstance(value, int) and value > _DEEPEST:  # it would be built before anything could say no
            raise UserError(f"{name} with depth={value}: a network has at most {_DEEPEST} blocks")
    kept: list[Filter | None] = []
    try:
        initialise = nullcontext() if random else _NoRandomParameters()
        with _keep_filter(kept), _quiet(), torch.device("meta" if shape_only else "cpu"), initialise:
            model: nn.Module = timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:
        if shape_only:
            return create(name, arguments, random=random)
        raise UserError(_describe(name, arguments, error)) from error
    if getattr(model, "dynamic_img_size", False):  # such a graph would have no fixed number of tokens
        return create(name, {**arguments, "dynamic_img_size": False}, random=random, shape_only=shape_only)
    return Created(model, dict(arguments), kept[-1] if kept else None)


def create_pretrained(name: str, arguments: Arguments) -> Created:
    """A model of a fixed image size with the weights that timm fetches for it.

    Raises:
        UserError: timm cannot create it so, or the weights cannot be fetched, or do not fit.
    """
    shape = create(name, arguments, shape_only=True)
    missing: list[str] = []
    with no_retries() as unreachable:
        try:
            with _note_missing(missing):
                model = timm.create_model(name, pretrained=True, **shape.arguments)
        except Exception as error:
            why = one_line(error) if unreachable is None else f"{unreachable}, and the cache does not hold them"
            raise UserError(
                f"the pretrained weights of {name} could not be fetched ({why}). Check the name and the connection, or give --weights FILE"
            ) from error
    if missing:
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise UserError(
            f"the pretrained weights of {name} hold no {missing[0]}, which it needs{f' with {given}' if given else ''}: give --weights FILE of a "
            "checkpoint that has it, or other options"
        )
    return Created(model, shape.arguments, None)


def _describe(name: str, arguments: Arguments, error: Exception) -> str:
    text = one_line(error)
    with_ = ", ".join(f"{key}={value}" for key, value in arguments.items())
    if isinstance(error, TypeError) and "unexpected keyword argument" in text:
        key = text.rpartition("argument ")[2].strip("'. ")
        option = {"img_size": "--img-size", "global_pool": "--global-pool", "num_classes": "--classes"}.get(
            key, f"--model-kwargs {key}"
        )
        return f"timm's {name} takes no argument {key}: leave {option} out"
    return f"timm cannot create {name!r}{f' with {with_}' if with_ else ''}: {text}"


@contextmanager
def _loading_by(make: Callable[[Callable[..., None]], Callable[..., None]]) -> Iterator[None]:
    """timm's factories call what `make` makes of timm's `load_pretrained`, instead of that. One thread at a time."""
    with _FACTORY:
        loader = _builder.load_pretrained
        _builder.load_pretrained = make(loader)
        try:
            yield
        finally:
            _builder.load_pretrained = loader


def _note_missing(missing: list[str]) -> AbstractContextManager[None]:
    """timm fills what its weights lack with random numbers where they are of another kind of head: here `missing` takes the names."""

    def make(loader: Callable[..., None]) -> Callable[..., None]:
        def load(model: nn.Module, *args: Any, **kwargs: Any) -> None:
            hook = model.register_load_state_dict_post_hook(lambda _, keys: missing.extend(keys.missing_keys))  # type: ignore[no-untyped-call]
            try:
                loader(model, *args, **kwargs)
            finally:
                hook.remove()

        return load

    return _loading_by(make)


def _keep_filter(kept: list[Filter | None]) -> AbstractContextManager[None]:
    """timm chooses within its factories which function converts a model's checkpoints, and hands it to `load_pretrained`: which takes a note of it
    here, and loads nothing."""

    def take_note(model: nn.Module, *args: Any, filter_fn: Filter | None = None, **kwargs: Any) -> None:
        kept.append(filter_fn)

    return _loading_by(lambda _: take_note)


class _NoRandomParameters(TorchFunctionMode):
    """Leaves out what draws random parameters: most of the time that a model takes to be created, for numbers that are loaded over."""

    _SKIPPED = frozenset({Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.clamp_})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._SKIPPED and isinstance(args[0], nn.Parameter):
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what timm says of weights that are not loaded here."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
