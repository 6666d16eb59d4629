"""No damage to what commands keep ends in a traceback, a hang or another exit code than 0, 1 and 2."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.mutations import (
    attack,
    bundle_commands,
    damage,
    finetune_commands,
    fit_commands,
    make_fit,
    make_search,
    make_tuned,
    profile_commands,
    search_commands,
)

PARTS, EACH = 4, 50


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_profiles_end_in_order(journey: tuple[Path, Path], tmp_path: Path, part: int) -> None:
    copy = Path(shutil.copytree(journey[1], tmp_path / journey[1].name))
    attack(copy, profile_commands(copy), EACH, seed=part)


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_bundles_end_in_order(journey: tuple[Path, Path], tmp_path: Path, part: int) -> None:
    copy = Path(shutil.copytree(journey[0], tmp_path / "bundle"))
    attack(copy, bundle_commands(copy), EACH, seed=100 + part)


def test_damaged_searches_end_in_order(tmp_path: Path) -> None:
    place = make_search(tmp_path / "search")
    attack(place, search_commands(place), EACH, seed=200)


@pytest.mark.parametrize("stretches", [2, 99])
def test_damaged_fine_tunings_end_in_order(tmp_path: Path, stretches: int) -> None:
    place = make_tuned(tmp_path / "tuned", stretches)
    attack(place, finetune_commands(place)[: 1 if stretches == 2 else 2], EACH // 2, seed=300 + stretches)


def test_damaged_fits_end_in_order(tmp_path: Path) -> None:
    place = make_fit(tmp_path / "fit")
    attack(place, fit_commands(place), EACH // 3, seed=400)


def test_damage_changes_every_file(journey: tuple[Path, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(journey[0], tmp_path / "bundle"))
    changed = set()
    for seed in range(200):
        file, before = damage(copy, random.Random(seed))
        if not file.exists() or file.read_bytes() != before:
            changed.add(file.name)
        file.write_bytes(before)
    assert {"manifest.json", "golden.npz", "weights.bin"} <= changed
