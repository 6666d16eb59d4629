from __future__ import annotations

from tests.agent.conftest import bundle, bundle_path, finished  # noqa: F401
