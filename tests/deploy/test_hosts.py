from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_tprune.deploy.hosts import Target, parse_target, read_hosts
from edge_tprune.errors import UserError


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("orin", Target("orin")),
        ("jetson@orin", Target("orin", "jetson")),
        ("jetson@192.168.55.1:2222", Target("192.168.55.1", "jetson", 2222)),
        ("jetson@[fe80::1%eth0]:22", Target("fe80::1%eth0", "jetson", 22)),
    ],
)
def test_a_board_is_named_as_for_ssh(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert str(target) == text


def test_commands_for_a_board_can_be_copied() -> None:
    assert parse_target("jetson@orin").command("ssh") == "ssh jetson@orin"
    assert parse_target("jetson@orin:2222").command("ssh-copy-id") == "ssh-copy-id -p 2222 jetson@orin"
    assert parse_target("[fe80::1%eth0]:22").command("ssh") == "ssh -p 22 fe80::1%eth0"
    assert [parse_target(text).known_as for text in ("orin", "orin:22", "orin:2222")] == ["orin", "orin", "[orin]:2222"]


@pytest.mark.parametrize(
    "text",
    [
        "", "-oProxyCommand=touch x", "a@-oProxyCommand=x", "a b", "a@b:port", "a@b:0", "a@b:70000", "@b", "a@b@c", "a@b:1:2",
        "a;b", "a$(x)", "`x`", "a\x1b[2J", "a\0b", "a/b", "a@b\n", "é", "a@[::1;x]", "a|b@c", "a@b:٣",
    ],
)  # fmt: skip
def test_what_names_no_board_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="does not name a board"):
        parse_target(text)


def test_a_hosts_file_has_one_board_a_line(tmp_path: Path) -> None:
    file = tmp_path / "boards"
    file.write_text("# ours\njetson@orin   # the first\n\nnx:2222\n")
    assert read_hosts(file) == [Target("orin", "jetson"), Target("nx", port=2222)]


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "names no board"), ("# none\n", "names no board"), ("a\nb c\n", "line 2"), ("a\na\n", "line 2: a is named twice")],
)
def test_a_wrong_hosts_file_says_where(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "boards"
    file.write_text(text)
    with pytest.raises(UserError, match=says):
        read_hosts(file)


def test_a_missing_hosts_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_hosts(tmp_path / "none")


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    file = tmp_path / "boards"
    file.write_bytes(b"\xef\xbb\xbfjetson@orin\r\nnx\r\n")
    assert read_hosts(file) == [Target("orin", "jetson"), Target("nx")]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"or\0in\n", r"line 1: 'or\\x00in' does not name a board"),
        (b"\xff\xfeo\0r\0", "is not UTF-8 text: byte 0 is 0xff"),
        (b"a\n" * 600_000, "at most 1 MB"),
    ],
)
def test_bytes_that_are_no_list_of_boards_are_one_line(tmp_path: Path, data: bytes, says: str) -> None:
    file = tmp_path / "boards"
    file.write_bytes(data)
    with pytest.raises(UserError, match=says) as caught:
        read_hosts(file)
    assert str(caught.value).isprintable()


def test_a_pipe_is_no_hosts_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a file"):
        read_hosts(tmp_path / "pipe")
