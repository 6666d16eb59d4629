"""What a reduction does to one image: which patches stay, leave or merge, stage by stage.

It is read off the very network that is measured: `PrunedViT.trace` says of every token that is left which original ones it holds.
A method that passes a token on in parts is shown by its largest part. `panels` and `pictures` draw it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor, nn

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import KIND, MANIFEST
from edge_tprune.bundle.outputs import LOGITS
from edge_tprune.documents import MethodOptions
from edge_tprune.errors import UserError
from edge_tprune.models import reference
from edge_tprune.models.class_names import ClassNames
from edge_tprune.models.data import ReferenceTask, open_images
from edge_tprune.models.images import check_sides, eight_bit_rgb, format_path, image_formats
from edge_tprune.models.loading import PRETRAINED, RANDOM, LoadedModel, ModelOptions, load_model
from edge_tprune.reduction import registry, solve_schedule
from edge_tprune.reduction.host import PrunedViT, network_shape
from edge_tprune.text import printable

SAMPLE_IMAGES = 4  # of a directory, where a page has other things to say
SHOWN_STAGES = 4  # a picture of twelve stages shows none of them

_EPSILON = 1e-3  # a token that passes on less than this of itself has left


@dataclass(frozen=True)
class Fates:
    """What has become of the patches of an image after one block."""

    block: int  #: counted from 1
    tokens: int  #: left, prefix tokens included
    token: np.ndarray  #: (patches,): the token, counted after the prefix, that each patch went into; -1 where it left

    @cached_property
    def shared(self) -> np.ndarray:
        """(patches,): whether a patch's token holds other patches too."""
        held = np.bincount(self.token[self.token >= 0], minlength=1)
        return np.asarray((self.token >= 0) & (held[self.token] > 1))

    @property
    def dropped(self) -> int:
        """Patches that left."""
        return int((self.token < 0).sum())

    @property
    def merged(self) -> int:
        """Patches that share their token."""
        return int(self.shared.sum())

    @property
    def kept(self) -> int:
        """Patches with a token of their own."""
        return len(self.token) - self.dropped - self.merged

    def __str__(self) -> str:
        counts = {"kept": self.kept, "merged": self.merged, "dropped": self.dropped}
        return " · ".join(f"{count} {what}" for what, count in counts.items() if count)

    def to_json(self) -> dict[str, int]:
        """The numbers, for `--json`."""
        counts = {"kept": self.kept, "merged": self.merged, "dropped": self.dropped}
        return {"block": self.block, "tokens": self.tokens, **counts}


@dataclass(frozen=True)
class Prediction:
    """The class a network finds likeliest. All None where its output has no classes."""

    index: int | None = None
    name: str | None = None
    probability: float | None = None

    def __str__(self) -> str:
        return "no classes" if self.probability is None else f"{self.name} {self.probability:.2f}"

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {"class": self.index, "name": self.name, "probability": self.probability}


@dataclass(frozen=True)
class Row:
    """One method at one budget."""

    method: str
    budget: float
    options: MethodOptions
    schedule: tuple[int, ...]
    share: float  #: of the unpruned MACs
    stages: tuple[Fates, ...]  #: one per block that reduces
    prediction: Prediction
    budget_name: str = ""  #: in the bundle, where it is of one

    @property
    def label(self) -> str:
        """What the budget is called."""
        return self.budget_name or f"{self.budget:g}"

    @property
    def shown(self) -> tuple[Fates, ...]:
        """At most `SHOWN_STAGES` of the stages, evenly spaced, the last among them."""
        count = len(self.stages)
        if count <= SHOWN_STAGES:
            return self.stages
        return tuple(self.stages[round((i + 1) * count / SHOWN_STAGES) - 1] for i in range(SHOWN_STAGES))

    @property
    def title(self) -> str:
        """The method and its budget."""
        return f"{self.method}, budget {self.label}"

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "method": self.method,
            "options": dict(self.options),
            "budget": self.budget,
            "macs_share": self.share,
            "schedule": list(self.schedule),
            "stages": [fates.to_json() for fates in self.stages],
            "prediction": self.prediction.to_json(),
        }


@dataclass(frozen=True)
class Explanation:
    """Everything a picture shows."""

    image: str  #: its name
    model: str
    pixels: np.ndarray  #: (H, W, 3) uint8: the image as the network sees it, after resizing and cropping
    grid: tuple[int, int]  #: patches down and across
    prefix_tokens: int
    unpruned: Prediction
    rows: tuple[Row, ...]

    @property
    def patches(self) -> int:
        """How many patches the image has."""
        return self.grid[0] * self.grid[1]

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "image": self.image,
            "model": self.model,
            "patches": self.patches,
            "unpruned": self.unpruned.to_json(),
            "rows": [row.to_json() for row in self.rows],
        }


def describe_turn(source: str) -> str:
    """That an image is shown otherwise than it is stored, for a person who compares answers; "" where it is not."""
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(source, formats=image_formats()) as image:
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                return (
                    f"{Path(source).name} is turned upright, as its EXIF says; eval, profile and edge_tprune.open take pixels as they are stored, and "
                    "may answer otherwise"
                )
    return ""


def open_image(source: str) -> Image.Image:
    """The RGB image at a path, or canvas I of the built-in task for "reference:I" ("reference" is the first).

    As people see it: turned upright where its EXIF says so, and on white where it is transparent. (Evaluation, like timm's, takes files as they are
    stored.)

    Raises:
        UserError: no such file or canvas, or a file that is no image.
    """
    name, _, number = source.partition(":")
    if name == reference.NAME:
        canvases = reference.DigitsInClutter("test")
        if number not in ("", *map(str, range(len(canvases)))):
            raise UserError(f"no canvas {number!r}: the built-in task has reference:0 to reference:{len(canvases) - 1}")
        canvas: Image.Image = canvases[int(number or 0)][0]
        return canvas
    path = Path(source)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        raise UserError(f"image {source} {what}. Give a file, or 'reference:17' for a canvas of the built-in task")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # phones have cameras of 100 megapixels
            image = Image.open(path, formats=image_formats())
        with image:
            check_sides(image)
            with suppress(Exception):  # EXIF may be damaged where the image is not
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # sixteen bits of grey, which Pillow would clip to white
                clear = np.asarray(image) == image.info.get("transparency", -1)
                grey = eight_bit_rgb(image)
                grey.paste("white", mask=Image.fromarray(clear))
                return grey
            if "A" in image.mode or "transparency" in image.info:
                image.load()
                rgba = image.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
            return eight_bit_rgb(image)
    except Exception as error:  # a damaged file can make a decoder raise almost anything
        raise UserError(f"image {source} cannot be read ({error}). Give a JPEG, PNG, WebP or BMP file") from error


@torch.no_grad()
def explain(
    loaded: LoadedModel,
    image: Image.Image,
    methods: Sequence[str],
    budgets: Sequence[float],
    *,
    schedules: Sequence[Sequence[int]] = (),
    name: str = "image",
    blocks: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
    exact_savings: bool = True,
) -> Explanation:
    """Follows every patch of an image through a model under each method and budget.

    Args:
        loaded: the model.
        image: RGB, of any size; it is shown as the model's preprocessing leaves it.
        methods: names; each is one row per budget.
        budgets: shares of the unpruned MACs.
        schedules: token counts after each block, in addition.
        name: how pictures call the image.
        blocks: where tokens are removed, counted from 1; each method's own by default.
        options: of the methods, as text; each goes to the methods that have it.
        exact_savings: as for `edge_tprune.reduction.solve_schedule`.

    Raises:
        UserError: an unknown method, an option that none of them has, a budget that cannot be reached, a model that cannot be pruned.
    """
    texts = dict(options or {})
    chosen = {method: registry.method(method) for method in methods}
    for key in texts:
        if not any(key in registry.options(method) for method in chosen.values()):
            registry.parse_options(next(iter(chosen.values())), {key: texts[key]})  # says what it does take
    tensor = loaded.transform()(image)[None]
    rows, done = [], set()
    for method, reducer in chosen.items():
        given = registry.parse_options(reducer, {k: v for k, v in texts.items() if k in registry.options(reducer)})
        wanted: list[float | tuple[int, ...]] = [*budgets, *map(tuple, schedules)]
        for asked in wanted:
            how = "none" if asked == 1 else method  # the unpruned network needs nothing of any method
            try:
                own = {} if how == "none" else given
                if isinstance(asked, tuple):
                    schedule = solve_schedule(loaded.model, how, schedule=asked, name=loaded.name, options=own)
                else:
                    schedule = solve_schedule(
                        loaded.model,
                        how,
                        budget=asked,
                        blocks=blocks,
                        exact_savings=exact_savings,
                        name=loaded.name,
                        options=own,
                    )
                pruned = PrunedViT(loaded.model, reducer, schedule.tokens, given)
            except UserError as error:
                raise UserError(f"{method}: {error}") from error
            if (how, asked) not in done:
                done.add((how, asked))
                budget = round(schedule.share, 3) if isinstance(asked, tuple) else asked
                rows.append(_row(loaded, pruned, tensor, how, budget, own, schedule.share))
    return _explanation(loaded, tensor, name, rows)


def explain_bundle(path: Path, images: Path, weights: str | None = None, count: int = SAMPLE_IMAGES) -> list[Explanation]:
    """Follows the patches of some images through every pruned budget of a bundle, with the schedules that its graphs have.

    Args:
        path: the bundle.
        images: one image, a directory of them, or "reference" for canvases of the built-in task.
        weights: of the model, as for `load_model`; those that the bundle was built with.
        count: how many images of a directory, spread evenly over it.

    Raises:
        UserError: no bundle, no images, weights that are not the bundle's.
    """
    bundle = Bundle.open(path, verify=False)
    if images.is_file():
        shown = [(images.name, open_image(str(images)))]
    elif str(images) == reference.NAME:
        shown = [(f"canvas {i}", ReferenceTask(count)[i][0]) for i in range(count)]
    else:
        folder = open_images(images).first(count)
        shown = [(file.name, folder[index][0]) for index, file in enumerate(folder.files)]
    loaded = load_model_of(bundle, weights)
    return [explain_budgets(loaded, bundle, image, name) for name, image in shown]


def load_model_of(bundle: Bundle, weights: str | None = None) -> LoadedModel:
    """The model that a bundle was built from, with the bundle's own preprocessing and class names.

    Raises:
        UserError: its weights were read from a file, and none is given; or other weights are; or the bundle's images do not fit the model.
    """
    model = bundle.manifest.model
    if weights is None and model.weights not in (reference.NAME, PRETRAINED):
        weights = RANDOM if model.weights == RANDOM else None
        if weights is None:
            raise UserError(f"bundle {bundle.path} was built with the weights {model.weights}: give them with --weights FILE")
    given = dict(model.arguments)
    classes = given.pop("num_classes", None)  # of the network, which may have a head that the graphs leave out
    if model.output.name == LOGITS:
        classes = model.classes
    options = ModelOptions(weights, cast("int | None", classes), model_kwargs=given)
    loaded = load_model(model.name, options=options)
    if loaded.weights_sha256 != model.weights_sha256 and weights not in (None, RANDOM):  # perhaps it was built with --no-ema
        with suppress(UserError):
            loaded = load_model(model.name, options=replace(options, use_ema=False))
    if loaded.weights_sha256 != model.weights_sha256:
        raise UserError(
            f"the weights {weights or loaded.weights} are not those that bundle {bundle.path} was built with: give --weights FILE"
        )
    size, own = bundle.manifest.preprocessing.input_size, loaded.preprocessing.input_size
    if size != own:
        raise UserError(
            f"bundle {bundle.path}: {MANIFEST} says that images have the size {size}, and {loaded.name} takes {own}. {KIND.remedy}"
        )
    return replace(loaded, preprocessing=bundle.manifest.preprocessing, class_names=bundle.manifest.class_names)


@torch.no_grad()
def explain_budgets(
    loaded: LoadedModel, bundle: Bundle, image: Image.Image, name: str, budgets: Sequence[str] | None = None
) -> Explanation:
    """Follows the patches of one image through budgets of a bundle.

    Args:
        loaded: from `load_model_of`.
        bundle: an opened bundle.
        image: RGB, of any size.
        name: how pictures call the image.
        budgets: by name; all that remove tokens by default.

    Raises:
        UserError: an unknown budget.
    """
    tensor = loaded.transform()(image)[None]
    rows, classifies = [], bundle.manifest.model.output.name == LOGITS
    for budget in bundle.budgets if budgets is None else [bundle.budget(each) for each in budgets]:
        method = budget.method or bundle.manifest.method
        if budgets is None and method.name in registry.baselines():
            continue  # it has another image, and all of its tokens
        pruned = PrunedViT(loaded.model, registry.method(method.name), budget.schedule, method.options)
        if not pruned.reducers and budgets is None:
            continue  # the unpruned network, or what it is with exact savings
        share = budget.requested or round(budget.macs_share, 3)
        row = _row(loaded, pruned, tensor, method.name, share, method.options, budget.macs_share)
        row = replace(row, budget_name=printable(budget.name))
        rows.append(row if classifies else replace(row, prediction=Prediction()))
    explanation = _explanation(loaded, tensor, name, rows)
    return explanation if classifies else replace(explanation, unpruned=Prediction())


def fates(members: np.ndarray, prefix: int, block: int) -> Fates:
    """What a block left: `members` (tokens, original tokens) of one image, as `PrunedViT.trace` gives it."""
    patches = members[prefix:, prefix:]
    left = patches.sum(0) < _EPSILON
    return Fates(block, len(members), np.where(left, -1, patches.argmax(0)))


def _row(
    loaded: LoadedModel, pruned: PrunedViT, tensor: Tensor, method: str, budget: float, options: MethodOptions, share: float
) -> Row:
    """What a pruned network does to one image (1, 3, H, W)."""
    stages = _stages(pruned.trace(tensor), pruned, pruned.shape.prefix_tokens)
    return Row(method, budget, options, tuple(pruned.schedule), share, stages, _predict(pruned, tensor, loaded.class_names))


def _explanation(loaded: LoadedModel, tensor: Tensor, name: str, rows: Sequence[Row]) -> Explanation:
    grid = (int(loaded.model.patch_embed.grid_size[0]), int(loaded.model.patch_embed.grid_size[1]))
    prefix = network_shape(loaded.model, loaded.name).prefix_tokens
    unpruned = _predict(loaded.model, tensor, loaded.class_names)
    return Explanation(format_path(name), loaded.name, _pixels(loaded, tensor[0]), grid, prefix, unpruned, tuple(rows))


def _stages(traced: Sequence[Tensor], pruned: PrunedViT, prefix: int) -> tuple[Fates, ...]:
    return tuple(fates(traced[number - 1][0].float().numpy(), prefix, number) for number in sorted(map(int, pruned.reducers)))


def _predict(network: nn.Module, image: Tensor, names: ClassNames | None) -> Prediction:
    logits: Tensor = network(image)[0]
    odds = logits.sigmoid() if len(logits) == 1 else logits.softmax(-1)
    if not bool(odds.isfinite().all()):
        raise UserError("the network's outputs are not finite for this image: its weights are damaged, or its method fails")
    index = int(odds.argmax())
    return Prediction(index, f"class {index}" if names is None else names.title(index), float(odds[index]))


def _pixels(loaded: LoadedModel, tensor: Tensor) -> np.ndarray:
    """What the network sees (3, H, W), normalised -> (H, W, 3) uint8, without a rim too thin for a patch."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (loaded.preprocessing.mean, loaded.preprocessing.std))
    image = (255.0 * (tensor * std + mean)).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    embed = loaded.model.patch_embed
    height, width = (int(count) * int(side) for count, side in zip(embed.grid_size, embed.patch_size))
    shown = image[:height, :width]
    return np.ascontiguousarray(shown.repeat(3, axis=2) if shown.shape[2] == 1 else shown)
