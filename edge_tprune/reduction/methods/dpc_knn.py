"""`dpc_knn`: cluster all tokens by density peaks, one token per cluster.

Clustering: Du et al., "Study on density peaks clustering based on k-nearest neighbors and principal component analysis", Knowledge-Based
Systems 2016, as Zeng et al. use it on tokens, "Not All Tokens Are Equal" (TCFormer), CVPR 2022 (arXiv 2204.08680), section 3.2. Haurum et al.
compare it with other reductions (arXiv 2308.04657). Formulae: `edge_tprune.reduction.matching.density_peaks`, with the unit of density that is taken there.

Every cluster becomes the plain mean of its tokens; TCFormer's learned importance needs training and is left out. Distances are between
features after the attention residual, and densities are made of a token itself and the nearest to it, not of the nearest five
(`neighbours`; our choice). The class token takes no part.
"""

from __future__ import annotations

from torch import Tensor

from edge_tprune.reduction.matching import NEIGHBOURS, density_peaks, exclusions, neighbours_of
from edge_tprune.reduction.outcome import Merge, Outcome
from edge_tprune.reduction.registry import Evidence, Reducer, Stage, register


@register
class DPCKNN(Reducer):
    """Density-peak clusters of all tokens, averaged.

    Args:
        stage: where it sits.
        neighbours: how many nearest tokens, itself included, make a token's density; 5 in TCFormer.
    """

    name = "dpc_knn"
    paper = "Du et al., 2016; Zeng et al., CVPR 2022, arXiv 2204.08680"
    merges = True
    drops = False

    exclusion: Tensor

    def __init__(self, stage: Stage, *, neighbours: int = NEIGHBOURS) -> None:
        super().__init__(stage)
        self.neighbours = neighbours_of(self.name, neighbours)
        self.register_buffer("exclusion", exclusions(stage.tokens_in, stage.prefix_tokens), persistent=False)

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, then clusters, the clearest centre first."""
        centres, others, cluster = density_peaks(
            x.float(), self.stage.tokens_out, self.exclusion, self.stage.prefix_tokens, self.neighbours
        )
        return Merge.into(centres, others, cluster, equal=True)
