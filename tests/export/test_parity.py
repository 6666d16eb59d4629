"""What half precision may differ by, and how that is counted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.divergence import divergence, log_softmax
from edge_tprune.bundle.evaluate import evaluate
from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.export import parity
from edge_tprune.export.builder import build
from edge_tprune.export.graph import FORMS, GraphError, SharedWeights, check, export
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.reduction.precision import PRECISIONS
from tests.bundle.test_evaluate import Noise
from tests.small import decide, small_model

SCHEDULE = (37, 23, 12, 12)


def module(loaded: LoadedModel, method: str, precision: str = "fp32") -> PrunedViT:
    return PrunedViT(loaded.model, registry.method(method), SCHEDULE, {}, PRECISIONS[precision])


def test_a_bundle_holds_every_precision_that_a_runtime_takes(halved: Bundle) -> None:
    assert [(a.runtime, a.precision) for a in halved.budgets[1].artifacts] == [
        ("onnxruntime", "fp32"),  # on a CPU nothing else is worth it
        ("tensorrt", "fp16"),
        ("tensorrt", "fp32"),
        ("tensorrt", "mixed"),
    ]
    budget = Bundle.open(halved.path).budget("0.6")
    assert budget.artifact("tensorrt").precision == "fp16", "the first that was asked for"
    assert budget.artifact("tensorrt", "mixed").file == "onnx/0.6.explicit.mixed.onnx"
    with pytest.raises(UserError, match=r"no file for runtime 'onnxruntime' in fp16 .*--runtime tensorrt --precision fp16"):
        budget.artifact("onnxruntime", "fp16")
    record = budget.parity["tensorrt-fp16"]
    assert budget.artifact("tensorrt").key == "tensorrt-fp16"
    assert record.top1_agreement_percent >= record.allowed.top1_agreement_percent
    assert 0 < record.kl_nats <= record.max_kl_nats
    assert 0 < record.module.kl_nats <= record.allowed.kl_nats
    assert [(stage.block, stage.tokens) for stage in record.selection] == [
        (block, budget.schedule[block - 1]) for block in (2, 3)
    ]
    assert all(90 <= stage.same_percent <= 100 for stage in record.selection)
    assert budget.parity["tensorrt"].selection is None


def test_half_the_weights_are_shared_by_all_budgets_of_both_half_precisions(tmp_path: Path) -> None:
    loaded = small_model(channels=192)
    sizes = []
    with (tmp_path / "weights.bin").open("wb") as stream:
        weights = SharedWeights(stream, "weights.bin")
        for precision, schedule in (("fp32", SCHEDULE), ("fp16", SCHEDULE), ("fp16", (30, 20, 9, 9)), ("mixed", SCHEDULE)):
            pruned = PrunedViT(loaded.model, registry.method("slice"), schedule, {}, PRECISIONS[precision])
            weights.externalise(export(pruned, FORMS["tensorrt"], 1, (3, 48, 48)))
            sizes.append(stream.tell())
    single = 4 * sum(p.numel() for p in loaded.model.parameters())
    assert sizes[0] < 1.1 * single
    assert 0.45 * single < sizes[1] - sizes[0] < 0.55 * single
    assert sizes[2] == sizes[1]
    assert sizes[3] - sizes[2] < 0.05 * single, "the embeddings of its wider stream"


def test_eval_judges_half_precision_against_float32(halved: Bundle, tmp_path: Path) -> None:
    data = Noise(count=12)
    _, records = evaluate(halved, data, precision="fp16", threads=1)
    assert set(records) == {"1.0", "0.6"}
    bundle = Bundle.open(halved.path)
    assert bundle.budget("0.6").accuracy_in("fp16") == records["0.6"]
    exact = bundle.budget("0.6").accuracy
    assert exact is not None, "judged along with it"
    assert (exact.precision, records["0.6"].precision) == ("fp32", "fp16")
    assert bundle.budget("0.6").accuracy_in("mixed") == exact, "not judged: what is known of it in float32"
    assert exact.against_fp32 is None
    found = records["0.6"].against_fp32
    assert 0 < found.max_abs_logit_difference < 1
    assert 0 <= found.kl_nats.value < 0.01
    assert found.agreement_percent.value >= 80
    assert records["1.0"].kl_nats.value > 0, "the unpruned network is rounded, too"
    (results,) = halved.path.glob("eval-*.npz")
    with np.load(results, allow_pickle=False) as stored:
        half, single = stored["top5/0.6@fp16"][:, 0], stored["top5/0.6"][:, 0]
    assert found.agreement_percent.value == pytest.approx(100 * np.mean(half == single))
    _, again = evaluate(bundle, data, threads=1, budgets=["0.6"])
    assert again["0.6"].precision == "fp32"
    assert Bundle.open(halved.path).budget("0.6").accuracy_in("fp16") == records["0.6"], "the same images: it stays"
    evaluate(bundle, Noise(count=5, fingerprint="1" * 64), threads=1, budgets=["0.6"])
    assert Bundle.open(halved.path).budget("0.6").accuracy_by_precision == {}, "other images: no longer comparable"
    with pytest.raises(UserError, match="no precision 'fp61'"):
        evaluate(bundle, data, precision="fp61", threads=1)


def test_half_precision_is_not_for_a_runtime_that_gains_nothing(loaded: LoadedModel) -> None:
    with pytest.raises(UserError, match=r"precision fp16 is not for onnxruntime.* add --runtime tensorrt"):
        decide(loaded, "evit", budgets=[0.8], blocks=[2], precisions=["fp16"])
    with pytest.raises(UserError, match="Did you mean mixed"):
        decide(loaded, "evit", budgets=[0.8], blocks=[2], runtimes=["tensorrt"], precisions=["mixd"])
    both = decide(loaded, "evit", budgets=[0.8], blocks=[2], runtimes=["onnxruntime", "tensorrt"], precisions=["fp16"])
    assert [(graph.runtime, graph.precision) for graph in both.graphs] == [("onnxruntime", "fp32"), ("tensorrt", "fp16")]


def test_a_network_that_half_precision_breaks_is_a_no(tmp_path: Path) -> None:
    """ONNX Runtime on a CPU would not have noticed: it computes the hidden layer in float32."""
    loaded = small_model(seed=3)
    for block in loaded.model.blocks:  # about the same network; in half precision the hidden layer overflows
        block.mlp.fc1.weight.mul_(1e5)
        block.mlp.fc2.weight.mul_(1e-5)
    settings = decide(loaded, "evit", budgets=[0.6], blocks=[2], runtimes=["tensorrt"], precisions=["mixed"])
    with pytest.raises(
        NegativeAnswer,
        match=r"budget 0\.6: in mixed the module is not the same network: its logits are not finite; "
        r"block 1: mlp\.fc1 overflows \(\S+ in float32, and float16 ends at 65504\)\. Try --precision fp32",
    ):
        build(loaded, settings, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_network_that_fp16_breaks_is_built_in_mixed(tmp_path: Path) -> None:
    loaded = small_model(seed=3)
    loaded.model.pos_embed += 1e4  # a LayerNorm takes it out again, and float16 keeps steps of 8
    settings = decide(loaded, "slice", budgets=[0.6], blocks=[2], runtimes=["tensorrt"], precisions=["fp16"])
    found = build(loaded, settings, tmp_path / "b")
    assert [artifact.precision for artifact in found.bundle.budgets[0].artifacts] == ["mixed"]
    assert len(found.remarks) == 1
    where = r"block 1: the residual stream before its attention reaches 1e\+04, where float16 has steps of 8"
    assert re.search(rf"budget 0\.6: in fp16 the .*{where}\. Its graphs are in mixed instead$", found.remarks[0])
    again = build(loaded, settings, tmp_path / "b")
    assert again.reused
    assert again.remarks == ["this network does not survive fp16: its graphs are in mixed instead"]


def test_a_graph_in_another_precision_is_refused(loaded: LoadedModel) -> None:
    half = export(module(loaded, "evit", "fp16"), FORMS["tensorrt"], 1, (3, 48, 48))
    with pytest.raises(GraphError, match="computes in half precision, where fp32 asks for float32"):
        check(half, SCHEDULE, PRECISIONS["fp32"])
    single = export(module(loaded, "evit"), FORMS["tensorrt"], 1, (3, 48, 48))
    with pytest.raises(GraphError, match=r"patch_embed.* computes in float32, where fp16 asks for half precision"):
        check(single, SCHEDULE, PRECISIONS["fp16"])
    softmax = next(node for node in half.graph.node if node.op_type == "Softmax")
    cast = next(node for node in half.graph.node if softmax.input[0] in node.output)
    softmax.input[0] = cast.input[0]  # past the cast to float32
    with pytest.raises(GraphError, match=r"Softmax.* computes in half precision"):
        check(half, SCHEDULE, PRECISIONS["fp16"])


def test_divergence_is_kl() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 4, 6)).astype(np.float32)
    p, q = (torch.from_numpy(x).double().softmax(-1) for x in (one, other))
    slow = (p * (p / q).log()).sum(-1).numpy()
    np.testing.assert_allclose(divergence(log_softmax(one), log_softmax(other)), slow, rtol=1e-9)
    record = parity.compare(other, one)
    assert record is not None
    assert record.kl_nats == pytest.approx(slow.mean())
    assert record.max_kl_nats == pytest.approx(slow.max())
    assert parity.compare(np.full((1, 3), np.nan, np.float32), one[:1, :3]) is None


@torch.no_grad()
def test_selection_agreement_equals_a_slow_count(loaded: LoadedModel) -> None:
    """Sets of original tokens, compared one by one, for a method that drops and one that merges."""
    images = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    for method in ("evit", "tome"):
        one, other = module(loaded, method), module(loaded, method)
        rough = PrunedViT(small_model(seed=5).model, registry.method(method), SCHEDULE, {})
        assert all(stage.same_percent == 100 for stage in parity.selection(one, other, [images]))
        found = parity.selection(one, rough, [images[:1], images[1:]])
        for stage in found:
            total = 0.0
            for mine, theirs in zip(one.trace(images)[stage.block - 1], rough.trace(images)[stage.block - 1]):
                sets = [[{int(i) for i in row.nonzero()} for row in rows[1:]] for rows in (mine, theirs)]
                for token in sets[0]:
                    total += max(len(token & candidate) / len(token | candidate) for candidate in sets[1])
            assert stage.same_percent == pytest.approx(100 * total / (3 * (stage.tokens - 1)), rel=1e-5)
        assert [stage.block for stage in found] == [2, 3]
        assert found[-1].same_percent < 99
