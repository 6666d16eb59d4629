from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from edge_tprune.telemetry import machine
from edge_tprune.telemetry.machine import open_sources
from edge_tprune.telemetry.source import SensorSource
from edge_tprune.telemetry.state import read_state

from .tree import covers


def test_this_machine_can_be_read() -> None:
    json.dumps(asdict(read_state()), allow_nan=False)
    sources = open_sources()
    assert "host" in {source.name for source in sources}
    for source in sources:
        assert covers(source, source.read())
        source.close()


def test_programs_start_only_on_the_running_system_and_where_files_tell_of_no_rail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(machine, "tegrastats_source", lambda board, clock_ns: started.append("tegrastats"))
    monkeypatch.setattr(machine, "jtop_source", lambda board, clock_ns: started.append("jtop"))
    open_sources(tmp_path)
    assert started == []
    monkeypatch.setattr(machine, "rails_source", lambda root, board, clock_ns: SensorSource("rails", []))
    open_sources(Path("/"))
    assert started in (["tegrastats", "jtop"], [])  # none where this machine itself has rails


def test_opening_and_reading_write_nothing(tmp_path: Path) -> None:
    from edge_tprune.simulator.tree import Tree

    tree = Tree(tmp_path / "board", "orin-nano", 0)
    tree.close()
    before = {path: path.lstat().st_mtime_ns for path in tree.directory.rglob("*")}
    for source in open_sources(tree.directory):
        source.read()
        source.close()
    read_state(tree.directory)
    assert before == {path: path.lstat().st_mtime_ns for path in tree.directory.rglob("*")}
