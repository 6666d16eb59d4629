"""What the README shows runs."""

from __future__ import annotations

import re
from pathlib import Path

import timm
import torch

import edge_tprune
from edge_tprune.reduction import registry

README = Path(__file__).parents[1] / "README.md"


def test_the_method_of_ones_own_that_the_readme_shows_works() -> None:
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "@register" in block]
    before = set(registry.methods())
    try:
        exec(compile(code, "README.md", "exec"), {})
        (name,) = set(registry.methods()) - before
        model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5).eval()
        pruned = edge_tprune.prune(model, method=name, budget=0.6)
        with torch.no_grad():
            assert pruned(torch.randn(2, 3, 64, 64)).shape == (2, 5)
        assert pruned.schedule[-1] < 17
    finally:
        for added in set(registry.methods()) - before:
            registry._METHODS.pop(added)


def test_every_method_has_its_row_in_the_readme() -> None:
    text = README.read_text()
    for name in registry.methods():
        assert re.search(rf"^\| `{name}` \|", text, re.M), f"the README's table of methods lacks {name}"
