"""Accuracy through the engine, against slow obvious counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image

from edge_tprune import documents
from edge_tprune.bundle import evaluate as module
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.evaluate import evaluate, judge
from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.export.builder import build
from edge_tprune.files import write_bytes
from edge_tprune.models.loading import LoadedModel, make_transform
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT
from tests.bundle.test_revision import read_only
from tests.small import decide


@dataclass(frozen=True)
class Noise:
    """Random images with random labels, or without."""

    count: int = 21
    labelled: bool = True
    name: str = "noise"
    fingerprint: str = "0" * 64

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        rng = np.random.default_rng(index)
        return Image.fromarray(rng.integers(0, 255, (60, 50, 3), dtype=np.uint8)), int(rng.integers(6)) if self.labelled else -1


@dataclass(frozen=True)
class Unreadable(Noise):
    """Its images cannot be read, from one on."""

    first: int = 0

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index >= self.first:
            raise UserError(f"image {index} cannot be read")
        return super().__getitem__(index)


def test_equals_a_slow_count_with_pytorch(bundle: Bundle, loaded: LoadedModel) -> None:
    data = Noise()
    _, records = evaluate(bundle, data, threads=1)
    transform = make_transform(bundle.manifest.preprocessing)
    with torch.no_grad():
        images = torch.stack([transform(data[i][0]) for i in range(len(data))])
        logits = {
            b.name: PrunedViT(loaded.model, registry.method("evit"), b.schedule, {})(images).double().numpy()
            for b in bundle.budgets
        }
    labels = [data[i][1] for i in range(len(data))]
    for budget in bundle.budgets:
        mine, base = logits[budget.name], logits["1.0"]
        right = [int(np.argmax(row)) == label for row, label in zip(mine, labels)]
        right_base = [int(np.argmax(row)) == label for row, label in zip(base, labels)]
        in_five = [label in sorted(range(6), key=lambda c: -row[c])[:5] for row, label in zip(mine, labels)]
        kl = []
        for p_row, q_row in zip(base, mine):
            p, q = (np.exp(r - r.max()) / np.exp(r - r.max()).sum() for r in (p_row, q_row))
            kl.append(sum(a * math.log(a / b) for a, b in zip(p, q)))
        record = records[budget.name]
        assert record.top1_percent == pytest.approx(100 * np.mean(right))
        assert record.top5_percent == pytest.approx(100 * np.mean(in_five))
        assert record.top1_change_points.value == pytest.approx(100 * (np.mean(right) - np.mean(right_base)))
        assert record.agreement_percent.value == pytest.approx(100 * np.mean(mine.argmax(1) == base.argmax(1)))
        assert record.kl_nats.value == pytest.approx(np.mean(kl), abs=1e-4)
        interval = record.top1_change_points
        assert interval.low <= interval.value <= interval.high
    assert records["1.0"].agreement_percent.value == 100
    assert records["1.0"].kl_nats.value == 0


def test_results_are_stored_in_a_bundle_that_still_verifies(bundle: Bundle) -> None:
    _, records = evaluate(bundle, Noise(), threads=1, budgets=["0.6"])
    assert set(records) == {"1.0", "0.6"}, "the unpruned model always runs"
    reopened = Bundle.open(bundle.path)
    assert reopened.budget("0.6").accuracy == records["0.6"]
    assert reopened.budget("0.8").accuracy is None, "not judged yet"
    (results,) = bundle.path.glob("eval-*.npz")
    with np.load(results, allow_pickle=False) as stored:
        assert stored["labels"].shape == (21,)
        assert stored["top5/0.6"].shape == (21, 5)
        assert 100 * np.mean(stored["top5/0.6"][:, 0] == stored["labels"]) == pytest.approx(records["0.6"].top1_percent)


def test_judging_one_budget_keeps_the_others_results_on_the_same_images(bundle: Bundle) -> None:
    bundle, first = evaluate(bundle, Noise(), threads=1)
    bundle, _ = evaluate(bundle, Noise(), threads=1, budgets=["0.6"])
    assert bundle.budget("0.8").accuracy == first["0.8"]
    (results,) = bundle.path.glob("eval-*.npz")
    with np.load(results, allow_pickle=False) as stored:
        assert stored["top5/0.8"].shape == (21, 5)
    said: list[str] = []
    bundle, _ = evaluate(bundle, Noise(count=9, fingerprint="1" * 64), threads=1, budgets=["0.6"], warn=said.append)
    assert bundle.budget("0.8").accuracy is None, "other images: no longer comparable"
    assert any("the accuracy of 0.8 was of other images" in text for text in said)
    Bundle.open(bundle.path)


def test_what_another_evaluation_stored_meanwhile_is_not_dropped_without_a_word(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two evaluations at once, of other images, the one that ends last stays: it says so."""

    def judge_slowly(*given: Any, **more: Any) -> Any:
        found = judge(*given, **more)
        with monkeypatch.context() as patch:
            patch.setattr(module, "judge", judge)
            evaluate(bundle, Noise(count=9, fingerprint="1" * 64), threads=1, budgets=["0.8"])
        return found

    said: list[str] = []
    monkeypatch.setattr(module, "judge", judge_slowly)
    stored, _ = evaluate(bundle, Noise(), threads=1, budgets=["0.6"], warn=said.append)
    assert stored.budget("0.8").accuracy is None
    assert any("the accuracy of 0.8 was of other images" in text for text in said)


def test_building_the_same_again_keeps_what_was_found(loaded: LoadedModel, tmp_path: Path) -> None:
    settings = decide(loaded, "evit", budgets=[1.0, 0.6], blocks=[2, 3])
    before, records = evaluate(build(loaded, settings, tmp_path / "b").bundle, Noise(), threads=1)
    again = build(loaded, settings, tmp_path / "b", force=True)
    assert not again.reused
    now = Bundle.open(tmp_path / "b")
    assert now.manifest == again.bundle.manifest
    assert {budget.name: budget.accuracy for budget in now.budgets} == records
    assert now.files == before.files
    other = decide(loaded, "evit", budgets=[1.0, 0.7], blocks=[2, 3])
    built = build(loaded, other, tmp_path / "b", force=True)
    assert all(budget.accuracy is None for budget in built.bundle.budgets)
    assert built.remarks == ["the accuracy of 1.0, 0.6 was of the bundle that was replaced: run edge-tprune eval again"]
    assert not list((tmp_path / "b").glob("eval-*"))


def test_ending_between_the_two_writes_leaves_a_bundle_that_verifies(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, first = evaluate(bundle, Noise(), threads=1)

    def interrupted(path: Path, data: bytes) -> None:
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(documents, "write_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(bundle, Noise(count=9, fingerprint="1" * 64), threads=1)
    assert Bundle.open(bundle.path).budget("0.6").accuracy == first["0.6"]
    assert len(list(bundle.path.glob("eval-*"))) == 1


def test_the_golden_check_comes_first(bundle: Bundle) -> None:
    """A graph that is not the network of its budget would be judged as if it were."""
    golden = bundle.golden()
    arrays = {"input": golden.images, **{f"logits/{name}": logits for name, logits in golden.outputs.items()}}
    arrays["logits/0.6"] = arrays["logits/0.6"] + 0.01
    np.savez(bundle.path / "golden.npz", **arrays)
    before = (bundle.path / "manifest.json").read_bytes()
    with pytest.raises(
        NegativeAnswer, match=r"budget 0\.6 failed its golden check on onnxruntime: its logits are off by 0\.01"
    ):
        evaluate(bundle, Unreadable(), threads=1)
    assert (bundle.path / "manifest.json").read_bytes() == before


def test_a_graph_of_another_batch_is_refused(bundle: Bundle) -> None:
    model = replace(bundle.manifest.model, input=replace(bundle.manifest.model.input, shape=(4, 3, 48, 48)))
    golden = bundle.golden()
    four = Bundle(bundle.path, replace(bundle.manifest, batch=4, model=model))
    arrays = {f"logits/{name}": logits for name, logits in golden.outputs.items()}
    np.savez(bundle.path / "golden.npz", input=np.repeat(golden.images, 4, 1), **arrays)
    with pytest.raises(NegativeAnswer, match=r"its graph takes \(1, 3, 48, 48\), and the manifest says \(4, 3, 48, 48\)"):
        evaluate(four, Noise(), threads=1)


def test_a_bundle_that_cannot_be_written_is_refused_before_an_image_is_read(bundle: Bundle) -> None:
    with read_only(bundle.path), pytest.raises(UserError, match="cannot write"):
        evaluate(bundle, Unreadable(), threads=1)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_unreadable_image_ends_it(bundle: Bundle, threads: int) -> None:
    with pytest.raises(UserError, match="image 5 cannot be read"):
        evaluate(bundle, Unreadable(first=5), threads=threads)


def test_any_number_of_threads_answers_the_same(bundle: Bundle) -> None:
    one, three = (judge(bundle, Noise(), threads=threads) for threads in (1, 3))
    assert one.arrays.keys() == three.arrays.keys()
    for name, array in one.arrays.items():
        np.testing.assert_allclose(array, three.arrays[name], atol=1e-6)


def test_progress_counts_images(bundle: Bundle) -> None:
    steps: list[tuple[int, int]] = []
    judge(bundle, Noise(count=5), threads=2, budgets=[], progress=lambda done, of: steps.append((done, of)))
    assert steps == [(done, 5) for done in (1, 2, 3, 4, 5)]


def test_without_labels_agreement_and_divergence_remain(bundle: Bundle) -> None:
    record = evaluate(bundle, Noise(labelled=False), threads=1)[1]["0.6"]
    assert record.top1_percent is None
    assert record.top1_change_points is None
    assert 0 <= record.agreement_percent.value <= 100
    assert record.kl_nats.value > 0


def test_the_last_batch_may_be_short(loaded: LoadedModel, tmp_path: pytest.TempPathFactory, bundle: Bundle) -> None:
    _, one = evaluate(bundle, Noise(), threads=1)
    four = build(loaded, decide(loaded, "evit", budgets=[1.0, 0.6], blocks=[2, 3], batch=4), tmp_path / "four").bundle  # type: ignore[operator]
    _, many = evaluate(four, Noise(), threads=1)
    for name in ("1.0", "0.6"):
        for key in ("top1_percent", "agreement_percent"):
            assert getattr(many[name], key) == getattr(one[name], key)


def test_an_unpruned_budget_is_needed(loaded: LoadedModel, tmp_path: pytest.TempPathFactory) -> None:
    alone = build(loaded, decide(loaded, "evit", budgets=[0.6], blocks=[2, 3]), tmp_path / "alone").bundle  # type: ignore[operator]
    with pytest.raises(UserError, match="no unpruned budget"):
        evaluate(alone, Noise(), threads=1)


@dataclass(frozen=True)
class Answered(Noise):
    """Images with the labels that the model itself gives them, or with those of the next class."""

    count: int = 40
    answers: tuple[int, ...] = ()
    shift: int = 0

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return super().__getitem__(index)[0], (self.answers[index] + self.shift) % 6


def test_labels_in_another_order_are_doubted(bundle: Bundle) -> None:
    found = judge(bundle, Answered(answers=(0,) * 40), threads=1)
    answers = tuple(int(row[0]) for row in found.answers.top5["1.0"])
    assert len(set(answers)) > 1
    said: list[str] = []
    _, records = evaluate(bundle, Answered(answers=answers), threads=1, warn=said.append)
    assert (records["1.0"].top1_percent, said) == (100, [])
    _, records = evaluate(bundle, Answered(answers=answers, shift=1), threads=1, warn=said.append)
    assert records["1.0"].top1_percent == 0
    (warning,) = said
    assert warning.startswith("the unpruned model is right on 0 of 40 images")
    assert "--class-map" in warning


def test_counts_by_class_add_up(bundle: Bundle) -> None:
    _, records = evaluate(bundle, Noise(), threads=1)
    for record in records.values():
        counts = record.per_class
        assert counts is not None
        assert sum(counts.images) == 21
        right = sum(counts.unpruned_right) - sum(counts.lost) + sum(counts.gained)
        assert 100 * right / 21 == pytest.approx(record.top1_percent)
    assert sum(records["1.0"].per_class.lost) == 0
