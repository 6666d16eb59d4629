"""A study in a real PostgreSQL, which a test starts for itself where the machine has one."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from edge_tprune.errors import UserError
from edge_tprune.search.study import open_storage, open_study, search
from tests.search.landscape import Landscape
from tests.search.spaces import SPACE

ROOT = Path(__file__).parents[2]
WAIT_S = 120.0


def find_binaries() -> Path:
    """The directory with `initdb` and `postgres`."""
    places = [Path(found).resolve().parent] if (found := shutil.which("initdb")) else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    pytest.skip("no PostgreSQL here (initdb and postgres): apt-get install postgresql")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of a server that listens on a socket in a directory of its own; PostgreSQL refuses to run as root."""
    psycopg = pytest.importorskip("psycopg", reason="no driver for PostgreSQL: pip install 'psycopg[binary]'")
    binaries, home = find_binaries(), Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path is short
    other: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        other = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    options: dict[str, Any] = {
        "cwd": home,
        "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"},
        "stdout": subprocess.DEVNULL,
        **other,
    }
    server = None
    try:
        initdb = [
            binaries / "initdb",
            "-D",
            home / "data",
            "-U",
            "edge",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]
        subprocess.run(initdb, check=True, timeout=120, stderr=subprocess.DEVNULL, **options)
        command = [
            binaries / "postgres",
            "-D",
            home / "data",
            "-k",
            home,
            "-F",
            "-c",
            "listen_addresses=",
            "-c",
            "autovacuum=off",
        ]
        with (home / "log").open("w") as log:
            server = subprocess.Popen(command, stderr=log, **options)
        end = time.monotonic() + WAIT_S
        while True:
            with suppress(psycopg.OperationalError):
                psycopg.connect(host=str(home), user="edge", dbname="postgres").close()
                break
            assert server.poll() is None, (home / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield f"postgresql://edge@/postgres?host={home}"
    finally:
        if server is not None:
            server.send_signal(signal.SIGQUIT)  # at once: SIGTERM would wait for connections that are kept open
            try:
                server.wait(WAIT_S)
            finally:
                server.kill()
        shutil.rmtree(home, ignore_errors=True)


def test_two_workers_share_a_study(url: str, tmp_path: Path) -> None:
    """One is another process, which is killed by `kill -9` while it scores: it loses one trial."""
    program = """
        import os, signal, sys
        from pathlib import Path
        from edge_tprune.search.study import open_storage, open_study, search
        from tests.search.landscape import Landscape
        from tests.search.spaces import SPACE
        class Killed(Landscape):
            def __call__(self, *given):
                if len(self.scored) == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__call__(*given)
        search(open_study(open_storage(Path("x"), sys.argv[1]), "0.65", {}), SPACE, Killed(), trials=100)
    """
    study = open_study(open_storage(tmp_path / "x", url), "0.65", {})
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    other = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), url], cwd=tmp_path, env=environment)
    own = Landscape()

    def wait(done: int, of: int, best: Any) -> None:
        if done >= 2:  # not before the other one has joined
            assert other.wait(WAIT_S) == -9

    found = search(study, SPACE, own, trials=9, report=wait)
    trials = study.get_trials()
    decided = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert (len(decided), len(own.scored)) == (9, 6)
    assert sum(trial.state is TrialState.RUNNING for trial in trials) == 1, "the one that the other was killed over"
    assert found[0].loss == min(trial.value for trial in decided if trial.value is not None)
    with pytest.raises(UserError, match=r"is of another search \(seed"):
        open_study(open_storage(tmp_path / "x", url), "0.65", {"seed": 1})


def test_a_database_that_is_not_there_is_one_line(url: str, tmp_path: Path) -> None:
    missing = url.replace("/postgres?", "/nosuch?")
    with pytest.raises(UserError, match=r'the database cannot be used .*database "nosuch" does not exist') as caught:
        open_storage(tmp_path / "x", missing)
    assert "\n" not in str(caught.value)
