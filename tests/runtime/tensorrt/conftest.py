from __future__ import annotations

from tests.small import built, bundle, loaded, rtx  # noqa: F401
