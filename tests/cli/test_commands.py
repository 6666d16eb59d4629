"""The commands, as a person or a script calls them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

import edge_tprune
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.models import reference
from tests.cli.conftest import Outcome
from tests.small import built, loaded  # noqa: F401

Command = Callable[..., Outcome]
TOKENS = ",".join(["20"] * 12)
COMMANDS = ["methods", "build", "eval", "explain", "deploy", "doctor", "profile", "compare", "select", "report"]


def one_line(outcome: Outcome, code: int, *says: str) -> None:
    assert outcome.code == code
    lines = [line for line in outcome.err.splitlines() if line]
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("edge-tprune: ")
    assert "Traceback" not in outcome.err
    for part in says:
        assert re.search(part, lines[0]), lines[0]


def test_version(command: Command) -> None:
    assert command("--version").out == f"edge-tprune {edge_tprune.__version__}\n"


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_every_command_has_help_with_an_example(command: Command, name: str | None) -> None:
    outcome = command(*([name] if name else []), "--help")
    assert outcome.code == 0
    assert re.search(r"Examples:\s+edge-tprune", outcome.out)
    assert outcome.err == ""


def test_without_arguments_help_is_shown(command: Command) -> None:
    outcome = command()
    assert outcome.code == 0
    assert "build" in outcome.out


def test_methods(command: Command) -> None:
    document = json.loads(command("methods", "--json").out)
    rows = {row["name"]: row for row in document["methods"]}
    assert {"none", "evit", "zero_tprune", "slice"} <= rows.keys()
    assert rows["evit"]["needs"] == ["class_row"]
    assert rows["evit"]["fused_attention"]
    assert not rows["zero_tprune"]["fused_attention"]
    assert (rows["evit"]["removal"], rows["evit"]["stages"], rows["evit"]["proportional_attention"]) == ("share", 3, False)
    assert (rows["tome"]["removal"], rows["tome"]["stages"], rows["tome"]["proportional_attention"]) == ("count", 12, True)
    assert all(row["stages"] == len(row["default_blocks_of_12"]) for row in rows.values())
    assert {"atc", "dynamicvit"} <= document["absent"].keys()
    shown = command("methods").out
    assert all(name in shown for name in [*rows, *document["absent"]])
    assert max(map(len, shown.splitlines())) <= 80
    faithful = " ".join(command("methods", "pitome").out.split())
    assert "public code github.com/hchautran/PiToMe" in faithful
    assert "faithful=true the form of its authors' code: proportional=false, at blocks 1-12 of 12" in faithful
    assert "the default attention is proportional to size" in faithful
    assert "faithful=true not an option of this method" in " ".join(command("methods", "random").out.split())
    one = command("methods", "bat").out
    assert "at budget 0.65   5,7,10" in one, "the blocks that builds really use"
    assert "attentive=0.4" in one
    assert max(map(len, one.splitlines())) <= 80
    one_line(command("methods", "atc"), 2, "method atc is not included: .*no static graph")
    one_line(command("methods", "evitt"), 2, "no method 'evitt'. Did you mean evit")


def test_the_journey_in_json(command: Command, journey: tuple[Path, Path]) -> None:
    bundle, profile = journey
    manifest = json.loads(
        command(
            "build", "reference", "--weights", "random", "--method", "evit", "--budgets", "1.0,0.5", "--out", bundle, "--json"
        ).out
    )
    assert manifest["budgets"][0]["accuracy"]["images"] == 30, "an unchanged bundle keeps its accuracy"
    compared = json.loads(command("compare", profile, "--json").out)
    assert "speedup" in json.dumps(compared)
    chosen = command("select", profile, "--max-top1-drop", "100", "--json")
    assert chosen.code == 0
    assert json.loads(chosen.out)
    impossible = command("select", profile, "--max-p50-ms", "0.0001", "--json")
    assert impossible.code == 1
    assert json.loads(impossible.out)
    for outcome in (chosen, command("compare", profile)):
        assert "\x1b" not in outcome.out, "no colour when piped"


def test_nothing_fits_is_exit_code_one_with_the_nearest_miss(command: Command, journey: tuple[Path, Path]) -> None:
    outcome = command("select", journey[1], "--max-p50-ms", "0.0001")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert "0.0001" in outcome.err


def test_report_and_picture(command: Command, journey: tuple[Path, Path], tmp_path: Path) -> None:
    outcome = command("report", journey[1], "--out", tmp_path / "r.html", "--picture", tmp_path / "r.svg", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out) == {
        "report": str(tmp_path / "r.html"),
        "pictures": [{"name": "accuracy", "file": str(tmp_path / "r.svg")}],
    }
    assert (tmp_path / "r.svg").read_text().startswith("<?xml")
    assert "<svg" in (tmp_path / "r.html").read_text()


def test_report_with_sample_images(command: Command, journey: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, profile = journey
    outcome = command("report", profile, "--out", tmp_path / "r.html", "--bundle", bundle, "--images", "reference")
    assert outcome.code == 0, outcome.err
    page = (tmp_path / "r.html").read_text()
    assert "<h2>Sample images</h2>" in page
    schedule = json.loads((bundle / "manifest.json").read_text())["budgets"][2]["schedule"]
    assert schedule[-1] == 1, "the last block serves the class token alone, which is no stage"
    stages = [block for block, (before, after) in enumerate(pairwise([197, *schedule[:-1]]), 1) if after < before]
    assert page.count('src="data:image/jpeg;base64,') == 4 * (1 + len(stages))
    for block in stages:
        assert page.count(f"block {block}: {schedule[block - 1] - 1} patch tokens") == 4
    assert len(page) < 2_000_000


def test_tokens_of_another_bundle_are_not_shown(
    command: Command,
    journey: tuple[Path, Path],
    built: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    outcome = command("report", journey[1], "--out", tmp_path / "r.html", "--bundle", built, "--images", "reference")
    one_line(outcome, 2, f"bundle {built} is not what was profiled")
    assert list(tmp_path.iterdir()) == []


def test_explain_draws_what_a_bundle_does(command: Command, journey: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, _ = journey
    out = tmp_path / "e.html"
    drawn = json.loads(command("explain", "reference:3", "--bundle", bundle, "--out", out, "--json").out)
    budget = json.loads((bundle / "manifest.json").read_text())["budgets"][2]
    assert [row["schedule"] for row in drawn["rows"]] == [budget["schedule"]]
    assert [row["method"] for row in drawn["rows"]] == ["evit"]
    chosen = json.loads(command("explain", "reference:3", "--bundle", bundle, "--budgets", "1.0", "--out", out, "--json").out)
    assert [row["stages"] for row in chosen["rows"]] == [[]]
    one_line(command("explain", "reference:3", "--bundle", bundle, "--budgets", "0.4", "--out", out), 2, "no budget '0.4'")
    one_line(command("explain", "reference:3", "--bundle", bundle, "--method", "evit"), 2, "--method is not for --bundle")
    one_line(command("explain", "reference:3", "--bundle", bundle, "--img-size", "64"), 2, "--img-size is not for --bundle")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--images", "reference"), "go together"),
        (("--weights", "random"), "--weights is for --bundle"),
        (("--bundle", "BUNDLE", "--images", "nowhere"), "nowhere does not exist"),
        (("--bundle", "BUNDLE", "--images", "reference", "--weights", "SHIPPED"), "not those that bundle"),
    ],
)
def test_sample_images_that_cannot_be_shown(
    command: Command, journey: tuple[Path, Path], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    named = {"BUNDLE": str(journey[0]), "SHIPPED": str(reference.WEIGHTS)}
    outcome = command("report", journey[1], "--out", tmp_path / "r.html", *(named.get(word, word) for word in arguments))
    assert outcome.code == 2
    assert message in outcome.err.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_explain(command: Command, tmp_path: Path) -> None:
    arguments = ["explain", "reference:17", "--methods", "evit,tome", "--budgets", "0.65,0.5", "--option", "fuse=yes"]
    outcome = command(*arguments, "--out", tmp_path / "e.png", "--json")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    assert document["out"] == str(tmp_path / "e.png")
    assert document["unpruned"]["class"] == 7
    assert [(row["method"], row["budget"]) for row in document["rows"]] == [
        ("evit", 0.65), ("evit", 0.5), ("tome", 0.65), ("tome", 0.5),
    ]  # fmt: skip
    for row in document["rows"]:
        assert len(row["schedule"]) == 12
        assert 0 < row["prediction"]["probability"] <= 1
        for stage in row["stages"]:
            assert stage["kept"] + stage["merged"] + stage["dropped"] == document["patches"] == 196
            assert stage["tokens"] == row["schedule"][stage["block"] - 1]
    assert document["rows"][0]["options"] == {"fuse": True}
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    outcome = command("explain", "reference", "--budgets", "0.65", "--out", tmp_path / "e.html")
    assert outcome.code == 0
    assert "zero_tprune" in outcome.out
    assert "e.html" in outcome.err
    assert "data:image/png" in (tmp_path / "e.html").read_text()


def test_explain_cannot_draw_where_it_may_not_write(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = ["explain", "reference", "--method", "evit", "--budgets", "0.8", "--out", tmp_path / "file" / "e.png"]
    one_line(command(*arguments), 2, "cannot write")
    assert os.listdir(tmp_path) == ["file"]


def test_profile_prints_its_path_alone(journey: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = [
        "profile",
        str(journey[0]),
        "--out",
        str(tmp_path),
        "--rounds",
        "1",
        "--seconds",
        "0",
        "--warmup",
        "0",
        "--budgets",
        "0.5",
    ]
    done = subprocess.run([sys.executable, "-m", "edge_tprune", *arguments], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_dir()
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["biuld"], "No such command 'biuld'"),
        (["build"], "Missing argument"),
        (["build", "deit_smal_patch16_224"], "Did you mean deit_small_patch16_224"),
        (["build", "resnet18", "--weights", "random"], "resnet18 is a ResNet, not a plain ViT"),
        (["build", "reference", "--method", "zerotprune"], "Did you mean zero_tprune"),
        (["build", "reference", "--weights", "absent.safetensors"], "absent.safetensors does not exist"),
        (["build", "reference", "--weights", "random", "--budgets", "1.0,0"], "budget 0 is out of range"),
        (["build", "reference", "--weights", "random", "--budgets", "65"], "budget 65 is out of range"),
        (["build", "reference", "--weights", "random", "--budgets", "0.02"], "nearest reachable"),
        (
            ["build", "reference", "--weights", "random", "--budgets", "half"],
            "--budgets: 'half' is no number. Give numbers separated by commas",
        ),
        (["build", "reference", "--weights", "random", "--option", "votes"], "not of the form name=value"),
        (
            ["build", "reference", "--weights", "random", "--precision", "fp61"],
            "no precision 'fp61'.* Known: fp32, fp16, mixed",
        ),
        (["build", "reference", "--weights", "random", "--precision", "fp16"], "add --runtime tensorrt"),
        (["build", "reference", "--weights", "random", "--calibration", "nowhere"], "nowhere"),
        (["build", "deit_tiny_patch16_224", "--weights", "random", "--precision", "int8"], "int8 needs photos.*--calibration"),
        (["build", "reference", "--weights", "random", "--option", "vote=3"], "Did you mean votes"),
        (["build", "reference", "--weights", "random", "--blocks", "4,40"], "blocks 1 to 12"),
        (["build", "reference", "--weights", "random", "--schedule", "197,100"], "2 token counts"),
        (
            ["build", "reference", "--schedule", TOKENS, "--budgets", "1.0", "--multiple-of", "8"],
            "--multiple-of is for pruning to a share .* leave --multiple-of out",
        ),
        (
            ["build", "reference", "--schedule", TOKENS, "--budgets", "1.0", "--blocks", "4,7", "--multiple-of", "8"],
            "--blocks and --multiple-of are for pruning",
        ),
        (["build", "reference", "--budgets", "1.0", "--blocks", "4"], "--blocks is for pruning"),
        (["explain", "absent.jpg"], "absent.jpg does not exist"),
        (["explain", "."], r"\. is a directory"),
        (["explain", "reference:5000"], "no canvas '5000'"),
        (["explain", "reference", "--method", "evitt"], "Did you mean evit"),
        (["explain", "reference", "--method", "atc"], "method atc is not included: .* no static graph"),
        (["explain", "reference", "--out", "e.svg"], r"must end in \.png or \.html"),
        (["explain", "reference", "--budgets", "0.01"], "zero_tprune: budget 0.01 cannot be reached"),
        (["explain", "reference", "--option", "fuse=1"], "no option 'fuse'"),
        (["eval", "absent"], "is not a bundle"),
        (["profile", "absent"], "is not a bundle"),
        (["compare", "absent"], "does not exist"),
        (["select", "."], "neither a profile nor a directory of profiles"),
        (["report", "absent"], "does not exist"),
        (["select", ".", "--max-p95-ms", "fast"], "Invalid value"),
    ],
)
def test_mistakes_get_one_clear_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    one_line(command(*arguments), 2, says)
    assert os.listdir(tmp_path) == []


def test_a_folder_whose_classes_do_not_match(command: Command, journey: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "1.png")
    one_line(command("eval", journey[0], "--data", tmp_path), 2, "2 class")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budgets", ""], "--budgets is empty"),
        (["--budgets", "nope"], "no budget 'nope'"),
        (["--precision", "fp16"], "no file for runtime 'onnxruntime' in fp16"),
        (["--runtime", "tensorrt"], "no file for runtime 'tensorrt'"),
        (["--threads", "0"], "Invalid value for '--threads'"),
        (["--class-map", "names.txt"], "names.txt is not used: the reference task has labels of its own"),
    ],
)
def test_what_eval_refuses_is_refused_before_an_image_is_read(
    command: Command, journey: tuple[Path, Path], words: list[str], message: str
) -> None:
    one_line(command("eval", journey[0], "--data", "reference", *words), 2, message)


def test_a_corrupt_bundle_is_refused_by_every_command_that_reads_it(
    command: Command, journey: tuple[Path, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(journey[0], copy)
    weights = copy / "onnx" / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    for arguments in (("eval", copy), ("profile", copy, "--out", tmp_path / "p")):
        one_line(command(*arguments), 2, "weights.bin is corrupt")
    assert not (tmp_path / "p").exists()


def interrupted(arguments: list[str], when: Callable[[], bool]) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_tprune", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while not when() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def test_ctrl_c_while_building_leaves_nothing(tmp_path: Path) -> None:
    arguments = ["build", "reference", "--weights", "random", "--out", str(tmp_path / "b")]
    done = interrupted(arguments, lambda: any(tmp_path.glob(".b.building-*/onnx/*.onnx")))
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


def test_ctrl_c_while_evaluating_leaves_the_bundle_whole(journey: tuple[Path, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(journey[0], copy)
    before = (copy / "manifest.json").read_bytes()
    begun = time.monotonic()
    done = interrupted(["eval", str(copy), "--limit", "100000"], lambda: time.monotonic() - begun > 8)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert (copy / "manifest.json").read_bytes() == before
    Bundle.open(copy)


def test_ctrl_c_while_profiling_keeps_what_was_measured(command: Command, journey: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ["profile", str(journey[0]), "--out", str(tmp_path), "--rounds", "500", "--seconds", "0.05", "--warmup", "0"]

    def two_rounds() -> bool:
        return any(file.read_text().count('"round"') > 6 for file in tmp_path.glob("*/samples.jsonl"))

    done = interrupted(arguments, two_rounds)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    (profile,) = tmp_path.iterdir()
    assert str(profile) in done.stderr, "the message says where the data is"
    assert command("compare", profile).code == 0
