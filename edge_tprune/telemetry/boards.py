"""Boards as data (boards.json): how each is recognised, which power rails it has, and which of them make its total.

A board that is not in the table works too: its rails are found by their labels. If one of them is called as the input of a module or
board usually is (`INPUT_RAILS`), it is offered as the total and marked as a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import msgspec

from edge_tprune.telemetry import sysfs

#: Rails that measure the whole input on the boards of the table, the one that holds most first.
INPUT_RAILS = ("VIN", "VDD_IN", "POM_5V_IN")
UNKNOWN = "unknown"  #: key of a machine that is not in the table


class _Entry(msgspec.Struct, frozen=True):
    """A board of the table, as `Board` describes it."""

    key: str
    name: str
    modules: tuple[str, ...]  #: how the part numbers of its modules begin
    kits: tuple[str, ...]  #: the same of developer kits (carrier boards)
    compute_capability: str
    rails: dict[str, tuple[str, ...]]  #: rail -> what else its label may say
    total: tuple[str, ...]
    remark: str | None
    source: str


class _Table(msgspec.Struct, frozen=True):
    boards: tuple[_Entry, ...]
    jetpack: dict[str, str]  #: by how an L4T release begins


@dataclass(frozen=True)
class Board:
    """Which board this is. `asdict` of it can be written as JSON."""

    key: str  #: "orin-nano"; `UNKNOWN` for a machine that is not in the table
    name: str  #: for people
    module: str | None  #: NVIDIA's part number of the module: "p3767-0005"
    rails: tuple[str, ...]  #: names of the power rails it should have
    total: tuple[str, ...]  #: the rails whose sum is its power: one where the board measures it; none for an unknown board
    remark: str | None  #: what to keep in mind about the total
    source: str | None  #: where the names of the rails and the meaning of the total come from
    compute_capability: str | None  #: of its GPU: "8.7"
    model: str | None  #: what the device tree calls it
    l4t_release: str | None  #: "36.4.0"
    jetpack: str | None  #: "6.1"; None where the release is not in the table
    spellings: dict[str, tuple[str, ...]] = field(default_factory=dict)  #: rail -> what else its label may say

    def match_rails(self, labels: Iterable[str]) -> dict[str, str]:
        """Which label each of the board's rails has on this machine: rail -> label, for the rails that are there.

        Upper and lower case, and the signs between the letters and digits, make no difference.
        """
        found = {_normalise(label): label for label in labels}
        matches = {
            rail: next(
                (found[_normalise(name)] for name in (rail, *self.spellings.get(rail, ())) if _normalise(name) in found), None
            )
            for rail in self.rails
        }
        return {rail: label for rail, label in matches.items() if label is not None}


def identify(root: Path = Path("/")) -> Board:
    """The board whose `proc`, `sys` and `etc` are in `root`."""
    model = device_tree(root, "model")
    compatible = (device_tree(root, "compatible") or "").split("\0")
    entry, module = _find_entry(compatible)
    return _board(entry, module, model, l4t_release(root))


def guess_input(labels: Iterable[str]) -> str | None:
    """The label of the rail that probably measures the whole input of an unknown board; None where no name says so."""
    found = {_normalise(label): label for label in labels}
    return next((found[_normalise(name)] for name in INPUT_RAILS if _normalise(name) in found), None)


def device_tree(root: Path, name: str) -> str | None:
    """A property of the device tree's root; where /proc has no link to the tree (in some containers), from the tree itself."""
    places = ("proc/device-tree", "sys/firmware/devicetree/base")
    return next((text for place in places if (text := sysfs.text_or_none(root / place / name))), None)


def board(key: str) -> Board:
    """The board of the table called `key` ("orin-nano").

    Raises:
        KeyError: there is none.
    """
    entry = next((entry for entry in _table().boards if entry.key == key), None)
    if entry is None:
        raise KeyError(key)
    return _board(entry, None, None, None)


def table() -> tuple[Board, ...]:
    """Every board of the table, in its order: for documentation."""
    return tuple(_board(entry, None, None, None) for entry in _table().boards)


def _board(entry: _Entry | None, module: str | None, model: str | None, release: str | None) -> Board:
    rails = entry.rails if entry else {}
    return Board(
        key=entry.key if entry else UNKNOWN,
        name=entry.name if entry else model or "unknown machine",
        module=module,
        rails=tuple(rails),
        total=entry.total if entry else (),
        remark=entry.remark if entry else None,
        source=entry.source if entry else None,
        compute_capability=entry.compute_capability if entry else None,
        model=model,
        l4t_release=release,
        jetpack=jetpack(release) if release else None,
        spellings={rail: others for rail, others in rails.items() if others},
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
        if found := _table().jetpack.get(".".join(parts[:count])):
            return found
    return None


def _find_entry(compatible: list[str]) -> tuple[_Entry | None, str | None]:
    """The board's entry and its module's part number, from the device tree's list ('nvidia,p3768-0000+p3767-0005').

    The longest match decides. Where no module is named, the developer kit (the carrier board) is looked for.
    """
    parts = [part for name in compatible for part in re.split(r"[,+]", name) if re.match(r"p\d{4}(-\d{4}|$)", part)]
    entries = _table().boards
    modules = [
        (len(module), entry, part) for entry in entries for module in entry.modules for part in parts if part.startswith(module)
    ]
    if modules:
        _, entry, part = max(modules, key=lambda match: match[0])
        return entry, part
    kits = [entry for entry in entries for kit in entry.kits for part in parts if part.startswith(kit)]
    return (kits[0], None) if kits else (None, None)


def _normalise(label: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", label.upper())


@lru_cache(maxsize=1)
def _table() -> _Table:
    return msgspec.json.decode(Path(__file__).with_name("boards.json").read_bytes(), type=_Table)
