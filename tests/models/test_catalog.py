"""The list of networks: what `edge-tprune models` finds by trying, and that the kept tables say the same."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import timm
import torch

from edge_tprune.cli import main
from edge_tprune.errors import UserError
from edge_tprune.models.catalog import BEGIN, END, examine, format_markdown, insert_tables, pretrained_names, read_page
from edge_tprune.models.families import REFUSED
from edge_tprune.reduction import network_shape

KEPT = Path(__file__).parents[2] / "docs" / "models.md"
SOME = (
    "vit_small_patch14_dinov2", "vit_small_patch16_dinov3", "vit_base_patch16_siglip_224", "eva02_tiny_patch14_224", "vitamin_small_224",
    "beit_base_patch16_224", "deit_tiny_distilled_patch16_224", "vit_pwee_patch16_reg1_gap_256", "vit_dwee_patch16_reg1_gap_256",
)  # fmt: skip


def test_networks_are_taken_or_refused_with_the_reason() -> None:
    entries = {e.architecture: e for e in examine([name for some in SOME for name in pretrained_names(some)])}
    assert set(entries) == set(SOME)
    refused = {name: entry.refused for name, entry in entries.items() if entry.refused is not None}
    assert set(refused) == {"vit_pwee_patch16_reg1_gap_256", "vit_dwee_patch16_reg1_gap_256"}
    assert "in parallel" in str(refused["vit_pwee_patch16_reg1_gap_256"])
    dinov2 = entries["vit_small_patch14_dinov2"]
    assert (dinov2.image, dinov2.tokens, dinov2.output) == ((518, 518), 1 + 37 * 37, "embedding")
    assert entries["beit_base_patch16_224"].output == "logits"


@pytest.mark.parametrize("name", ["vitamin_small_224", "vit_tiny_r_s16_p8_224"])
def test_macs_on_the_meta_device_are_those_with_weights(name: str) -> None:
    (entry,) = {e.macs for e in examine(pretrained_names(name)[:1])}
    first = pretrained_names(name)[0]
    assert entry == network_shape(timm.create_model(first, pretrained=False)).macs()


def test_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(UserError, match=r"no pretrained plain ViT of timm .* matches 'vit_smal'.*Use \* for any characters"):
        pretrained_names("vit_smal")
    assert pretrained_names("deit_tiny*") == ["deit_tiny_distilled_patch16_224.fb_in1k", "deit_tiny_patch16_224.fb_in1k"]


def test_tables_go_between_the_marker_lines() -> None:
    tables = format_markdown(list(examine(pretrained_names("deit_tiny*"))))
    assert "Of 2 pretrained names" in tables
    assert "| `deit_tiny_patch16_224` | 1 | VisionTransformer | 224 x 224 | 197 | 12 |" in tables
    once = insert_tables("# Models\n\nProse.\n", tables)
    assert once.startswith("# Models\n\nProse.\n\n" + BEGIN)
    assert insert_tables(once + "More.\n", tables) == once + "More.\n"
    for page in ("text  ", "text\r\n", "a\n\n    code  \n\n\n"):
        assert insert_tables(page, tables).startswith(page), "what is there stays as it is"
    assert insert_tables("", tables) == f"{BEGIN}\n\n{tables}\n{END}\n"


def test_a_page_that_cannot_take_the_tables_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    assert read_page(page) == ""
    for text in ("# Models", f"{BEGIN}\r\nold\r\n{END}\r\nMore."):
        page.write_bytes(text.encode())
        assert read_page(page) == text
    for wrong in (f"{BEGIN}\nMore.", f"Prose.\n{END}", f"{END}\nProse.\n{BEGIN}", f"{BEGIN}\nProse.\n{BEGIN}\nold\n{END}"):
        page.write_text(wrong)
        with pytest.raises(UserError, match="it must have each once, in this order, or neither"):
            read_page(page)
    for name in ("run.json", "rows.csv", "README"):
        other = tmp_path / name
        with pytest.raises(UserError, match=f"{name} is not a Markdown file"):
            read_page(other)
        other.write_text("{}")
        with pytest.raises(UserError, match=f"{name} is not a Markdown file"):
            read_page(other)
        other.write_text(f"{BEGIN}\n{END}")
        assert read_page(other) == f"{BEGIN}\n{END}"
    page.write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"is not text in UTF-8 \(byte 4\)"):
        read_page(page)


def test_a_page_that_is_no_file_is_refused_before_a_network_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edge_tprune.models.catalog.pretrained_names", lambda pattern: pytest.fail("networks are tried"))
    os.mkfifo(tmp_path / "pipe")
    for file, what in ((tmp_path / "pipe", "named pipe"), (Path("/dev/zero"), "device"), (tmp_path, "directory")):
        assert main(["models", "deit_tiny*", "--update", str(file)]) == 2
        assert f"cannot be read: it is a {what}, not a file" in capsys.readouterr().err


def test_kept_tables_are_of_this_timm() -> None:
    """All names are in them, with the numbers of taken and refused ones; what a few say is tried above."""
    text = KEPT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    found = re.search(r"Of (\d+) pretrained names in timm (\S+), (\d+) are taken", text)
    assert found is not None
    if found[2] != timm.__version__:
        pytest.skip(
            f"the tables are of timm {found[2]}, here is {timm.__version__}: edge-tprune models --update docs/models.md"
        )
    names = pretrained_names()
    assert int(found[1]) == len(names)
    assert int(found[3]) >= 440
    refused = re.findall(r"^\| `(\S+\.\S+)` \| \S", text, re.M)
    counts = {name: int(count) for name, count in re.findall(r"^\| `(\w+)` \| (\d+) \| \w+ \| \d+ x", text, re.M)}
    assert int(found[3]) == sum(counts.values()) == len(names) - len(refused)
    expected: dict[str, int] = {}
    for name in set(names) - set(refused):
        expected[name.partition(".")[0]] = expected.get(name.partition(".")[0], 0) + 1
    assert counts == expected
    assert all(f"`{kind}`" in text for kind in REFUSED)


def test_nothing_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A giant is examined in the memory of its names."""
    made: list[torch.device] = []
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda self: made.append(self.weight.device))
    next(examine(pretrained_names("vit_giant_patch14_dinov2")[:1]))
    assert made
    assert {device.type for device in made} == {"meta"}
