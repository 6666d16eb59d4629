from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from edge_tprune.telemetry.boards import board, guess_input, identify, jetpack, table

from .tree import write


@pytest.mark.parametrize(
    ("compatible", "key", "module", "total"),
    [
        ("nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234", "orin-nano", "p3767-0005", ("VDD_IN",)),
        ("nvidia,p3768-0000+p3767-0000\0nvidia,tegra234", "orin-nx", "p3767-0000", ("VDD_IN",)),
        ("nvidia,p3737-0000+p3701-0005\0nvidia,tegra234", "agx-orin", "p3701-0005", None),
        ("nvidia,p3509-0000+p3668-0001\0nvidia,tegra194", "xavier-nx", "p3668-0001", ("VDD_IN",)),
        ("nvidia,p2972-0000\0nvidia,p2888-0004\0nvidia,tegra194", "agx-xavier", "p2888-0004", None),
        ("nvidia,p3971-0089+p3834-0008\0nvidia,tegra264", "thor", "p3834-0008", ("VIN",)),
        ("nvidia,p3449-0000-b00+p3448-0000-b00\0nvidia,jetson-nano\0nvidia,tegra210", "nano", "p3448-0000-b00", ("POM_5V_IN",)),
        ("nvidia,p2972-0000\0nvidia,tegra194", "agx-xavier", None, None),
        ("nvidia,p2822-0000+p2888-0001\0nvidia,tegra194", "agx-xavier", "p2888-0001", None),
        ("nvidia,p2972-0000\0nvidia,p2888\0nvidia,tegra194", "agx-xavier", "p2888", None),
        ("raspberrypi,5-model-b\0brcm,bcm2712", "unknown", None, ()),
    ],
)
def test_boards_are_known_by_their_module(
    tmp_path: Path, compatible: str, key: str, module: str | None, total: tuple[str, ...] | None
) -> None:
    write(tmp_path, {"proc/device-tree/compatible": compatible + "\0", "proc/device-tree/model": "Some Model\0"})
    found = identify(tmp_path)
    assert (found.key, found.module, found.model) == (key, module, "Some Model")
    assert found.total == (found.rails if total is None else total)
    assert set(found.total) <= set(found.rails)
    assert found.name == ("Some Model" if key == "unknown" else board(key).name)
    json.dumps(asdict(found), allow_nan=False)


def test_a_rail_may_be_spelled_in_several_ways() -> None:
    xavier = board("agx-xavier")
    for label in ("SYS5V", "SYS5V0", "sys5v"):
        assert xavier.match_rails(["GPU", "CPU", label])["SYS5V0"] == label
    assert board("orin-nano").match_rails(["vdd-in", "VDD_SOC"]) == {"VDD_IN": "vdd-in", "VDD_SOC": "VDD_SOC"}


def test_every_board_says_where_its_rails_come_from() -> None:
    assert len(table()) >= 7
    for each in table():
        assert each.source
        assert set(each.total) <= set(each.rails)
        assert set(each.spellings) <= set(each.rails)
        assert set(each.match_rails(each.rails)) == set(each.rails)
        for rail, others in each.spellings.items():
            for other in others:
                assert each.match_rails([other]) == {rail: other}


@pytest.mark.parametrize(
    ("labels", "guess"),
    [
        (["VDD_SYS_GPU", "VDD_SYS_SOC", "VDD_IN", "VDD_SYS_CPU"], "VDD_IN"),
        (["VDD_IN", "VIN"], "VIN"),
        (["vdd-in"], "vdd-in"),
        (["VIN_SYS_5V0", "VDD_MOTOR"], None),
        ([], None),
    ],
)
def test_the_input_of_an_unknown_board_is_guessed_by_its_name(labels: list[str], guess: str | None) -> None:
    assert guess_input(labels) == guess


def test_a_machine_that_tells_nothing_is_unknown(tmp_path: Path) -> None:
    found = identify(tmp_path)
    assert (found.key, found.name, found.model, found.l4t_release, found.jetpack) == (
        "unknown",
        "unknown machine",
        None,
        None,
        None,
    )
    with pytest.raises(KeyError):
        board("unknown")


@pytest.mark.parametrize(
    ("text", "release", "version"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "36.4.3", "6.2"),
        ("# R36 (release), REVISION: 4.9, GCID: 1", "36.4.9", "6.x"),
        ("# R35 (release), REVISION: 4.1, GCID: 1", "35.4.1", "5.1.2"),
        ("# R38 (release), REVISION: 2.0, GCID: 1", "38.2.0", "7.0"),
        ("# R99 (release), REVISION: 1.0, GCID: 1", "99.1.0", None),
        ("something else", "something else", None),
    ],
)
def test_releases(tmp_path: Path, text: str, release: str, version: str | None) -> None:
    write(tmp_path, {"etc/nv_tegra_release": text + "\n"})
    found = identify(tmp_path)
    assert (found.l4t_release, found.jetpack) == (release, version)


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("36.3.0", "6.0"),
        ("36.4.0", "6.1"),
        ("36.4.4", "6.2.1"),
        ("36.4.7", "6.2.1"),
        ("36.5.0", "6.2.2"),
        ("38.4.0", "7.1"),
        ("39.2.0", "7.2"),
        ("35.9", "5.x"),
        ("32.7.4", "4.6.4"),
    ],
)
def test_jetpack_of_a_release(release: str, version: str) -> None:
    assert jetpack(release) == version
