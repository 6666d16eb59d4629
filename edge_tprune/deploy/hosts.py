"""Which boards: `user@host[:port]`, one or a file of them."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path

from edge_tprune.errors import UserError
from edge_tprune.text import command_line

#: What names of users and hosts may hold: nothing that a shell, a terminal or the ssh command takes for something else.
_TARGET = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]*)@)?"
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]|(?P<host>[A-Za-z0-9_][A-Za-z0-9._-]*))"
    r"(?::(?P<port>[0-9]{1,5}))?"
)

_LARGEST_BYTES = 1_000_000


@dataclass(frozen=True)
class Target:
    """A board as a person names it. The host may be an alias of the user's SSH configuration."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")

    def command(self, *program: str) -> str:
        """A command of OpenSSH that names the board, as it can be copied: of `ssh`, 'ssh -p 2222 jetson@orin'."""
        port = () if self.port is None else ("-p", self.port)
        return command_line(*program, *port, f"{self.user}@{self.host}" if self.user else self.host)

    @property
    def known_as(self) -> str:
        """Its name in a file of known host keys: 'orin', '[orin]:2222'."""
        return self.host if self.port in (None, 22) else f"[{self.host}]:{self.port}"


def parse_target(text: str) -> Target:
    """'jetson@orin:2222', 'orin', 'jetson@[fe80::1]:22'.

    Raises:
        UserError: anything else, and what the ssh command would take for an option.
    """
    match = _TARGET.fullmatch(text)
    port = int(match["port"]) if match and match["port"] else None
    if not match or not (port is None or 0 < port < 65536):
        raise UserError(f"{text!r} does not name a board: give user@host, user@host:port or a host of your SSH configuration")
    return Target(match["v6"] or match["host"], match["user"], port)


def read_hosts(file: Path) -> list[Target]:
    """One board a line; empty lines, what follows a # and a byte order mark are left out.

    Raises:
        UserError: the file cannot be read, a line names no board, one is named twice, or there is none.
    """
    try:
        if not stat.S_ISREG((found := file.stat()).st_mode) or found.st_size > _LARGEST_BYTES:
            raise UserError(f"--hosts {file} is not a file of at most {_LARGEST_BYTES / 1e6:g} MB")
        lines = file.read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"--hosts {file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--hosts {file} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error
    targets: list[Target] = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            target = parse_target(text)
        except UserError as error:
            raise UserError(f"--hosts {file}, line {number}: {error}") from error
        if target in targets:
            raise UserError(f"--hosts {file}, line {number}: {target} is named twice")
        targets.append(target)
    if not targets:
        raise UserError(f"--hosts {file} names no board: write one user@host a line")
    return targets
