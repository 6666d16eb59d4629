"""The search itself: Optuna proposes configurations, networks are scored on images, what was tried is kept in Optuna's storage.

Zero-TPrune finds its configuration by Monte-Carlo search (arXiv 2305.17328, section 4), DiffRate learns its counts; this is one search for
every method. Proposals come from Optuna's TPE sampler over the weight of every block, the method and its options, after those that are
known to be good (the method's own pattern, what dynamic programming found). A trial is scored batch by batch and dropped once Wilcoxon's
signed-rank test says that it is worse than the best on the batches both have seen.

Every trial has a sampler of its own, seeded by the search's seed and the trial's number: one worker that is interrupted and goes on
tries what it would have tried. Workers on other machines may join a study in a database; one that is killed loses its own trial.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from edge_tprune.documents import MethodOptions, OptionValue
from edge_tprune.errors import UserError
from edge_tprune.files import clear_write_errors, cut_last_line, open_regular
from edge_tprune.schedule import Schedule
from edge_tprune.search.space import Configuration, SearchSpace

Losses = Iterator[Sequence[float]]
Scorer = Callable[[str, tuple[int, ...], MethodOptions], Losses]
Report = Callable[[int, int, "Result | None"], None]

_IMPOSSIBLE = 60  # proposals in a row that cannot be or were tried: the space counts as tried out
_P = 0.05  # of the test by which a trial is dropped
_DECIDED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Result:
    """A configuration that was scored on all images. Lower is better."""

    configuration: Configuration
    schedule: Schedule
    losses: tuple[float, ...]  #: one per image, in order

    @property
    def loss(self) -> float:
        """Mean over the images."""
        return sum(self.losses) / len(self.losses)


def open_storage(out: Path, url: str | None) -> BaseStorage:
    """Where trials are kept: a journal beside the search's file, or a database.

    Args:
        out: the search's file. With a journal, the caller keeps other processes away from it.
        url: of the database.

    Raises:
        UserError: the database cannot be reached, or the journal is damaged.
    """
    if url is None:
        return _open_journal(out.with_name(f"{out.name}.journal"))
    try:
        with _quiet():
            return RDBStorage(url)
    except Exception as error:  # whatever its driver raises
        raise UserError(
            f"--storage: the database cannot be used ({type(error).__name__}): {str(error).splitlines()[0]}"
        ) from error


class _NoLock(JournalFileOpenLock):
    """Who opens a journal holds the lock of its search, which ends with the process. Optuna's own outlives one that is killed."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class _Journal(JournalFileBackend):
    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with clear_write_errors(Path(self._file_path)):
            super().append_logs(logs)


def _open_journal(file: Path) -> BaseStorage:
    try:
        if file.exists():
            open_regular(file).close()
        with clear_write_errors(file), file.open("a+b") as stream:
            cut_last_line(stream.fileno())  # of a process that was killed, or found the disk full
        with _quiet():
            return JournalStorage(_Journal(str(file), _NoLock(str(file))))
    except UserError:
        raise
    except Exception as error:  # whatever Optuna makes of damaged lines
        raise UserError(f"{file} cannot be read ({error}): move it away to start again") from error


def open_study(storage: BaseStorage, name: str, header: Mapping[str, object], *, check: bool = True) -> optuna.Study:
    """The study of one search at one limit.

    Args:
        storage: from `open_storage`.
        name: of the study in it.
        header: what must be equal for the trials there to be ones of this search.
        check: whether to hold it against what is there.

    Raises:
        UserError: the storage has a study of that name of another search, naming what differs.
    """
    with _quiet():
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            load_if_exists=True,
            direction="minimize",
            pruner=optuna.pruners.WilcoxonPruner(p_threshold=_P),
        )
    before = study.user_attrs.get("search")
    if before is None:
        study.set_user_attr("search", dict(header))
    elif check and before != dict(header):
        differs = next((key for key in (*header, *before) if before.get(key) != header.get(key)), "header")
        raise UserError(
            f"what was tried under {name} is of another search ({differs} was {before.get(differs)!r}, now {header.get(differs)!r}): "
            "move the journal away to start again, or choose another --out"
        )
    return study


def search(
    study: optuna.Study,
    space: SearchSpace,
    score: Scorer,
    *,
    trials: int,
    seed: int = 0,
    first: Sequence[Configuration] = (),
    report: Report | None = None,
) -> list[Result]:
    """Runs the search until `trials` configurations were scored or dropped, those that the study knows included.

    Args:
        study: from `open_study`.
        space: what may be tried.
        score: gives a network's losses, one batch of images after the other; the same images in the same order for every one.
        trials: how many to try, `first` included.
        seed: of all that is drawn.
        first: configurations to begin with.
        report: called as (trials done, of, the best so far) before each trial.

    Returns:
        Every result on all images, the best first.

    Raises:
        UserError: no schedule of the space meets the limit.
    """
    if not space.reachable:
        raise _unreachable(space)
    distributions = _distributions(space)
    with _quiet():
        if not study.get_trials(deepcopy=False):
            for configuration in first:
                study.enqueue_trial(_parameters(space, configuration), skip_if_exists=True)
        misses = 0
        while True:
            known = study.get_trials(deepcopy=False)
            done = [trial for trial in known if trial.state in _DECIDED]
            if len(done) >= trials:
                break
            if misses > _IMPOSSIBLE:
                break
            tried = {_identity(trial): trial for trial in done}
            if report is not None:
                report(len(done), trials, best_of(space, known))
            study.sampler = _sampler(seed, len(known))
            trial = study.ask(distributions)
            misses = 0 if _run(study, trial, space, score, tried) else misses + 1
    results = results_of(space, study.get_trials(deepcopy=False))
    if not results:
        raise _unreachable(space)
    return results


def results_of(space: SearchSpace, trials: Sequence[FrozenTrial]) -> list[Result]:
    """Everything that was scored on all images, the best first."""
    found = []
    for trial in trials:
        if trial.state is TrialState.COMPLETE and "losses" in trial.user_attrs:
            configuration = _configuration(space, trial.params)
            if configuration is None:
                continue
            tokens = tuple(trial.user_attrs["tokens"])
            schedule = Schedule(tokens, space.cost.shape.share(tokens))
            found.append(Result(configuration, schedule, tuple(trial.user_attrs["losses"])))
    return sorted(found, key=lambda result: (result.loss, result.schedule.tokens))


def best_of(space: SearchSpace, trials: Sequence[FrozenTrial]) -> Result | None:
    """The best result so far."""
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    if not complete:
        return None
    return next(iter(results_of(space, [min(complete, key=lambda trial: trial.value or 0.0)])), None)


def _run(study: optuna.Study, trial: optuna.Trial, space: SearchSpace, score: Scorer, tried: Mapping[Any, FrozenTrial]) -> bool:
    """Scores one proposal; False where it cannot be, or was tried before."""
    configuration = _configuration(space, trial.params)
    schedule = None if configuration is None else space.schedule(configuration)
    if configuration is None or schedule is None:
        study.tell(trial, state=TrialState.FAIL)
        return False
    trial.set_user_attr("method", configuration.method)
    trial.set_user_attr("options", dict(configuration.options))
    trial.set_user_attr("tokens", list(schedule.tokens))
    if _identity(trial) in tried:
        study.tell(trial, state=TrialState.FAIL)
        return False
    losses: list[float] = []
    for number, part in enumerate(score(configuration.method, schedule.tokens, dict(configuration.options))):
        losses += [float(f"{loss:.6g}") for loss in part]
        trial.report(sum(part) / len(part), number)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return True
    trial.set_user_attr("losses", losses)
    study.tell(trial, sum(losses) / len(losses))
    return True


def _sampler(seed: int, number: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=1_000_003 * seed + number, multivariate=True, n_startup_trials=10)


def _distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {
        f"block {block}": FloatDistribution(0.0, 1.0) for block in range(1, space.last_block + 1)
    }
    if len(space.methods) > 1:
        found["method"] = CategoricalDistribution([method.name for method in space.methods])
    for method in space.methods:
        for option, values in sorted(method.options.items()):
            found[f"{method.name} {option}"] = CategoricalDistribution(list(values))
    return found


def _configuration(space: SearchSpace, parameters: Mapping[str, Any]) -> Configuration | None:
    name = parameters.get("method", space.methods[0].name)
    weights = [parameters[f"block {block}"] for block in range(1, space.last_block + 1)]
    options = {option: parameters[f"{name} {option}"] for option in space.method(name).options}
    return space.from_weights(name, weights, options)


def _parameters(space: SearchSpace, configuration: Configuration) -> dict[str, OptionValue]:
    found: dict[str, OptionValue] = {
        f"block {block}": weight for block, weight in enumerate(space.weights_of(configuration), 1)
    }
    if len(space.methods) > 1:
        found["method"] = configuration.method
    for method in space.methods:
        chosen = dict(configuration.options) if method.name == configuration.method else {}
        found |= {f"{method.name} {option}": chosen.get(option, values[0]) for option, values in method.options.items()}
    return found


def _identity(trial: FrozenTrial | optuna.Trial) -> tuple[Any, ...]:
    """What makes two trials the same network."""
    said = trial.user_attrs
    return said.get("method"), tuple(sorted(said.get("options", {}).items())), tuple(said.get("tokens", ()))


def _unreachable(space: SearchSpace) -> UserError:
    limit = f"budget {space.limit:g}" if space.cost.unit == "share of MACs" else f"{space.limit:g} {space.cost.unit}"
    return UserError(f"no schedule with {space.fewest_stages} to {space.most_stages} stages meets {limit}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's own log lines, and its warnings of what it calls experimental, are not for people who wait for a search."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
