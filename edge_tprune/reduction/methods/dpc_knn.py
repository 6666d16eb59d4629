"""`dpc_knn`: cluster all tokens by density peaks, one token per cluster.

Clustering: Du et al., "Study on density peaks clustering based on k-nearest neighbors and principal component analysis", Knowledge-Based
Systems 2016, as Zeng et al. use it on tokens, "Not All Tokens Are Equal" (TCFormer), CVPR 2022 (arXiv 2204.08680), section 3.2. Haurum et al.
compare it with other reductions (arXiv 2308.04657); theirs is the public code that is meant here.

    r_i     mean over its k nearest tokens j, itself included, of ||x_i - x_j||^2
    rho_i   = exp(-r_i / u)                                          density, in a unit u
    delta_i = distance to the nearest denser token, the largest distance if there is none
    centres the K tokens with the largest rho_i delta_i; every other token joins its nearest centre
    merging plain mean of a cluster. Every token counts for one in attention, however many it stands for

The class token takes no part. TCFormer's learned importance needs training and is left out.

|            | default                                     | `faithful`                                                    |
|------------|---------------------------------------------|---------------------------------------------------------------|
| place      | between attention and MLP                   | before the block                                              |
| unit u     | the image's own: four times the mean of r   | C, the number of channels: fits features of unit variance     |
| k          | 2                                           | 5                                                             |

Why, and how the graph computes it: `edge_tprune.reduction.matching.density_peaks`. The authors add random numbers up to 1e-6 to the densities, against
ties; none are added here.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.reduction.matching import NEIGHBOURS, density_peaks, exclusions, neighbours_of
from edge_tprune.reduction.outcome import Merge, Outcome
from edge_tprune.reduction.registry import Evidence, Reducer, Stage, register
from edge_tprune.schedule import Place

UNITS = ("image", "channels")


@register
class DPCKNN(Reducer):
    """Density-peak clusters of all tokens, averaged.

    Args:
        stage: where it sits.
        neighbours: how many nearest tokens, itself included, make a token's density.
        unit: of the density: "image" for the image's own, "channels" for C.
        place: where in the block: "mlp" or "block".
    """

    name = "dpc_knn"
    paper = "Du et al., 2016; Zeng et al., CVPR 2022, arXiv 2204.08680"
    code = "JoakimHaurum/TokenReduction"
    faithful: ClassVar = {"neighbours": 5, "unit": "channels", "place": "block"}
    differs = "density is scaled per image and computed from two neighbours, and tokens merge between attention and MLP"
    merges = True
    drops = False

    exclusion: Tensor

    def __init__(self, stage: Stage, *, neighbours: int = NEIGHBOURS, unit: str = "image", place: Place = "mlp") -> None:
        super().__init__(stage)
        if unit not in UNITS:
            raise UserError(f"method dpc_knn: unit is {unit!r}; it is one of {', '.join(UNITS)}")
        self.place = place
        self.unit = unit
        self.neighbours = neighbours_of(self.name, neighbours)
        self.register_buffer("exclusion", exclusions(stage.tokens_in, stage.prefix_tokens), persistent=False)

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, then clusters, the clearest centre first."""
        centres, others, cluster = density_peaks(
            x.float(),
            self.stage.tokens_out,
            self.exclusion,
            self.stage.prefix_tokens,
            self.neighbours,
            x.shape[2] if self.unit == "channels" else None,
        )
        return Merge.into(centres, others, cluster, equal=True)
