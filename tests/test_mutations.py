"""No damage to a bundle or a profile ends in a traceback, a hang or another exit code than 0, 1 and 2."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.mutations import attack, bundle_commands, damage, profile_commands

PARTS, EACH = 4, 50


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_profiles_end_in_order(journey: tuple[Path, Path], tmp_path: Path, part: int) -> None:
    copy = Path(shutil.copytree(journey[1], tmp_path / journey[1].name))
    attack(copy, profile_commands(copy), EACH, seed=part)


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_bundles_end_in_order(journey: tuple[Path, Path], tmp_path: Path, part: int) -> None:
    copy = Path(shutil.copytree(journey[0], tmp_path / "bundle"))
    attack(copy, bundle_commands(copy), EACH, seed=100 + part)


def test_damage_changes_every_file(journey: tuple[Path, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(journey[0], tmp_path / "bundle"))
    changed = set()
    for seed in range(200):
        file, before = damage(copy, random.Random(seed))
        if not file.exists() or file.read_bytes() != before:
            changed.add(file.name)
        file.write_bytes(before)
    assert {"manifest.json", "golden.npz", "weights.bin"} <= changed
