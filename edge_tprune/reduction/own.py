"""Calls into a method of one's own: its errors become one line that names it, and what it changes of torch's settings is put back."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edge_tprune.errors import EdgeTPruneError, UserError


def is_own(method: type) -> bool:
    """Whether a method is a user's, not one of this package."""
    return method.__module__.partition(".")[0] != "edge_tprune"


@contextmanager
def call_own(method: type, what: str) -> Iterator[None]:
    """Around a call into a method; does nothing where that is one of this package, or while torch compiles.

    Raises:
        UserError: the method fails, or ends the program; `what` is what was called: "method mine, block 4".
    """
    if not is_own(method) or torch.compiler.is_compiling():
        yield
        return
    try:
        with keep_torch_settings():
            yield
    except (EdgeTPruneError, KeyboardInterrupt):
        raise
    except BaseException as error:  # also SystemExit, and kinds of its own
        raise UserError(f"{what}: {describe_own_error(error)}") from error


@contextmanager
def same_draws(method: type) -> Iterator[None]:
    """Around the making of a method's reducer: what one of one's own draws is the same each time, so that a fingerprint stands for one network."""
    if not is_own(method):
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


@contextmanager
def keep_torch_settings() -> Iterator[None]:
    """Puts back what code of others changes for the whole process: the type and device of new tensors, gradients, threads."""
    dtype, device, gradients, threads = (
        torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(), torch.get_num_threads(),
    )  # fmt: skip
    try:
        yield
    finally:
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        if torch.is_grad_enabled() != gradients:
            torch.set_grad_enabled(gradients)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def describe_own_error(error: BaseException, file: str | None = None) -> str:
    """An error in a user's code on one line, with the last line of code of theirs (of `file`, where given) that it passed."""
    try:
        words = str(error)
    except Exception:  # of an exception of theirs, whose text fails
        words = "it has no text"
    text = f"{type(error).__name__}: {' '.join(words.split())}"[:300]
    if isinstance(error, SystemExit):
        text = "it ends the program (sys.exit)"
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f
        for f in frames
        if (f.filename == file if file else "/site-packages/" not in f.filename and "edge_tprune/" not in f.filename)
    ]
    return f"line {own[-1].lineno}: {text}" if own else text
