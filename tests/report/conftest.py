from __future__ import annotations

from tests.analysis.conftest import profile_dir, profiles  # noqa: F401
from tests.report.pages import hostile, page, two_methods  # noqa: F401
from tests.small import explained, image, loaded  # noqa: F401
