"""Holding a checkpoint's tensors against a model: the same names, the same shapes, finite numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress

import torch
from torch import Tensor, nn

from edge_tprune.errors import UserError
from edge_tprune.models.checkpoint import WeightsFile, one_line
from edge_tprune.models.inference import classifiers
from edge_tprune.models.records import recorded_name
from edge_tprune.models.state_dict import FITS, Found, Tensors, complete, describe_names, describe_unmerged, drop_others

_LONGEST = 100  # characters of a name in a message

Convert = Callable[[Tensors, nn.Module], Tensors]


def fit(found: Found, model: nn.Module, convert: Convert | None, file: WeightsFile, name: str) -> tuple[Tensors, list[str]]:
    """The state dict for `model`, strictly: every name of it, in its shape, and no other; and what to tell of it.

    Args:
        found: the network in the file.
        model: that it is for.
        convert: what timm applies to its checkpoints: other names, other sizes of images.
        file: that was read.
        name: of the model.

    Raises:
        UserError: a name is missing, or another one is there, or has another shape, or holds NaN or infinity.
    """
    wanted = model.state_dict()
    tensors, added, left = complete(found, wanted)
    remarks = [f"{file.shown}: took {_some(added)} from beside {found.where}"] if added else []
    try:
        state, more = _held_against(tensors, wanted, model, convert, file, name)
    except UserError:
        whole = _converted_whole(found, wanted, model, convert)
        if whole is None:
            raise
        state, left, more = whole, [], []
    left += more
    if left:
        remarks.append(f"{file.shown}: left out {_some(left)}, which {'is' if len(left) == 1 else 'are'} not of the model")
    for key, value in state.items():
        _refuse_odd_numbers(key, value, wanted[key], file)
    return {key: value.to(wanted[key].dtype) for key, value in state.items()}, remarks


def _held_against(
    tensors: Tensors, wanted: Mapping[str, Tensor], model: nn.Module, convert: Convert | None, file: WeightsFile, name: str
) -> tuple[Tensors, list[str]]:
    """The tensors under the model's names and in its shapes, and what was left out; converted by timm where they are not so already."""
    if _is_exact(tensors, wanted):
        return tensors, []
    if convert is not None:
        try:
            tensors = _convert(tensors, model, convert)
        except Exception as error:  # timm's functions assume that names and shapes are those they know
            raise UserError(
                f"the weights in {file.shown} do not fit {name}: {describe_names(tensors)} (timm: {one_line(error) or type(error).__name__})"
            ) from error
    left = drop_others(tensors, wanted)
    if sum(key in wanted for key in tensors) < FITS * len(wanted):
        raise UserError(f"the weights in {file.shown} are not those of {name}: {describe_names(tensors)}")
    _refuse_misfits(tensors, wanted, model, file, name)
    return tensors, left


def _converted_whole(found: Found, wanted: Mapping[str, Tensor], model: nn.Module, convert: Convert | None) -> Tensors | None:
    """What timm makes of all of a file's names, prefixes included: some of its conversions look for them. None where that does not fit exactly."""
    if not found.prefix or convert is None:
        return None
    whole = {found.prefix + key: value for key, value in found.tensors.items()} | dict(found.beside)
    with suppress(Exception):
        converted = _convert(whole, model, convert)
        if _is_exact(converted, wanted):
            return converted
    return None


def _convert(tensors: Tensors, model: nn.Module, convert: Convert) -> Tensors:
    with redirect_stdout(sys.stderr):  # one of timm's functions prints, and stdout is for the answer
        return dict(convert(dict(tensors), model))


def _is_exact(tensors: Tensors, wanted: Mapping[str, Tensor]) -> bool:
    return tensors.keys() == wanted.keys() and all(tensors[key].shape == value.shape for key, value in wanted.items())


def _refuse_misfits(tensors: Tensors, wanted: Mapping[str, Tensor], model: nn.Module, file: WeightsFile, name: str) -> None:
    missing = [key for key in wanted if key not in tensors]
    unexpected = [key for key in tensors if key not in wanted]
    reshaped = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in tensors and tensors[key].shape != wanted[key].shape
    ]
    parts = [
        f"{label} {_some(keys, 4)}"
        for label, keys in (("missing", missing), ("unexpected", unexpected), ("other shape:", reshaped))
        if keys
    ]
    if not parts:
        return
    if unmerged := describe_unmerged(unexpected):
        raise UserError(f"the weights in {file.shown} are {unmerged}")
    heads = {f"{layer}.{kind}" for layer in classifiers(model) for kind in ("weight", "bias")}
    if heads.issuperset(missing) and any(key.endswith(".weight") for key in missing) and not reshaped:
        beside = f"; it has {_some(unexpected)}: is that the head?" if unexpected else "."
        raise UserError(
            f"the weights in {file.shown} have no classifier head ({_some(missing)}){beside} Give --classes 0 for a model without one, "
            "or the weights of a classifier"
        )
    said = recorded_name(file)
    hint = f"The file says that it is of {said}" if said and said != name else "Is it the checkpoint of this very model?"
    raise UserError(f"the weights in {file.shown} do not fit {name}: {'; '.join(parts)}. {hint}")


def _refuse_odd_numbers(key: str, value: Tensor, wanted: Tensor, file: WeightsFile) -> None:
    if value.is_meta or value.is_quantized or value.layout is not torch.strided:
        kind = "without values (device meta)" if value.is_meta else "quantised" if value.is_quantized else "sparse"
        raise UserError(f"weights file {file.shown}: {key} is {kind}. Save it as a dense tensor of floating-point numbers")
    if wanted.is_floating_point() and not value.is_floating_point():
        kind = str(value.dtype).removeprefix("torch.")
        raise UserError(
            f"weights file {file.shown}: {key} holds {kind}, not floating-point numbers: quantised weights are not supported"
        )
    if not value.is_floating_point():
        return
    try:
        numbers = value.float()
    except (NotImplementedError, RuntimeError) as error:  # as of two numbers of four bits in a byte
        kind = str(value.dtype).removeprefix("torch.")
        raise UserError(f"weights file {file.shown}: {key} holds {kind}: quantised weights are not supported") from error
    if not bool(torch.isfinite(numbers).all()):
        wrong = ~torch.isfinite(numbers)
        first = [int(i) for i in wrong.nonzero()[0]]
        kind = "NaN" if bool(torch.isnan(numbers).any()) else "infinity"
        if kind == "infinity" and bool(torch.isfinite(value).all()):
            raise UserError(
                f"weights file {file.shown}: {key} holds numbers that are too large for float32 ({int(wrong.sum())} of {value.numel()} values, "
                f"the first at {first}). Training diverged: take an earlier checkpoint"
            )
        raise UserError(
            f"weights file {file.shown}: {key} holds {kind} ({int(wrong.sum())} of {value.numel()} values, the first at {first}). "
            "Training diverged, or the file is damaged: take an earlier checkpoint"
        )


def _some(names: Sequence[str], most: int = 3) -> str:
    shown = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
