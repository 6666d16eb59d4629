from __future__ import annotations

from tests.small import built, bundle, explained, image, loaded, rtx  # noqa: F401
