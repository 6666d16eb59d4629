"""No damage to a bundle or a profile ends in a traceback, a hang or another exit code than 0, 1 and 2."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.mutations import attack, bundle_commands, damage, make_journey, profile_commands

PARTS, EACH = 4, 50


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_journey(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_profiles_end_in_order(made: tuple[Path, Path], tmp_path: Path, part: int) -> None:
    copy = Path(shutil.copytree(made[1], tmp_path / made[1].name))
    attack(copy, profile_commands(copy), EACH, seed=part)


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_bundles_end_in_order(made: tuple[Path, Path], tmp_path: Path, part: int) -> None:
    copy = Path(shutil.copytree(made[0], tmp_path / "bundle"))
    attack(copy, bundle_commands(copy), EACH, seed=100 + part)


def test_damage_changes_every_file(made: tuple[Path, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made[0], tmp_path / "bundle"))
    changed = set()
    for seed in range(200):
        file, before = damage(copy, random.Random(seed))
        if not file.exists() or file.read_bytes() != before:
            changed.add(file.name)
        file.write_bytes(before)
    assert {"manifest.json", "golden.npz", "weights.bin"} <= changed
