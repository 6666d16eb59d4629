from __future__ import annotations

from tests.small import loaded, not_finite  # noqa: F401
