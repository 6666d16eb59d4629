"""What the README and the documentation show is there and runs; the links lead somewhere; the words are plain."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import typer

import edge_tprune
from edge_tprune.cli import main
from edge_tprune.reduction import registry, unregister

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [
    README,
    *PAGES,
    *sorted(ROOT.glob("[A-Z]*.md")),
    *(ROOT / room / "README.md" for room in ("deploy", "profiles", "examples")),
]
TEXTS = list(dict.fromkeys(path for path in TEXTS if path.is_file()))


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    page: Path
    mark: str  #: the HTML comment before it: "run", "run: 0 1" (exit codes that are right), "run after the commands" (Python), "file: NAME", or ""
    language: str
    code: str

    @property
    def lines(self) -> list[list[str]]:
        """Its command lines, as words; comments are left out."""
        joined = self.code.replace("\\\n", " ").splitlines()
        return [words for line in joined if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> Iterator[Block]:
    found = re.findall(r"(?:<!-- ([^>]*?) -->\n)?```(\w*)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    yield from (Block(page, *block) for block in found)


ALL = [block for page in TEXTS for block in blocks(page)]
PYTHON = [block for block in ALL if block.language == "python" and block.mark == "run"]


@pytest.fixture
def methods_kept() -> Iterator[None]:
    before = set(registry.methods())
    yield
    for name in set(registry.methods()) - before:
        unregister(name)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("methods_kept")
def test_every_command_that_can_run_here_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = 0
    for block in (block for page in (README, *PAGES) for block in blocks(page)):
        if block.mark.startswith("file: "):
            Path(block.mark.removeprefix("file: ")).write_text(block.code, encoding="utf-8")
        elif block.mark.startswith("run") and block.language == "sh":
            right = [int(code) for code in block.mark.partition(":")[2].split()] or [0]
            for program, *arguments in block.lines:
                assert program == "edge-tprune", f"{block.page.name}: only edge-tprune is run by this test, not {program}"
                assert main(arguments) in right, f"{block.page.name}: edge-tprune {shlex.join(arguments)}"
                ran += 1
        elif block.mark == "run after the commands":
            exec(compile(block.code, block.page.name, "exec"), {})
    assert ran > 10
    assert {"tokens.png", "longest.png", "report.html"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.page.stem)
def test_python_that_can_run_here_does(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.code, block.page.name, "exec"), {})


def test_every_command_and_option_that_is_shown_exists() -> None:
    from edge_tprune.cli.app import app

    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    shown = [(block, words) for block in ALL if block.language == "sh" for words in block.lines if "edge-tprune" in words[0]]
    assert len(shown) > 20
    for block, (_, *arguments) in shown:
        (name, *rest) = arguments
        assert name in known, f"{block.page.name}: edge-tprune {name}"
        options = {option for parameter in known[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in rest:
            if re.fullmatch(r"--[a-z][\w-]*", word):
                assert word in options, f"{block.page.name}: edge-tprune {name} {word}"


def test_every_make_target_that_is_shown_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = {
        (page.name, name)
        for page in TEXTS
        for name in re.findall(r"(?:`|^)make ([a-z][a-z-]*)", page.read_text(), re.MULTILINE)
    }
    assert {name for _, name in shown} >= {"run", "test", "docs", "results"}
    for page, name in shown:
        assert name in targets, f"{page}: make {name}"


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{target} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{target}: no such heading"


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MkDocs make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_no_line_is_longer_than_a_screen(page: Path) -> None:
    assert max(map(len, page.read_text(encoding="utf-8").splitlines())) <= 160


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_words_are_plain(page: Path) -> None:
    idiom = r"\b(ane[w]|likes[t]|tol[d]|men[d]|mend[s]|mende[d]|so maniet[h]|nobody know[s]|to the lette[r])\b"
    assert re.findall(idiom, page.read_text(encoding="utf-8"), re.IGNORECASE) == []


def test_every_method_has_its_row() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for name, method in {**registry.methods(), **registry.baselines()}.items():
        if method.__module__.startswith("edge_tprune."):
            assert re.search(rf"^\| `{name}` \|", text, re.MULTILINE), f"docs/methods.md lacks {name}"


def test_the_table_of_boards_is_todays() -> None:
    page = ROOT / "docs" / "boards.md"
    text = page.read_text(encoding="utf-8")
    assert load(ROOT / "docs" / "boards_table.py").replaced(text) == text


def test_the_public_api_is_stated() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert dir(edge_tprune) == sorted(edge_tprune.__all__)
    for name in edge_tprune.__all__:
        assert hasattr(edge_tprune, name)
        assert name == "__version__" or re.search(rf"[.`]{name}`", text), f"docs/api.md lacks {name}"


def test_the_version_is_the_same_everywhere() -> None:
    changes = re.findall(r"^## ([\d.]+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert changes[0] == edge_tprune.__version__
    assert f"\nversion: {edge_tprune.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
