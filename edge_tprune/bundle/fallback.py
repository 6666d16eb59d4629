"""What was done about an engine that gave wrong answers, as it is recorded in profiles and said to people."""

from __future__ import annotations

import msgspec

PASSED = "passed"


class FallbackStep(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt."""

    what: str  #: "block 3 in float32"
    outcome: str  #: `PASSED`, what was still off, or why it could not be done


class Fallback(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An engine failed its golden check, and parts of it were computed in higher precision until one passed."""

    precision: str  #: that was asked for
    failure: str  #: what the golden check found
    fault: str  #: "block 3", "after the last block", or why it is not known
    steps: tuple[FallbackStep, ...] = ()  #: in order
    now: str | None = None  #: what is computed otherwise now: "block 3 in float32"; None where nothing helped

    def describe(self) -> str:
        """In words: what was off, where, and what was done about it."""
        if self.now is None:
            tried = "; ".join(f"{step.what}: {step.outcome}" for step in self.steps)
            return f"{self.failure}. Fault: {self.fault}. No higher precision helps: {tried}"
        return f"in {self.precision} {self.failure}. Fault: {self.fault}. It runs with {self.now} instead"
