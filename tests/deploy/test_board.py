"""Deploying to the emulated board over real SSH. Run by `make test-board` after `make board`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import edge_tprune
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.cli import main
from edge_tprune.cli.fit_runs import Runs
from edge_tprune.deploy.journey import deploy
from edge_tprune.record.reader import read_run
from edge_tprune.record.settings import RunRequest
from tests.agent.tiny_bundle import hash_golden, write_bundle
from tests.deploy.emulated import DIRECTORY, LIMIT_S, OPTIONS, PROGRAM, QUICK, TARGET, Emulated, Watcher, done, profiles

pytestmark = [pytest.mark.board, pytest.mark.timeout(900)]


def test_from_nothing_to_a_compared_profile(
    board: Emulated, board_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["deploy", str(board_bundle.path), "board", "--ssh-config", str(DIRECTORY / "ssh_config"), "--offline"]
    arguments += ["--profile", " ".join(QUICK), "--collect", str(tmp_path / "profiles")]
    code = main(arguments)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "VDD_IN" in captured.out  # the doctor's screen, with the simulated board's rails
    assert "Jetson Orin Nano" in captured.out
    (profile,) = (tmp_path / "profiles").iterdir()
    assert str(profile) in captured.out
    run = read_run(profile)
    assert run.end == "complete"
    assert run.document.environment.machine == "aarch64"
    assert "Orin Nano" in str(run.document.environment.board_model)
    assert {entry.budget for entry in run.turns} == {"big", "small"}
    assert main(["compare", str(profile)]) == 0
    assert "small" in capsys.readouterr().out
    for path in (profile, *profile.iterdir()):
        assert path.stat().st_mode & 0o077 == 0


def test_files_on_the_board_are_the_users_alone(installed: Emulated) -> None:
    assert installed.user("stat -c %a ~/.edge-tprune").strip() == "700"  # nobody else comes in, to the venv neither
    assert installed.user("find ~/.edge-tprune -path '*/venv' -prune -o -perm /077 -not -type l -print") == ""


def test_the_commands_that_are_promised_work_there(installed: Emulated) -> None:
    assert installed.user("~/.local/bin/edge-tprune --version").strip() == f"edge-tprune {edge_tprune.__version__}"
    document = json.loads(installed.user("~/.edge-tprune/venv/bin/edge-tprune doctor --json"))
    assert document["board"]["key"] == "orin-nano"
    assert document["ready"]


def test_the_agent_is_small(installed: Emulated) -> None:
    kilobytes = int(installed.user("du -sk ~/.edge-tprune/venv").split()[0])
    print(f"the agent takes {kilobytes / 1000:.1f} MB on the board")
    assert kilobytes < 60_000


def test_fit_measures_on_the_board_and_uses_what_was_measured_again(
    installed: Emulated, board_bundle: Bundle, tmp_path: Path
) -> None:
    request = RunRequest(runtime="onnxruntime", rounds=1, seconds_per_round=0.1, warmup_seconds=0.1, baseline_seconds=0.0)
    runs = Runs(tmp_path / "profiles", request, TARGET, OPTIONS, quiet=True)
    profile = runs.profile(board_bundle, "fp32")
    run = read_run(profile)
    assert run.end == "complete"
    assert run.document.environment.machine == "aarch64"
    assert run.document.settings.seconds_per_round == 0.1
    before = profiles(installed)
    assert runs.profile(board_bundle, "fp32") == profile
    assert profiles(installed) == before


def test_repeating_copies_and_installs_nothing(installed: Emulated, board_bundle: Bundle) -> None:
    deployment = done(deploy(board_bundle, TARGET, OPTIONS, Watcher()))
    assert deployment.steps == ["agent up to date", "bundle tiny up to date"]


def test_only_what_changed_is_copied(installed: Emulated, tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "changing", {"big": (12, 256), "small": (1, 64)})
    done(deploy(Bundle.open(path), TARGET, OPTIONS, Watcher()))
    with np.load(path / "golden.npz") as data:
        golden = dict(data)
    golden["logits/small"] = golden["logits/small"] + 0.5
    np.savez(path / "golden.npz", **golden)
    hash_golden(path)
    watcher = Watcher()
    sent: list[int] = []
    watcher.advance = lambda done, of: sent.append(of)  # type: ignore[method-assign]
    done(deploy(Bundle.open(path), TARGET, OPTIONS, watcher))
    assert sent[-1] == (path / "golden.npz").stat().st_size + (path / "manifest.json").stat().st_size
    installed.user(
        "~/.edge-tprune/venv/bin/python -c \"from edge_tprune.bundle.bundle import Bundle; Bundle.open('.edge-tprune/bundles/changing')\""
    )


def test_the_real_jtop_service_is_found_and_read(installed: Emulated) -> None:
    """The service of jetson-stats reads the simulated board's files, and the agent reads the service."""
    service = subprocess.Popen([sys.executable, PROGRAM, "jtop"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        installed.user(f"for i in $(seq {LIMIT_S // 2}); do test -S /run/jtop.sock && exit 0; sleep 1; done; exit 1")
        python = "~/.edge-tprune/venv/bin/python"
        document = json.loads(installed.user(f"{python} -m edge_tprune doctor --json"))
        (finding,) = [entry for entry in document["findings"] if entry["topic"] == "jtop"]
        assert finding["level"] == "ok", finding
        # A line may also say that an update did not come in time; the first one with power is waited for.
        line = installed.user(f"timeout {LIMIT_S // 2} {python} -m edge_tprune.telemetry.jtop | grep -m 1 '\"power\"'")
        assert "VDD_IN" in json.dumps(json.loads(line)["power"])
    finally:
        for process in installed._processes("JtopServer"):
            with suppress(ProcessLookupError):
                os.kill(process, 9)
        service.wait(timeout=LIMIT_S)
