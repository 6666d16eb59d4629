"""Which classes a budget hurts: top-1 by class against the unpruned model, where the accuracy was judged on labelled images."""

from __future__ import annotations

from dataclasses import dataclass

from edge_tprune.analysis.table import Row
from edge_tprune.statistics import Interval, bonferroni, paired_share_difference
from edge_tprune.text import printable


@dataclass(frozen=True)
class ClassChange:
    """What a budget does to the images of one class."""

    title: str  #: the class's name, or "class 3"
    images: int
    unpruned_percent: float  #: top-1 of the unpruned model
    change_points: Interval  #: of top-1; the intervals of all classes of the budget hold together (Bonferroni)

    @property
    def resolved(self) -> bool:
        """Whether more than chance is behind the change."""
        low, high = self.change_points.low, self.change_points.high
        return low is not None and high is not None and not low <= 0 <= high


def list_class_changes(row: Row) -> list[ClassChange]:
    """Of every class that has images, the one that loses most first; empty where accuracy was not judged by class."""
    document = row.profile.document
    accuracy = next((b.accuracy for b in document.budgets if printable(b.name) == row.budget), None)
    if accuracy is None or accuracy.per_class is None:
        return []
    counts, names = accuracy.per_class, document.bundle.class_names
    changes = []
    for index, (images, right, lost, gained) in zip(counts.classes, counts.rows):
        change = bonferroni(paired_share_difference(gained, lost, images), len(counts.classes)).scaled(100).within(-100, 100)
        title = f"class {index}" if names is None or index >= len(names.names) else printable(names.title(index))
        changes.append(ClassChange(title, images, 100 * right / images, change))
    return sorted(changes, key=lambda change: (change.change_points.value, -change.images))
