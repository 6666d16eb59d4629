"""What code of a plugin does to a command: it prints to stderr, and its failures are the user's."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest

from edge_tprune.cli import fitting, main
from edge_tprune.errors import UserError
from edge_tprune.reduction import registry

SOURCE = """
from edge_tprune.reduction import Keep, Reducer, register, top

@register
class Mine(Reducer):
    name, paper = "mine_of_a_test", "none"

    {more}

    def forward(self, x, evidence):
        return Keep(top(x.norm(dim=-1) + self.bonus, self.stage.tokens_out))
"""
WORDS = ["methods", "mine_of_a_test", "--json", "--plugin"]


@pytest.fixture(autouse=True)
def _registered_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # other tests look at every method


def plugin(tmp_path: Path, more: str) -> str:
    (tmp_path / "own.py").write_text(SOURCE.format(more=more))
    return str(tmp_path / "own.py")


@pytest.mark.parametrize(
    "more",
    [
        "fewest = classmethod(lambda cls, a, b: print('HELLO') or b + 1)",
        "__setattr__ = lambda self, *given: print('HELLO') or super(Mine, self).__setattr__(*given)",
    ],
)
def test_what_a_plugin_prints_never_mixes_with_the_answer(
    more: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, plugin(tmp_path, more)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["name"] == "mine_of_a_test"
    assert "HELLO" in said.err


@pytest.mark.parametrize("raised", ["SystemExit(0)", "ValueError('boom')"])
def test_a_plugin_that_fails_in_a_class_attribute_is_one_line(
    raised: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = f"@property\n    def proportional(self):\n        raise {raised}\n\n    @proportional.setter\n    def proportional(self, value):\n        pass"
    assert main([*WORDS, plugin(tmp_path, more)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"edge-tprune: plugin {tmp_path}/own.py fails: line 10: ")
    assert said.count("\n") == 1


def test_a_changed_plugin_is_another_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was trained and fitted with the one is not passed off as the other's."""
    size = ["--images", "16", "--threads", "1", "--quiet"]
    train = ["finetune", "reference", "--method", "mine_of_a_test", "--budgets", "1.0,0.65", "--batch", "8", "--epochs", "1"]
    train += ["--rate", "1e-4", "--out", str(tmp_path / "t.safetensors"), *size, "--plugin"]
    fit = [
        "fit",
        "reference",
        "--methods",
        "mine_of_a_test",
        "--rounds",
        "2",
        "--seconds",
        "0.02",
        "--max-ms",
        "1e6",
        "--force",
    ]
    fit += ["--out", str(tmp_path / "fit"), *size, "--plugin"]
    assert main([*train, plugin(tmp_path, "x1 = 1")]) in (0, 1)
    registry._METHODS.pop("mine_of_a_test", None)
    with patch.object(fitting.Fit, "run", side_effect=UserError("the key is known")) as run:
        keys = []
        for more in ("x1 = 1", "x2 = 2"):
            registry._METHODS.pop("mine_of_a_test", None)
            with patch.object(fitting.Fit, "__init__", lambda self, *given: keys.append(given[4])):
                assert main([*fit, plugin(tmp_path, more)]) == 2
        assert run.call_count == 2
    assert keys[0] != keys[1]
    registry._METHODS.pop("mine_of_a_test", None)
    capsys.readouterr()
    assert main([*train, plugin(tmp_path, "x2 = 2")]) == 2
    assert "asked for differently (code" in capsys.readouterr().err
