"""What a build does, decided once and before anything is computed: every budget's schedule and module, and the graphs to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from edge_tprune.bundle.bundle import MOST_BUDGETS
from edge_tprune.bundle.manifest import EXACT
from edge_tprune.documents import MethodOptions
from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.export.graph import FORMS, Form
from edge_tprune.models.adapter import LOGITS
from edge_tprune.models.data import Dataset
from edge_tprune.models.families import adapt
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import registry, solve_schedule
from edge_tprune.reduction.host import PrunedViT, check_output
from edge_tprune.reduction.precision import DEFAULT, INTEGERS, precision
from edge_tprune.schedule import TOLERANCE, NetworkShape, Schedule, from_tokens

DEFAULT_RUNTIMES = ("onnxruntime",)

ALLOWED_LOSS = 0.05  #: nats, or of outputs other than logits cosine distance, in INT8

"""The budget of the unpruned network whose last block computes only what the head reads: the same output for fewer MACs, and no pruning."""


@dataclass(frozen=True)
class BudgetRequest:
    """A budget as a person asks for it: a share of MACs, a schedule, or both where a search found that schedule for that share."""

    share: float | None = None  #: of the unpruned MACs
    tokens: Sequence[int] | None = None  #: after each block
    method: str | None = None  #: its own method, where it is not the bundle's
    options: MethodOptions | None = None  #: of that method
    name: str | None = None  #: in the bundle; made from the share by default


@dataclass(frozen=True)
class BudgetSettings:
    """One budget."""

    name: str  #: unique in the bundle
    schedule: Schedule
    module: PrunedViT  #: in float32; its `method` and `options` are the budget's
    own_pattern: bool = False  #: whether the schedule is what the method's own pattern gives, with exact savings


@dataclass(frozen=True)
class GraphSettings:
    """One graph of every budget."""

    runtime: str
    form: Form
    precision: str

    def file_name(self, budget: str) -> str:
        """Runtimes that read the same form share a graph."""
        suffix = "" if self.precision == DEFAULT else f".{self.precision}"
        return f"{budget}.{self.form.name}{suffix}.onnx"


@dataclass(frozen=True)
class BuildSettings:
    """Everything that is decided about a build."""

    method: str
    options: MethodOptions
    budgets: tuple[BudgetSettings, ...]
    graphs: tuple[GraphSettings, ...]  #: the first of a runtime is what it is given that is asked for no precision
    batch: int
    label: str = ""  #: what the bundle's name says beside the model's; the method by default
    calibration: Dataset | None = None  #: photos, where a graph is in INT8
    float_layers: tuple[str, ...] = ()  #: that stay floats there
    allowed_loss: float = ALLOWED_LOSS  #: of a graph in INT8; infinite where its answers are not wanted

    @property
    def shape(self) -> NetworkShape:
        """Of the unpruned network."""
        return self.budgets[0].module.shape

    @property
    def output(self) -> str:
        """What every graph gives."""
        return self.budgets[0].module.output

    @property
    def normalize(self) -> bool:
        """Whether an embedding is brought to unit length."""
        return self.budgets[0].module.normalize

    @property
    def methods(self) -> list[str]:
        """Names of all methods, the bundle's own first."""
        return list(dict.fromkeys([self.method, *(budget.module.method for budget in self.budgets)]))

    def is_own(self, budget: BudgetSettings) -> bool:
        """Whether a budget has another method, or other options, than the bundle."""
        return (budget.module.method, budget.module.options) != (self.method, dict(self.options))

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """Blocks that remove tokens in any of the schedules, counted from 1."""
        before = [(self.shape.tokens, *budget.schedule.tokens) for budget in self.budgets]
        return tuple(b for b in range(1, self.shape.blocks + 1) if any(counts[b] < counts[b - 1] for counts in before))

    @property
    def remarks(self) -> list[str]:
        """Clear statements about budgets whose schedules are not what was asked for."""
        return [budget.schedule.remark for budget in self.budgets if budget.schedule.remark]


def decide(
    loaded: LoadedModel,
    method: str,
    *,
    budgets: Sequence[float | BudgetRequest],
    blocks: Sequence[int] | None = None,
    multiple_of: int = 1,
    options: MethodOptions | None = None,
    batch: int = 1,
    runtimes: Sequence[str] = DEFAULT_RUNTIMES,
    precisions: Sequence[str] = (DEFAULT,),
    exact_savings: bool = True,
    label: str = "",
    output: str | None = None,
    normalize: bool = False,
    calibration: Dataset | None = None,
    float_layers: Sequence[str] = (),
    allowed_loss: float = ALLOWED_LOSS,
) -> BuildSettings:
    """Decides everything about a build; refuses what cannot be before any work is done.

    Args:
        loaded: the model.
        method: its name.
        budgets: shares of the unpruned MACs, or requests.
        blocks: where shares remove tokens, counted from 1; the method's own choice by default.
        multiple_of: of the token counts that shares lead to.
        options: of the method.
        batch: images per inference.
        runtimes: to write graphs for.
        precisions: to write them in (`edge_tprune.reduction.precision`), where the runtime takes them.
        exact_savings: of budgets that are shares, let the last block compute only what the head reads, where it does not read all tokens; and beside
            the unpruned network build the one that saves only that, as budget "exact".
        label: what the bundle's name says beside the model's; the method by default, and the output where it is not logits.
        output: what the graphs give, one of `edge_tprune.models.adapter.OUTPUTS`; the network's own by default.
        normalize: bring an embedding to unit length.
        calibration: photos for INT8.
        float_layers: names of layers that stay floats in INT8.
        allowed_loss: how much a graph in INT8 may lose (`edge_tprune.export.integer_parity`); infinite: it is not judged.

    Raises:
        UserError: an output that the network cannot give;
            as `edge_tprune.reduction.solve_schedule`, or a repeated budget, batch below 1, an unknown runtime or precision, a precision that
            none of the runtimes takes, nothing to build.
    """
    graphs = _graphs(runtimes, precisions)
    integers = any(graph.precision == INTEGERS for graph in graphs)
    if integers and calibration is None:
        raise UserError("int8 needs photos to calibrate on: give --calibration DIRECTORY (labels are not needed)")
    if not integers and (calibration is not None or float_layers):
        raise UserError("only int8 is calibrated: add --precision int8, or leave --calibration and --float-layers out")
    if batch < 1:
        raise UserError(f"batch {batch} is out of range: give 1 or more images per inference")
    requests = [budget if isinstance(budget, BudgetRequest) else BudgetRequest(budget) for budget in budgets]
    if not requests:
        raise UserError("nothing to build: give --budgets or --schedule")
    if len(requests) > MOST_BUDGETS:
        raise UserError(f"{len(requests)} budgets are too many: a bundle holds at most {MOST_BUDGETS}")
    chosen: dict[str, BudgetSettings] = {}
    given = dict(options or {})
    adapter = adapt(loaded.model, loaded.name)
    output = output or adapter.default_output
    check_output(adapter, output, normalize)

    def prune(name: str, schedule: Schedule, own_options: MethodOptions) -> PrunedViT:
        return PrunedViT(
            loaded.model, registry.any_method(name), schedule.tokens, own_options, output=output, normalize=normalize
        )

    by_default = not blocks and multiple_of == 1 and exact_savings
    for request in requests:
        own, its_options = (method, given) if request.method is None else (request.method, dict(request.options or {}))
        name, schedule = _schedule(loaded, own, its_options, request, blocks, multiple_of, exact_savings, output)
        name = request.name or name
        if name in chosen:
            raise UserError(f"budget {name} is given twice")
        # Options and stages are refused here, not after minutes of exporting.
        module = prune(own, schedule, its_options)
        chosen[name] = BudgetSettings(name, schedule, module, by_default and request.tokens is None)
        shape = module.shape
        if exact_savings and schedule.tokens == shape.full_schedule() != shape.exact_schedule() and EXACT not in chosen:
            exact = from_tokens(shape, shape.exact_schedule())
            chosen[EXACT] = BudgetSettings(EXACT, exact, prune(own, exact, its_options))
    if len(chosen) > MOST_BUDGETS:
        raise UserError(f"{len(chosen)} budgets, {EXACT} included, are too many: a bundle holds at most {MOST_BUDGETS}")
    label = label or method
    return BuildSettings(
        method,
        given,
        tuple(chosen.values()),
        graphs,
        batch,
        label if output == LOGITS else f"{label}-{output}",
        calibration,
        tuple(dict.fromkeys(float_layers)),
        allowed_loss,
    )


def _schedule(
    loaded: LoadedModel,
    method: str,
    options: MethodOptions,
    request: BudgetRequest,
    blocks: Sequence[int] | None,
    multiple_of: int,
    exact_savings: bool,
    output: str,
) -> tuple[str, Schedule]:
    """A budget's name and schedule."""
    share = request.share
    if request.tokens is None:
        if share is None:
            raise UserError("a budget needs a share of MACs or a schedule")
        how = "none" if share == 1 else method  # the unpruned network needs nothing of any method
        schedule = solve_schedule(
            loaded.model,
            how,
            budget=share,
            blocks=blocks,
            multiple_of=multiple_of,
            exact_savings=exact_savings,
            output=output,
            name=loaded.name,
            options={} if how == "none" else options,
        )
        return f"{share:.1f}" if share == round(share, 1) else f"{share:.6g}", schedule
    schedule = solve_schedule(loaded.model, method, schedule=request.tokens, output=output, name=loaded.name, options=options)
    if share is None:
        return f"s{schedule.share:.4f}", schedule
    remark = ""
    if abs(schedule.share - share) > TOLERANCE * share:
        remark = f"budget {share:g}: on this model its schedule comes to {schedule.share:.3f} of the MACs"
    return f"{share:g}", replace(schedule, requested=share, remark=remark)


def _graphs(runtimes: Sequence[str], precisions: Sequence[str]) -> tuple[GraphSettings, ...]:
    """Every graph of a budget. A runtime that takes none of the precisions gets float32."""
    for runtime in runtimes:
        if runtime not in FORMS:
            known = ", ".join(sorted(FORMS))
            raise UserError(f"no graph form for runtime {runtime!r}.{did_you_mean(runtime, FORMS)} Known: {known}")
    for name in precisions:
        precision(name)
        if not any(name in FORMS[runtime].precisions for runtime in runtimes):
            fitting = [runtime for runtime, form in FORMS.items() if name in form.precisions]
            why = (
                "computes in float32 on a CPU whatever the graph says"
                if "onnxruntime" in runtimes
                else "takes no such graph yet"
            )
            raise UserError(f"precision {name} is not for {' or '.join(runtimes)}, which {why}: add --runtime {fitting[0]}")
    return tuple(
        GraphSettings(runtime, FORMS[runtime], name)
        for runtime in dict.fromkeys(runtimes)
        for name in [p for p in dict.fromkeys(precisions) if p in FORMS[runtime].precisions] or [DEFAULT]
    )
