"""edge-tprune: fit a vision transformer to a Jetson by removing tokens, without training.

    import edge_tprune, timm
    pruned = edge_tprune.prune(timm.create_model("deit_small_patch16_224", pretrained=True), method="zero_tprune", budget=0.65)
    pruned.schedule                    # tokens after each block
    edge_tprune.macs(pruned)           # multiply-accumulates per image
    model = edge_tprune.open("bundles/deit-s", budget=0.65)  # what `build` wrote, without torch
    model.top(model("cat.jpg"))        # (label, probability) of the five best classes

Importing this package is light: torch is loaded by the first call that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "EdgeTPruneError",
    "InternalError",
    "NegativeAnswer",
    "UserError",
    "__version__",
    "export_network",
    "macs",
    "network_error",
    "open",
    "prune",
    "prune_in",
]

from edge_tprune.errors import EdgeTPruneError, InternalError, NegativeAnswer, UserError
from edge_tprune.version import __version__

if TYPE_CHECKING:
    from edge_tprune.bundle.predictor import open_predictor as open
    from edge_tprune.export.network import export_network, network_error
    from edge_tprune.reduction import macs, prune, prune_in


def __getattr__(name: str) -> Any:
    if name in ("prune", "prune_in", "macs"):
        from edge_tprune import reduction

        return getattr(reduction, name)
    if name in ("export_network", "network_error"):
        from edge_tprune.export import network

        return getattr(network, name)
    if name == "open":
        from edge_tprune.bundle.predictor import open_predictor

        return open_predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
