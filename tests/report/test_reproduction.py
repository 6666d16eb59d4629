"""The commands of a page are commands of this program, and name what the run was made of."""

from __future__ import annotations

import copy
import shlex
from dataclasses import fields
from pathlib import Path

import msgspec
import pytest
import typer

from edge_tprune.analysis.table import Profile
from edge_tprune.cli.app import app
from edge_tprune.cli.commands.build import _request_budgets
from edge_tprune.cli.model_options import ModelChoice
from edge_tprune.cli.schedules import read_schedules
from edge_tprune.export.settings import BudgetRequest, decide
from edge_tprune.models.loading import load_model
from edge_tprune.record.document import RunDocument
from edge_tprune.report.reproduction import list_commands


def _parse(line):
    """Parses a command line without running it."""
    program, name, *words = shlex.split(line)
    assert program == "edge-tprune"
    command = typer.main.get_command(app).commands[name]
    return command.make_context(name, words).params


@pytest.fixture
def info(profiles):
    return profiles.info()


def _lines(info, **asked):
    return list_commands([Profile(Path("run-1"), msgspec.convert(info, RunDocument), (), ())], **asked)


def test_they_are_build_eval_profile_report_and_parse(info):
    lines = _lines(info, constraints={"max_top1_drop": 2.0, "max_p50_ms": None}, objective="energy")
    assert [shlex.split(line)[1] for line in lines] == ["build", "eval", "profile", "report"]
    build, evaluate, profile, report = map(_parse, lines)
    assert (build["model"], build["weights"], build["method"]) == ("deit_tiny_patch16_224", "w.safetensors", "zero_tprune")
    assert build["budgets"] == "1.0,0.9,0.8,0.65,0.5"
    assert evaluate["data"] == "digits in clutter, test split"
    assert (profile["rounds"], profile["threads"], profile["seed"]) == (6, 2, 0)
    assert report["profiles"] == [Path("profiles/run-1")]
    assert (report["max_top1_drop"], report["objective"]) == (2.0, "energy")


def test_precisions_that_ran_in_turn_are_built_and_judged_together(info):
    rows = info["budgets"]
    for budget in list(rows):
        integers = copy.deepcopy(budget)
        integers["name"] += "@int8"
        integers["artifact"]["precision"] = integers["accuracy"]["precision"] = "int8"
        rows.append(integers)
    info["plan"] |= {"precision": "fp32,int8"}
    build, evaluate, profile, _ = map(_parse, _lines(info))
    assert (build["precision"], build["calibration"], build["budgets"]) == ("fp32,int8", "PHOTOS", "1.0,0.9,0.8,0.65,0.5")
    assert evaluate["precision"] == "int8"
    assert profile["precision"] == "fp32,int8"


def test_half_precision_on_tensorrt_batches_and_schedules_are_named(info):
    info["bundle"] |= {"batch": 8, "method": {"name": "evit", "options": {"fuse": True}, "blocks": [4]}}
    info["bundle"]["model"]["weights"] = "random"
    for budget in info["budgets"]:
        budget["artifact"] |= {"runtime": "tensorrt", "precision": "fp16"}
    info["budgets"][1] |= {"requested": None, "own_pattern": False}
    info["budgets"][0]["accuracy"] = None
    info["budgets"][1]["accuracy"]["precision"] = "fp16"
    info["plan"] |= {"runtime": "tensorrt", "precision": "fp16", "fps": 30.0}
    build, evaluate, profile, _ = map(_parse, _lines(info))
    assert (build["batch"], build["runtime"], build["precision"], build["weights"]) == (8, "tensorrt", "fp16", "random")
    assert build["schedule"] == [",".join(map(str, info["budgets"][1]["schedule"]))]
    assert build["budgets"] == "1.0,0.8,0.65,0.5"
    assert build["option"] == ["fuse=True"]
    assert evaluate["precision"] == "fp16"
    assert (profile["runtime"], profile["precision"], profile["fps"]) == ("tensorrt", "fp16", 30.0)


def _again(model, line):
    """What a `build` line decides: schedules by name."""
    words = _parse(line)
    settings = decide(
        model,
        words["method"],
        budgets=_request_budgets(words["budgets"], read_schedules(words["schedule"])),
        exact_savings=words["exact_savings"],
    )
    return {budget.name: budget.schedule.tokens for budget in settings.budgets}


@pytest.mark.parametrize(
    "asked",
    [
        {"budgets": [1.0, 0.8, 0.65]},
        {"budgets": [0.8, 0.5]},
        {"budgets": [1.0, 0.8, 0.65], "blocks": [3, 6], "multiple_of": 4},
        {"budgets": [1.0, 0.65], "exact_savings": False},
        {"budgets": [1.0], "exact_savings": False},
        {"budgets": [0.65], "exact_savings": False},
        {"budgets": [1.0, BudgetRequest(0.65, [197] * 4 + [120] * 7 + [1])]},
        {"budgets": [0.8, BudgetRequest(tokens=[150] * 12)], "blocks": [4]},
    ],
)
def test_the_line_of_build_decides_the_same_schedules_again(info, asked):
    model = load_model("deit_tiny_patch16_224", "random")
    settings = decide(model, "evit", **asked)
    row = info["budgets"][0]
    info["bundle"]["method"] = {"name": "evit", "options": {}, "blocks": list(settings.blocks)}
    info["budgets"] = [
        row
        | {"name": budget.name, "requested": budget.schedule.requested}
        | {"schedule": list(budget.schedule.tokens), "own_pattern": budget.own_pattern}
        for budget in settings.budgets
    ]
    assert _again(model, _lines(info)[0]) == {budget.name: budget.schedule.tokens for budget in settings.budgets}


def test_a_profile_of_before_says_every_schedule(info):
    for budget in info["budgets"]:
        del budget["own_pattern"]
    build = _parse(_lines(info)[0])
    assert build["budgets"] == "1.0"
    assert build["schedule"] == [f"{b['requested']:g}={','.join(map(str, b['schedule']))}" for b in info["budgets"][1:]]
    assert build["exact_savings"] is False


def test_how_long_was_measured_and_on_which_images_is_named(info):
    info["plan"] |= {"baseline_seconds": 4.0, "golden_tolerance": 0.01}
    info["plan"]["input"] = {"kind": "images", "images": 30, "name": "my photos", "sha256": "0" * 64}
    profile = _parse(_lines(info)[2])
    assert (profile["seconds_per_round"], profile["warmup_seconds"], profile["baseline_seconds"]) == (0.2, 0.1, 4.0)
    assert (profile["golden_tolerance"], str(profile["images"])) == (0.01, "my photos")
    info["plan"]["input"] = {"kind": "golden", "images": 30}
    assert _parse(_lines(info)[2])["images"] is None


def test_a_model_that_is_not_timms_default_is_named_as_it_was(info):
    arguments = {
        "img_size": [224, 320],
        "num_classes": 12,
        "global_pool": "avg",
        "init_values": 1e-5,
        "dynamic_img_size": False,
    }
    info["bundle"]["model"]["arguments"] = arguments
    build = _parse(_lines(info)[0])
    choice = ModelChoice(**{field.name: build[field.name] for field in fields(ModelChoice)})
    assert choice.options().arguments == arguments | {"img_size": (224, 320)}


def test_the_reference_model_needs_neither_weights_nor_data(info):
    info["bundle"]["model"] |= {"name": "reference", "weights": "reference"}
    for budget in info["budgets"]:
        budget["accuracy"]["data"]["name"] = "digits-in-clutter test"
    build, evaluate, *_ = _lines(info)
    assert "--weights" not in build
    assert evaluate == "edge-tprune eval bundles/deit_tiny-zero_tprune"
    for budget in info["budgets"]:
        budget["accuracy"]["data"]["name"] = "my photos"
    assert _lines(info)[1] == "edge-tprune eval bundles/deit_tiny-zero_tprune --data 'my photos'"
    for budget in info["budgets"]:
        budget["accuracy"] = None
    assert [shlex.split(line)[1] for line in _lines(info)] == ["build", "profile", "report"]


def test_names_from_files_are_quoted(info):
    info["bundle"]["name"] = "x; rm -rf /\n"
    for line in _lines(info):
        assert "\n" not in line
        assert len(shlex.split(line)) > 2
        assert "rm" not in shlex.split(line)


def test_another_output_is_named(info):
    info["bundle"]["model"]["output"] = {"name": "embedding", "shape": [192], "dtype": "float32", "normalized": True}
    build = _parse(_lines(info)[0])
    assert (build["output"], build["normalize"]) == ("embedding", True)


def test_budgets_of_other_methods_are_said(info):
    info["budgets"][2]["method"] = {"name": "evit", "options": {}, "blocks": [4, 7]}
    said, build, *_ = _lines(info)
    assert said == "# Without 0.8: with methods or options of their own, as fit and build --probe write them."
    assert _parse(build)["budgets"] == "1.0,0.9,0.65,0.5"
    assert _parse(build)["method"] == "zero_tprune"
