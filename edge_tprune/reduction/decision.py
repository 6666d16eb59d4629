"""Asking a reducer for its decision. That of a method of one's own is checked: a token in the wrong place would give wrong answers, and no error."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.reduction.outcome import Append, Linked, Merge, Outcome
from edge_tprune.reduction.own import describe_own_error, is_own, keep_torch_settings
from edge_tprune.reduction.registry import Evidence, Reducer, Stage


def decide(reducer: Reducer, x: Tensor, evidence: Evidence) -> Outcome:
    """What a reducer decides about tokens (B, N, C).

    Raises:
        UserError: a method of one's own fails, or its outcome breaks the contract of `Reducer.forward`.
    """
    if not is_own(type(reducer)) or torch.compiler.is_compiling():
        outcome: Outcome = reducer(x, evidence)
        return outcome
    where = f"method {reducer.name}, block {reducer.stage.block}"
    version = None if x.is_inference() else x._version
    try:
        with keep_torch_settings():
            outcome = reducer(x, evidence)
        problem = _problem(outcome, reducer.stage, x)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit, and kinds of its own
        raise UserError(f"{where}: {describe_own_error(error)}{_absent(error, evidence)}") from error
    if version is not None and x._version != version:
        problem = "it changes its input in place. Work on a copy of x"
    if problem is not None:
        raise UserError(f"{where}: {problem}")
    return outcome


def _problem(outcome: object, stage: Stage, x: Tensor) -> str | None:
    """How an outcome breaks the contract; None where it keeps it."""
    if not isinstance(outcome, Outcome):
        return f"forward returned a {type(outcome).__name__}; return Keep, Merge, Propagate, Append or First"
    count = x.shape[1]
    places = outcome.positions(torch.arange(count, device=x.device).expand(len(x), -1), -1)
    if len(places) != len(x):
        return f"its outcome is for {len(places)} images, and it was given {len(x)}: the tokens of each image are its own"
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
    return _odd_part(outcome, x, places.shape[1])


def _odd_part(outcome: Outcome, x: Tensor, kept: int) -> str | None:
    """What is wrong with the tensors that say what becomes of the other tokens (B, N, C), of which `kept` stay; None where nothing is."""
    if not isinstance(outcome, (Linked, Append)):
        return None
    (images, count, channels), sources = x.shape, outcome.source.shape[-1]
    parts: list[tuple[str, Tensor | None, tuple[int, ...], int | None]] = [("source", outcome.source, (images, sources), count)]
    if isinstance(outcome, Append):
        parts.append(("weights", outcome.weights, (images, sources), None))
    else:
        parts.append(("link", outcome.link, (images, kept, sources), None))
        shapes = ((images, kept, channels), (images, sources, channels))
        parts += [
            ("features", part, shape, None)
            for part, shape in zip(outcome.features or (), shapes, strict=bool(outcome.features))
        ]
    if isinstance(outcome, Merge):
        parts.append(("weights", outcome.weights, (images, count), None))
        parts.append(("credit", outcome.credit, (images, sources), None))
        parts.insert(1, ("target", outcome.target, (images, sources), kept))  # of which the link is made
    for name, part, shape, places in parts:
        if part is None:
            continue
        if tuple(part.shape) != shape:
            return f"the {name} of its outcome has the shape {tuple(part.shape)}: expected {shape}"
        if places is not None and (part.dtype != torch.int64 or not bool(((part >= 0) & (part < places)).all())):
            return f"the {name} of its outcome must hold places from 0 to {places - 1}, as int64"
        if name != "features" and not bool(part.isfinite().all()) and bool(x.isfinite().all()):
            return f"the {name} of its outcome holds numbers that are not finite"
    return None


def _absent(error: BaseException, evidence: Evidence) -> str:
    """A hint where evidence was read that was not asked for."""
    if "NoneType" not in str(error):
        return ""
    named = ("keys", "values", "class_row", "attention", "positions")
    missing = [name for name in named if getattr(evidence, name) is None]
    return f" (evidence has no {', '.join(missing)} here: name what you read in `needs`)" if missing else ""
