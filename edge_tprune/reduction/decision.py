"""Asking a reducer for its decision. That of a method of one's own is checked: a token in the wrong place would give wrong answers, and no error."""

from __future__ import annotations

import sys
import traceback
from contextlib import redirect_stdout

import torch
from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.reduction.outcome import Outcome
from edge_tprune.reduction.registry import Evidence, Reducer, Stage


def is_own(method: type[Reducer]) -> bool:
    """Whether a method is a user's, not one of this package."""
    return method.__module__.partition(".")[0] != "edge_tprune"


def decide(reducer: Reducer, x: Tensor, evidence: Evidence) -> Outcome:
    """What a reducer decides about tokens (B, N, C).

    Raises:
        UserError: a method of one's own fails, or its outcome breaks the contract of `Reducer.forward`.
    """
    if not is_own(type(reducer)) or torch.compiler.is_compiling():
        outcome: Outcome = reducer(x, evidence)
        return outcome
    where = f"method {reducer.name}, block {reducer.stage.block}"
    try:
        with redirect_stdout(sys.stderr):  # stdout is for the command's answer
            outcome = reducer(x, evidence)
        problem = _problem(outcome, reducer.stage, x)
    except Exception as error:
        raise UserError(f"{where}: {describe_own_error(error)}{_absent(error, evidence)}") from error
    if problem is not None:
        raise UserError(f"{where}: {problem}")
    return outcome


def describe_own_error(error: BaseException, file: str | None = None) -> str:
    """An error in a user's code on one line, with the last line of code of theirs (of `file`, where given) that it passed."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f
        for f in frames
        if (f.filename == file if file else "/site-packages/" not in f.filename and "edge_tprune/" not in f.filename)
    ]
    return f"line {own[-1].lineno}: {text}" if own else text


def _problem(outcome: object, stage: Stage, x: Tensor) -> str | None:
    """How an outcome breaks the contract; None where it keeps it."""
    if not isinstance(outcome, Outcome):
        return f"forward returned a {type(outcome).__name__}; return Keep, Merge, Propagate, Append or First"
    count = x.shape[1]
    places = outcome.positions(torch.arange(count, device=x.device).expand(len(x), -1), -1)
    if places.shape[1] != stage.tokens_out:
        return (
            f"its outcome has {places.shape[1]} tokens, and the stage must deliver {stage.tokens_out} (self.stage.tokens_out)"
        )
    prefix = torch.arange(stage.prefix_tokens, device=x.device)
    if not bool((places[:, : stage.prefix_tokens] == prefix).all()):
        return (
            f"its outcome does not begin with the {stage.prefix_tokens} prefix tokens (class, registers) in their order. "
            "Add self.bonus to the scores that rank tokens"
        )
    ordered = places.sort(1).values
    if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
        return "its outcome keeps the same token twice"
    return None


def _absent(error: Exception, evidence: Evidence) -> str:
    """A hint where evidence was read that was not asked for."""
    if "NoneType" not in str(error):
        return ""
    named = ("keys", "values", "class_row", "attention", "positions")
    missing = [name for name in named if getattr(evidence, name) is None]
    return f" (evidence has no {', '.join(missing)} here: name what you read in `needs`)" if missing else ""
