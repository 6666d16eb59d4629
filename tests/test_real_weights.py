"""The whole chain on real weights and photographs, where they are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import edge_tprune
from edge_tprune.models.data import batches, open_dataset
from edge_tprune.models.loading import load_model

pytestmark = pytest.mark.shared


def test_deit_tiny_keeps_most_answers_at_a_mild_budget(shared_data: Path) -> None:
    """100 images do not resolve a point, but a broken method or preprocessing loses tens of them, as cutting blindly at half the MACs does."""
    loaded = load_model("deit_tiny_patch16_224", shared_data / "weights" / "deit_tiny_patch16_224.safetensors")
    dataset = open_dataset(shared_data / "imagenet-sample", 1000, limit=100)
    pruned = {method: edge_tprune.prune(loaded.model, method=method, budget=0.8) for method in ("evit", "zero_tprune")}
    pruned["slice"] = edge_tprune.prune(loaded.model, method="slice", budget=0.5)
    right = dict.fromkeys(["unpruned", *pruned], 0)
    with torch.inference_mode():
        for images, labels in batches(dataset, loaded.transform(), 25):
            truth, tensor = torch.from_numpy(labels), torch.from_numpy(images)
            right["unpruned"] += int((loaded.model(tensor).argmax(1) == truth).sum())
            for name, module in pruned.items():
                right[name] += int((module(tensor).argmax(1) == truth).sum())
    assert right["unpruned"] >= 70
    assert right["evit"] >= right["unpruned"] - 8
    assert right["zero_tprune"] >= right["unpruned"] - 8
    assert right["slice"] < right["unpruned"] - 8
