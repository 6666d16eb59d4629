"""The measuring process's side of the sampler: starts it, tells it where to write, and notices when it has died."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import msgspec

from edge_tprune.agent.sampler import SampleOrder, SourceList
from edge_tprune.processes import child_environment, end_process
from edge_tprune.record.settings import SourceRecord

_START_S = 30.0  #: how long opening all sources may take
_END_S = 5.0


class Observer:
    """A sampler process. A context manager: when it ends, the last readings are on the disk.

    A machine whose sensors cannot be read at all is measured without them: then `sources` is empty and `problem` says why.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._begun: tuple[Path, int] | None = None
        self.sources: tuple[SourceRecord, ...] = ()  #: what it reads
        self.problem: str | None = None
        self._start()

    def begin(self, directory: Path, session: int) -> None:
        """Samples into the profile at `directory` from now on."""
        self._begun = (directory, session)
        with suppress(OSError):  # it died: `keep_alive` notices
            self._pipe_in.write(msgspec.json.encode(SampleOrder(os.fsencode(directory.resolve()), session)) + b"\n")
            self._pipe_in.flush()

    def keep_alive(self) -> str | None:
        """Starts the sampler again where it has died; returns what happened then, else None."""
        if self._begun is None or self.problem is not None or self._process.poll() is None:
            return None
        code = self._process.returncode
        self._start()
        self.begin(*self._begun)
        return f"the sampler's process ended with {code} and was started again"

    def close(self) -> None:
        """Waits until the last readings are on the disk. A second call does nothing."""
        with suppress(OSError):
            self._pipe_in.close()
        end_process(self._process, _END_S)

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _start(self) -> None:
        command = [sys.executable, "-m", "edge_tprune.agent.sampler", f"--root={self._root}", "--pid", str(os.getpid())]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
            start_new_session=True,  # Ctrl-C in the terminal is for the measuring process, which ends this one
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pipe_in = self._process.stdin
        late, answer = _first_answer(self._process.stdout.fileno())
        self._process.stdout.close()
        if answer is not None:
            self.sources = answer.sources
        else:
            self._process.kill()
            self.problem = f"the sampler's process {f'took more than {_START_S:g} s to start' if late else 'did not start'}"


def _first_answer(handle: int) -> tuple[bool, SourceList | None]:
    """Whether `_START_S` went by before it came, and the first line that is one: what Python prints as it starts there may come before."""
    end, said = time.monotonic() + _START_S, b""
    while (left := end - time.monotonic()) > 0:
        if select.select([handle], [], [], left)[0]:
            block = os.read(handle, 1 << 16)
            *lines, said = (said + block).split(b"\n")
            for line in lines:
                with suppress(ValueError):
                    return False, msgspec.json.decode(line, type=SourceList)
            if not block:
                return False, None
    return True, None
