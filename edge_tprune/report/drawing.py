"""Matplotlib as it comes, in a style of ours: what a person configured for pictures of their own does not reach these."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from edge_tprune.errors import UserError, missing_package
from edge_tprune.text import first_line

_BACKEND = "MPLBACKEND"


@contextmanager
def matplotlib_style(style: Any) -> Iterator[None]:
    """Matplotlib's own defaults and `style` (its name of a setting -> value), for as long as the context lasts.

    Raises:
        UserError: Matplotlib is not installed, or cannot be loaded.
    """
    _load_matplotlib()
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(style)
        yield


def _load_matplotlib() -> None:
    """Imports it, also where the environment names a backend that is not installed here, as a notebook does: no picture of ours needs one."""
    if sys.modules.get("matplotlib") is not None:
        return
    backend = os.environ.pop(_BACKEND, None)
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise missing_package("matplotlib", "analysis", error) from error
    except Exception as error:  # it reads a person's matplotlibrc, and raises whatever it meets there
        raise UserError(f"Matplotlib cannot be loaded; check its configuration (matplotlibrc): {first_line(error)}") from error
    finally:
        if backend is not None:
            os.environ[_BACKEND] = backend
    if backend is not None:
        with suppress(ValueError):
            mpl.rcParams["backend"] = backend  # for pictures that the caller's program draws
