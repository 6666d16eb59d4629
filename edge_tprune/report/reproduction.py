"""The commands that make the same bundle, its accuracy, the profile and the report again, as far as the profiles tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from edge_tprune.analysis.limits import option_name
from edge_tprune.analysis.table import Profile
from edge_tprune.bundle.golden import TOLERANCE
from edge_tprune.bundle.manifest import EXACT, split_label
from edge_tprune.models.data import REFERENCE, ReferenceTask
from edge_tprune.record.document import BudgetRecord
from edge_tprune.text import command_line, printable

T = TypeVar("T")

_NO_FILE = ("pretrained", REFERENCE)  #: where weights came from, if not from a file that has to be named
#: Arguments of timm's models that have an option of their own.
_OWN_OPTIONS = {"num_classes": "--classes", "global_pool": "--global-pool"}


def list_commands(
    profiles: Sequence[Profile], constraints: Mapping[str, float | None] | None = None, objective: str | None = None
) -> list[str]:
    """Command lines, in the order in which they are run.

    Args:
        profiles: the runs; of paths only the last part is known.
        constraints, objective: what the report was asked for.
    """
    lines = []
    for profile in profiles:
        where = f"bundles/{profile.document.bundle.name}"
        if others := _distinct(_name(budget) for budget in profile.document.budgets if budget.method is not None):
            lines.append(
                f"# Without {printable(', '.join(others))}: with methods or options of their own, as fit and build --probe write them."
            )
        lines += [*_build(profile, where), *_evaluate(profile, where), _profile(profile, where)]
    names = [f"profiles/{profile.name}" for profile in profiles]
    asked = [(option_name(name), f"{bound:g}") for name, bound in (constraints or {}).items() if bound is not None]
    asked += [("--optimize", objective)] if objective else []
    return [*lines, _shell(["edge-tprune", "report", *names, *_flatten(asked), "--out", "report.html"])]


def _build(profile: Profile, where: str) -> list[str]:
    bundle, budgets = profile.document.bundle, [budget for budget in profile.document.budgets if budget.method is None]
    if not budgets:
        return []
    model, method, artifact = bundle.model, bundle.method, budgets[0].artifact
    options: list[tuple[str, Any]] = []
    if model.weights not in _NO_FILE:
        options.append(("--weights", model.weights))
    options += _model_options(model.arguments)
    options += [("--output", model.output.name)] if model.output.name != "logits" else []
    options.append(("--method", method.name))
    shares, schedules, switches = _budgets(budgets, model.tokens)
    options.append(("--budgets", ",".join(shares)))
    options += [("--schedule", schedule) for schedule in schedules]
    options += [("--option", f"{name}={value}") for name, value in method.options.items()]
    options += [("--batch", bundle.batch)] if bundle.batch != 1 else []
    options += [("--runtime", artifact.runtime)] if artifact.runtime != "onnxruntime" else []
    precisions = _distinct(budget.artifact.precision for budget in budgets)
    options += [("--precision", ",".join(precisions))] if precisions != ["fp32"] else []
    # The reference model calibrates on canvases of its own.
    options += [("--calibration", "PHOTOS")] if "int8" in precisions and model.name != REFERENCE else []
    switches += ["--normalize"] if model.output.normalized else []
    return [_shell(["edge-tprune", "build", model.name, *_flatten(options), *switches, "--out", where])]


def _budgets(budgets: Sequence[BudgetRecord], tokens: int) -> tuple[list[str], list[str], list[str]]:
    """Of budgets in networks of `tokens` tokens: shares that lead to the same schedules again, other schedules, switches.

    A share does where a method's own pattern made the schedule of it; --blocks, a file of `search` and the like are not known here, so what they
    led to is said token by token.
    """
    full = {budget.name for budget in budgets if budget.requested == 1 and set(budget.schedule) == {tokens}}
    by_share = full | {budget.name for budget in budgets if budget.own_pattern}
    exact = [budget for budget in budgets if _name(budget) == EXACT and budget.requested is None]
    others = [budget for budget in budgets if budget.name not in by_share and not (full and budget in exact)]
    schedules = [
        ("" if budget.requested is None else f"{budget.requested:g}=") + ",".join(map(str, budget.schedule))
        for budget in others
    ]
    # Without this switch `build` adds "exact" to 1.0.
    switches = ["--no-exact-savings"] if full and not exact and by_share == full else []
    return _distinct(_name(budget) for budget in budgets if budget.name in by_share), _distinct(schedules), switches


def _model_options(arguments: Mapping[str, object]) -> list[tuple[str, Any]]:
    """What timm made the model with, as options of `build`. Those that a checkpoint decides are said, too: they do no harm."""
    options: list[tuple[str, Any]] = []
    for name, value in sorted(arguments.items()):
        if name == "img_size":
            options.append(("--img-size", ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value))
        elif name in _OWN_OPTIONS and value is not None:
            options.append((_OWN_OPTIONS[name], value))
        else:
            options.append(("--model-kwargs", f"{name}={value}"))
    return options


def _evaluate(profile: Profile, where: str) -> list[str]:
    """The evaluation, where accuracy is known; of the images only their directory's name is."""
    judged = [budget.accuracy for budget in profile.document.budgets if budget.accuracy]
    if not judged:
        return []
    images = judged[0].data.name
    own = profile.document.bundle.model.name == REFERENCE and images == ReferenceTask().name  # which it takes by default
    options = [] if own else [("--data", images)]
    others = [one for one in _distinct(record.precision for record in judged) if one != "fp32"]
    ways = [[*options, ("--precision", precision)] for precision in others] or [options]  # each judges float32 as well
    return [_shell(["edge-tprune", "eval", where, *_flatten(way)]) for way in ways]


def _name(budget: BudgetRecord) -> str:
    """Of a budget, without the precision that it ran in."""
    return split_label(budget.name, None)[0]


def _distinct(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))


def _profile(profile: Profile, where: str) -> str:
    settings = profile.document.settings
    chosen = {
        "runtime": settings.runtime if settings.runtime != "onnxruntime" else None,
        "precision": settings.precision if settings.precision != "fp32" else None,
        "rounds": settings.rounds,
        "seconds": settings.seconds_per_round,
        "warmup": settings.warmup_seconds,
        "baseline": settings.baseline_seconds,
        "tolerance": settings.golden_tolerance if settings.golden_tolerance != TOLERANCE else None,
        "images": settings.input.name if settings.input is not None else None,
        "threads": settings.threads,
        "seed": settings.seed,
        "fps": settings.fps,
    }
    options = [
        (f"--{name}", f"{value:g}" if isinstance(value, float) else value)
        for name, value in chosen.items()
        if value is not None
    ]
    return _shell(["edge-tprune", "profile", where, *_flatten([*options, ("--out", "profiles")])])


def _flatten(options: Iterable[tuple[str, Any]]) -> list[Any]:
    return [word for option in options for word in option]


def _shell(words: Iterable[Any]) -> str:
    return command_line(*words)
