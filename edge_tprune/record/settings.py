"""The settings of a run: what a caller may ask for (`RunRequest`), and what the run was made with (`RunSettings`).

Both are spelled here only: the command line makes its options from `RunRequest`, a profile stores `RunSettings`, and the code between passes
them on as a whole.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from edge_tprune.documents import Count, Distance, Integer, Name, show
from edge_tprune.errors import UserError
from edge_tprune.telemetry.metric import SHORTEST_INTERVAL_S, SensorMetric

Seconds = Annotated[float, Meta(ge=0, le=1e6)]
FramesPerSecond = Annotated[float, Meta(ge=0.001, le=10_000)]
TOLERANCE = 1e-3  #: how far a float32 graph's outputs may be from the golden ones (`bundle.golden.output_difference`)


def _option(description: str, default: str | None = None, flag: str | None = None) -> Meta:
    """What a field of `RunRequest` means, what None stands for, and its option where that is not the field's name."""
    extra = {"default": default, "option": flag}
    return Meta(description=description, extra={key: value for key, value in extra.items() if value is not None})


#: More than any board has; so many threads are started for every engine.
Threads = Annotated[int, Meta(ge=1, le=1024)]
Rounds = Annotated[int, Meta(ge=1, le=100_000)]  # the order of all of them is in run.json


class RunRequest(msgspec.Struct, kw_only=True, frozen=True):
    """What a caller asks of a run. None: what the bundle, the machine and its sensors ask for.

    A run that is resumed keeps its settings: what is asked for must be equal to them.
    """

    runtime: Annotated[str | None, _option("Which of the bundle's graphs to run.", "onnxruntime")] = None
    precision: Annotated[
        str | None,
        _option(
            "Precision of the graphs: fp32, fp16, mixed or int8; or several, comma-separated, timed alternately in one run.",
            "the first that the bundle was built for",
        ),
    ] = None
    rounds: Annotated[Rounds | None, _option("How often each budget is timed.", "10")] = None
    seconds_per_round: Annotated[
        Seconds | None,
        _option(
            "How long each budget is timed per round, s; at least ten inferences.",
            "1, or ten new values of the power sensor",
            "--seconds",
        ),
    ] = None
    warmup_seconds: Annotated[
        Seconds | None,
        _option("Minimum warm-up before that, s.", "0.5, or until the power sensor shows this load alone", "--warmup"),
    ] = None
    baseline_seconds: Annotated[
        Seconds | None,
        _option(
            "How long to measure idle power before and after all rounds, s; 0 for not at all.",
            "1, or twenty new values of the power sensor",
            "--baseline",
        ),
    ] = None
    fps: Annotated[
        FramesPerSecond | None, _option("Run at this fixed rate, like a camera's frames, instead of back to back.")
    ] = None
    seed: Annotated[int | None, _option("Seed of the order within the rounds.", "0")] = None
    threads: Annotated[Threads | None, _option("CPU threads per engine.", "one per physical core")] = None
    golden_tolerance: Annotated[
        Distance | None,
        _option(
            "Largest difference of a float32 graph's outputs from the golden ones; beyond it, a budget is not timed.",
            f"{TOLERANCE:g}",
            "--tolerance",
        ),
    ] = None

    def check(self) -> None:
        """Holds every value against its range.

        Raises:
            UserError: naming the setting and its value.
        """
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{field.name} must be a finite number, not {value}")
            try:
                msgspec.convert(value, field.type)
            except msgspec.ValidationError as error:
                raise UserError(f"{field.name} must be {_expectation(str(error))}, not {show(value)}") from error

    def given(self) -> dict[str, object]:
        """What is asked for: setting -> value."""
        return {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}

    def words(self) -> list[str]:
        """What is asked for, as options of `edge-tprune profile`."""
        found = []
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                found += [option_flag(field.name), str(value)]
        return found

    def differences(self, settings: RunSettings) -> dict[str, tuple[object, object]]:
        """What is asked for and is not so in the settings of a run: setting -> (in the run, asked for)."""
        pairs = {name: (getattr(settings, name), value) for name, value in self.given().items()}
        if self.precision is not None and settings.precision is not None:  # of which a run orders the names
            was, wanted = (",".join(sorted(names.split(","))) for names in (settings.precision, self.precision))
            pairs["precision"] = was, wanted
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@cache
def request_hints() -> dict[str, Any]:
    """The annotations of `RunRequest`, which say what each setting means. Read once: every command's start needs them."""
    return get_type_hints(RunRequest, include_extras=True)


def setting_meta(setting: str) -> Meta:
    """What is said of a field of `RunRequest`."""
    found: Meta = next(each for each in request_hints()[setting].__metadata__ if isinstance(each, Meta))
    return found


def option_flag(setting: str) -> str:
    """What a field of `RunRequest` is called on the command line."""
    return str((setting_meta(setting).extra or {}).get("option", f"--{setting.replace('_', '-')}"))


class RunInput(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What the engines are run on."""

    kind: Literal["golden", "images"]
    images: Count  #: how many different ones
    name: str | None = None  #: of the folder, for "images"
    sha256: str | None = None  #: of the folder's images


class SourceRecord(msgspec.Struct, kw_only=True, frozen=True):
    """One group of sensors that was read during the run."""

    name: Name
    period_s: Annotated[float, Meta(ge=SHORTEST_INTERVAL_S)] | None = None  #: how often it is read
    metrics: tuple[SensorMetric, ...]


class RunSettings(msgspec.Struct, kw_only=True, frozen=True):
    """What a run was made with: the key `plan` of run.json. The defaults are what version 1 did, which lacks these keys."""

    mode: Literal["saturation", "fixed_rate"] = "saturation"
    fps: FramesPerSecond | None = None  #: in the mode "fixed_rate"
    seed: Integer
    rounds: Count
    seconds_per_round: Seconds  #: least length of a turn
    warmup_seconds: Seconds  #: least length of the warm-up before it
    baseline_seconds: Seconds = 0.0  #: length of the idle times before and after the rounds
    threads: Count
    runtime: Name
    precision: Name | None = None
    golden_tolerance: Distance = TOLERANCE
    isolation: str  #: how engines are kept from disturbing each other, in words
    input: RunInput | None = None
    sources: tuple[SourceRecord, ...] = ()  #: the most trusted first
    order: tuple[tuple[Name, ...], ...]  #: per round the budgets in the order they run


def _expectation(message: str) -> str:
    """'Expected `int` >= 1' -> 'a whole number, at least 1'."""
    words = {"int": "a whole number", "float": "a number", "str": "text", ">=": "at least", ">": "above", "<=": "at most"}
    match = re.match(r"Expected `(\w+)(?: \| null)?`(?: ([<>]=?) (\S+))?", message)
    if match is None or match[1] not in words:
        return "something else"
    return words[match[1]] if match[2] is None else f"{words[match[1]]}, {words[match[2]]} {float(match[3]):g}"
