from __future__ import annotations

from tests.small import built, bundle, explained, halved, image, loaded, rtx  # noqa: F401
