"""Loading a timm model with real weights, its preprocessing and the names of its classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import msgspec
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from edge_tprune.errors import UserError
from edge_tprune.models import reference
from edge_tprune.models.architecture import Arguments, Created, check_name, create, create_pretrained
from edge_tprune.models.checkpoint import WeightsFile, one_line, read_weights
from edge_tprune.models.class_names import ClassNames, contradicted, read_class_map, to_index
from edge_tprune.models.fitting import fit
from edge_tprune.models.inference import classifiers, infer_arguments, pair, resample_square
from edge_tprune.models.preprocess import Preprocessing
from edge_tprune.models.records import find_class_names, find_preprocessing, imagenet_names, model_arguments, recorded_name
from edge_tprune.models.state_dict import complete, find_network, hash_tensors
from edge_tprune.models.transform import make_transform, resolve_preprocessing

RANDOM = "random"
PRETRAINED = "pretrained"
LOCAL = "local-dir:"  #: timm's word for a directory that holds config.json and weights


_NOT_FOR_MODELS = {
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir"),
    *("features_only", "out_indices", "feature_cls", "scriptable", "exportable", "no_jit", "use_naflex"),
    *("device", "dtype"),
}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be pruned, and where it came from."""

    name: str
    model: VisionTransformer  #: in eval mode, float32
    weights: str  #: a file's name, "pretrained", "reference" or "random"
    weights_sha256: str  #: over all tensors, names and shapes: equal for equal weights whatever file they came from
    preprocessing: Preprocessing
    #: Beside its name, what timm was asked for: num_classes, img_size, ...
    arguments: Arguments = field(default_factory=dict)
    class_names: ClassNames | None = None
    remarks: tuple[str, ...] = ()  #: what was decided from the checkpoint, for the output

    @property
    def settings(self) -> dict[str, object]:
        """What decides its answers beside its name and weights, as JSON values: preprocessing and timm's arguments."""
        preprocessing = msgspec.json.decode(msgspec.json.encode(self.preprocessing))
        return {"preprocessing": preprocessing, "arguments": {name: repr(value) for name, value in self.arguments.items()}}

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """Maps a PIL image to a normalised tensor (C, H, W), as timm does at evaluation."""
        return make_transform(self.preprocessing)


@dataclass(frozen=True)
class ModelOptions:
    """What a user may say of a model beside its name; what is None is taken from the checkpoint, then from timm."""

    weights: str | Path | None = None  #: a file, a directory, "random", or None for the model's own
    classes: int | None = None  #: 0: without a classifier head
    img_size: tuple[int, int] | None = None  #: (H, W), pixels
    global_pool: str | None = None
    model_kwargs: Arguments = field(default_factory=dict)  #: other keyword arguments for timm
    preprocessing: Mapping[str, object] = field(default_factory=dict)  #: mean, std, interpolation, crop_pct, crop_mode
    use_ema: bool = True  #: prefer a moving average of the weights where a checkpoint has one, as timm does
    class_map: Path | None = None  #: a file with the names of the classes (`read_class_map`)

    @property
    def arguments(self) -> dict[str, object]:
        """Keyword arguments for timm."""
        named = {"num_classes": self.classes, "global_pool": self.global_pool}
        if self.img_size is not None:
            height, width = self.img_size
            named["img_size"] = height if height == width else self.img_size  # type: ignore[assignment]
        given = {key: value for key, value in named.items() if value is not None}
        if foreign := _NOT_FOR_MODELS & self.model_kwargs.keys():
            raise UserError(
                f"--model-kwargs {sorted(foreign)[0]} is not an argument of a model, but of its loading: leave it out"
            )
        if given.get("global_pool") == "":
            raise UserError(
                "--global-pool is empty: without pooling a model has no answer for an image. Give token, avg or map"
            )
        if twice := given.keys() & self.model_kwargs.keys():
            raise UserError(f"{sorted(twice)[0]} is given twice, by --model-kwargs and by an option of its own: leave one out")
        return {**self.model_kwargs, **given}


def load_model(
    name: str, weights: str | Path | None = None, classes: int | None = None, options: ModelOptions | None = None
) -> LoadedModel:
    """A model by name.

    Args:
        name: "reference", any timm name, or "local-dir:DIRECTORY".
        weights: a .safetensors file, a PyTorch checkpoint (tensors and plain values only), a directory of a hub, "random", or None for the
            reference model's shipped weights and for timm's own pretrained ones (fetched from the model hub).
        classes: number of classes; the checkpoint's own by default.
        options: the same and more, instead of the two.

    Raises:
        UserError: an unknown name, unreadable or unfitting weights, or a hub that cannot be reached.
    """
    options = options or ModelOptions(weights, classes)
    if name.startswith(LOCAL):
        return _load_local(name, options)
    if name == reference.NAME:
        return _load_reference(options)
    check_name(name)
    if options.weights is None:
        return _load_pretrained(name, options)
    if str(options.weights) == RANDOM:
        torch.manual_seed(0)
        return _finish(name, create(name, options.arguments, random=True), RANDOM, options)
    return _load_file(name, read_weights(Path(options.weights)), options)


def check_has_classes(loaded: LoadedModel) -> None:
    """Refuses a model without a classifier head, where its answers are compared.

    Raises:
        UserError: saying what to give.
    """
    if getattr(loaded.model, "num_classes", 1) == 0:
        raise UserError(
            f"{loaded.name} has no classifier head, and this command compares classes: choose a classifier, or give --weights of a fine-tuned one "
            "(its classes are found in it). `build`, `eval`, `search` and `finetune` take it as it is"
        )


def _load_local(name: str, options: ModelOptions) -> LoadedModel:
    directory = Path(name[len(LOCAL) :])
    file = read_weights(directory)
    architecture = file.config.get("architecture")
    if not isinstance(architecture, str):
        raise UserError(
            f"{directory}/config.json does not say of which timm model it is: give the model's name and --weights {directory}"
        )
    check_name(architecture)
    if options.weights is not None:
        given = read_weights(Path(options.weights))
        if not (given.config or given.preprocessor):  # those of the directory hold for them
            given = replace(given, config=file.config, preprocessor=file.preprocessor, config_source=file.config_shown)
        file = given
    return _load_file(architecture, file, options)


def _load_reference(options: ModelOptions) -> LoadedModel:
    given = options.arguments
    if given.pop("num_classes", reference.CLASSES) != reference.CLASSES:
        raise UserError(f"the reference model has {reference.CLASSES} classes: --classes {options.classes} does not fit it")
    if given:
        raise UserError(f"the reference model is what it is: leave {', '.join(sorted(given))} out, or name a timm model")
    if str(options.weights) == RANDOM:
        torch.manual_seed(0)
        return _finish(reference.NAME, Created(reference.build(), {}, None), RANDOM, options)
    created = Created(reference.build(), {}, None)
    file = read_weights(reference.WEIGHTS if options.weights is None else Path(options.weights))
    found, remarks = find_network(file, created.model.state_dict(), options.use_ema, reference.NAME)
    state, more = fit(found, created.model, None, file, reference.NAME)
    created.model.load_state_dict(state)
    label = reference.NAME if options.weights is None else file.shown
    return _finish(reference.NAME, created, label, options, file, [*remarks, *more])


def _load_pretrained(name: str, options: ModelOptions) -> LoadedModel:
    own = create(name, {}, shape_only=True).model
    classes = options.arguments.get("num_classes")  # from --classes or --model-kwargs
    if classes not in (None, 0, getattr(own, "num_classes", None)):
        raise UserError(
            f"the pretrained weights of {name} are for {getattr(own, 'num_classes', None)} classes: {classes} classes need "
            "--weights FILE of a fine-tuned checkpoint"
        )
    return _finish(name, create_pretrained(name, options.arguments), PRETRAINED, options)


def _load_file(name: str, file: WeightsFile, options: ModelOptions) -> LoadedModel:
    given = options.arguments
    saved = {key: value for key, value in model_arguments(file).items() if key not in given and key not in _NOT_FOR_MODELS}
    shape = create(name, {**saved, **given}, shape_only=True).model
    if file.numpy is not None:
        return _load_numpy(name, file, {**saved, **given}, options)
    wanted = shape.state_dict()
    found, remarks = find_network(file, wanted, options.use_ema, name)
    inferred, more = infer_arguments(name, complete(found, wanted)[0], shape, given, saved, file.shown)
    if given.get("num_classes") == 0:
        heads = tuple(f"{layer}." for layer in classifiers(shape))
        found = replace(found, tensors={key: value for key, value in found.tensors.items() if not key.startswith(heads)})
    created = create(name, {**saved, **inferred, **given})
    state, most = fit(found, created.model, created.filter, file, name)
    if "img_size" in given and pair(given["img_size"]) != pair(model_arguments(file).get("img_size")):
        most += resample_square(state, found.tensors, created.model, file.shown)
    created.model.load_state_dict(state)
    return _finish(name, created, file.shown, options, file, [*remarks, *more, *most])


def _load_numpy(name: str, file: WeightsFile, arguments: Arguments, options: ModelOptions) -> LoadedModel:
    """From a JAX archive, by the model's own reader. It passes over what does not fit, so every weight is marked before."""
    heads = [
        value
        for key, value in file.content.items()
        if key.endswith("head/bias") and isinstance(value, Tensor) and value.ndim == 1
    ]
    remarks = []
    if heads and "num_classes" not in arguments:
        arguments = {**arguments, "num_classes": int(heads[0].shape[-1])}
        remarks.append(f"{file.shown}: {arguments['num_classes']} classes, as its head has")
    created = create(name, arguments)
    reader = getattr(created.model, "load_pretrained", None)
    if reader is None:
        raise UserError(f"timm's {name} reads no JAX archives: give a .safetensors file or a PyTorch state dict")
    with torch.no_grad():
        for parameter in created.model.parameters():
            parameter.fill_(float("nan"))
    try:
        reader(str(file.numpy))
    except Exception as error:
        raise UserError(f"the weights in {file.shown} do not fit {name} (timm: {one_line(error)})") from error
    empty = [key for key, parameter in created.model.named_parameters() if not bool(torch.isfinite(parameter).all())]
    if empty:
        raise UserError(
            f"the weights in {file.shown} do not fit {name}: they hold nothing, or no finite numbers, for {', '.join(empty[:3])}"
        )
    return _finish(name, created, file.shown, options, file, remarks)


def _finish(
    name: str,
    created: Created,
    label: str,
    options: ModelOptions,
    file: WeightsFile | None = None,
    remarks: Sequence[str] = (),
) -> LoadedModel:
    """With everything that is decided once the weights are there."""
    model = created.model.float().eval().requires_grad_(False)
    classes = int(getattr(model, "num_classes", 0))
    said = list(remarks)
    if classes == 1:
        said.append(f"{name} has one output: its top-1 means nothing, and agreement is that of its sign (sigmoid above 0.5)")
    recorded, more = ({}, []) if file is None else find_preprocessing(file)
    said += more
    class_names, more = _name_classes(name, model, classes, options, file)
    said += _describe_rim(model)
    said += [] if file is None else _describe_other_name(name, file)
    in_chans = created.arguments.get("in_chans")
    channels = 3 if in_chans is None else int(in_chans)
    preprocessing = resolve_preprocessing(
        model, _image_size(model, created.arguments), channels, recorded, options.preprocessing
    )
    if given := {key: value for key, value in created.arguments.items() if key not in ("num_classes", "dynamic_img_size")}:
        _check_runs(name, model, channels, preprocessing.input_size[1:], given)
    vit = cast(VisionTransformer, model)  # or another family, which who prunes it looks at
    digest = hash_tensors(vit.state_dict())
    return LoadedModel(name, vit, label, digest, preprocessing, dict(created.arguments), class_names, (*said, *more))


def _check_runs(name: str, model: nn.Module, channels: int, size: Sequence[int], arguments: Arguments) -> None:
    """Refuses a network that timm creates from these arguments, and that fails on an image of its size."""
    try:
        with torch.inference_mode():
            model(torch.zeros(1, channels, *size))
    except Exception as error:  # whatever a layer raises for a shape that it does not take
        given = ", ".join(f"{key}={value}" for key, value in sorted(arguments.items()))
        raise UserError(
            f"{name} with {given} fails on an image of {size[0]} x {size[1]} pixels ({one_line(error)}): give other arguments"
        ) from error


def _describe_other_name(name: str, file: WeightsFile) -> list[str]:
    """Where weights that fit are recorded as those of another model: one of the same shape may take its images otherwise (DeiT and ViT do)."""
    said = recorded_name(file)
    if said is None or said.partition(".")[0].lower() == name.removeprefix(LOCAL).partition(".")[0].lower():
        return []
    return [f"{file.shown} says that it is of {said}, and is loaded as {name}: the two may normalise images differently"]


def _image_size(model: nn.Module, arguments: Arguments) -> tuple[int, int] | None:
    size = arguments.get("img_size") or getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _describe_rim(model: nn.Module) -> list[str]:
    """Where the patches do not fill the image, the pixels that the model does not see."""
    embed = getattr(model, "patch_embed", None)
    size, grid, patch = (getattr(embed, name, None) for name in ("img_size", "grid_size", "patch_size"))
    if size is None or grid is None or patch is None or hasattr(embed, "backbone"):  # a hybrid's patches are of a map
        return []
    rim = [int(s - g * p) for s, g, p in zip(size, grid, patch)]
    if not any(rim):
        return []
    return [
        f"patches of {patch[0]} x {patch[1]} pixels do not fill images of {size[0]} x {size[1]}: the last {max(rim)} pixels are not seen"
    ]


def _name_classes(
    name: str, model: nn.Module, classes: int, options: ModelOptions, file: WeightsFile | None
) -> tuple[ClassNames | None, list[str]]:
    """What the classes are called: as the user says, or the checkpoint; or ImageNet's, where the number of classes is."""
    if classes == 0:
        return None, []
    if options.class_map is not None:
        names = read_class_map(options.class_map).class_names(classes)
        return names, _describe_other_names(names, model, classes, file)
    if name == reference.NAME:
        return ClassNames(tuple(map(str, range(reference.CLASSES))), "the digits of the built-in task"), []
    found, remarks = (None, []) if file is None else find_class_names(file, classes)
    return found or imagenet_names(model), remarks


def _describe_other_names(names: ClassNames, model: nn.Module, classes: int, file: WeightsFile | None) -> list[str]:
    """Where a class map gives a name another class than the checkpoint does, or ImageNet: lists of it are in several orders."""
    own = None
    with suppress(UserError):  # a checkpoint that contradicts itself, for which a class map is the way out
        own = None if file is None else find_class_names(file, classes)[0]
    own = own or imagenet_names(model)
    if own is None or (name := contradicted(to_index(names.names), to_index(own.names))) is None:
        return []
    return [
        f"{name!r} is class {names.names.index(name)} by {names.source}, and class {own.names.index(name)} by {own.source}: "
        "the first is used"
    ]
