"""Building bundles: proof, thrift, and nothing half-written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from edge_tprune.bundle import revision
from edge_tprune.bundle.bundle import Bundle, set_aside
from edge_tprune.bundle.manifest import EXACT
from edge_tprune.errors import UserError
from edge_tprune.export import builder
from edge_tprune.export.builder import _check_place, _staging, build
from edge_tprune.export.settings import BudgetRequest, BuildSettings
from edge_tprune.export.settings import decide as decide_by_default
from edge_tprune.export.steadiness import UNUSABLE, count_flips
from edge_tprune.models.loading import LoadedModel
from edge_tprune.models.state_dict import hash_tensors
from edge_tprune.reduction import Evidence, Keep, Outcome, Reducer, register, registry
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.runtime.engine import open_engine
from tests.small import RUNTIMES, decide, small_model

DAMAGED = '{"format": "edge-tprune-bundle", "versi'  # a manifest that was cut off


def size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def no_step(*_: object) -> None:
    pytest.fail("something was computed before it was sure that it can be written")


def modules(settings: BuildSettings) -> list[PrunedViT]:
    return [budget.module for budget in settings.budgets]


def test_a_bundle_holds_what_it_promises(built: Path, loaded: LoadedModel) -> None:
    bundle = Bundle.open(built)
    assert [b.name for b in bundle.budgets] == ["1.0", "0.8", "0.6"]
    assert bundle.unpruned is bundle.budgets[0]
    golden = bundle.golden()
    inputs, logits = golden.images, golden.outputs
    for budget in bundle.budgets:
        assert len(budget.schedule) == 4
        assert {a.runtime for a in budget.artifacts} == set(RUNTIMES)
        for record in budget.parity.values():
            assert record.max_abs_logit_difference <= 1e-4
            assert record.top1_same
        for artifact in budget.artifacts:  # the explicit form is plain ONNX: ONNX Runtime can judge it too
            with open_engine(bundle.path / artifact.file, "onnxruntime", threads=1) as engine:
                for batch, wanted in zip(inputs, logits[budget.name]):
                    np.testing.assert_allclose(engine.run(batch), wanted, atol=1e-4)
    with torch.no_grad():
        np.testing.assert_allclose(loaded.model(torch.from_numpy(inputs[0])).numpy(), logits["1.0"][0], atol=1e-5)


def test_five_budgets_weigh_little_more_than_one(tmp_path: Path) -> None:
    loaded = small_model(channels=384)  # the graphs' own text is constant, so a real model's proportion needs real weights
    one = build(loaded, decide(loaded, "evit", budgets=[1.0], blocks=[2]), tmp_path / "one").bundle.path
    five = build(loaded, decide(loaded, "evit", budgets=[1.0, 0.9, 0.8, 0.75, 0.7], blocks=[2]), tmp_path / "five").bundle.path
    assert size(five) <= 1.15 * size(one)


def test_rebuilding_an_unchanged_bundle_is_a_no_op(bundle: Bundle, loaded: LoadedModel) -> None:
    settings = decide(loaded, "evit", budgets=[1.0, 0.8, 0.6], blocks=[2, 3], runtimes=RUNTIMES)
    before = {f: f.stat().st_mtime_ns for f in bundle.path.rglob("*")}
    again = build(loaded, settings, bundle.path, progress=lambda *_: pytest.fail("something was built"))
    assert again.reused
    assert {f: f.stat().st_mtime_ns for f in bundle.path.rglob("*")} == before


def test_a_damaged_or_different_bundle_is_rebuilt(bundle: Bundle, loaded: LoadedModel) -> None:
    settings = decide(loaded, "evit", budgets=[1.0, 0.6], blocks=[2, 3])
    assert not build(loaded, settings, bundle.path).reused
    assert [b.name for b in Bundle.open(bundle.path).budgets] == ["1.0", "0.6"]
    (bundle.path / "onnx" / "weights.bin").write_bytes(b"damage")
    assert not build(loaded, settings, bundle.path).reused
    Bundle.open(bundle.path)
    other = small_model(seed=1)
    assert not build(other, decide(other, "evit", budgets=[1.0, 0.6], blocks=[2, 3]), bundle.path).reused


def test_ctrl_c_leaves_the_old_bundle_and_no_litter(bundle: Bundle, loaded: LoadedModel) -> None:
    def interrupt(what: str, done: int, of: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(loaded, decide(loaded, "evit", budgets=[1.0, 0.7], blocks=[2]), bundle.path, progress=interrupt)
    assert [b.name for b in Bundle.open(bundle.path).budgets] == ["1.0", "0.8", "0.6"]
    assert [p.name for p in bundle.path.parent.iterdir() if "building" in p.name] == []


def test_an_old_bundle_set_aside_by_a_killed_build_comes_back(bundle: Bundle, loaded: LoadedModel) -> None:
    """Killed between the two renames: the old bundle waits under another name, and the next build puts it back first."""
    bundle.path.rename(bundle.path.with_name(f".{bundle.path.name}.replaced"))
    settings = decide(loaded, "evit", budgets=[1.0, 0.8, 0.6], blocks=[2, 3], runtimes=RUNTIMES)
    assert build(loaded, settings, bundle.path).reused
    assert sorted(p.name for p in bundle.path.parent.iterdir()) == [f".{bundle.path.name}.lock", bundle.path.name]


@pytest.mark.parametrize("here", [None, "note", "manifest"])
def test_an_old_bundle_that_was_set_aside_is_swept_only_under_a_bundle(bundle: Bundle, here: str | None) -> None:
    old = set_aside(bundle.path)
    shutil.copytree(bundle.path, old)
    if here != "manifest":
        shutil.rmtree(bundle.path)
        bundle.path.mkdir()
    if here == "note":
        (bundle.path / "note.txt").write_text("mine")
    builder._restore(bundle.path)
    assert old.exists() == (here == "note")
    if here != "note":
        Bundle.open(bundle.path)


def test_what_takes_the_place_of_a_bundle_between_two_renames_costs_nothing(
    bundle: Bundle, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def race(staging: Path, out: Path) -> None:
        out.mkdir()
        (out / "mine.txt").write_text("mine")

    monkeypatch.setattr(builder, "note_placing", race)
    settings = decide(loaded, "none", budgets=[1.0])
    with pytest.raises(UserError, match=r"was taken by something else in the meantime\. The bundle that was there is in"):
        build(loaded, settings, bundle.path)
    assert [file.name for file in bundle.path.iterdir()] == ["mine.txt"]
    assert [b.name for b in Bundle.open(set_aside(bundle.path)).budgets] == ["1.0", "0.8", "0.6"]
    (bundle.path / "mine.txt").unlink()
    monkeypatch.undo()
    assert not build(loaded, settings, bundle.path).reused
    assert not set_aside(bundle.path).exists()


def test_a_link_to_a_bundle_stays_a_link(bundle: Bundle, loaded: LoadedModel, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(bundle.path)
    build(loaded, decide(loaded, "none", budgets=[1.0]), link)
    assert link.is_symlink()
    assert [b.name for b in Bundle.open(bundle.path).budgets] == ["1.0"]


def test_two_builds_at_once_do_not_mix(bundle: Bundle, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revision, "_WORK_SECONDS", 0.2)
    with (
        FileLock(bundle.path.parent / f".{bundle.path.name}.lock"),
        pytest.raises(UserError, match="another build is at work"),
    ):
        build(loaded, decide(loaded, "none", budgets=[1.0]), bundle.path)
    assert len(Bundle.open(bundle.path).budgets) == 3


def test_images_on_which_scores_all_but_tie_prove_nothing(loaded: LoadedModel) -> None:
    """A method that turns the last bit of its input into another choice is never steady; an ordinary one is."""

    @register
    class Coin(Reducer):
        """Keeps one half or the other by a rounding error."""

        name, paper = "coin_of_test", "none"

        def forward(self, x: torch.Tensor, evidence: Evidence) -> Outcome:
            odd = (x[:, :1, 0].contiguous().view(torch.int32) % 2 == 1).long()
            places = torch.arange(self.stage.tokens_out)
            return Keep(places + (places > 0) * odd * (self.stage.tokens_in - self.stage.tokens_out))

    images = torch.randn(64, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    try:
        coin = count_flips(modules(decide(loaded, "coin_of_test", budgets=[0.6], blocks=[2])), images)
    finally:
        registry.unregister("coin_of_test")
    assert (coin >= UNUSABLE).float().mean() > 0.5
    steady = count_flips(modules(decide(loaded, "evit", budgets=[1.0, 0.6], blocks=[2])), images)
    assert (steady == 0).float().mean() > 0.8


def test_what_a_killed_build_left_is_swept(bundle: Bundle, loaded: LoadedModel) -> None:
    stale = bundle.path.parent / f".{bundle.path.name}.building-dead_123"
    stale.mkdir()
    (stale / "half").write_bytes(b"x")
    persons = bundle.path.parent / f".{bundle.path.name}.building-notes"
    persons.mkdir()
    build(loaded, decide(loaded, "none", budgets=[1.0]), bundle.path)
    assert not stale.exists()
    assert persons.exists()


def test_a_directory_that_is_called_as_an_old_bundle_is_kept(loaded: LoadedModel, tmp_path: Path) -> None:
    persons = tmp_path / ".out.replaced" / "thesis.txt"
    persons.parent.mkdir()
    persons.write_text("mine")
    with pytest.raises(UserError, match=r"\.out\.replaced exists and is not a bundle"):
        build(loaded, decide(loaded, "none", budgets=[1.0]), tmp_path / "out")
    assert persons.read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_another_build_made_while_this_one_waited_is_not_replaced(
    bundle: Bundle, loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, lock = tmp_path / "b", builder.work_lock

    @contextmanager
    def late(path: Path) -> Iterator[None]:
        shutil.copytree(bundle.path, path)
        with lock(path):
            yield

    monkeypatch.setattr(builder, "work_lock", late)
    with pytest.raises(UserError, match="was built by another command in the meantime: repeat this one to replace it"):
        build(loaded, decide(loaded, "evit", budgets=[0.7], blocks=[2]), out, force=True)
    assert Bundle.open(out).manifest == bundle.manifest
    shutil.rmtree(out)
    same = build(loaded, decide(loaded, "evit", budgets=[1.0, 0.8, 0.6], blocks=[2, 3], runtimes=RUNTIMES), out)
    assert same.reused


def test_a_graph_that_is_another_network_fails_the_build(loaded: LoadedModel, tmp_path: Path) -> None:
    @register
    class TwoFaced(Reducer):
        """Keeps other tokens when exported."""

        name, paper = "two_faced_of_test", "none"

        def forward(self, x: torch.Tensor, evidence: Evidence) -> Outcome:
            first = torch.arange(self.stage.tokens_out).expand(len(x), -1)
            return Keep(first + self.stage.tokens_in - self.stage.tokens_out if torch.compiler.is_exporting() else first)

    try:
        with pytest.raises(UserError, match=r"method two_faced_of_test: .* not the same network: worst logit difference"):
            build(loaded, decide(loaded, "two_faced_of_test", budgets=[0.6], blocks=[2]), tmp_path / "b")
    finally:
        registry.unregister("two_faced_of_test")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_permissions_are_what_the_umask_says(loaded: LoadedModel, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        path = build(loaded, decide(loaded, "none", budgets=[1.0]), tmp_path / "b").bundle.path
    finally:
        os.umask(before)
    for file in (path, *path.rglob("*")):
        assert file.stat().st_mode & 0o777 == (0o777 if file.is_dir() else 0o666) & ~umask, file


def test_a_directory_that_is_no_bundle_is_left_alone(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"precious")
    settings = decide(loaded, "none", budgets=[1.0])
    with pytest.raises(UserError, match="exists and is not a bundle"):
        build(loaded, settings, tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"precious"
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="exists and is not a bundle"):
        build(loaded, settings, tmp_path / "file")
    with pytest.raises(UserError, match="cannot write"):
        build(loaded, settings, tmp_path / "file" / "below", progress=no_step)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tiny file system needs root")
def test_no_space_left_is_one_clear_line_before_the_work_and_no_litter(loaded: LoadedModel, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(UserError, match="no space left while writing"):
            build(loaded, decide(loaded, "none", budgets=[1.0]), disk / "bundle", progress=no_step)
        assert [p.name for p in disk.iterdir() if not p.name.endswith(".lock")] == []
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"budgets": []}, "nothing to build"),
        ({"budgets": [0.5, 0.5]}, "budget 0.5 is given twice"),
        ({"budgets": [1.5]}, "out of range"),
        ({"budgets": [0.8], "batch": 0}, "batch 0 is out of range"),
        ({"budgets": [0.8], "runtimes": ["onnxrntime"]}, "Did you mean onnxruntime"),
        ({"budgets": [0.8], "options": {"fuze": True}}, "Did you mean fuse"),
        ({"budgets": [BudgetRequest(tokens=[37, 37, 37])]}, "3 token counts but the model has 4 blocks"),
    ],
)
def test_plans_that_cannot_be_are_refused_before_work_begins(
    loaded: LoadedModel, arguments: dict[str, object], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        decide(loaded, "evit", blocks=[2, 3], **arguments)  # type: ignore[arg-type]


def test_a_given_schedule_becomes_a_budget_of_its_own(loaded: LoadedModel, tmp_path: Path) -> None:
    settings = decide(loaded, "evit", budgets=[1.0, BudgetRequest(tokens=[30, 20, 20, 5])], blocks=[2])
    built = build(loaded, settings, tmp_path / "b").bundle
    assert built.budgets[1].schedule == (30, 20, 20, 5)
    assert built.budgets[1].requested is None


def test_a_bundle_can_be_moved(bundle: Bundle, tmp_path: Path) -> None:
    shutil.move(bundle.path, tmp_path / "elsewhere")
    moved = Bundle.open(tmp_path / "elsewhere")
    golden = moved.golden()
    inputs, logits = golden.images, golden.outputs
    with open_engine(moved.path / moved.budgets[1].artifact("onnxruntime").file, "onnxruntime", threads=1) as engine:
        np.testing.assert_allclose(engine.run(inputs[0]), logits["0.8"][0], atol=1e-4)


def test_the_unpruned_network_comes_with_one_that_saves_what_nobody_reads(loaded: LoadedModel, tmp_path: Path) -> None:
    settings = decide_by_default(loaded, "evit", budgets=[1.0, 0.6], blocks=[2, 3])
    built = build(loaded, settings, tmp_path / "b").bundle
    assert [budget.name for budget in built.budgets] == ["1.0", EXACT, "0.6"]
    unpruned, exact, pruned = built.budgets
    assert built.unpruned == unpruned
    assert exact.requested is None
    assert exact.schedule == (37, 37, 37, 1)
    assert pruned.schedule[-1] == 1
    assert abs(pruned.macs_share - 0.6) < 0.01
    logits = built.golden().outputs
    np.testing.assert_allclose(logits[EXACT], logits["1.0"], atol=1e-5)
    assert exact.macs < unpruned.macs


@pytest.mark.parametrize("budgets", [[0.6], [BudgetRequest(tokens=[37, 30, 30, 30])]])
def test_no_row_is_added_without_the_unpruned_network(loaded: LoadedModel, budgets: list[float | BudgetRequest]) -> None:
    assert EXACT not in [budget.name for budget in decide_by_default(loaded, "evit", budgets=budgets, blocks=[2, 3]).budgets]


def test_a_network_whose_head_reads_every_token_has_nothing_to_save() -> None:
    averaging = small_model(global_pool="avg")
    assert [budget.name for budget in decide_by_default(averaging, "evit", budgets=[1.0]).budgets] == ["1.0"]


@pytest.mark.parametrize("said", ['{"name": "My web page"}', '{"about": {"format": "edge-tprune-bundle"}}', "", None])
def test_only_a_bundle_is_replaced(tmp_path: Path, said: str | None) -> None:
    """Many programs call a file manifest.json."""
    if said is not None:
        (tmp_path / "manifest.json").write_text(said)
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(UserError, match="is not a bundle"):
        _check_place(tmp_path)
    (tmp_path / "index.html").unlink()
    (tmp_path / "manifest.json").write_text(DAMAGED)
    _check_place(tmp_path)
    (tmp_path / "profiles" / "run").mkdir(parents=True)
    (tmp_path / "profiles" / "run" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="holds a profile, profiles/run, which would be lost"):
        _check_place(tmp_path)


@pytest.mark.skipif(not Path("/proc").is_mount(), reason="no /proc")
def test_a_mount_point_is_refused_before_the_work() -> None:
    """A directory on which a disk is mounted cannot be renamed."""
    with pytest.raises(UserError, match="/proc is a mount point, which cannot be replaced as a whole"):
        _check_place(Path("/proc"))


def test_the_current_directory_is_no_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _check_place(Path())


def test_a_profile_that_comes_in_the_last_moment_is_not_lost(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, run = tmp_path / "bundle", tmp_path / "bundle" / "profiles" / "run" / "run.json"
    first = build(loaded, decide(loaded, "evit", budgets=[1.0]), out).bundle
    checks: list[Path] = []

    def check_too_early(place: Path) -> None:
        checks.append(place)
        if len(checks) == 2:
            run.parent.mkdir(parents=True)
            run.write_text("{}")

    monkeypatch.setattr(builder, "_check_place", check_too_early)
    with pytest.raises(UserError, match="bundle holds a profile, profiles/run, which would be lost"):
        build(loaded, decide(loaded, "evit", budgets=[1.0, 0.6]), out)
    assert run.read_text() == "{}"
    assert Bundle.open(out).manifest == first.manifest
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["bundle"]


def test_what_a_bundle_does_not_name_is_not_lost(loaded: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    build(loaded, decide_by_default(loaded, "evit", budgets=[1.0]), out)
    (out / "engines").mkdir()
    (out / "engines" / "1.0.explicit.sm86.plan").touch()
    (out / "eval-0123456789ab.npz").touch()
    _check_place(out)
    (out / "notes.md").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.md, which is not the bundle's and would be lost"):
        _check_place(out)


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
@pytest.mark.parametrize("name", [".notes.md", "eval-before.npz", "engines/notes.md", "engines/mine.plan"])
def test_files_of_a_person_are_not_lost_whatever_they_are_called(bundle: Bundle, name: str, damaged: bool) -> None:
    if damaged:
        (bundle.path / "manifest.json").write_text(DAMAGED)
    _check_place(bundle.path)
    (bundle.path / name).parent.mkdir(exist_ok=True)
    (bundle.path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {re.escape(name)}, which is not the bundle's and would be lost"):
        _check_place(bundle.path)


def test_the_name_of_a_bundle_is_no_pattern(tmp_path: Path) -> None:
    of_another = tmp_path / ".ab.building-12345678"
    own = tmp_path / ".a[b].building-12345678"
    for directory in (of_another, own):
        directory.mkdir()
    with _staging(tmp_path / "a[b]"):
        assert of_another.exists()
        assert not own.exists()


def test_what_came_to_lie_there_meanwhile_is_kept(loaded: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def appear(what: str, done: int, of: int) -> None:
        out.mkdir(exist_ok=True)
        (out / "photo.jpg").write_text("mine")

    with pytest.raises(UserError, match="is not a bundle"):
        build(loaded, decide(loaded, "none", budgets=[1.0]), out, progress=appear)
    assert (out / "photo.jpg").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["out"]


def test_a_place_that_onnx_runtime_cannot_open_is_refused_before_the_work(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ONNX Runtime opens no file whose path is not UTF-8 text"):
        build(loaded, decide(loaded, "none", budgets=[1.0]), tmp_path / "\udcff", progress=no_step)


def test_a_network_whose_logits_are_amounts_is_proved(tmp_path: Path) -> None:
    """Their rounding errors are as large as they are, and no other network."""
    loaded = small_model()
    for parameter in loaded.model.head.parameters():  # type: ignore[union-attr]
        parameter.mul_(3000.0)
    loaded = replace(loaded, weights_sha256=hash_tensors(loaded.model.state_dict()))
    built = build(loaded, decide(loaded, "evit", budgets=[1.0, 0.7], blocks=[2]), tmp_path / "b").bundle
    golden = built.golden().outputs["1.0"]
    assert np.abs(golden).max() > 300
