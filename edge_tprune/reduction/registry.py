"""What a reduction method is, and the list of them.

A method is one class in one file: a `Reducer` whose instances each sit in one block, between attention and MLP if not elsewhere (`place`), and
decide which tokens go on and what becomes of the others (an `Outcome`). Adding one's own takes one decorated class:

    @register
    class KeepLongest(Reducer):
        '''Keeps the tokens with the longest feature vectors.'''
        name, paper = "keep_longest", "none"

        def forward(self, x, evidence):
            return Keep(top(x.norm(dim=-1) + self.bonus, self.stage.tokens_out))  # the bonus: the class token comes first and stays
"""

from __future__ import annotations

import inspect
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, cast, get_args

from torch import Tensor, nn

from edge_tprune.documents import MethodOptions, OptionValue
from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.reduction.ops import prefix_bonus
from edge_tprune.reduction.outcome import Outcome
from edge_tprune.reduction.own import call_own, same_draws
from edge_tprune.schedule import DEFAULT_BLOCKS, PLACES, Place, Removal

KEYS = "keys"
VALUES = "values"
CLASS_ROW = "class_row"
ATTENTION = "attention"
POSITIONS = "positions"
EVIDENCE = {
    KEYS: "keys of every head",
    VALUES: "values of every head",
    CLASS_ROW: "the class token's row of the attention map, recomputed as q_cls K^T (ONNX Runtime's operator hands it out): the block stays fused",
    ATTENTION: "the full attention map: the block gives up its fused kernel",
    POSITIONS: "each token's place in the unpruned sequence",
}

FAITHFUL = "faithful"
"""The option, the same for every method, that asks for the form of its authors (`Reducer.faithful`)."""

LATER: Mapping[Place, frozenset[str]] = {
    "block": frozenset({KEYS, VALUES, CLASS_ROW, ATTENTION}),
    "values": frozenset({VALUES}),
    "mlp": frozenset(),
}
"""Evidence that is not there yet at each place."""

ABSENT = {
    "atc": "agglomerative clustering merges one pair after another, each step waiting for the last: a loop, and no static graph",
    "dynamicvit": "the predictors that choose its tokens are trained together with the network: there is nothing to apply as it is",
    "imagepiece": "its networks are trained with the re-tokenisation in place: there is nothing to apply as it is",
    "prance": "the policy that sets tokens and channels image by image is learned, and counts that differ by image make no static graph",
    "token_cropr": "the modules that score its tokens are trained with auxiliary heads: there is nothing to apply as it is",
}
"""Methods one may look for in vain, and why: what is here needs no training and makes a static graph."""


@dataclass(frozen=True)
class Evidence:
    """What a reducer may look at. Of the first five only what its class names in `needs` is there; the rest is None.

    B images, H heads, N tokens entering the block, d channels a head. Post-softmax maps have rows = queries, and include the
    tokens' sizes where attention is proportional.
    """

    keys: Tensor | None = None  #: (B, N, H, d)
    values: Tensor | None = None  #: (B, N, H, d)
    class_row: Tensor | None = None  #: (B, H, N): softmax(q_cls K^T / sqrt d)
    attention: Tensor | None = None  #: (B, H, N, N)
    positions: Tensor | None = None  #: (B, N), int64: place in the unpruned sequence, of the token each one grew from
    sizes: Tensor | None = None  #: (B, N), float32: how many original tokens each stands for; None where all stand for one

    def attentiveness(self) -> Tensor:
        """How much the class token attends to each token, (B, N) float32: the class row's mean over heads."""
        assert self.class_row is not None
        return self.class_row.float().mean(1)

    def received(self) -> Tensor:
        """What each token receives from all queries, head by head, (B, H, N) float32: column sums of the attention map.

        Written as a product with ones: to sum over an axis that is not the last takes ONNX Runtime several times as long.
        """
        assert self.attention is not None
        attention = self.attention.float()
        return (attention.new_ones(1, 1, 1, attention.shape[2]) @ attention)[:, :, 0]

    def significance(self) -> Tensor:
        """What each token adds to the class token, (B, N) float32: its entry in the class row, summed over heads, times the length of its value.

        The value is that of all heads side by side, as in the public codes of ATS and PPT.
        """
        assert self.class_row is not None
        assert self.values is not None
        length: Tensor = self.values.float().flatten(2).norm(dim=-1)
        return self.class_row.float().sum(1) * length


@dataclass(frozen=True)
class Stage:
    """Where one reducer sits and what it must deliver."""

    block: int  #: counted from 1
    blocks: int  #: of the network
    tokens_in: int  #: prefix tokens included
    tokens_out: int  #: prefix tokens included
    prefix_tokens: int  #: leading tokens that are never removed: class, distillation, registers
    has_class_token: bool  #: whether token 0 is a class token
    #: The unpruned image's rows and columns of patches; None where not known. The image's and not the stage's, so stages compare without it.
    grid: tuple[int, int] | None = field(default=None, compare=False)
    nowhere: int = field(default=-1, compare=False)  #: the position of a token that grew from no single one
    schedule: tuple[int, ...] = field(default=(), compare=False)  #: tokens after each block of the network; () where not known


class Reducer(nn.Module, ABC):
    """Base of every method; one instance per reducing block. Options are keyword arguments of `__init__` after `stage`."""

    name: ClassVar[str]
    paper: ClassVar[str]
    #: Where in its block it sits: before the "block", before attention's "values", before the "mlp". A method that leaves the choice has an option `place`.
    place: Place = "mlp"
    #: What the option `faithful` stands for: options that give the method as its authors' public code has it, or its paper where there is no code. Empty
    #: where the default is that form; None where there is no such form, for the reason in `differs`.
    faithful: ClassVar[MethodOptions | None] = None
    code: ClassVar[str] = ""  #: the authors' public code, as owner/name on GitHub; "" where there is none
    #: What the default form does in its own way, and what the faithful form leaves out; "" for nothing.
    differs: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    merges: ClassVar[bool] = False
    drops: bool = True  #: whether a token may leave without another standing for it
    needs_class_token: ClassVar[bool] = False
    default_blocks: ClassVar[tuple[int, ...]] = DEFAULT_BLOCKS  #: of a 12-block network
    paper_blocks: ClassVar[tuple[int, ...]] = ()  #: those of the `faithful` form, where they are others
    removal: ClassVar[Removal] = "share"  #: a budget takes the same share, or the same count, at each block
    limit: ClassVar[str] = "any number of tokens"
    #: Options that `edge-tprune search` varies -> values to try.
    worth_searching: ClassVar[Mapping[str, Sequence[OptionValue]]] = {}

    bonus: Tensor  #: (tokens_in,): what to add to scores so that the prefix tokens rank first (`prefix_bonus`)

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.register_buffer("bonus", prefix_bonus(stage.tokens_in, stage.prefix_tokens), persistent=False)
        #: Whether the blocks that follow, and a head that pools tokens by attention, add log(size) to the attention logits of each key (ToMe,
        #: section 3 "tracking token size"), and a head that averages tokens weighs them by size.
        self.proportional = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Reducer:
        """Moves to another device, but leaves buffers in float32: `pruned.half()` must not round scores."""
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None and buffer.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            moved = self._buffers[name]
            assert moved is not None
            self._buffers[name] = buffer.to(moved.device)
        return self

    @classmethod
    def fewest(cls, tokens_in: int, prefix_tokens: int) -> int:
        """The fewest tokens this method can leave in one stage."""
        return prefix_tokens + 1

    @abstractmethod
    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Looks at tokens (B, tokens_in, C) of the residual stream at its place; the outcome has tokens_out, prefix tokens first and unchanged."""


_METHODS: dict[str, type[Reducer]] = {}
_TEXT, _SWITCH = (str, "a text"), (bool, "True or False")
_KINDS: Mapping[str, tuple[Any, str]] = {
    **dict.fromkeys(("code", "differs", "limit", "removal"), _TEXT),
    **dict.fromkeys(("merges", "needs_class_token"), _SWITCH),
    "__doc__": ((str, type(None)), "a text, or none"),
    "needs": (Set, "a set of names"),
    "paper_blocks": (tuple, "a tuple of block numbers"),
    "faithful": ((Mapping, type(None)), "a mapping, or None"),
    "worth_searching": (Mapping, "a mapping"),
}
"""Class attributes of a reducer -> what they are, and how that is called."""
_BASELINES: dict[str, type[Reducer]] = {}  # that act on the image
_R = TypeVar("_R", bound=type[Reducer])


def register(cls: _R) -> _R:
    """Class decorator that makes a `Reducer` available by its `name`."""
    for needed in ("name", "paper"):
        if not isinstance(getattr(cls, needed, None), str) or not getattr(cls, needed):
            raise TypeError(
                f"{cls.__name__} has no {needed}: a registered reducer needs the class attributes `name` and `paper`"
            )
    for attribute, (kind, described) in _KINDS.items():
        if not isinstance(getattr(cls, attribute), kind):
            raise TypeError(f"{cls.__name__} has {attribute} {getattr(cls, attribute)!r}: give {described}")
    other = _METHODS.get(cls.name)
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise TypeError(f"the method name {cls.name!r} is taken by {other.__module__}.{other.__qualname__}")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", cls.name):
        raise TypeError(
            f"{cls.__name__} is called {cls.name!r}: a method's name has letters, digits, _ and -, and begins with a letter"
        )
    if inspect.isabstract(cls):
        raise TypeError(f"{cls.__name__} does not define {', '.join(sorted(cls.__abstractmethods__))}")
    wrong = [name for name, option in options(cls).items() if type(option.default) not in (bool, int, float, str)]
    if wrong:
        raise TypeError(f"{cls.__name__}: option {wrong[0]} needs a default that is a bool, an int, a float or a str")
    endless = [
        name for name, option in options(cls).items() if isinstance(option.default, float) and not math.isfinite(option.default)
    ]
    if endless:
        raise TypeError(f"{cls.__name__}: option {endless[0]} needs a default that is finite")
    unknown = cls.needs - EVIDENCE.keys()
    if unknown:
        raise TypeError(f"{cls.__name__} needs unknown evidence {sorted(unknown)}: choose from {sorted(EVIDENCE)}")
    if cls.place not in PLACES:
        raise TypeError(f"{cls.__name__} has place {cls.place!r}: it is one of {', '.join(PLACES)}")
    if later := cls.needs & LATER[cls.place]:
        raise TypeError(f"{cls.__name__} sits before the {cls.place}, where there is no {' or '.join(sorted(later))} yet")
    _check_defaults(cls)
    _METHODS[cls.name] = cls
    return cls


def _check_defaults(cls: type[Reducer]) -> None:
    """Refuses default blocks and options to search that no network can have."""
    for attribute, blocks in (("default_blocks", cls.default_blocks or None), ("paper_blocks", cls.paper_blocks)):
        if not isinstance(blocks, tuple) or not all(type(block) is int and 1 <= block <= 12 for block in blocks):
            raise TypeError(
                f"{cls.__name__} has {attribute} {getattr(cls, attribute)!r}: give a tuple of block numbers of a network of 12, from 1"
            )
    if cls.removal not in get_args(Removal):
        raise TypeError(f"{cls.__name__} has removal {cls.removal!r}: it is one of {', '.join(get_args(Removal))}")
    known = options(cls)
    if other := (cls.faithful or {}).keys() - known.keys():
        raise TypeError(f"{cls.__name__}: faithful names the option {sorted(other)[0]!r}, which it does not have")
    for name, values in cls.worth_searching.items():
        if name not in known:
            raise TypeError(f"{cls.__name__}: worth_searching names the option {name!r}, which it does not have")
        kind = type(known[name].default)
        if not values or not all(type(value) is kind and value == value for value in values):
            raise TypeError(
                f"{cls.__name__}: worth_searching gives {name} {list(values)!r}: give values of type {kind.__name__}"
            )


def register_baseline(cls: _R) -> _R:
    """Class decorator for a baseline that acts on the image and chooses no tokens: `build` takes it, and what works with tokens refuses it."""
    _BASELINES[cls.name] = cls
    return cls


def unregister(name: str) -> type[Reducer]:
    """Removes the method called `name`, and returns its class: for tests and notebooks that define a method again.

    Raises:
        UserError: there is none.
    """
    if name not in _METHODS:
        raise UserError(f"no method {name!r} to remove.{did_you_mean(name, _METHODS)} Known: {', '.join(sorted(_METHODS))}")
    return _METHODS.pop(name)


def methods() -> Mapping[str, type[Reducer]]:
    """Every registered method, by name; those of installed packages are among them once `load_announced` has run."""
    return dict(_METHODS)


def baselines() -> Mapping[str, type[Reducer]]:
    """Baselines that act on the image, by name."""
    return dict(_BASELINES)


def any_method(name: str) -> type[Reducer]:
    """The method or the baseline called `name`.

    Raises:
        UserError: as `method`.
    """
    return _BASELINES[name] if name in _BASELINES else method(name)


def method(name: str) -> type[Reducer]:
    """The method called `name`.

    Raises:
        UserError: naming near matches, or why a known method is absent.
    """
    if name in _BASELINES:
        raise UserError(
            f"method {name} makes the image smaller and chooses no tokens: only `build`, and commands that measure or compare what it built, take it"
        )
    if name not in _METHODS:
        from edge_tprune.reduction.plugins import load_announced

        wrong = load_announced()
        if name in wrong:
            raise UserError(f"method {name} could not be loaded: {wrong[name]}")
    if name not in _METHODS:
        for absent, reason in ABSENT.items():
            if _letters(name) == _letters(absent):
                raise UserError(f"method {name} is not included: {reason}. Known: {', '.join(sorted(_METHODS))}")
        known = {**_METHODS, **_BASELINES}
        raise UserError(f"no method {name!r}.{did_you_mean(name, known)} Known: {', '.join(sorted(known))}")
    return _METHODS[name]


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def options(cls: type[Reducer]) -> dict[str, inspect.Parameter]:
    """The options a method takes: `faithful` where it has such a form, and the parameters of its constructor after `stage`, with their defaults."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[2:]  # after self and stage
    own = {p.name: p for p in parameters if p.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)}
    if cls.faithful is None:
        return own
    return {FAITHFUL: inspect.Parameter(FAITHFUL, inspect.Parameter.KEYWORD_ONLY, default=False), **own}


def expanded(cls: type[Reducer], given: MethodOptions) -> dict[str, OptionValue]:
    """Options as the constructor takes them: `faithful` replaced by what it stands for, which other options that are given overrule."""
    rest = {name: value for name, value in given.items() if name != FAITHFUL}
    return {**(cls.faithful or {}), **rest} if given.get(FAITHFUL) else rest


def place(cls: type[Reducer], given: MethodOptions) -> Place:
    """Where in a block a method with these options removes tokens."""
    if cls.name in _BASELINES:
        return cls.place
    chosen = cast(Place, expanded(cls, given).get("place", cls.place))
    if chosen not in PLACES:
        raise UserError(f"method {cls.name}: place is {chosen!r}; it is one of {', '.join(PLACES)}")
    if later := cls.needs & LATER[chosen]:
        raise UserError(f"method {cls.name}: place is {chosen!r}, where there is no {' or '.join(sorted(later))} yet")
    return chosen


#: What an option must be, in words.
_IN_WORDS: Mapping[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def parse_options(cls: type[Reducer], texts: Mapping[str, str]) -> dict[str, OptionValue]:
    """Options given as text ("fuse=true") as values of their defaults' types.

    Raises:
        UserError: an option the method lacks, or a text that is not of the option's type.
    """
    known = options(cls)
    readers: dict[type, Callable[[str], Any]] = {bool: _boolean, int: int, float: float, str: str}
    parsed = {}
    for key, text in texts.items():
        if key not in known:
            raise UserError(_no_option(cls, key))
        kind = type(known[key].default)
        try:
            parsed[key] = readers[kind](text)
        except ValueError as error:
            raise UserError(f"method {cls.name}: option {key}={text!r} is not {_IN_WORDS[kind]}") from error
        if kind is float and not math.isfinite(parsed[key]):
            raise UserError(f"method {cls.name}: option {key}={text!r} is no finite number")
    return parsed


def _no_option(cls: type[Reducer], key: str) -> str:
    known = options(cls)
    if key == FAITHFUL:
        return f"method {cls.name} has no other form than its default: {cls.differs or 'it has no public code'}"
    return f"method {cls.name} has no option {key!r}.{did_you_mean(key, known)} It takes: {', '.join(known) or 'none'}"


def _boolean(text: str) -> bool:
    truth = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
    try:
        return truth[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def check_options(cls: type[Reducer], given: MethodOptions) -> None:
    """Makes sure that a method has the options that are `given`, and values of their types.

    Raises:
        UserError: an unknown option, or a value of another type than its default.
    """
    known = options(cls)
    for key, value in given.items():
        if key not in known:
            raise UserError(_no_option(cls, key))
        kind = type(known[key].default)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        fits = is_whole if kind is int else is_whole or isinstance(value, float) if kind is float else isinstance(value, kind)
        if not fits:
            raise UserError(f"method {cls.name}: option {key} is {value!r:.60}, which is not {_IN_WORDS[kind]}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"method {cls.name}: option {key} is {value}, which is no finite number")


def make(cls: type[Reducer], stage: Stage, given: MethodOptions) -> Reducer:
    """One reducer for one stage.

    Raises:
        UserError: an unknown option, a value the method refuses, or a stage it cannot meet.
    """
    check_options(cls, given)
    least = fewest(cls, stage.tokens_in, stage.prefix_tokens)
    if stage.tokens_out < least:
        raise UserError(
            f"method {cls.name} cannot go from {stage.tokens_in} to {stage.tokens_out} tokens in block {stage.block}: "
            f"it leaves at least {least} ({cls.limit}). "
            + (
                "Spread the removal over more blocks"
                if least < stage.tokens_in
                else "Choose another method: edge-tprune methods"
            )
        )
    with call_own(cls, f"method {cls.name}, block {stage.block}"), same_draws(cls):
        made = cls(stage, **expanded(cls, given))
    if not isinstance(made, cls) or vars(made).get("stage") is not stage or "bonus" not in vars(made).get("_buffers", ()):
        raise UserError(f"method {cls.name}, block {stage.block}: its __init__ does not call super().__init__(stage)")
    if not isinstance(made.needs, Set) or made.needs - EVIDENCE.keys():
        raise UserError(
            f"method {cls.name}, block {stage.block}: needs is {made.needs!r}; choose from {', '.join(sorted(EVIDENCE))}"
        )
    return made


def fewest(cls: type[Reducer], tokens_in: int, prefix_tokens: int) -> int:
    """The fewest tokens that a method can leave in one stage.

    Raises:
        UserError: a method of one's own fails to say it.
    """
    with call_own(cls, f"method {cls.name}, fewest"):
        least = cls.fewest(tokens_in, prefix_tokens)
    if type(least) is not int:
        raise UserError(f"method {cls.name}: fewest returned {least!r}; return a whole number of tokens")
    return least
