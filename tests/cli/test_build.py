"""`edge-tprune build`, where it builds engines too."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_tprune.bundle.bundle import Bundle
from tests.cli.conftest import Outcome
from tests.small import built, loaded  # noqa: F401

Command = Callable[..., Outcome]


def test_ctrl_c_while_engines_are_built_says_that_the_bundle_is_there(
    command: Command,
    built: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    there = SimpleNamespace(bundle=Bundle.open(built), remarks=(), reused=False)
    monkeypatch.setattr("edge_tprune.export.builder.build", lambda *_, **__: there)
    monkeypatch.setattr("edge_tprune.bundle.engines.check_targets", lambda targets: None)
    monkeypatch.setattr("edge_tprune.bundle.engines.build_ahead", stop)
    words = ["--weights", "random", "--runtime", "tensorrt-rtx", "--target", "sm86,sm89", "--out", "my bundles/b"]
    outcome = command("build", "reference", *words)
    assert outcome.code == 130
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("edge-tprune: ")]
    said, _, again = line.partition("build its engines with: ")
    assert said == "edge-tprune: interrupted: the bundle is built; "
    expected = ["edge-tprune", "engines", "my bundles/b", "--runtime", "tensorrt-rtx", "--target", "sm86,sm89"]
    assert shlex.split(again) == expected
