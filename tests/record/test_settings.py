"""The settings of a run as they are typed."""

from __future__ import annotations

import msgspec
import pytest

from edge_tprune.cli.app import command_tree
from edge_tprune.errors import UserError
from edge_tprune.record.settings import RunRequest, SourceRecord, option_flag


def test_a_request_can_be_typed_again() -> None:
    request = RunRequest(runtime="onnxruntime", rounds=6, seconds_per_round=0.5, golden_tolerance=1e-3)
    assert request.words() == ["--runtime", "onnxruntime", "--rounds", "6", "--seconds", "0.5", "--tolerance", "0.001"]


def test_every_setting_is_an_option_of_profile() -> None:
    known = {option for parameter in command_tree().commands["profile"].params for option in parameter.opts}
    assert {option_flag(name) for name in RunRequest.__struct_fields__} <= known


@pytest.mark.parametrize("threads", [0, -1, 1025, 9_999_999])
def test_threads_that_no_machine_has_are_refused_at_once(threads: int) -> None:
    with pytest.raises(UserError, match="threads must be a whole number"):
        RunRequest(threads=threads).check()


def test_every_digit_of_a_request_is_typed_again() -> None:
    assert RunRequest(fps=0.3333333).words() == ["--fps", "0.3333333"]


def test_more_rounds_than_a_run_can_list_are_refused_at_once() -> None:
    RunRequest(rounds=100_000).check()
    with pytest.raises(UserError, match="rounds must be a whole number, at most 100000, not 100001"):
        RunRequest(rounds=100_001).check()


@pytest.mark.parametrize("period_s", [0.0, 1e-310, -1.0])
def test_a_period_that_no_sensor_is_read_in_is_damage(period_s: float) -> None:
    """A span divided by it would be infinite."""
    with pytest.raises(msgspec.ValidationError, match="period_s"):
        msgspec.convert({"name": "rails", "period_s": period_s, "metrics": []}, SourceRecord)
