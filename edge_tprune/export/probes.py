"""The graphs of a probe bundle: what a cost model (`edge_tprune.schedule.latency`) is made from once they are profiled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edge_tprune.documents import MethodOptions
from edge_tprune.export.settings import DEFAULT_RUNTIMES, BudgetRequest, BuildSettings, decide
from edge_tprune.models.data import Dataset
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import check_method, network_shape
from edge_tprune.reduction.precision import DEFAULT
from edge_tprune.schedule.latency import SLICE
from edge_tprune.schedule.probes import design_probes

LABEL = "probe"


def decide_probes(
    loaded: LoadedModel,
    methods: Sequence[str],
    *,
    options: Mapping[str, MethodOptions] | None = None,
    batch: int = 1,
    runtimes: Sequence[str] = DEFAULT_RUNTIMES,
    precisions: Sequence[str] = (DEFAULT,),
    output: str | None = None,
    normalize: bool = False,
    calibration: Dataset | None = None,
    float_layers: Sequence[str] = (),
) -> BuildSettings:
    """Decides a build of at most 15 graphs: the unpruned network, slices, and steps of `methods`.

    Args:
        loaded: the model.
        methods: names of those whose steps are to be known.
        options: of a method, by its name.
        batch, runtimes, precisions, output, normalize, calibration, float_layers: as for `edge_tprune.export.settings.decide`.

    Raises:
        UserError: an unknown method or one that the model cannot have, more methods than 15 graphs can tell of, a network too small.
    """
    shape = network_shape(loaded.model, loaded.name, output)
    fewest = {}
    for name in methods:
        reducer = registry.method(name)
        check_method(reducer, loaded.model, loaded.name)
        fewest[name] = lambda tokens, reducer=reducer: registry.fewest(reducer, tokens, shape.prefix_tokens)
    requests = [
        BudgetRequest(
            1.0 if probe.tokens == shape.full_schedule() else None,
            probe.tokens,
            method=probe.method,
            options=(options or {}).get(probe.method),
            name=probe.name,
        )
        for probe in design_probes(shape, fewest)
    ]
    return decide(
        loaded,
        SLICE,
        budgets=requests,
        batch=batch,
        runtimes=runtimes,
        precisions=precisions,
        exact_savings=False,  # the schedules say where the last block is saved
        label=LABEL,
        output=output,
        normalize=normalize,
        calibration=calibration,
        float_layers=float_layers,
        allowed_loss=math.inf,  # a slice's answers are nobody's
    )
