"""Pictures of what a reduction does to one image: which patches stay, leave or merge, stage by stage, as papers show it.

The picture is drawn from the very network that is measured: `PrunedViT.trace` says of every token that is left which original ones it
holds. A patch that still is a token of its own is shown as it is; patches that share a token have the mean colour of their token and a border around them
where the token ends; patches that left lie under a veil. A method that passes a token on in parts is drawn by the largest part.

Colours are Okabe and Ito's, which people with any common colour vision tell apart; that a patch left is said by lightness, that it merged by a border.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from edge_tprune.build.bundle import Bundle
from edge_tprune.errors import UserError, missing_package
from edge_tprune.files import write_bytes, write_text
from edge_tprune.models import reference
from edge_tprune.models.data import ImageFolder, open_dataset
from edge_tprune.models.loading import PRETRAINED, RANDOM, LoadedModel, load_model
from edge_tprune.page import render
from edge_tprune.reduction import plan, registry
from edge_tprune.reduction.host import PrunedViT, network_shape

SUFFIXES = (".png", ".html")
SAMPLE_IMAGES = 4  # of a directory, where a page has other things to say
SHOWN_STAGES = 4  # a picture of twelve stages shows none of them

_VEIL = np.array([228.0, 231.0, 236.0])
_SEEN_THROUGH = 0.12  # of the image, under the veil
_BORDERS = tuple(
    (int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16))
    for code in ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7")
)
_PANEL_PIXELS = 420  # a panel's side at least: patches are drawn as whole multiples of their pixels
_PHOTO_PIXELS = 288  # a side at most where there are many panels: twelve to a patch of DeiT's
_INK, _SOFT, _OTHER = "#1f2328", "#57606a", "#a84300"  # text; beside the point; another class than the unpruned network's
_EPSILON = 1e-3  # a token that passes on less than this of itself has left
_TEMPLATE = Path(__file__).with_name("explain.html")


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

    def to_json(self) -> dict[str, int]:
        """The numbers, for `--json`."""
        counts = {"kept": self.kept, "merged": self.merged, "dropped": self.dropped}
        return {"block": self.block, "tokens": self.tokens, **counts}


@dataclass(frozen=True)
class Prediction:
    """The class a network finds likeliest."""

    index: int
    name: str
    probability: float

    def __str__(self) -> str:
        return f"{self.name} {self.probability:.2f}"

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"class": self.index, "name": self.name, "probability": self.probability}


@dataclass(frozen=True)
class Row:
    """One method at one budget."""

    method: str
    budget: float
    options: Mapping[str, Any]
    schedule: tuple[int, ...]
    share: float  #: of the unpruned MACs
    stages: tuple[Fates, ...]  #: one per block that reduces
    prediction: Prediction

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
        return f"{self.method}, budget {self.budget:g}"

    def to_json(self) -> dict[str, Any]:
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

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "image": self.image,
            "model": self.model,
            "patches": self.grid[0] * self.grid[1],
            "unpruned": self.unpruned.to_json(),
            "rows": [row.to_json() for row in self.rows],
        }


def open_image(source: str) -> Image.Image:
    """The RGB image at a path, or canvas I of the built-in task for "reference:I" ("reference" is the first).

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
        raise UserError(f"image {source} does not exist. Give a file, or 'reference:17' for a canvas of the built-in task")
    try:
        with Image.open(path) as image:
            rgb: Image.Image = image.convert("RGB")
            return rgb
    except Exception as error:  # a damaged file can make a decoder raise almost anything
        raise UserError(f"image {source} cannot be read ({error}). Give a JPEG, PNG, WebP or BMP file") from error


@torch.no_grad()
def explain(
    loaded: LoadedModel,
    image: Image.Image,
    methods: Sequence[str],
    budgets: Sequence[float],
    *,
    name: str = "image",
    blocks: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
) -> Explanation:
    """Follows every patch of an image through a model under each method and budget.

    Args:
        loaded: the model.
        image: RGB, of any size; it is shown as the model's preprocessing leaves it.
        methods: names; each is one row per budget.
        budgets: shares of the unpruned MACs.
        name: how pictures call the image.
        blocks: where tokens are removed, counted from 1; each method's own by default.
        options: of the methods, as text; each goes to the methods that have it.

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
        for budget in budgets:
            how = "none" if budget == 1 else method  # the unpruned network needs nothing of any method
            try:
                schedule = plan(loaded.model, how, budget=budget, blocks=blocks, name=loaded.name)
                pruned = PrunedViT(loaded.model, reducer, schedule.tokens, given)
            except UserError as error:
                raise UserError(f"{method}: {error}") from error
            if (how, budget) not in done:
                done.add((how, budget))
                row_options = {} if how == "none" else given
                rows.append(_row(pruned, tensor, how, budget, row_options, schedule.share))
    return _explanation(loaded, tensor, name, rows)


@torch.no_grad()
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
    model, method = bundle.manifest["model"], bundle.manifest["method"]
    if weights is None and model["weights"] not in (reference.NAME, PRETRAINED):
        weights = RANDOM if model["weights"] == RANDOM else None
        if weights is None:
            raise UserError(f"bundle {path} was built with the weights {model['weights']}: give them with --weights FILE")
    if images.is_file():
        shown = [(images.name, open_image(str(images)))]
    else:
        data = open_dataset(images, model["classes"], count)
        names = (
            [file.name for file in data.files] if isinstance(data, ImageFolder) else [f"canvas {i}" for i in range(len(data))]
        )
        shown = [(name, data[index][0]) for index, name in enumerate(names)]
    loaded = load_model(model["name"], weights, model["classes"])
    if loaded.weights_sha256 != model["weights_sha256"]:
        raise UserError(
            f"the weights {weights or loaded.weights} are not those that bundle {path} was built with: give --weights FILE"
        )
    budgets = [budget for budget in bundle.budgets if budget != bundle.unpruned]
    reducer = registry.method(method["name"])
    explanations = []
    for name, image in shown:
        tensor = loaded.transform()(image)[None]
        rows = []
        for budget in budgets:
            pruned = PrunedViT(loaded.model, reducer, budget.schedule, method["options"])
            share = budget.requested or round(budget.macs_share, 3)
            rows.append(_row(pruned, tensor, method["name"], share, method["options"], budget.macs_share))
        explanations.append(_explanation(loaded, tensor, name, rows))
    return explanations


def fates(members: np.ndarray, prefix: int, block: int) -> Fates:
    """What a block left: `members` (tokens, original tokens) of one image, as `PrunedViT.trace` gives it."""
    patches = members[prefix:, prefix:]
    left = patches.sum(0) < _EPSILON
    return Fates(block, len(members), np.where(left, -1, patches.argmax(0)))


def painted(pixels: np.ndarray, grid: tuple[int, int], after: Fates) -> np.ndarray:
    """The image (H, W, 3) uint8 with merged patches in their token's mean colour and dropped ones under the veil."""
    token = _by_pixel(pixels, grid, after.token)
    result = pixels.astype(np.float64)
    veiled = token < 0
    result[veiled] = _SEEN_THROUGH * result[veiled] + (1 - _SEEN_THROUGH) * _VEIL
    for group in np.unique(after.token[after.shared]):
        result[token == group] = pixels[token == group].mean(0)
    return np.asarray(result.round().astype(np.uint8))


def panel(pixels: np.ndarray, grid: tuple[int, int], after: Fates) -> np.ndarray:
    """`painted`, enlarged by a whole number, with a border inside every merged token along its edges."""
    small = painted(pixels, grid, after)
    scale = _scale(pixels)
    large = _enlarged(small)
    patch = (pixels.shape[0] // grid[0] * scale, pixels.shape[1] // grid[1] * scale)
    width = max(2, min(patch) // 11)
    token = np.where(after.shared, after.token, -1).reshape(grid)
    colours = _border_colours(token)
    padded = np.pad(token, 1, constant_values=-2)
    for row, column in zip(*np.nonzero(token >= 0)):
        cell = large[row * patch[0] : (row + 1) * patch[0], column * patch[1] : (column + 1) * patch[1]]
        around = padded[row : row + 3, column : column + 3] != token[row, column]
        colour = colours[token[row, column]]
        ends = (slice(None, width), slice(-width, None))
        for side in (0, 1):
            if around[2 * side, 1]:
                cell[ends[side]] = colour
            if around[1, 2 * side]:
                cell[:, ends[side]] = colour
            for other in (0, 1):  # the inner corner, where the token goes on along both sides but not across
                if around[2 * side, 2 * other]:
                    cell[ends[side], ends[other]] = colour
    return large


def write(explanation: Explanation, out: Path) -> None:
    """Draws to `out`, atomically: a PNG, or a web page that needs nothing else.

    Raises:
        UserError: another suffix, a package that is missing, a place that cannot be written.
    """
    check_suffix(out)
    if out.suffix.lower() == ".html":
        write_text(out, page(explanation))
    else:
        write_bytes(out, picture(explanation))


def check_suffix(out: Path) -> None:
    """Refuses a file name whose kind cannot be drawn.

    Raises:
        UserError: naming the kinds that can.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"cannot draw {out.name}: the name must end in {' or '.join(SUFFIXES)}")


def picture(explanation: Explanation) -> bytes:
    """The whole comparison as one PNG: a row per method and budget, a column for the image and for each stage."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise missing_package("matplotlib", "host") from error
    rows = explanation.rows
    height, width = explanation.pixels.shape[:2]
    # All in inches, from the top left corner, so that rows look the same however many there are.
    wide, gap, label, head, above, below, foot = 1.72, 0.08, 1.3, 0.3, 0.2, 0.24, 0.28
    tall = wide * height / width
    columns = max(3, *(1 + len(row.shown) for row in rows))  # room for the title, even where nothing is removed
    size = (label + columns * (wide + gap), head + len(rows) * (above + tall + below) + foot)
    style: Any = {"font.family": "sans-serif", "font.size": 8, "text.color": _INK, "text.parse_math": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)

        def text(x: float, y: float, words: str, **how: Any) -> Any:
            return figure.text(x / size[0], 1 - y / size[1], words, **how)

        def show(x: float, y: float, array: np.ndarray, title: str, caption: str) -> None:
            axes = figure.add_axes((x / size[0], 1 - (y + tall) / size[1], wide / size[0], tall / size[1]))
            axes.imshow(array, aspect="auto", interpolation="antialiased")
            axes.set_axis_off()
            text(x + wide / 2, y - 0.04, title, ha="center", va="bottom")
            text(x + wide / 2, y + tall + 0.04, caption, ha="center", va="top", fontsize=7, color=_SOFT)

        text(
            label,
            0.16,
            f"{textwrap.shorten(explanation.image, 40)} · {explanation.model} · unpruned: {explanation.unpruned}",
            va="center",
        )
        for number, row in enumerate(rows):
            y = head + above + number * (above + tall + below)
            same = row.prediction.index == explanation.unpruned.index
            middle: Any = {"x": label - 0.12, "ha": "right"}
            text(y=y + tall / 2 - 0.22, words=row.method, va="center", fontsize=9, fontweight="bold", **middle)
            text(y=y + tall / 2, words=f"budget {row.budget:g}", va="center", **middle)
            words = textwrap.fill(str(row.prediction), 20)
            text(y=y + tall / 2 + 0.14, words=words, va="top", fontsize=7, color=_SOFT if same else _OTHER, **middle)
            patches = explanation.grid[0] * explanation.grid[1]
            show(label, y, _enlarged(explanation.pixels), "input", f"{patches} patches")
            for place, stage in enumerate(row.shown, 1):
                array = panel(explanation.pixels, explanation.grid, stage)
                left = stage.tokens - explanation.prefix_tokens
                show(label + place * (wide + gap), y, array, f"block {stage.block}: {left} tokens", _counts(stage))
        x, y = label, size[1] - 0.16
        for veiled, words in ((True, "dropped"), (False, "merged: its token's mean colour, bordered where the token ends")):
            if any(stage.dropped if veiled else stage.merged for row in rows for stage in row.stages):
                corner = (x / size[0], 1 - (y + 0.055) / size[1])
                fill, edge = (_VEIL / 255, _VEIL / 255) if veiled else ("#d9c7a0", "#E69F00")
                figure.add_artist(
                    Rectangle(corner, 0.11 / size[0], 0.11 / size[1], facecolor=fill, edgecolor=edge, linewidth=1.4)
                )
                text(x + 0.19, y, words, va="center", fontsize=7, color=_SOFT)
                x += 0.85
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def page(explanation: Explanation) -> str:
    """The comparison as one HTML page with the panels inside, each with a text for people who cannot see it."""
    return render(
        _TEMPLATE,
        title=f"Tokens of {explanation.image}",
        model=explanation.model,
        patches=explanation.grid[0] * explanation.grid[1],
        prefix=explanation.prefix_tokens,
        **described(explanation),
    )


def described(explanation: Explanation, photo: bool = False) -> dict[str, Any]:
    """What a page shows of an explanation: `image`, `unpruned`, `input` and `rows` with their `panels` (macros in panels.html).

    Args:
        explanation: of one image.
        photo: panels small and as JPEG, for pages with many images.
    """
    patches = explanation.grid[0] * explanation.grid[1]
    url = partial(_data_url, photo=photo)
    rows = [
        {
            "title": row.title,
            "options": " ".join(f"{key}={value}" for key, value in row.options.items()),
            "share": f"{100 * row.share:.1f}",
            "prediction": str(row.prediction),
            "same": row.prediction.index == explanation.unpruned.index,
            "stages": [
                {"block": s.block, "tokens": s.tokens, "kept": s.kept, "merged": s.merged, "dropped": s.dropped}
                for s in row.stages
            ],
            "panels": [
                {
                    "source": url(panel(explanation.pixels, explanation.grid, stage)),
                    "alt": f"{explanation.image} after block {stage.block} of {row.title}: of {patches} patches {_counts(stage)}",
                    "title": f"block {stage.block}: {stage.tokens - explanation.prefix_tokens} tokens",
                    "caption": _counts(stage),
                }
                for stage in row.shown
            ],
        }
        for row in explanation.rows
    ]
    source = url(_enlarged(explanation.pixels))
    return {"image": explanation.image, "unpruned": str(explanation.unpruned), "input": source, "rows": rows}


def _row(pruned: PrunedViT, tensor: Tensor, method: str, budget: float, options: Mapping[str, Any], share: float) -> Row:
    """What a pruned network does to one image (1, 3, H, W)."""
    stages = _stages(pruned.trace(tensor), pruned, pruned.shape.prefix_tokens)
    return Row(method, budget, options, tuple(pruned.schedule), share, stages, _predict(pruned, tensor))


def _explanation(loaded: LoadedModel, tensor: Tensor, name: str, rows: Sequence[Row]) -> Explanation:
    grid = (int(loaded.model.patch_embed.grid_size[0]), int(loaded.model.patch_embed.grid_size[1]))
    prefix = network_shape(loaded.model, loaded.name).prefix_tokens
    unpruned = _predict(loaded.model, tensor)
    return Explanation(name, loaded.name, _pixels(loaded, tensor[0]), grid, prefix, unpruned, tuple(rows))


def _stages(traced: Sequence[Tensor], pruned: PrunedViT, prefix: int) -> tuple[Fates, ...]:
    return tuple(fates(traced[number - 1][0].float().numpy(), prefix, number) for number in sorted(map(int, pruned.reducers)))


def _predict(network: nn.Module, image: Tensor) -> Prediction:
    odds: Tensor = network(image)[0].softmax(-1)
    index = int(odds.argmax())
    return Prediction(index, _class_name(index, len(odds)), float(odds[index]))


def _class_name(index: int, classes: int) -> str:
    if classes != 1000:  # with 1000, as for `eval`, ImageNet's are meant
        return f"class {index}"
    from timm.data import ImageNetInfo

    return str(ImageNetInfo("imagenet-1k").index_to_description(index)).split(",")[0]


def _pixels(loaded: LoadedModel, tensor: Tensor) -> np.ndarray:
    """What the network sees (3, H, W), normalised -> (H, W, 3) uint8, without a rim too thin for a patch."""
    mean, std = (torch.tensor(loaded.preprocessing[key])[:, None, None] for key in ("mean", "std"))
    image = (255.0 * (tensor * std + mean)).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    embed = loaded.model.patch_embed
    height, width = (int(count) * int(side) for count, side in zip(embed.grid_size, embed.patch_size))
    return np.ascontiguousarray(image[:height, :width])


def _by_pixel(pixels: np.ndarray, grid: tuple[int, int], values: np.ndarray) -> np.ndarray:
    """One value per patch -> one per pixel (H, W)."""
    down, across = pixels.shape[0] // grid[0], pixels.shape[1] // grid[1]
    return values.reshape(grid).repeat(down, 0).repeat(across, 1)


def _scale(pixels: np.ndarray) -> int:
    return int(max(1, -(-_PANEL_PIXELS // min(pixels.shape[:2]))))


def _enlarged(pixels: np.ndarray) -> np.ndarray:
    return pixels.repeat(_scale(pixels), 0).repeat(_scale(pixels), 1)


def _border_colours(token: np.ndarray) -> dict[int, tuple[int, int, int]]:
    """A colour for every token of a grid of patches (-1: none) such that, as far as there are colours, no two that touch share one."""
    padded = np.pad(token, 1, constant_values=-1)
    touching: dict[int, set[int]] = {}
    for row, column in zip(*np.nonzero(token >= 0)):
        touching.setdefault(int(token[row, column]), set()).update(padded[row : row + 3, column : column + 3].ravel().tolist())
    chosen: dict[int, int] = {}
    used = [0] * len(_BORDERS)
    for group, others in touching.items():
        taken = {chosen[other] for other in others if other in chosen}
        chosen[group] = min(range(len(_BORDERS)), key=lambda colour: (colour in taken, used[colour], colour))
        used[chosen[group]] += 1
    return {group: _BORDERS[colour] for group, colour in chosen.items()}


def _counts(stage: Fates) -> str:
    """The numbers above 0, in words."""
    counts = {"kept": stage.kept, "merged": stage.merged, "dropped": stage.dropped}
    return " · ".join(f"{count} {what}" for what, count in counts.items() if count)


def _data_url(array: np.ndarray, photo: bool = False) -> str:
    stream = io.BytesIO()
    image = Image.fromarray(array)
    if photo:
        image.thumbnail((_PHOTO_PIXELS, _PHOTO_PIXELS))
        image.save(stream, format="JPEG", quality=80, optimize=True)
    else:
        image.save(stream, format="PNG", optimize=True)
    kind = "jpeg" if photo else "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
