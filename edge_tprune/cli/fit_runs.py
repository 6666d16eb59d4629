"""Profiles that a fit needs, made on this machine or on a board; one that is there already is used again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from edge_tprune.agent.profile import in_precisions
from edge_tprune.agent.profile import profile as start_run
from edge_tprune.agent.profile import resume as resume_run
from edge_tprune.agent.progress import TerminalProgress
from edge_tprune.analysis.loading import find_profiles
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.cli.board_views import print_warnings
from edge_tprune.cli.progress import BoardProgress
from edge_tprune.cli.terminal import open_stderr, print_note
from edge_tprune.deploy.hosts import Target
from edge_tprune.deploy.journey import Options, deploy_all
from edge_tprune.errors import UserError
from edge_tprune.record.reader import read_run
from edge_tprune.record.settings import RunRequest


@dataclass(frozen=True)
class Runs:
    """Where a fit measures, and where it keeps the profiles."""

    place: Path
    request: RunRequest
    host: Target | None = None  #: a board; None for this machine
    options: Options = field(default_factory=Options)  #: of the deployment to it
    quiet: bool = False

    def profile(self, bundle: Bundle, precision: str, accept: Callable[[Path], bool] = lambda path: True) -> Path:
        """A complete profile of a bundle in these precisions (with commas): one that is there, one that was cut off and goes on, or a new one.

        Args:
            bundle: with a graph for each of its budgets in those precisions.
            precision: one, or several with commas.
            accept: whether a complete profile that is there can be used.

        Raises:
            UserError: as `profile` and `deploy`.
        """
        kept = []
        for path in self._find(bundle, precision):
            if read_run(path, keep=False).end != "complete":
                kept.append(path)
            elif accept(path):
                return path
        request = msgspec.structs.replace(self.request, precision=precision)
        print_note(f"fit: measuring {len(bundle.budgets)} graphs" + (f" on {self.host}" if self.host else ""))
        return self._measure_here(bundle, request, kept) if self.host is None else self._measure_there(bundle, request)

    def _measure_here(self, bundle: Bundle, request: RunRequest, kept: list[Path]) -> Path:
        with TerminalProgress(open_stderr(), quiet=self.quiet) as progress:
            for path in kept:
                try:
                    return resume_run(bundle, path, progress=progress)
                except UserError as error:
                    print_note(f"fit: measuring again, because {error}")
            return start_run(bundle, self.place, request, progress=progress)

    def _measure_there(self, bundle: Bundle, request: RunRequest) -> Path:
        assert self.host is not None
        # Other fits have candidates of the same names, and programs on the board may run theirs.
        name = f"{self.place.resolve().parent.name}-{bundle.path.name}"
        options = replace(self.options, name=name, profile=tuple(request.words()), collect=self.place)
        with BoardProgress(self.quiet) as watcher:
            (deployment,) = deploy_all(bundle, [self.host], options, lambda _: watcher)
        if deployment.error is not None:
            raise deployment.error
        print_warnings([deployment])
        for path in self._find(bundle, request.precision or ""):  # the newest first
            if read_run(path, keep=False).end == "complete":
                return path
        raise UserError(
            f"{self.host} sent no complete profile of {bundle.path}, although it says that it made one. Run the command again"
        )

    def _find(self, bundle: Bundle, precision: str) -> list[Path]:
        try:
            found = find_profiles(self.place)
        except UserError:
            return []
        return [path for path in found if self.is_of(path, bundle, precision)]

    def is_of(self, path: Path, bundle: Bundle, precision: str) -> bool:
        """Whether a profile is of this bundle, of all its networks, asked for in the same way, with the accuracy that the bundle has now."""
        try:
            document = read_run(path, keep=False).document
        except UserError as error:
            print_note(f"fit: not used: {error}")
            return False
        asked = msgspec.structs.replace(self.request, precision=None)
        return (
            document.bundle.fingerprint == bundle.manifest.fingerprint
            and (document.settings.precision or "") == precision
            and not asked.differences(document.settings)
            and [b.name for b in document.budgets]
            == [b.name for b in in_precisions(bundle.budgets, document.settings.runtime, precision)[0]]
            and {b.accuracy.data.sha256 for b in document.budgets if b.accuracy is not None}
            == {b.accuracy.data.sha256 for b in bundle.budgets if b.accuracy is not None}
        )
