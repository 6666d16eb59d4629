"""`edge-tprune explain`: what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import KIND
from tests.cli.conftest import Outcome
from tests.models.folders import save_image

Command = Callable[..., Outcome]


@pytest.mark.parametrize("budgets", [[], ["--budgets", "1.0"]])
def test_blocks_are_refused_where_nothing_asks_for_them(command: Command, tmp_path: Path, budgets: list[str]) -> None:
    tokens = ",".join(["20"] * 12)
    outcome = command("explain", "reference", "--schedule", tokens, *budgets, "--blocks", "3", "--out", tmp_path / "e.png")
    assert outcome.code == 2
    assert "--blocks is for pruning to a share of MACs, and no such share is asked for" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_removes_nothing_is_refused(command: Command, journey: tuple[Path, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(journey[0], tmp_path / "bundle"))
    manifest = Bundle.open(path, verify=False).manifest
    KIND.write(path, replace(manifest, budgets=(manifest.budget("1.0"),)))
    outcome = command("explain", "reference:17", "--bundle", path, "--out", tmp_path / "e.png")
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert "there is nothing to draw: none of these budgets removes tokens" in line
    assert not (tmp_path / "e.png").exists()


def test_the_image_that_is_explained_is_not_drawn_over(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "explain.png", 1)  # which is what the picture is called by default
    (tmp_path / "link.png").symlink_to("explain.png")
    mine = (tmp_path / "explain.png").read_bytes()
    for image, out in (("explain.png", []), ("explain.png", ["--out", "link.png"]), ("reference:17", [])):
        outcome = command("explain", image, "--budgets", "0.65", *out)
        assert outcome.code == 2
        assert "is the image that is explained" in outcome.err or "is not an explanation of edge-tprune's" in outcome.err
    assert (tmp_path / "explain.png").read_bytes() == mine
