"""The methods against logits that their authors' own codes gave, at the token counts of those codes.

The logits lie beside the shared weights (`fixtures/`), with a README of the parameters; nothing of those codes runs here.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from edge_tprune.models.loading import load_model
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT

MODEL = "deit_tiny_patch16_224"
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "tome": ("tome", {}),
    "tome_noprop": ("tome", {"proportional": False}),
    "evit_nofuse": ("evit", {}),
    "evit_fuse": ("evit", {"fuse": True}),
    "ppt": ("ppt", {}),
    "mctf": ("mctf", {}),
    "mctf_fast": ("mctf", {}),
    "pitome": ("pitome", {}),
    "diffrate": ("diffrate", {}),
    "dpcknn": ("dpc_knn", {}),
    "pomt": ("pomt", {}),
}
"""Name of a file -> method and options beside `faithful`."""

NEAR_TIE = 1e-3  # of a logit, between the two likeliest classes


@lru_cache(maxsize=1)
def network(file: Path) -> VisionTransformer:
    model: VisionTransformer = load_model(MODEL, file).model
    return model


@pytest.mark.shared
@torch.inference_mode()
@pytest.mark.parametrize("setting", ["", "_50"])
@pytest.mark.parametrize("name", FILES)
def test_equals_the_authors_code(name: str, setting: str, shared_data: Path) -> None:
    method, options = FILES[name]
    file = shared_data / "fixtures" / f"{name}{setting}_deit.npz"
    if not file.is_file():
        pytest.skip(f"no {file}")
    authors = np.load(file)
    images = torch.from_numpy(np.load(file.parent / "input_deit.npy"))
    tokens = tuple(int(count) for count in authors["tokens_after_block"])
    model = network(shared_data / "weights" / f"{MODEL}.safetensors")
    pruned = PrunedViT(model, registry.method(method), tokens, {"faithful": True, **options})
    logits = pruned(images).numpy()
    # One image at a time, because one of the codes mixes the images of a batch.
    expected = authors["logits_b1"]
    difference = np.abs(logits - expected)
    assert np.median(difference) < 1e-5
    # Of single images a near tie between tokens may turn.
    assert np.sort(np.median(difference, 1))[-3] < 1e-5
    first, second = np.sort(expected, 1)[:, [-1, -2]].T
    clear = first - second > NEAR_TIE
    assert clear.sum() >= 14
    assert (logits.argmax(1) == expected.argmax(1))[clear].all()


@torch.inference_mode()
def test_the_faithful_form_is_the_default_where_it_says_so(vit: VisionTransformer, images: torch.Tensor) -> None:
    schedule = [17, 14, 11, 8]
    for name, method in registry.methods().items():
        if method.faithful is None or name == "none":
            continue
        default, faithful = (
            PrunedViT(vit, method, tuple(schedule), options)(images) for options in ({}, {registry.FAITHFUL: True})
        )
        assert torch.equal(default, faithful) == (not method.faithful), name


def test_other_options_overrule_what_faithful_stands_for() -> None:
    method = registry.method("dpc_knn")
    assert registry.expanded(method, {"faithful": True}) == dict(method.faithful or {})
    assert registry.expanded(method, {"faithful": True, "neighbours": 3})["neighbours"] == 3
    assert registry.expanded(method, {"faithful": False, "neighbours": 3}) == {"neighbours": 3}
    assert registry.place(method, {"faithful": True}) == "block"
    assert registry.place(method, {}) == "mlp"


def test_what_faithful_stands_for_are_options_of_the_method() -> None:
    for name, method in registry.methods().items():
        stage = registry.Stage(4, 12, 197, 190 if name != "none" else 197, 1, True)
        if method.faithful is None:
            assert registry.FAITHFUL not in registry.options(method)
            continue
        assert registry.parse_options(method, {"faithful": "true"}) == {"faithful": True}
        assert method.faithful.keys() <= registry.options(method).keys()
        registry.make(method, stage, {"faithful": True})
        assert method.differs or not method.faithful, f"{name}: what its default does in its own way is not said"
        assert method.code or "paper" in method.paper or method.faithful, name
