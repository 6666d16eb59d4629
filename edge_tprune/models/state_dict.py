"""Which tensors of a checkpoint are a model's, whatever wraps them and whatever stands before their names."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.models.checkpoint import WeightsFile

Tensors = dict[str, Tensor]

EMA_KEYS, PLAIN_KEYS = ("state_dict_ema", "model_ema"), ("state_dict", "model")
"""Where timm's `load_state_dict` looks, in this order."""

_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, DistributedDataParallel, FSDP and checkpoint wrappers put into names, in any nesting and at any place."""
_OTHER_MODULES = ("decoder", "mask_token", "criterion", "loss", "metric", "n_averaged", "reducers")
"""Beginnings of names beside a network's own that no image classifier has: left out, and said so."""
_DEPTH = 4  # of wrapping dictionaries
FITS = 0.5  # share of a model's names that must be there
_RIVALS = 0.9  # of the best one's: then two networks are in the file

_FOREIGN = {
    r"(^|\.)embeddings\.(patch_embeddings|cls_token|position_embeddings)|\.layernorm_before\.|attention\.attention\.query": "Hugging Face transformers",
    r"(^|\.)encoder\.layers\.encoder_layer_\d+\.|(^|\.)conv_proj\.": "torchvision",
    r"(^|\.)layers\.\d+\.ln1\.|(^|\.)backbone\.layers\.\d+\.attn\.": "MMPretrain",
    r"(^|\.)model\.vision_tower\.|(^|\.)image_encoder\.|(^|\.)text_model\.|(^|\.)vision_model\.": "a model of images and text",
}


_UNMERGED = {
    r"\.lora_[AB](\.|$)|\.base_layer\.": "adapters (LoRA) beside weights: merge them first (merge_and_unload)",
    r"\.parametrizations\.": "parametrised weights: remove the parametrisations first (torch.nn.utils.parametrize)",
    r"weight_(orig|mask)$": "weights with pruning masks: remove the masks first (torch.nn.utils.prune.remove)",
    r"weight_[gv]$": "weights under weight norm: remove it first (torch.nn.utils.remove_weight_norm)",
}
"""What else may stand in place of a weight, and what to do about it."""


@dataclass(frozen=True)
class Found:
    """A network in a file."""

    tensors: Tensors  #: by the names that follow `prefix`
    where: str  #: what messages call it: 'state_dict_ema', '"teacher", names after "backbone."'; "" for all of the file
    prefix: str
    beside: Mapping[str, Tensor]  #: tensors of the same dictionary that do not have the prefix
    matches: int  #: how many of the model's names it has
    shapes: int  #: for how many of these it has the model's shape, too

    @property
    def is_ema(self) -> bool:
        """Whether it says to be a moving average of another one."""
        return bool(re.search(r"(^|[^a-z])(ema|teacher|averaged?|swa)([^a-z]|$)", self.where.lower().replace("_", " ")))


def find_network(file: WeightsFile, wanted: Mapping[str, Tensor], use_ema: bool, name: str) -> tuple[Found, list[str]]:
    """The tensors that are the model's, and what to tell the user of them.

    Args:
        file: what was read.
        wanted: the model's state dict.
        use_ema: prefer a moving average of the weights, as timm does.
        name: of the model.

    Raises:
        UserError: no network in the file fits, or several do.
    """
    chosen, remarks = _by_timms_rule(file, use_ema)
    for _, state in chosen:
        for key, value in state.items():
            if isinstance(value, Tensor) and value.is_nested:  # it has no shape that can be asked for
                raise UserError(
                    f"weights file {file.shown}: {key} is a nested tensor. Save it as a dense tensor of floating-point numbers"
                )
    fits = [found for where, state in chosen for found in _fits(where, state, wanted)]
    if not fits:
        states = [state for _, state in chosen]
        if not states:
            raise UserError(f"weights file {file.shown} holds no state dict: expected a mapping from names to tensors")
        largest = max(states, key=len)
        return Found(_unwrapped(largest, wanted), "", "", {}, 0, 0), remarks
    best = max(found.matches for found in fits)
    shaped = max(found.shapes for found in fits)  # a teacher of another size has the names of its student
    fits = [found for found in fits if found.matches >= _RIVALS * best and found.shapes >= FITS * shaped]
    found, more = _only_one(fits, file, use_ema)
    remarks += more
    if len(chosen) < len(every := list(_states("", file.content))) and not remarks:
        places = {where for where, _ in chosen}
        others = [
            where or "the names beside it" for where, state in every if where not in places and any(_fits(where, state, wanted))
        ]
        if others:
            remarks.append(f"{file.shown}: took {found.where}, as timm does, and not {', '.join(others)}")
    said = any(f"took {found.where}" in remark for remark in remarks)
    if (
        not said
        and not any(found.where.startswith(key) for key in EMA_KEYS)
        and (found.prefix or found.where not in ("", *PLAIN_KEYS))
    ):
        remarks.append(f"{file.shown}: took {found.where}")
    return found, remarks


def _by_timms_rule(file: WeightsFile, use_ema: bool) -> tuple[list[tuple[str, Mapping[str, object]]], list[str]]:
    """The state dicts to look at, by where they are, and what to say. Where a file has timm's names, those that timm would take."""
    content = file.content
    averaged = [key for key in EMA_KEYS if content.get(key) is not None]
    plain = [key for key in PLAIN_KEYS if content.get(key) is not None]
    if averaged and not use_ema and not plain:
        others = [key for key, _ in _states("", content) if key not in averaged]
        if not others:
            raise UserError(
                f"weights file {file.shown} holds the moving average of the weights alone ({averaged[0]}): leave --no-ema out"
            )
    keys = [*(averaged if use_ema else []), *plain]
    for key in keys:
        states = list(_states(key, content[key]))
        if states:
            if averaged:
                other = plain[0] if key in averaged and plain else averaged[0]
                what = "the moving average of the weights" if key in averaged else "the weights, not their moving average"
                way = ("; --no-ema takes the weights themselves" if plain else "") if key in averaged else ""
                return states, [f"{file.shown}: took {what} ({key}{f', not {other}' if other != key else ''}{way})"]
            return states, []
    return list(_states("", content)), []


def _states(where: str, value: object, depth: int = 0) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Every mapping that holds tensors by name, from the outside in."""
    if not isinstance(value, Mapping) or depth > _DEPTH or not all(isinstance(key, str) for key in value):
        return
    if any(isinstance(item, Tensor) for item in value.values()):
        yield where, value
    for key, item in value.items():
        if not isinstance(item, Tensor):
            yield from _states(f"{where}.{key}" if where else key, item, depth + 1)


def _unwrapped(state: Mapping[str, object], wanted: Collection[str]) -> Tensors:
    """The tensors of a state dict without what wrappers put into names (timm's `clean_state_dict`, in any nesting and at any place)."""
    own = {part for name in wanted for part in name.split(".")}
    wrappers = set(_WRAPPERS) - own
    tensors: Tensors = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            continue
        clean = ".".join(part for part in name.split(".") if part not in wrappers)
        if clean in tensors and not _equal(tensors[clean], value):
            return {key: item for key, item in state.items() if isinstance(item, Tensor)}
        tensors[clean] = value
    return tensors


def _equal(one: Tensor, other: Tensor) -> bool:
    has_values = all(each.layout is torch.strided and not each.is_meta and not each.is_nested for each in (one, other))
    with suppress(NotImplementedError):  # PyTorch does not compare all of its types
        return has_values and one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    return False


def _fits(where: str, state: Mapping[str, object], wanted: Mapping[str, Tensor]) -> Iterator[Found]:
    """The networks in one state dict: one for each prefix under which many of the model's names are."""
    tensors = _unwrapped(state, wanted)
    counts: Counter[str] = Counter()
    longest = max((name.count(".") for name in wanted), default=0) + 1
    for name in tensors:
        parts = name.split(".")
        for i in range(max(0, len(parts) - longest), len(parts)):
            if ".".join(parts[i:]) in wanted:
                counts["".join(f"{part}." for part in parts[:i])] += 1
    for prefix, count in counts.items():
        if count >= FITS * len(wanted):
            inside = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
            beside = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
            names = f'the names after "{prefix}"' if prefix else ""
            shapes = sum(
                not value.is_nested and value.shape == wanted[name].shape for name, value in inside.items() if name in wanted
            )
            yield Found(inside, ", ".join(filter(None, (where, names))), prefix, beside, count, shapes)


def _only_one(fits: list[Found], file: WeightsFile, use_ema: bool) -> tuple[Found, list[str]]:
    """The one of several networks that is meant: where two are one and its moving average, by the EMA rule."""
    if len(fits) == 1:
        return fits[0], []
    averaged = [found for found in fits if found.is_ema]
    plain = [found for found in fits if not found.is_ema]
    if len(averaged) == len(plain) == 1:
        found, other = (averaged[0], plain[0]) if use_ema else (plain[0], averaged[0])
        way = "; --no-ema takes the other" if use_ema else ""
        return found, [f"{file.shown}: took {found.where}, not {other.where}{way}"]
    listed = "; ".join(found.where or "names without a prefix" for found in fits)
    raise UserError(
        f"weights file {file.shown} holds {len(fits)} networks of this shape: {listed}. Save the one that is meant to a file of its own"
    )


def complete(found: Found, wanted: Collection[str]) -> tuple[Tensors, list[str], list[str]]:
    """The network's tensors and those of its missing names that lie beside its prefix, such as a head; the names of these, and of what is left."""
    tensors, beside, added = dict(found.tensors), dict(found.beside), []
    outer = found.prefix
    while outer:
        outer = "".join(f"{part}." for part in outer.split(".")[:-2])
        for name in wanted:
            if name not in tensors and outer + name in beside:
                tensors[name] = beside.pop(outer + name)
                added.append(outer + name)
    return tensors, added, list(beside)


def drop_others(tensors: Tensors, wanted: Collection[str]) -> list[str]:
    """Takes out what belongs to training or to a decoder, and says which names these are."""
    names = [name for name in tensors if name not in wanted and name.split(".")[0].startswith(_OTHER_MODULES)]
    for name in names:
        del tensors[name]
    return names


def describe_unmerged(names: Collection[str]) -> str | None:
    """What stands in place of weights, and what to do about it; None where they are plain."""
    return next((what for pattern, what in _UNMERGED.items() if any(re.search(pattern, name) for name in names)), None)


def describe_names(tensors: Mapping[str, Tensor]) -> str:
    """Whose names these are, where that is known; else how they begin."""
    for pattern, owner in _FOREIGN.items():
        hits = [name for name in tensors if re.search(pattern, name)]
        if hits:
            return f"its names are those of {owner} ({hits[0]}), for which timm has no conversion to this model"
    starts = Counter(name.partition(".")[0] for name in tensors)
    listed = ", ".join(f"{start} ({count})" for start, count in starts.most_common(4))
    return f"its {len(tensors)} names begin with {listed}{' ...' if len(starts) > 4 else ''}"


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, types and bytes, whatever the order."""
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
