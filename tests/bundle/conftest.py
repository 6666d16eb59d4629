from __future__ import annotations

from tests.small import built, bundle, halved, loaded, rtx  # noqa: F401
