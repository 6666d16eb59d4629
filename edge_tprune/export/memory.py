"""How much memory a build takes, from what was measured, so that one that cannot be is refused before it begins.

`edge-tprune build vit_base_patch14_dinov2 --weights random --budgets 1.0,0.65` (86.6 M parameters, 1370 tokens, 12 heads) peaked at 2.8 GB: 0.8 GB of
libraries, the weights about four and a half times (the network, the graph on its way to the file, ONNX Runtime's copy), and per image a few attention
maps of one block. `docs/models.md` has the measurement.
"""

from __future__ import annotations

import psutil

from edge_tprune.errors import UserError
from edge_tprune.export.settings import BuildSettings
from edge_tprune.models.loading import LoadedModel

_LIBRARIES = 0.8e9
_COPIES, _MAPS = 4.5, 4
_FLOAT = 4


def bytes_needed(loaded: LoadedModel, settings: BuildSettings) -> int:
    """At the peak of a build, roughly."""
    weights = _FLOAT * sum(parameter.numel() for parameter in loaded.model.parameters())
    heads = max(int(block.attn.num_heads) for block in loaded.model.blocks)
    maps = _FLOAT * heads * settings.shape.tokens**2 * settings.batch
    return int(_LIBRARIES + _COPIES * weights + _MAPS * maps)


def check_memory(needed: int, total: int | None = None) -> None:
    """Refuses what this machine cannot hold.

    Args:
        needed: from `bytes_needed`.
        total: bytes of memory and swap; this machine's by default.

    Raises:
        UserError: it needs more.
    """
    if total is None:
        total = psutil.virtual_memory().total + psutil.swap_memory().total
    if needed > total:
        raise UserError(
            f"this build needs about {needed / 1e9:.1f} GB of memory, and this machine has {total / 1e9:.1f} GB with swap: "
            "build on a larger machine, or give a smaller --img-size or --batch"
        )
