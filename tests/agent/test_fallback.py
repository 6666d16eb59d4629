"""A budget whose graph is wrong in fp16 is timed in the precision that is right, and everything says so; or it is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_tprune.agent.profile import profile
from edge_tprune.agent.session import CheckFailed
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.evaluate import judge
from edge_tprune.models.data import open_images
from edge_tprune.record.document import KIND
from edge_tprune.record.reader import read_run
from edge_tprune.record.settings import RunRequest
from edge_tprune.record.summary import read_summary
from tests.agent.test_profile import Log
from tests.bundle.faults import damage, double, half_bundle
from tests.small import halved, loaded  # noqa: F401

QUICK = RunRequest(precision="fp16", rounds=1, seconds_per_round=0.0, warmup_seconds=0.0, baseline_seconds=0.0, threads=1)


def test_what_runs_instead_is_in_the_profile(halved: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = half_bundle(halved.path, tmp_path / "bundle")
    bundle, log = damage(path, "0.6", "fp16", double(3)), Log()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((60, 60)).save(pictures / f"{number}.png")
    photos = open_images(pictures)
    out = profile(bundle, tmp_path / "out", QUICK, budgets=["0.6"], data=photos, progress=log)
    run = read_run(out)
    right = judge(halved, photos, precision="fp16", runtime="onnxruntime", budgets=["0.6"], threads=1).records["0.6"]
    judged = run.document.budgets[0].accuracy
    assert judged is not None
    assert judged.kl_nats is not None
    assert right.kl_nats is not None
    assert judged.kl_nats.value == pytest.approx(right.kl_nats.value, rel=0.05), (
        "of the graph that runs, not of the damaged one"
    )
    assert any("accuracy is that of what runs instead, for: 0.6" in note for note in run.notes)
    assert {turn.budget for turn in run.turns} == {"0.6"}
    (recorded,) = KIND.read(out).budgets
    assert recorded.fallback is not None
    assert (recorded.fallback.fault, recorded.fallback.now) == ("block 3 of 4", "fp32")
    assert run.checks["0.6"].fallback == recorded.fallback
    assert run.checks["0.6"].golden_max_abs_diff < 1e-4, "that of the graph which runs"
    said = [text for text in (*log.warnings, *run.notes) if "Fault: block 3 of 4. It runs with fp32 instead" in text]
    assert len(said) >= 2
    summary = read_summary(out)
    assert summary is not None
    assert summary.budgets["0.6"].verdict is not None
    assert "precision_fallback" in [reason.code for reason in summary.budgets["0.6"].verdict.reasons]
    damage(path, "0.6", "fp32", double(3))
    with pytest.raises(CheckFailed, match=r"Fault: .*No higher precision helps: .*fp32: its logits are off by"):
        profile(Bundle.open(path), tmp_path / "out", QUICK, budgets=["0.6"], progress=Log())
