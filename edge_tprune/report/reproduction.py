"""The commands that make the same bundle, profile and report again, as far as the profiles tell."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from edge_tprune.analysis.table import Profile
from edge_tprune.text import printable


def list_commands(profiles: Sequence[Profile]) -> list[str]:
    """Command lines that make the same bundle, profile and report, as far as the profiles tell."""
    lines = []
    for profile in profiles:
        bundle, settings = profile.document.bundle, profile.document.settings
        model, method = bundle.model, bundle.method
        where = f"bundles/{bundle.name}"
        build = ["edge-tprune", "build", model.get("name", "MODEL")]
        weights = str(model.get("weights", ""))
        if "." in weights:  # a file's name; otherwise a word for where they came from
            build += ["--weights", weights]
        budgets = ",".join(profile.document.budget_names)
        build += ["--method", method.get("name", "METHOD"), "--budgets", budgets]
        build += [word for name, value in (method.get("options") or {}).items() for word in ("--option", f"{name}={value}")]
        build += ["--out", where]
        chosen = {
            "runtime": settings.runtime if settings.runtime != "onnxruntime" else None,
            "precision": settings.precision if settings.precision != "fp32" else None,
            "rounds": settings.rounds,
            "threads": settings.threads,
            "seed": settings.seed,
            "fps": settings.fps,
        }
        options = [word for name, value in chosen.items() if value is not None for word in (f"--{name}", value)]
        lines += [_shell(build), _shell(["edge-tprune", "profile", where, *options, "--out", "profiles"])]
    names = [f"profiles/{profile.name}" for profile in profiles]
    return [*lines, _shell(["edge-tprune", "report", *names, "--out", "report.html"])]


def _shell(words: Iterable[Any]) -> str:
    return " ".join(shlex.quote(printable(word)) for word in words)
