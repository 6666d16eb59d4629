"""Which tensors of a file are the network, whatever wraps them and whatever stands before their names."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import load_checkpoint

from edge_tprune.errors import UserError
from edge_tprune.models.loading import ModelOptions, load_model
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT
from tests.models.files import prefixed, saved
from tests.models.weights import NAME, State, is_loaded, state_of

PREFIXES = st.lists(st.sampled_from(["module", "_orig_mod", "model", "backbone", "net", "encoder.vit", "0"]), max_size=4)
WRAPPERS = st.lists(st.sampled_from(["state_dict", "model", "teacher", "weights", "params", "module"]), max_size=3)


@settings(max_examples=15)
@given(PREFIXES, WRAPPERS, st.booleans())
def test_any_nesting_of_prefixes_and_wrappers(prefixes: list[str], wrappers: list[str], extras: bool) -> None:
    state = state_of()
    content: dict[str, Any] = prefixed(state, "".join(f"{prefix}." for prefix in prefixes))
    if extras and prefixes:
        content["criterion.weight"] = torch.ones(3)
    for wrapper in wrappers:
        content = {wrapper: content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}}
    with TemporaryDirectory() as folder:
        assert is_loaded(load_model(NAME, saved(Path(folder), content)).model, state)


TIMMS = {
    "plain": lambda s, e: s,
    "train.py": lambda s, e: {"state_dict": s, "args": argparse.Namespace(model=NAME), "epoch": 1, "optimizer": {}},
    "train.py with EMA": lambda s, e: {"state_dict": s, "state_dict_ema": e, "args": argparse.Namespace(model=NAME)},
    "only EMA": lambda s, e: {"state_dict_ema": e, "epoch": 1},
    "model_ema": lambda s, e: {"model": s, "model_ema": e},
    "EMA that is None": lambda s, e: {"state_dict": s, "state_dict_ema": None},
    "model": lambda s, e: {"model": s},
    "DDP": lambda s, e: {"state_dict": prefixed(s, "module.")},
    "compiled": lambda s, e: prefixed(s, "_orig_mod."),
    "compiled DDP": lambda s, e: prefixed(s, "_orig_mod.module."),
    "DDP of compiled": lambda s, e: prefixed(s, "module._orig_mod."),
}


@pytest.mark.parametrize("use_ema", [True, False])
@pytest.mark.parametrize("kind", TIMMS)
def test_the_same_weights_as_timms_own_loader(tmp_path: Path, state: State, ema: State, kind: str, use_ema: bool) -> None:
    path = saved(tmp_path, TIMMS[kind](state, ema))
    options = ModelOptions(path, use_ema=use_ema)
    if kind == "only EMA" and not use_ema:
        with pytest.raises(UserError, match=r"moving average of the weights alone .* leave --no-ema out"):
            load_model(NAME, options=options)
        return
    reference = timm.create_model(NAME)
    load_checkpoint(reference, str(path), use_ema=use_ema)
    loaded = load_model(NAME, options=options)
    assert is_loaded(loaded.model, reference.state_dict())
    both = "EMA" in kind or kind == "model_ema"
    assert any("moving average" in remark for remark in loaded.remarks) == (both and kind != "EMA that is None")
    assert all(not parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training


def test_a_teacher_of_another_size_is_not_the_network(tmp_path: Path) -> None:
    own, other = state_of(), state_of(embed_dim=128, num_heads=2)
    path = saved(tmp_path, {"state_dict": prefixed(own, "student.") | prefixed(other, "teacher.")})
    loaded = load_model(NAME, path)
    assert is_loaded(loaded.model, own)
    assert 'the names after "student."' in " ".join(loaded.remarks)


@pytest.mark.parametrize("names", [("teacher", "student"), ("ema_model", "core"), ("model_ema", "net")])
@pytest.mark.parametrize("flat", [True, False])
def test_of_a_network_and_its_average_timms_rule_decides(
    tmp_path: Path, state: State, ema: State, names: tuple[str, str], flat: bool
) -> None:
    parts = {names[0]: ema, names[1]: state}
    content = {key: value for name, part in parts.items() for key, value in prefixed(part, f"{name}.").items()}
    path = saved(tmp_path, content if flat else parts)
    loaded = load_model(NAME, path)
    assert is_loaded(loaded.model, ema)
    assert names[0] in " ".join(loaded.remarks)
    assert is_loaded(load_model(NAME, options=ModelOptions(path, use_ema=False)).model, state)


def test_where_timm_passes_over_an_average_it_is_said(tmp_path: Path, state: State, ema: State) -> None:
    loaded = load_model(NAME, saved(tmp_path, {"model": state, "my_average": {"net": ema}}))
    assert is_loaded(loaded.model, state)
    assert loaded.remarks == ("w.pth: took model, as timm does, and not my_average.net",)


def test_two_networks_that_nothing_tells_apart_are_named(tmp_path: Path, state: State, ema: State) -> None:
    path = saved(tmp_path, {**prefixed(state, "tower_a."), **prefixed(ema, "tower_b.")})
    with pytest.raises(UserError, match=r'holds 2 networks of this shape: the names after "tower_a\."; .*"tower_b\."'):
        load_model(NAME, path)


def test_lightning_with_a_criterion(tmp_path: Path, state: State) -> None:
    content = {
        "state_dict": {**prefixed(state, "model."), "criterion.weight": torch.ones(9)},
        "pytorch-lightning_version": "2.4.0",
    }
    loaded = load_model(NAME, saved(tmp_path, content, "l.ckpt"))
    assert is_loaded(loaded.model, state)
    assert loaded.remarks[0] == 'l.ckpt: took state_dict, the names after "model."'
    assert "left out criterion.weight" in loaded.remarks[1]


def test_a_head_beside_its_backbone(tmp_path: Path, state: State) -> None:
    content = {key if key.startswith("head") else f"backbone.{key}": value for key, value in state.items()}
    loaded = load_model(NAME, saved(tmp_path, prefixed(content, "model.")))
    assert is_loaded(loaded.model, state)
    assert "took model.head.weight, model.head.bias" in " ".join(loaded.remarks)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"])
def test_wrapped_blocks(tmp_path: Path, state: State, wrapper: str) -> None:
    content = {key.replace(".attn.", f".{wrapper}.attn."): value for key, value in state.items()}
    assert is_loaded(load_model(NAME, saved(tmp_path, content)).model, state)


@pytest.mark.parametrize("method", ["evit", "tome"])
def test_a_pruned_models_own_weights_go_round(tmp_path: Path, state: State, method: str) -> None:
    loaded = load_model(NAME, saved(tmp_path, state))
    pruned = PrunedViT(loaded.model, registry.method(method), (101, 80, 60, 60, 60, 60), {})
    torch.save(pruned.state_dict(), tmp_path / "tuned.pth")
    torch.save({"state_dict": prefixed(pruned.state_dict(), "module.")}, tmp_path / "parallel.pth")
    for name in ("tuned.pth", "parallel.pth"):
        assert load_model(NAME, tmp_path / name).weights_sha256 == loaded.weights_sha256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, state: State, dtype: torch.dtype) -> None:
    content = {key: value.to(dtype) for key, value in state.items()}
    model = load_model(NAME, saved(tmp_path, content)).model
    assert is_loaded(model, content)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_of_two_networks_it_is_said_once_which_was_taken(tmp_path: Path, state: State, ema: State) -> None:
    content = {**prefixed(state, "model."), **prefixed(ema, "ema_model.")}
    remarks = load_model(NAME, saved(tmp_path, content)).remarks
    assert sum("took" in remark for remark in remarks) == 1
    remarks = load_model(NAME, saved(tmp_path, {**state, "model": ema})).remarks
    assert any("took model, as timm does, and not the names beside it" in remark for remark in remarks)


def test_odd_tensors_of_another_network_are_none_of_ours(tmp_path: Path, state: State) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    other = {**state, "norm.bias": nested, "module.norm.weight": nested, "norm.weight": nested}
    assert is_loaded(load_model(NAME, saved(tmp_path, {"state_dict": state, "student": other})).model, state)
    packed = torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    with pytest.raises(UserError, match=r"unexpected module\.criterion\.a"):
        load_model(NAME, saved(tmp_path, {**state, "criterion.a": packed, "module.criterion.a": packed.clone()}))
