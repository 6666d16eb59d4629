"""Boards as data (boards.json): how they are recognised, which power rails they have, and what their total is.

A board that is not in the table is as welcome: its rails are found by their labels, only nobody can say which of them add up
to the whole.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from edge_tprune.telemetry import sysfs


@dataclass(frozen=True)
class Board:
    """Which board this is. `asdict` of it can be written as JSON."""

    key: str  #: "orin-nano"; "unknown" for a machine that is not in the table
    name: str  #: for people
    module: str | None  #: NVIDIA's part number of the module: "p3767-0005"
    rails: tuple[str, ...]  #: labels of the power rails it should have
    total: tuple[
        str, ...
    ]  #: the rails whose sum is the board's power: one where the board measures it, none where nobody knows
    remark: str | None  #: what to keep in mind about the total
    compute_capability: str | None  #: of its GPU: "8.7"
    model: str | None  #: what the device tree calls it
    l4t_release: str | None  #: "36.4.0"
    jetpack: str | None  #: "6.1"; None where the release is not in the table


def identify(root: Path = Path("/")) -> Board:
    """The board whose `proc`, `sys` and `etc` are in `root`."""
    model = device_tree(root, "model")
    compatible = (device_tree(root, "compatible") or "").split("\0")
    entry, module = _entry(compatible)
    return _board(entry, module, model, l4t_release(root))


def device_tree(root: Path, name: str) -> str | None:
    """A property of the device tree's root; where /proc has no link to the tree (in some containers), from the tree itself."""
    places = ("proc/device-tree", "sys/firmware/devicetree/base")
    return next((text for place in places if (text := sysfs.text_or_none(root / place / name))), None)


def board(key: str) -> Board:
    """The board of the table called `key` ("orin-nano").

    Raises:
        KeyError: there is none.
    """
    entry = next((entry for entry in _table()["boards"] if entry["key"] == key), None)
    if entry is None:
        raise KeyError(key)
    return _board(entry, None, None, None)


def _board(entry: dict[str, Any] | None, module: str | None, model: str | None, release: str | None) -> Board:
    return Board(
        key=entry["key"] if entry else "unknown",
        name=entry["name"] if entry else model or "unknown machine",
        module=module,
        rails=tuple(entry["rails"]) if entry else (),
        total=tuple(entry["total"]) if entry else (),
        remark=entry["remark"] if entry else None,
        compute_capability=entry["compute_capability"] if entry else None,
        model=model,
        l4t_release=release,
        jetpack=jetpack(release) if release else None,
    )


def l4t_release(root: Path = Path("/")) -> str | None:
    """'36.4.0' from '# R36 (release), REVISION: 4.0, GCID: ...'; an unknown form is kept as it is."""
    text = sysfs.text_or_none(root / "etc/nv_tegra_release")
    if text is None:
        return None
    line = text.splitlines()[0].lstrip("# ")
    match = re.match(r"R(\d+) \(release\), REVISION: ([\d.]+)", line)
    return f"{match[1]}.{match[2]}" if match else line


def jetpack(release: str) -> str | None:
    """The JetPack that belongs to an L4T release: the longest entry of the table that begins it. None where none does."""
    parts = release.split(".")
    for count in range(len(parts), 0, -1):
        if found := _table()["jetpack"].get(".".join(parts[:count])):
            return str(found)
    return None


def _entry(compatible: list[str]) -> tuple[dict[str, Any] | None, str | None]:
    """The board's entry and its module's part number, from the device tree's list ('nvidia,p3768-0000+p3767-0005')."""
    parts = [part for name in compatible for part in re.split(r"[,+]", name) if re.match(r"p\d{4}-\d{4}", part)]
    best: tuple[int, dict[str, Any], str] | None = None
    for entry in _table()["boards"]:
        for module in entry["modules"]:
            for part in parts:
                if part.startswith(module) and (best is None or len(module) > best[0]):
                    best = len(module), entry, part
    return (best[1], best[2]) if best else (None, None)


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(Path(__file__).with_name("boards.json").read_text())
    return table
