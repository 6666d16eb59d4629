"""The search itself: Optuna proposes configurations, networks are scored on images, what was tried is kept in Optuna's storage.

Zero-TPrune finds its configuration by Monte-Carlo search (arXiv 2305.17328, section 4), DiffRate learns its counts; this is one search for
every method. Proposals come from Optuna's TPE sampler over the weight of every block, the method and its options, after those that are
known to be good (the method's own pattern, what dynamic programming found). A trial is scored batch by batch and dropped once Wilcoxon's
signed-rank test says that it is worse than the best on the batches both have seen.

Every trial has a sampler of its own, seeded by the search's seed and the trial's number: one worker that is interrupted and goes on
tries what it would have tried. Several processes may score at once (`edge_tprune.search.workers`), and other machines may join a study in a
database; whoever is killed loses its own trial.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

import msgspec
import optuna
from msgspec import Meta
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from edge_tprune.documents import Count, InvalidDocument, OptionValue, convert
from edge_tprune.errors import UserError
from edge_tprune.files import clear_write_errors, cut_last_line, open_log, open_regular
from edge_tprune.schedule import Schedule
from edge_tprune.search.space import Configuration, SearchSpace
from edge_tprune.search.workers import Here, Network, Scorer, Scoring
from edge_tprune.text import is_text, one_line, printable

Report = Callable[[int, int, "Result | None"], None]

_IMPOSSIBLE = 60  # proposals in a row that cannot be or were tried: the space counts as tried out
_P = 0.05  # of the test by which a trial is dropped
_DECIDED = (TrialState.COMPLETE, TrialState.PRUNED)
_DRIVERS = {"postgresql": ("psycopg2", "psycopg"), "mysql": ("MySQLdb", "pymysql")}
"""Database -> the driver that SQLAlchemy takes where a URL names none, and the one that is easy to install."""
_DRIVER_PACKAGES = {"psycopg2": "psycopg[binary]", "psycopg": "psycopg[binary]", "MySQLdb": "pymysql"}
_START_AGAIN = "move the journal, or the file of the database, away to start again, or choose another --out"
_CONNECT_S = 10
_TABLES = {"studies", "trials", "version_info", "alembic_version"}  # of Optuna's those whose names others use
_TABLE_ATTEMPTS, _TABLE_ATTEMPT_S = 5, 0.3  # to find the tables that another search is just making
_AGAIN = "again"  # user attribute of a trial whose network was lost before, with its worker or by an interruption: how often
_INTERRUPTIONS = 3  # after which it is not tried again


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
        UserError: the database cannot be reached, or is the search's file; or the journal is damaged.
    """
    if url is None:
        return _open_journal(out.with_name(f"{out.name}.journal"))
    if not is_text(out):
        raise UserError(f"--out {printable(out)}: a database keeps no search whose name is not UTF-8 text: choose another")
    kind, _, place = url.partition(":///")
    if kind.startswith("sqlite") and _database_file(place).resolve() == out.resolve():
        raise UserError(
            f"--storage and --out are the same file, {out}: the schedules would replace the trials. Give another --out"
        )
    try:
        foreign = _foreign_table(url)
        if foreign is not None:
            raise UserError(
                f"--storage {hide_password(url)} has a table {foreign} of another program's, which no search writes to: give another database"
            )
        database = _open_database(url)
        in_memory = _is_in_memory(database)
    except UserError:
        raise
    except Exception as error:  # whatever its driver raises
        raise UserError(
            f"--storage {hide_password(url)}: {_why_not(error)}. It is a URL such as sqlite:///study.db or postgresql://user@host/name"
        ) from error
    if in_memory:
        raise UserError(
            f"--storage {hide_password(url)} is a database in memory, which nothing is kept in: give one with a file, such as sqlite:///study.db"
        )
    return database


def _foreign_table(url: str) -> str | None:
    """A table of another program's that is called as one of Optuna's; None where there is none. Optuna would put its other tables beside it."""
    import sqlalchemy  # half as long to import as all the rest

    with warnings.catch_warnings(record=True) as said:  # of an argument of the URL that means nothing, and would be passed over
        warnings.simplefilter("always")
        engine = sqlalchemy.create_engine(_with_driver(url), **_patience(url))
    for each in said:
        if each.category is sqlalchemy.exc.SAWarning:
            raise ValueError(each.message)
    try:
        for _ in range(_TABLE_ATTEMPTS):
            found = sqlalchemy.inspect(engine)
            tables = set(found.get_table_names())
            columns = {column["name"] for column in found.get_columns("studies")} if "studies" in tables else {"study_name"}
            ours = "version_info" in tables and "study_name" in columns
            alike = sorted(tables & _TABLES)
            if ours or not alike:
                return None
            time.sleep(_TABLE_ATTEMPT_S)  # another search may be making its tables at this moment
        return alike[0]
    finally:
        engine.dispose()


def _is_in_memory(database: RDBStorage) -> bool:
    """Whether an SQLite database has no file, however its URL says so."""
    if database.engine.dialect.name != "sqlite":
        return False
    with database.engine.connect() as connection:
        files = [file for _, name, file in connection.exec_driver_sql("PRAGMA database_list") if name == "main"]
    return not any(files)


def _database_file(place: str) -> Path:
    """The file of SQLite's database, given as a path or as a URI (`file:study.db?uri=true`)."""
    place = place.partition("?")[0]
    return Path(unquote(place.removeprefix("file:"))) if place.startswith("file:") else Path(place)


def _patience(url: str) -> dict[str, Any]:
    """For SQLAlchemy's engine: a host that does not answer at all would be waited for by minutes."""
    return {"connect_args": {"connect_timeout": _CONNECT_S}} if url.startswith("postgresql") else {}


def _open_database(url: str) -> RDBStorage:
    """The database, with Optuna's tables in it. Two searches that begin at once may both make the tables: the second one finds them."""
    patience = _patience(url)
    for _ in range(_TABLE_ATTEMPTS):
        try:
            with _quiet():
                return RDBStorage(_with_driver(url), engine_kwargs=patience)
        except Exception as error:
            if not re.search("already exists|unique|duplicate", f"{error} {error.__cause__}", re.IGNORECASE):
                raise
        time.sleep(_TABLE_ATTEMPT_S)
    with _quiet():
        return RDBStorage(_with_driver(url), engine_kwargs=patience)


def hide_password(url: str) -> str:
    """A database's URL as it may be shown. What may be a part of a password is hidden, too: it can contain any character."""
    return re.sub(r"([?&][^=&]*pass[^=&]*=)[^&]*", r"\1***", re.sub(r"(?<=://)([^/@:]*):.*@", r"\1:***@", url))


def _with_driver(url: str) -> str:
    """The URL with a driver that is installed, where it names none and SQLAlchemy's own choice is not there."""
    for kind, (first, other) in _DRIVERS.items():
        if url.startswith(f"{kind}://") and find_spec(first) is None and find_spec(other) is not None:
            return url.replace(f"{kind}://", f"{kind}+{other}://", 1)
    return url


def _why_not(error: Exception) -> str:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and isinstance(cause, Exception):
        causes.append(cause)
    for each in causes:
        if isinstance(each, ModuleNotFoundError):
            pip = _DRIVER_PACKAGES.get(each.name or "", each.name)
            return f"its driver {each.name} is not installed (pip install '{pip}')"
    first = causes[-1] if type(error).__module__.startswith(("optuna", "sqlalchemy")) else error
    line = next((line.strip() for line in str(first).splitlines() if line.strip()), "no reason is given")
    return f"the database cannot be used ({line})"


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


_JOURNAL_BEGINS = b'{"op_code"'  #: as Optuna writes it; a process that was killed may have written less


def _open_journal(file: Path) -> BaseStorage:
    try:
        if file.exists():
            open_regular(file).close()
        with clear_write_errors(file), os.fdopen(open_log(file, os.O_CREAT), "rb") as stream:
            if not _JOURNAL_BEGINS.startswith(os.pread(stream.fileno(), len(_JOURNAL_BEGINS), 0)):
                raise UserError(f"{file} cannot be read (it does not begin as a journal does): move it away to start again")
            cut_last_line(stream.fileno())  # of a process that was killed, or found the disk full
        with _quiet():
            return JournalStorage(_Journal(str(file), _NoLock(str(file))))
    except UserError:
        raise
    except Exception as error:  # whatever Optuna makes of damaged lines
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}: {one_line(error)}): move it away to start again"
        ) from error


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
    with _quiet(), _clear_storage_errors():
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            load_if_exists=True,
            direction="minimize",
            pruner=optuna.pruners.WilcoxonPruner(p_threshold=_P),
        )
        trials = study.get_trials(deepcopy=False)  # another process that is just beginning writes the header first
        before = study.user_attrs.get("search")
        ours = isinstance(before, dict) or (before is None and not trials)
        if not ours or study.directions != [StudyDirection.MINIMIZE]:
            raise UserError(f"what was tried under {name} is of another program: {_START_AGAIN}")
        if before is None:
            study.set_user_attr("search", dict(header))
        elif check and before != dict(header):
            differs = next((key for key in (*header, *before) if before.get(key) != header.get(key)), "header")
            raise UserError(
                f"what was tried under {name} is of another search ({differs} was {before.get(differs)!r}, now {header.get(differs)!r}): "
                f"{_START_AGAIN}"
            )
    return study


def search(
    study: optuna.Study,
    space: SearchSpace,
    score: Scorer | Scoring,
    *,
    trials: int,
    seed: int = 0,
    first: Sequence[Configuration] = (),
    images: int | None = None,
    report: Report | None = None,
    alone: bool = False,
) -> list[Result]:
    """Runs the search until `trials` configurations were scored or dropped, those that the study knows included.

    Args:
        study: from `open_study`.
        space: what may be tried.
        score: gives a network's losses, one batch of images after the other, the same images in the same order for every one; or where
            that is done.
        trials: how many to try, `first` included.
        seed: of all that is drawn.
        first: configurations to begin with.
        images: how many losses a network has, where that is known.
        report: called as (trials done, of, the best so far) before each trial.
        alone: nobody else is at work on the study, so that a trial that is running is of a process that was ended.

    Returns:
        Every result on all images, the best first.

    Raises:
        UserError: no schedule of the space meets the limit, or the database went away.
    """
    if not space.reachable:
        raise _unreachable(space)
    distributions = _distributions(space)
    place: Scoring = Here(score) if callable(score) else score
    running: dict[int, _Running] = {}
    with _quiet(), _clear_storage_errors():
        _check_trials(study, distributions, space, images)
        if alone:
            _try_again(study)
        for configuration in first:
            study.enqueue_trial(_parameters(space, configuration), skip_if_exists=True)
        misses = 0
        while True:
            known = study.get_trials(deepcopy=False)
            done = [trial for trial in known if trial.state in _DECIDED]
            if len(done) + len(running) < trials and misses <= _IMPOSSIBLE and place.free:
                if report is not None:
                    report(len(done), trials, best_of(space, known))
                study.sampler = _sampler(seed, len(known))
                trial = study.ask(distributions)
                tried = {_identity(each) for each in done} | {_identity(each.trial) for each in running.values()}
                network = _propose(study, trial, space, tried)
                misses = misses + 1 if network is None else 0
                if network is not None:
                    running[trial.number] = _Running(trial)
                    place.start(trial.number, network)
            elif running:
                _end_one(study, place, running)
            else:
                break
        _check_trials(study, distributions, space, images)
        results = results_of(space, study.get_trials(deepcopy=False))
    if not results:
        raise _unreachable(space)
    return results


class _Tried(msgspec.Struct):
    """What is kept of a trial that was scored or dropped, besides Optuna's own."""

    method: str
    options: dict[str, OptionValue]
    tokens: list[Count]
    losses: list[Annotated[float, Meta(ge=-1e300, le=1e300)]] | None = (
        None  #: one per image; of a trial that was scored on all. Bounds refuse NaN
    )


def _check_trials(
    study: optuna.Study, distributions: Mapping[str, BaseDistribution], space: SearchSpace, images: int | None
) -> None:
    """Refuses trials that no search of ours wrote.

    Raises:
        UserError: naming the first, and what is wrong with it.
    """
    counts = set[int]() if images is None else {images}
    for trial in study.get_trials(deepcopy=False):
        if trial.state not in _DECIDED:
            continue
        try:
            tried = convert(trial.user_attrs, _Tried)
            if trial.params.keys() != distributions.keys() or not all(
                _is_in(trial.params[name], distribution) for name, distribution in distributions.items()
            ):
                raise InvalidDocument("its parameters are not those of this search")
            space.cost.shape.check(tried.tokens)
            _check_value(trial, tried)
            if tried.losses is not None:
                counts.add(len(tried.losses))
            if len(counts) > 1 or 0 in counts:
                raise InvalidDocument("its losses are of another number of images")
        except (InvalidDocument, UserError) as error:
            raise UserError(
                f"trial {trial.number} of {study.study_name} is damaged, or of another program ({error}): {_START_AGAIN}"
            ) from error


def _check_value(trial: FrozenTrial, tried: _Tried) -> None:
    """A trial that was scored on all images has its losses and their mean, and one that was dropped has at most what it reported last.

    Raises:
        InvalidDocument: it has not.
    """
    if trial.values is None and trial.state is TrialState.PRUNED:
        return
    values = trial.values
    if not isinstance(values, list) or len(values) != 1 or type(values[0]) is not float or not math.isfinite(values[0]):
        raise InvalidDocument("its value is not one number")
    if trial.state is TrialState.COMPLETE and tried.losses is None:
        raise InvalidDocument("its losses are missing")


def _is_in(value: object, distribution: BaseDistribution) -> bool:
    """Whether a parameter is one that the search can draw."""
    if isinstance(distribution, FloatDistribution):
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and distribution.low <= value <= distribution.high
        )
    assert isinstance(distribution, CategoricalDistribution)
    return any(value == choice and type(value) is type(choice) for choice in distribution.choices)


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


@dataclass
class _Running:
    """A trial that is being scored."""

    trial: optuna.Trial
    losses: list[float] = field(default_factory=list)
    batches: int = 0


def _propose(study: optuna.Study, trial: optuna.Trial, space: SearchSpace, tried: Collection[Any]) -> Network | None:
    """What a trial proposes; None where it cannot be, or was tried before."""
    configuration = _configuration(space, trial.params)
    schedule = None if configuration is None else space.schedule(configuration)
    if configuration is None or schedule is None:
        study.tell(trial, state=TrialState.FAIL)
        return None
    trial.set_user_attr("method", configuration.method)
    trial.set_user_attr("options", dict(configuration.options))
    trial.set_user_attr("tokens", list(schedule.tokens))
    if _identity(trial) in tried:
        study.tell(trial, state=TrialState.FAIL)
        return None
    return Network(configuration.method, schedule.tokens, dict(configuration.options))


def _try_again(study: optuna.Study) -> None:
    """Queues again what an interruption cut off."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        again = trial.user_attrs.get(_AGAIN, 0)
        times = again if isinstance(again, int) and again >= 0 else _INTERRUPTIONS  # of a damaged journal
        if times < _INTERRUPTIONS:  # what never ends may be what ends the process
            wanted = trial.system_attrs.get("fixed_params", trial.params)
            study.enqueue_trial(wanted, user_attrs={_AGAIN: times + 1})


def _end_one(study: optuna.Study, place: Scoring, running: dict[int, _Running]) -> None:
    """Waits until one of the networks is scored, dropped or lost."""
    while True:
        event = place.next()
        each = running[event.key]
        trial = each.trial
        if event.lost:
            study.tell(trial, state=TrialState.FAIL)
            if _AGAIN not in trial.user_attrs:  # what is lost twice may be what kills the workers
                study.enqueue_trial(trial.params, user_attrs={_AGAIN: True})
        elif event.losses is None:
            trial.set_user_attr("losses", each.losses)
            study.tell(trial, sum(each.losses) / len(each.losses))
        else:
            each.losses += [float(f"{loss:.6g}") for loss in event.losses]
            trial.report(sum(event.losses) / len(event.losses), each.batches)
            each.batches += 1
            if not trial.should_prune():
                continue
            place.stop(event.key)
            study.tell(trial, state=TrialState.PRUNED)
        del running[event.key]
        return


def _sampler(seed: int, number: int) -> optuna.samplers.BaseSampler:
    # Proposals that others score at this moment count as bad ones, so that workers look in different places.
    return optuna.samplers.TPESampler(
        seed=(1_000_003 * seed + number) % 2**32, multivariate=True, n_startup_trials=10, constant_liar=True
    )


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
    """What a trial tries, by Optuna's parameters of `_distributions`; None where that is no configuration."""
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
def _clear_storage_errors() -> Iterator[None]:
    """Turns what Optuna raises of a database that went away, or of one or a journal that is damaged, into one clear `UserError`."""
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        raise UserError(
            f"--storage: {_why_not(error)}. What was tried before is kept there: run the same command again to continue"
        ) from error
    except (UserError, MemoryError):
        raise
    except Exception as error:
        modules = (str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__))
        if not any(module.startswith("optuna.") for module in modules):
            raise
        raise UserError(
            f"what was tried before cannot be read ({type(error).__name__}: {one_line(error)}): {_START_AGAIN}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's own log lines, and its warnings of what it calls experimental, are not for people who wait for a search."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
