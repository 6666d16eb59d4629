"""Finds a method's configuration for a model on a person's images, and the file that says what was found.

The file is JSON and is what `build --schedule FILE` takes: the method, its options, and per budget the tokens after each block. The
blocks and weights behind them are kept too; the package's own defaults (`edge_tprune/reduction/tuned/`) are such files, and by blocks
and weights they fit networks of another depth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edge_tprune.documents import UntypedDocumentKind as DocumentKind
from edge_tprune.errors import UserError
from edge_tprune.files import clear_write_errors, exclusive, write_json
from edge_tprune.models.data import Dataset, batches
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import pattern, registry
from edge_tprune.reduction.host import check_method, network_shape
from edge_tprune.reduction.plugins import method_code_sha256
from edge_tprune.search.score import DIVERGENCE, ERROR, Scorer
from edge_tprune.search.trials import Log, Result, Space, Trial, search
from edge_tprune.statistics import mean_interval

FORMAT, VERSION = "edge-tprune-schedule", 1
KIND = DocumentKind(
    noun="schedule file",
    format=FORMAT,
    version=VERSION,
    make="Make one with: edge-tprune search",
    mend="Search again: the log beside it keeps what was tried",
)
SCORES = (DIVERGENCE, ERROR)
_BATCH = 25


@dataclass(frozen=True)
class Configuration:
    """What a schedule file says."""

    method: str
    options: Mapping[str, Any]
    budgets: Mapping[str, tuple[int, ...]]  #: requested share -> tokens after each block


def find(
    loaded: LoadedModel,
    method: str,
    budgets: Sequence[float],
    dataset: Dataset,
    out: Path,
    *,
    trials: int = 60,
    stages: tuple[int, int] | None = None,
    score: str = DIVERGENCE,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Searches at every budget and writes the schedule file; trials are logged beside it and need not be run again.

    Asked for more trials, a finished search goes on. Options are searched at the first budget and kept for the others, so that one file describes one method.

    Args:
        loaded: the model.
        method: its name.
        budgets: shares of MACs below 1.
        dataset: images; labels are used for `score="top1"` only.
        out: the file.
        trials: per budget.
        stages: fewest and most blocks that remove tokens; up to one more than the method's own number by default.
        score: "kl" (divergence from the unpruned model, no labels) or "top1" (errors).
        seed: of the search.
        options: of the method, fixed; the others that it declares worth searching are searched.
        progress: called as (what, done, of).
        warn: called with what a person should know.

    Returns:
        The document that was written.

    Raises:
        UserError: no images or labels, a budget that no schedule meets, a log of another search, another search at work on the same file.
    """
    reducer = registry.method(method)
    check_method(reducer, loaded.model, loaded.name)
    shape = network_shape(loaded.model, loaded.name)
    if score not in SCORES:
        raise UserError(f"no score {score!r}: choose {' or '.join(SCORES)}")
    if score == ERROR and not dataset.labelled:
        raise UserError(f"{dataset.name} has no labels: score by kl, or give one sub-directory per class")
    if trials < 1:
        raise UserError(f"a search needs at least one trial, not {trials}")
    if out.suffix != ".json" or out.is_dir():
        raise UserError(f"--out {out}: a schedule file is a file whose name ends in .json")
    if len({f"{budget:g}" for budget in budgets}) != len(budgets):
        raise UserError(f"a budget is given twice: {', '.join(f'{budget:g}' for budget in budgets)}")
    for budget in budgets:
        if not 0 < budget < 1:
            raise UserError(f"budget {budget:g} is out of range: a search needs a share of MACs above 0 and below 1")
    low, high = stages or (1, min(shape.blocks, len(reducer.default_blocks) + 1))
    if not 1 <= low <= high <= shape.blocks:
        raise UserError(f"{low} to {high} stages do not fit a model of {shape.blocks} blocks")
    fixed = dict(options or {})
    free = {name: tuple(values) for name, values in reducer.worth_searching.items() if name not in fixed}
    found: dict[str, Any] = {
        "model": loaded.name,
        "weights_sha256": loaded.weights_sha256,
        "images": len(dataset),
        "data": dataset.name,
        "data_sha256": dataset.fingerprint,
        "score": score,
        "stages": [low, high],
        "seed": seed,
    }
    header = {
        **found,
        "method": method,
        "options": fixed,
        "searched": {k: list(v) for k, v in free.items()},
        "code": method_code_sha256(reducer),
    }
    entries: dict[str, Any] = {}
    report = progress or (lambda what, done, of: None)
    with clear_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(out, "search"):
        scorer = _scorer(loaded, method, dataset, score, report)
        for number, budget in enumerate(budgets):
            space = Space(
                shape, budget, low, high, free, reducer.removal, lambda tokens: reducer.fewest(tokens, shape.prefix_tokens)
            )
            start = _defaults(reducer, budget, space)
            with clear_write_errors(out):
                log = Log(out.with_name(f"{out.name}.{budget:g}.jsonl"), {**header, "budget": budget})
            if log.damaged and warn is not None:
                warn(f"{log.path}: line {', '.join(map(str, log.damaged))} cannot be read: what it says is tried again")

            def losses(schedule: Any, tried: Mapping[str, Any]) -> Any:
                return scorer(schedule, {**fixed, **tried})

            def tell(done: int, of: int, best: Result | None, budget: float = budget, offset: int = number * trials) -> None:
                so_far = f", best {best.loss:.4f}" if best else ""
                report(f"budget {budget:g}{so_far}", offset + done, trials * len(budgets))

            try:
                results = search(space, losses, log, trials=trials, seed=seed, first=start, progress=tell)
            finally:
                log.close()
            best = results[0]
            # The other budgets keep what the first one chose, as part of every trial: if more trials choose otherwise, their logs still hold.
            free = {name: (value,) for name, value in best.trial.options}
            default = next(r for r in results if r.trial.key == start[0].key) if start else None
            entries[f"{budget:g}"] = {
                "tokens": list(best.schedule.tokens),
                "share": best.schedule.share,
                "blocks": list(best.trial.blocks),
                "weights": list(best.trial.weights),
                score: mean_interval(best.losses).to_json(),
                f"default_{score}": mean_interval(default.losses).to_json() if default else None,
            }
        chosen = {**fixed, **{name: value for name, (value,) in free.items()}}
        document = {
            "format": FORMAT,
            "version": VERSION,
            "method": method,
            "options": chosen,
            "budgets": entries,
            "found": {**found, "trials": trials},
        }
        write_json(out, document)
    return document


def _scorer(loaded: LoadedModel, method: str, dataset: Dataset, score: str, report: Callable[[str, int, int], None]) -> Scorer:
    images: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    for pixels, truth in batches(dataset, loaded.transform(), _BATCH):
        report("reading images", len(images) * _BATCH, len(dataset))
        images.append(torch.from_numpy(pixels))
        labels.append(torch.from_numpy(truth))
    return Scorer(loaded.model, method, images, labels if score == ERROR else None)


def _defaults(method: type[registry.Reducer], budget: float, space: Space) -> list[Trial]:
    """The method's defaults as the first trial, so that a search never ends worse than it began; none where they miss the budget."""
    blocks, weights = pattern(method, space.shape.blocks, budget)
    known = {name: parameter.default for name, parameter in registry.options(method).items()}
    options = {name: known[name] if known[name] in values else values[0] for name, values in space.options.items()}
    trial = Trial(blocks, weights, tuple(sorted(options.items())))
    fits = space.fewest_stages <= len(blocks) <= space.most_stages
    return [trial] if fits and space.schedule(trial) else []


def read(path: Path) -> Configuration:
    """A schedule file.

    Raises:
        UserError: no such file, not a schedule file, or a newer version of one.
    """
    document = KIND.read(path)
    if document.get("version") != VERSION:
        raise UserError(
            f"schedule file {path} has no format version that can be read: {document.get('version')!r}. {KIND.mend}"
        )
    try:
        budgets = {}
        for name, entry in document["budgets"].items():
            tokens = entry["tokens"]
            if not all(type(count) is int for count in tokens) or not 0 < float(name) <= 1 or name != f"{float(name):g}":
                raise ValueError(f"budget {name!r}: {tokens!r}")
            budgets[name] = tuple(tokens)
        found = Configuration(str(document["method"]), dict(document["options"]), budgets)
        known = registry.options(registry.method(found.method))
        for option, value in found.options.items():
            if option in known and type(value) is not type(known[option].default):
                raise ValueError(f"option {option} is {value!r}, not a {type(known[option].default).__name__}")
        return found
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"schedule file {path} is damaged ({error!r}). {KIND.mend}") from error
