"""Quantiles and other functions of scipy, which a board need not have: it is imported where one is called."""

from __future__ import annotations

import importlib
import math
from typing import Any

from edge_tprune.errors import missing_package


def student(degrees: int, share: float) -> float:
    """Quantile of Student's t distribution."""
    return float(special("stdtrit")(degrees, share))


def student_95(freedom: float) -> float:
    """The 97.5 % quantile of Student's t, by the expansion of Cornish and Fisher about the normal; exact for 1 and 2.

    Within 1 % from 3 degrees of freedom on, and within 0.1 % from 5. For boards, which have no scipy.
    """
    if freedom < 3:
        return 12.706 if freedom < 2 else 4.303
    z = 1.959964
    z3, z5, z7, z9 = (math.pow(z, power) for power in (3, 5, 7, 9))
    return (
        z
        + (z3 + z) / (4 * freedom)
        + (5 * z5 + 16 * z3 + 3 * z) / (96 * freedom**2)
        + (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * freedom**3)
        + (79 * z9 + 776 * z7 + 1482 * z5 - 1920 * z3 - 945 * z) / (92160 * freedom**4)
    )


def special(name: str) -> Any:
    """A function of scipy.special."""
    return getattr(scipy_module("special"), name)


def scipy_module(module: str) -> Any:
    """A module of scipy, which a board need not have.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(f"scipy.{module}")
    except ImportError as error:
        raise missing_package("scipy", "analysis", error) from error
