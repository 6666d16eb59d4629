"""run.json: what a run measures, its settings, and where it ran. Format: profiles/README.md."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from edge_tprune.bundle.fallback import Fallback
from edge_tprune.bundle.manifest import Accuracy, Method, Model
from edge_tprune.documents import Batch, Count, DocumentKind, Name, Share
from edge_tprune.models.class_names import ClassNames
from edge_tprune.record.settings import RunSettings
from edge_tprune.telemetry.environment import Environment

VERSION = 2
RUN = "run.json"


class BundleRecord(msgspec.Struct, kw_only=True, frozen=True):
    """Which bundle was measured: copied from its manifest."""

    name: Name
    fingerprint: str
    batch: Batch
    model: Model
    method: Method
    class_names: ClassNames | None = None


class ArtifactRecord(msgspec.Struct, kw_only=True, frozen=True):
    """The graph of a budget that was run."""

    runtime: str
    precision: str
    form: str
    file: str
    sha256: str
    bytes: Count
    target: str | None = None  #: of a TensorRT engine file: the device it was built for
    version: str | None = None  #: ... and the TensorRT it was built with


class BudgetRecord(msgspec.Struct, kw_only=True, frozen=True):
    """One budget of the run."""

    name: Name
    requested: Annotated[float, Meta(gt=0)] | None
    schedule: Annotated[tuple[Count, ...], Meta(min_length=1)]  #: tokens after each block
    macs: Count
    macs_share: Share  #: of the unpruned model's MACs
    accuracy: Accuracy | None  #: as in the bundle's manifest
    artifact: ArtifactRecord
    method: Method | None = None  #: its own, where it differs from the bundle's
    own_pattern: bool = False  #: as in the bundle's manifest
    fallback: Fallback | None = None  #: what runs instead of the artifact, where that failed its golden check here


class RunDocument(msgspec.Struct, kw_only=True, frozen=True):
    """run.json."""

    version: Count = VERSION
    run_id: Name
    started_utc: str
    tool_version: str
    bundle: BundleRecord
    budgets: Annotated[tuple[BudgetRecord, ...], Meta(min_length=1)]  #: in bundle order
    settings: RunSettings = msgspec.field(name="plan")  # the key's name in versions 1 and 2
    environment: Environment  #: where it ran

    @property
    def budget_names(self) -> list[str]:
        """Names of the budgets, in bundle order."""
        return [budget.name for budget in self.budgets]


KIND = DocumentKind(
    noun="profile",
    format="edge-tprune-profile",
    version=VERSION,
    make="Make one with: edge-tprune profile",
    remedy="Copy the profile again",
    schema=RunDocument,
    file=RUN,
)
