"""An interrupted command says what it wrote, and only that."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_tprune.files import atomic_writer, write_text
from edge_tprune.placings import forget_placed, placed


def test_only_what_is_in_place_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_placed()
    write_text(tmp_path / "a", "1")
    write_text(tmp_path / "a", "2")
    write_text(tmp_path / "b", "1")
    write_text(tmp_path / "c", "1")
    (tmp_path / "b").unlink()
    (tmp_path / "c").rename(tmp_path / "d")
    (tmp_path / "c").write_text("a person's")
    with pytest.raises(KeyboardInterrupt), atomic_writer(tmp_path / "e"):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda draft, path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_text(tmp_path / "a", "3")
    assert placed() == [tmp_path / "a"]
    forget_placed()
    assert placed() == []
