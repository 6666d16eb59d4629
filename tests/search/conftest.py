from __future__ import annotations

from tests.small import loaded  # noqa: F401
