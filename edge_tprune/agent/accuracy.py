"""Accuracy on the device: the engines that are timed are the engines that are judged."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.evaluate import judge
from edge_tprune.bundle.manifest import Accuracy, split_label
from edge_tprune.files import check_own, write_bytes
from edge_tprune.models.data import Dataset
from edge_tprune.statistics import student_interval

ACCURACY = "accuracy.npz"
ACCURACY_BEGINS = re.compile(rb"PK\x03\x04.{26}(labels|top5/|kl_nats/|cosine_distance/|neighbour/)", re.DOTALL)
"""How ours begin: a zip archive with one of these arrays first."""


def judge_here(
    bundle: Bundle,
    dataset: Dataset,
    *,
    runtime: str,
    precision: str | None,
    threads: int,
    budgets: Sequence[str],
    directory: Path,
    files: Mapping[str, Path],
    progress: Callable[[int, int], None],
    warn: Callable[[str], None],
) -> dict[str, Accuracy]:
    """Runs `budgets` and the unpruned one over `dataset`, writes `accuracy.npz` into `directory`, and returns their records.

    `files` says by label what an engine is opened from where it fell back to a higher precision.

    The arrays are those of a bundle's `eval-<hash>.npz`, so bootstrap intervals can be computed where scipy is; the
    records' own are Student's.

    Raises:
        UserError: no unpruned budget, an unreadable image, or a file of somebody's under the name of `accuracy.npz`.
        NegativeAnswer: an engine fails its golden check, or gives numbers that are not finite.
    """
    first, *others = (precision or "").split(",")
    arrays: dict[str, np.ndarray] = {}
    records: dict[str, Accuracy] = {}
    for number, one in enumerate(others or [first]):
        found = judge(
            bundle,
            dataset,
            runtime=runtime,
            precision=one or None,
            against_fp32=bool(others),
            threads=threads,
            budgets=list(dict.fromkeys(split_label(name, None)[0] for name in budgets)),
            interval=student_interval,
            files=files,
            progress=progress,
            warn=warn if number == 0 else None,
        )
        arrays |= found.arrays
        records |= found.records
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle
    check_own(directory / ACCURACY, ACCURACY_BEGINS, "one")
    write_bytes(directory / ACCURACY, buffer.getvalue())
    return {name: record for name, record in records.items() if name in budgets}
