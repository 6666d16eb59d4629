from __future__ import annotations

from tests.analysis.conftest import profile_dir, profiles  # noqa: F401
from tests.small import explained, image, loaded  # noqa: F401
