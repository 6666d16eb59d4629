"""The options that say which model: of every command that loads one."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from edge_tprune.cli.parameters import expand_parameter
from edge_tprune.cli.parsing import parse_list, parse_pairs
from edge_tprune.cli.terminal import print_note
from edge_tprune.errors import UserError
from edge_tprune.text import command_line

if TYPE_CHECKING:
    from edge_tprune.models.loading import LoadedModel, ModelOptions

_PANEL = "Model and preprocessing"
_DEEPEST = 20  # of lists within lists; no argument of timm's is nested as deep


def _option(*names: str, help: str, **more: Any) -> Any:  # as typer calls it
    return typer.Option(*names, help=help, rich_help_panel=_PANEL, show_default=False, **more)


Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        help="A Python file that registers methods of your own; may be repeated.",
        show_default=False,
    ),
]


def load_plugins(files: list[Path] | None) -> None:
    """Runs the files that --plugin names.

    Raises:
        UserError: a file is not there, fails, or registers no method.
    """
    from edge_tprune.reduction.plugins import load_plugin

    for file in files or []:
        load_plugin(file)


def words_of_plugins(files: list[Path] | None) -> str:
    """--plugin as it can be typed again, with a blank before; '' for none."""
    return "".join(f" {command_line('--plugin', file)}" for file in files or [])


@dataclass(frozen=True)
class ModelChoice:
    """What the user said of the model beside its name: an option for each field. None, False or empty: not given."""

    weights: Annotated[
        str | None,
        _option(
            help="A .safetensors file, a PyTorch checkpoint or the directory of a Hub repository; 'random' for speed tests. Default: timm's pretrained weights."
        ),
    ] = None
    no_ema: Annotated[
        bool, _option("--no-ema", help="Use the plain weights of a checkpoint that also holds their moving average (EMA).")
    ] = False
    classes: Annotated[
        int | None, _option(help="Number of classes of the head, 0 for none; inferred from the checkpoint by default.")
    ] = None
    img_size: Annotated[
        str | None,
        _option(
            metavar="PIXELS", help="Image size: 224, or 224,320 for height and width; inferred from the checkpoint by default."
        ),
    ] = None
    global_pool: Annotated[
        str | None, _option(help="Pooling: token, avg, map or another of timm's; inferred from the checkpoint by default.")
    ] = None
    model_kwargs: Annotated[
        list[str] | None, _option(metavar="NAME=VALUE", help="An extra argument for timm's model; may be repeated.")
    ] = None
    mean: Annotated[
        str | None, _option(help="Mean of the pixels, on a scale from 0 to 1: one value, or one per channel, comma-separated.")
    ] = None
    std: Annotated[str | None, _option(help="Standard deviation of the pixels, in the form of --mean.")] = None
    interpolation: Annotated[str | None, _option(help="Resizing: bicubic, bilinear, nearest, lanczos, box or hamming.")] = None
    crop_pct: Annotated[float | None, _option(help="Share of the resized image that the crop keeps, such as 0.875.")] = None
    crop_mode: Annotated[str | None, _option(help="How the resized image is cropped: center, squash or border.")] = None
    class_map: Annotated[
        Path | None,
        _option(
            metavar="FILE",
            help="Class names: one per line (line 1 is class 0) or JSON; for labelled images, also one 'image class' pair per line.",
        ),
    ] = None

    def with_weights(self, file: Path) -> ModelChoice:
        """The same with the weights of another file."""
        return replace(self, weights=str(file), no_ema=False)

    @property
    def given(self) -> dict[str, object]:
        """What was given, by name of the field."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None and value is not False and value != []}

    @property
    def words(self) -> str:
        """The options as they can be typed again, with a blank before; '' for none."""
        return self.words_without()

    def words_to_build(self, classes: int, *without: str) -> str:
        """The options as `build` takes them: without a class map of images, and without those of these names."""
        from edge_tprune.models.class_names import read_class_map

        try:
            _ = self.class_map and read_class_map(self.class_map).classes(classes)
        except UserError:
            without = (*without, "class_map")
        return self.words_without(*without)

    def words_without(self, *names: str) -> str:
        """The options but those of these names."""
        words: list[str] = []
        for name, value in self.given.items():
            if name in names:
                continue
            option = f"--{name.replace('_', '-')}"
            if value is True:
                words.append(option)
            elif isinstance(value, list):
                words += [word for item in value for word in (option, item)]
            else:
                words += [option, str(value)]
        return f" {command_line(*words)}" if words else ""

    def options(self) -> ModelOptions:
        """As `load_model` takes them.

        Raises:
            UserError: a text that is not of its option's form.
        """
        from edge_tprune.models.loading import ModelOptions

        numbers = {"mean": self.mean, "std": self.std}
        words = {"interpolation": self.interpolation, "crop_pct": self.crop_pct, "crop_mode": self.crop_mode}
        return ModelOptions(
            weights=self.weights,
            classes=self.classes,
            img_size=_parse_size(self.img_size),
            global_pool=self.global_pool,
            model_kwargs={key: _literal(text) for key, text in parse_pairs(self.model_kwargs or [], "--model-kwargs").items()},
            preprocessing={
                **{key: tuple(parse_list(text, float, f"--{key}")) for key, text in numbers.items() if text},
                **{key: value for key, value in words.items() if value is not None},
            },
            use_ema=not self.no_ema,
            class_map=self.class_map,
        )

    def load(self, name: str, *, names_classes: bool = True, needs_classes: bool = True) -> LoadedModel:
        """The model called `name`; says what was decided from its checkpoint.

        Args:
            name: as for `load_model`.
            names_classes: whether the class map names the model's classes; where it may be one of images, it does not.
            needs_classes: whether a model without a classifier head is refused.

        Raises:
            UserError: as `load_model`; or a model without a classifier head.
        """
        from edge_tprune.models.loading import check_has_classes, load_model

        options = self.options()
        loaded = load_model(name, options=options if names_classes else replace(options, class_map=None))
        for remark in loaded.remarks:
            print_note(f"note: {remark}")
        if needs_classes:
            check_has_classes(loaded)
        return loaded


def with_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """The parameter `choice` of a command becomes one option for each thing that can be said of a model."""
    return expand_parameter(command, "choice", get_type_hints(ModelChoice, include_extras=True), ModelChoice)


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    try:
        sides = [int(part) for part in parts]
    except ValueError:
        sides = []
    if not 1 <= len(sides) <= 2 or any(side < 1 for side in sides):
        raise UserError(f"--img-size {text!r} is neither a number of pixels nor HEIGHT,WIDTH: give 224, or 224,320")
    return sides[0], sides[-1]


def _check_plain(value: Any, depth: int = 0) -> None:
    """Refuses what a document cannot state, and be read again: keys that are no text and no numbers, and lists within lists without end.

    Raises:
        TypeError: it is so.
    """
    if depth > _DEEPEST:
        raise TypeError("too deep")
    if isinstance(value, dict):
        if not all(isinstance(key, (str, int, float)) and not isinstance(key, bool) for key in value):
            raise TypeError("a key that is no text")
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            _check_plain(each, depth + 1)


def _literal(text: str) -> Any:
    """A Python literal, or else the text itself: as timm's own scripts read --model-kwargs.

    Raises:
        UserError: a literal that no bundle can state: a set, bytes, a complex or infinite number.
    """
    try:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return {"true": True, "false": False, "none": None}.get(text.lower(), text)
        _check_plain(value)
        json.dumps(value, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:  # TypeError also of a list as a key
        raise UserError(
            f"--model-kwargs {text}: give true, false, none, a number, a text, or a list or dictionary of these"
        ) from error
    return value
