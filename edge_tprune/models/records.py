"""What stands beside the tensors of a checkpoint: the names of its classes, its preprocessing, the arguments of its model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from edge_tprune.errors import UserError
from edge_tprune.models.checkpoint import WeightsFile
from edge_tprune.models.class_names import ClassNames, contradicted, to_class_names, to_index
from edge_tprune.models.preprocess import Preprocessing

_NAME_KEYS = (
    "class_names",
    "label_names",
    "class_to_idx",
    "idx_to_class",
    "id2label",
    "label2id",
    "classes",
    "CLASSES",
    "names",
)
_HOLDERS = ("", "meta", "dataset_meta", "hyper_parameters", "args", "config", "pretrained_cfg")
_RESAMPLE = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}  # Pillow's numbers, which transformers stores
_LARGEST = 1e300  # that a float holds with room to spare
_DEEPEST = 8  # of lists in lists
_FIXED = ("DeiT", "ViT", "Beit", "Data2Vec", "Dpt", "DPT")  # processors of transformers to which a number means both sides
_PREPROCESSING = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


def find_class_names(file: WeightsFile, classes: int) -> tuple[ClassNames | None, list[str]]:
    """The class names that a checkpoint or what lies beside it records, and what to say of those that do not fit.

    Raises:
        UserError: two of its records give one name to different classes.
    """
    found: ClassNames | None = None
    remarks = []
    for source, key, record in _name_records(file):
        if not isinstance(record, (Mapping, list, tuple)) or len(record) == 0:
            continue
        names = to_class_names(record, classes, f"{key} in {source}")
        if names is None:
            if not _is_generic(record):
                remarks.append(f"{source}: its {key} {_misfit(record, classes)}: not used")
        elif found is None:
            found = names
        elif name := contradicted(to_index(names.names), to_index(found.names)):
            raise UserError(
                f"{file.shown} contradicts itself: {name!r} is class {found.names.index(name)} by {found.source}, and class "
                f"{names.names.index(name)} by {names.source}. Say what the classes are with --class-map"
            )
    return (None, remarks) if found is None else (_described(found, file), [])


def _misfit(record: Mapping[Any, Any] | Sequence[Any], classes: int) -> str:
    """Why a record of class names does not name a model's `classes`."""
    if len(record) != classes:
        return f"has {len(record)} entries and the model {classes} classes"
    numbers = sorted(to_index(record).values()) if isinstance(record, Mapping) else []
    if numbers and numbers != list(range(classes)):
        return f"numbers its classes {numbers[0]} to {numbers[-1]}, not each of 0 to {classes - 1}"
    return "is not one name for each class"


def _name_records(file: WeightsFile) -> Iterator[tuple[str, str, Any]]:
    """(what messages call the place, key, record)."""
    for key in _NAME_KEYS:
        if key in file.metadata:
            with suppress(ValueError, RecursionError):
                yield file.shown, key, json.loads(file.metadata[key])
    for source, document in ((file.config_shown, file.config), (file.shown, file.content)):
        for holder in _HOLDERS:
            record = plain(document.get(holder)) if holder else document
            if isinstance(record, Mapping):
                yield from ((source, key, plain(record[key])) for key in _NAME_KEYS if key in record)


def _described(names: ClassNames, file: WeightsFile) -> ClassNames:
    """With the descriptions that timm's configurations give beside the names."""
    inner = file.config.get("pretrained_cfg")
    record = file.config.get("label_descriptions") or (inner.get("label_descriptions") if isinstance(inner, Mapping) else None)
    if isinstance(record, Mapping) and all(isinstance(record.get(name), str) for name in names.names):
        return ClassNames(names.names, names.source, tuple(record[name] for name in names.names))
    return names


def _is_generic(record: Mapping[Any, Any] | Sequence[Any]) -> bool:
    """Whether a record names no classes: LABEL_0, LABEL_1, as transformers calls them where nobody did, or no names at all."""
    return all(name.startswith("LABEL_") for name in to_index(record))


def imagenet_names(model: nn.Module | dict[str, int]) -> ClassNames | None:
    """The names of ImageNet's classes, in timm's order, for a model (or its `num_classes`) with as many outputs as one of its subsets has."""
    subset = infer_imagenet_subset(model)
    return None if subset is None else _subset_names(subset)


@lru_cache(maxsize=2)
def _subset_names(subset: str) -> ClassNames:
    info = ImageNetInfo(subset)
    names = info.label_names()
    source = f"{subset}, which has as many classes as the model"
    return ClassNames(tuple(names), source, tuple(info.index_to_description(i) for i in range(len(names))))


def find_preprocessing(file: WeightsFile) -> tuple[dict[str, object], list[str]]:
    """The preprocessing that a checkpoint or what lies beside it records, by timm's names, and what to say of it."""
    for source, found in (
        (f"preprocessor_config.json of {file.shown}", _of_preprocessor(file)),
        (file.config_shown, _of_timm(_timm_config(file))),
        (f"the training arguments in {file.shown}", _of_timm(plain(file.content.get("args")))),
    ):
        if found:
            listed = ", ".join(f"{key} {_short(value)}" for key, value in found.items())
            return found, [f"{source}: {listed}"]
    return {}, []


def _of_timm(record: object) -> dict[str, object]:
    if not isinstance(record, Mapping):
        return {}
    found = {key: _as_list(record.get(key)) for key in _PREPROCESSING}
    return {
        key: value for key, value in found.items() if value is not None and not (hasattr(value, "__len__") and len(value) == 0)
    }


def _as_list(value: object) -> object:
    """An array as a list: Python does not know whether one is true. None for a tensor without plain values (sparse, nested, quantised)."""
    try:
        return value.tolist() if isinstance(value, (Tensor, np.ndarray)) else value
    except RuntimeError:
        return None


def _of_preprocessor(file: WeightsFile) -> dict[str, object]:
    try:
        return _of_transformers(file.preprocessor)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"preprocessor_config.json of {file.shown} is not as transformers writes it ({error}): correct it, or take it away and "
            "give --mean, --std, --interpolation and --crop-pct"
        ) from error


def _of_transformers(record: Mapping[str, Any]) -> dict[str, object]:
    """Of a preprocessor's configuration, whose values may be of any type: TypeError where one is not as transformers writes it."""
    found: dict[str, object] = {}
    if record.get("do_normalize", True):
        found |= {key: record[f"image_{key}"] for key in ("mean", "std") if record.get(f"image_{key}")}
    elif record:
        found |= {"mean": (0.0,), "std": (1.0,)}
    # timm's mean and std are for pixels from 0 to 1; those of a processor for pixels that it multiplies by something else, or by nothing.
    scale = 255.0 * (float(record.get("rescale_factor", 1 / 255)) if record.get("do_rescale", True) else 1.0)
    if record and not math.isclose(scale, 1.0, rel_tol=1e-4):
        if not 0 < scale < math.inf or not {"mean", "std"} <= found.keys():
            raise ValueError(
                f"its pixels are multiplied by {scale / 255:g}, with mean and std {record.get('image_mean')}, {record.get('image_std')}"
            )
        for key in ("mean", "std"):
            values = found[key] if isinstance(found[key], (list, tuple)) else (found[key],)
            found[key] = tuple(float(value) / scale for value in values)  # type: ignore[attr-defined]
    resample = record.get("resample")
    if isinstance(resample, str) and resample.lower() in _RESAMPLE.values():
        found["interpolation"] = resample.lower()
    elif resample in _RESAMPLE:
        found["interpolation"] = _RESAMPLE[resample]
    elif resample is not None:
        raise ValueError(f"resample is {resample!r:.40}, which is no kind of Pillow's")
    return found | _crop_of_transformers(record)


def _crop_of_transformers(record: Mapping[str, Any]) -> dict[str, object]:
    """How a processor resizes: the shorter side to a length ("shortest_edge"), or both sides to theirs, whatever the image's shape."""
    size, crop = record.get("size"), record.get("crop_size")
    kind = str(record.get("image_processor_type") or record.get("feature_extractor_type") or "")
    if isinstance(size, Mapping):
        fixed = "shortest_edge" not in size and "height" in size
        height, width = (size.get("shortest_edge"),) * 2 if not fixed else (size["height"], size.get("width", size["height"]))
    else:
        height, width, fixed = size, size, kind.startswith(_FIXED)
    if not height or not width:
        return {}
    if not record.get("do_center_crop"):
        return {"crop_pct": 1.0, "crop_mode": "squash"}
    cropped = (crop.get("height"), crop.get("width", crop.get("height"))) if isinstance(crop, Mapping) else (crop, crop)
    if not cropped[0] or not cropped[1]:
        return {}
    if not math.isclose(cropped[0] / height, cropped[1] / width, rel_tol=1e-4):
        raise ValueError(f"it crops {cropped[0]} x {cropped[1]} pixels out of {height} x {width}, another share of either side")
    return {"crop_pct": cropped[0] / height, "crop_mode": "squash" if fixed else "center"}


def model_arguments(file: WeightsFile) -> dict[str, object]:
    """Keyword arguments for timm's model that a hub's configuration records."""
    arguments = plain(file.config.get("model_args"))
    found = dict(arguments) if isinstance(arguments, Mapping) else {}
    config = _timm_config(file)
    size = config.get("input_size")
    if config.get("fixed_input_size") and isinstance(size, (list, tuple)) and len(size) == 3:
        found.setdefault("img_size", size[1] if size[1] == size[2] else tuple(size[1:]))
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def to_config(
    name: str, arguments: Mapping[str, object], preprocessing: Preprocessing, names: ClassNames | None
) -> dict[str, object]:
    """What a hub's `config.json` would say of a model: for the header of weights that are made from it, so that they are loaded in the same way.

    Args:
        name: of the timm model.
        arguments: that timm was given.
        preprocessing: of its images.
        names: of its classes, where they are not to be known from their number.
    """
    found: dict[str, object] = {
        "architecture": name,
        "model_args": dict(arguments),
        "pretrained_cfg": {key: getattr(preprocessing, key) for key in _PREPROCESSING},
    }
    if names is not None:
        found["label_names"] = names.names
        found |= {"label_descriptions": dict(zip(names.names, names.descriptions))} if names.descriptions else {}
    return found


def _timm_config(file: WeightsFile) -> Mapping[str, object]:
    """timm's `pretrained_cfg`; older files have its entries at the top."""
    if "architecture" not in file.config:
        return {}
    inner = file.config.get("pretrained_cfg")
    return inner if isinstance(inner, Mapping) else file.config


def recorded_name(file: WeightsFile) -> str | None:
    """The timm name of the model that a checkpoint says to be of."""
    arguments = plain(file.content.get("args"))
    given = [file.config.get("architecture"), file.content.get("arch")]
    given += [arguments.get("model")] if isinstance(arguments, Mapping) else []
    return next((name for name in given if isinstance(name, str) and name), None)


def plain(value: Any) -> Any:
    """A namespace as the mapping that it is."""
    return vars(value) if hasattr(value, "__dict__") and not isinstance(value, (Mapping, Tensor)) else value


def _short(value: Any, depth: int = 0) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(_short(part, depth + 1) for part in value) if depth < _DEEPEST else "..."  # it may hold itself
    if isinstance(value, (int, float)):
        return f"{value:g}" if abs(value) <= _LARGEST else "a number beyond 1e300"
    return str(value)
