"""Methods of one's own: from a file, and from an installed package."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import edge_tprune
from edge_tprune.errors import UserError
from edge_tprune.export.graph import FORMS, export
from edge_tprune.reduction import plugins, prune, registry
from edge_tprune.reduction.code import method_code_sha256
from tests.small import small_model

SOURCE = '''
from edge_tprune.reduction import Keep, Reducer, register, top


@register
class KeepLongest(Reducer):
    """Keeps the tokens with the longest feature vectors."""

    name, paper = "keep_longest", "nobody's"

    def forward(self, x, evidence):
        return Keep(top(x.norm(dim=-1) + self.bonus, self.stage.tokens_out))
'''


@pytest.fixture(autouse=True)
def _registered_as_before() -> Iterator[None]:
    before, modules = dict(registry._METHODS), set(sys.modules)
    plugins.load_announced.cache_clear()
    yield
    registry._METHODS.clear()
    registry._METHODS.update(before)
    for name in set(sys.modules) - modules:
        if not (getattr(sys.modules[name], "__file__", None) or sys.prefix).startswith(sys.prefix):  # torch's are imported once
            del sys.modules[name]
    plugins.load_announced.cache_clear()


def small() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=8, num_classes=3, embed_dim=48, depth=3, num_heads=3).eval()


def test_a_plugins_method_prunes(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SOURCE)
    assert plugins.load_plugin(tmp_path / "own.py") == ["keep_longest"]
    pruned = prune(small(), method="keep_longest", schedule=[17, 9, 5])
    assert pruned(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert plugins.plugin_file(registry.method("keep_longest")) == str(tmp_path / "own.py")
    assert plugins.plugin_file(registry.method("evit")) is None


def test_a_plugin_may_be_loaded_again_and_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("NAME = 'keep_longest'")
    (tmp_path / "own-method.v2.py").write_text("from beside import NAME\n" + SOURCE.replace('"keep_longest"', "NAME"))
    for _ in range(2):
        assert plugins.load_plugin(tmp_path / "own-method.v2.py") == ["keep_longest"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "registers no method"),
        ("x = (\n", "cannot be run: line 1"),
        ("x = 1\ny = z\n", "cannot be run: line 2: NameError: name 'z' is not defined"),
        ("import sys; del sys.modules[__name__]\ny = z\n", "cannot be run: line 2: NameError: name 'z' is not defined"),
        ("import no_such_package\n", "line 1: ModuleNotFoundError"),
        (SOURCE.replace("keep_longest", "evit"), "TypeError: the method name 'evit' is taken"),
        (SOURCE.replace("KeepLongest", "ToMe").replace("keep_longest", "tome"), "is taken"),
        (SOURCE.replace('"keep_longest"', '"keep, longest"'), "a method's name has letters"),
        (SOURCE.partition("    def forward")[0], "does not define forward"),
        (SOURCE + "\n    def __init__(self, stage, *, k):\n        super().__init__(stage)\n", "option k needs a default"),
        (SOURCE + "\nraise SystemExit(0)\n", "it ends the program"),
        (SOURCE + "\nclass Odd(BaseException): pass\n\n\nraise Odd('boom')\n", "Odd: boom"),
        (SOURCE + "\nclass Odd(Exception):\n    def __str__(self): return 3\n\n\nraise Odd()\n", "Odd: it has no text"),
        ("x = '\0'\n", "cannot be run: source code string cannot contain null bytes"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        plugins.load_plugin(tmp_path / "own.py")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="does not exist"):
        plugins.load_plugin(tmp_path / "absent.py")
    (tmp_path / "own.txt").write_text("")
    with pytest.raises(UserError, match="is not a Python file"):
        plugins.load_plugin(tmp_path / "own.txt")


RANKED = "top(x.norm(dim=-1) + self.bonus, self.stage.tokens_out)"


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        ("Keep(x.nothing)", "line 12: AttributeError"),
        ("x", "returned a Tensor; return Keep"),
        (f"Keep({RANKED[:-1]} - 1))", "its outcome has 8 tokens, and the stage must deliver 9"),
        ("Keep(top(x.norm(dim=-1) - self.bonus, self.stage.tokens_out))", "does not begin with the 1 prefix tokens"),
        (f"Keep({RANKED}.roll(1, 1))", "does not begin with the 1 prefix tokens"),
        (f"Keep({RANKED}.clamp(max=3))", "keeps the same token twice"),
        (f"Keep({RANKED}[:1])", r"its outcome is for 1 images, and it was given \d+: the tokens of each image are its own"),
        (f"Keep({RANKED} + 1000 * ({RANKED} > 0))", "out of bounds"),
        (
            "Keep(top(evidence.keys.norm(dim=-1).mean(-1) + self.bonus, 9))",
            "evidence has no keys, .* name what you read in `needs`",
        ),
    ],
)
def test_a_decision_that_would_give_wrong_answers_is_refused(tmp_path: Path, decision: str, message: str) -> None:
    (tmp_path / "own.py").write_text(SOURCE.replace(f"Keep({RANKED})", decision))
    plugins.load_plugin(tmp_path / "own.py")
    pruned = prune(small(), method="keep_longest", schedule=[17, 9, 5])
    with pytest.raises(UserError, match=f"method keep_longest, block 2: .*{message}"):
        pruned(torch.randn(2, 3, 32, 32))


def test_a_method_whose_shapes_depend_on_the_image_cannot_be_exported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(SOURCE.replace("x.norm(dim=-1)", "x.norm(dim=-1) + 0 * int((x > 0).sum())"))
    plugins.load_plugin(tmp_path / "own.py")
    pruned = prune(small(), method="keep_longest", schedule=[17, 9, 5])
    with pytest.raises(UserError, match=r"method keep_longest cannot be exported .* may depend on an image"):
        export(pruned, FORMS["onnxruntime"], 1, (3, 32, 32))
    assert "def forward" not in "".join(capfd.readouterr())


def test_a_change_of_what_plugins_import_changes_the_hash_of_their_code(tmp_path: Path) -> None:
    """Also of the second that imports it, and of what is imported only when it computes."""
    helper = f"helper_{tmp_path.name.replace('-', '_')}"
    (tmp_path / "unrelated.py").write_text("COUNT = 1\n")
    (tmp_path / "first.py").write_text(f"import {helper}\n{SOURCE}")
    late = SOURCE.replace("        return Keep", f"        import {helper}\n\n        return Keep")
    (tmp_path / "second.py").write_text(late.replace("keep_longest", "keep_too").replace("KeepLongest", "KeepToo"))

    def hashes(count: int) -> list[str]:
        (tmp_path / f"{helper}.py").write_text(f"COUNT = {count}\n")
        return [method_code_sha256(registry.method(name)) for name in ("keep_longest", "keep_too")]

    (tmp_path / f"{helper}.py").write_text("COUNT = 1\n")
    for name in ("first.py", "second.py"):
        plugins.load_plugin(tmp_path / name)
    before = hashes(1)
    (tmp_path / "unrelated.py").write_text("COUNT = 2\n")
    assert hashes(1) == before
    assert not {*hashes(2)} & {*before}


def test_a_plugin_may_import_from_a_plain_directory(tmp_path: Path) -> None:
    parts = tmp_path / f"parts_{tmp_path.name.replace('-', '_')}"
    parts.mkdir()
    (parts / "score.py").write_text("COUNT = 1\n")
    (tmp_path / "own.py").write_text(f"from {parts.name}.score import COUNT\n{SOURCE}")
    plugins.load_plugin(tmp_path / "own.py")
    before = method_code_sha256(registry.method("keep_longest"))
    (parts / "score.py").write_text("COUNT = 2\n")
    assert method_code_sha256(registry.method("keep_longest")) != before


def test_what_a_plugin_imports_in_any_way_belongs_to_its_code(tmp_path: Path) -> None:
    """From two plain directories deep, by name; beside a link that an editor leaves."""
    unique = tmp_path.name.replace("-", "_")
    deep, flat = tmp_path / f"parts_{unique}" / "deep" / "score.py", tmp_path / f"flat_{unique}.py"
    deep.parent.mkdir(parents=True)
    for file in (deep, flat):
        file.write_text("COUNT = 1\n")
    (tmp_path / ".#own.py").symlink_to("me@host.1234")
    imports = f"import importlib\nfrom parts_{unique}.deep.score import COUNT\nimportlib.import_module('flat_{unique}')\n"
    (tmp_path / "own.py").write_text(f"{imports}{SOURCE}")
    plugins.load_plugin(tmp_path / "own.py")
    hashes = [method_code_sha256(registry.method("keep_longest"))]
    for file in (deep, flat):
        file.write_text("COUNT = 2\n")
        hashes.append(method_code_sha256(registry.method("keep_longest")))
    assert len(set(hashes)) == 3


def test_two_plugins_with_modules_of_one_name_are_refused(tmp_path: Path) -> None:
    helper = f"helper_{tmp_path.name.replace('-', '_')}"
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{helper}.py").write_text(f"COUNT = {number}\n")
        names = SOURCE.replace("keep_longest", f"keep_{folder}").replace("KeepLongest", f"Keep{folder.upper()}")
        (tmp_path / folder / "own.py").write_text(f"import {helper}\n{names}")
    plugins.load_plugin(tmp_path / "a" / "own.py")
    with pytest.raises(UserError, match=f"has a module {helper} beside it, and another plugin has one too"):
        plugins.load_plugin(tmp_path / "b" / "own.py")
    plugins.load_plugin(tmp_path / "a" / "own.py")


def test_a_change_of_a_plugin_changes_the_hash_of_its_code(tmp_path: Path) -> None:
    found = []
    for text in (SOURCE, SOURCE + "\n# changed\n"):
        (tmp_path / "own.py").write_text(text)
        plugins.load_plugin(tmp_path / "own.py")
        found.append(method_code_sha256(registry.method("keep_longest")))
    evit, tome = (method_code_sha256(registry.method(name)) for name in ("evit", "tome"))
    assert len({*found, evit}) == 3
    assert evit == tome


def install(folder: Path, package: str, source: str, point: str) -> None:
    """As pip would: a module and its metadata."""
    (folder / f"{package}.py").write_text(source)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{point}\n")


@pytest.mark.parametrize("value", ["own_reducers", "own_reducers:KeepLongest"])
def test_a_packages_method_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    source = SOURCE if ":" not in value else SOURCE.replace("@register\n", "")
    install(tmp_path, "own_reducers", source, f"keep_longest = {value}")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert registry.method("keep_longest").name == "keep_longest"


@pytest.mark.parametrize("fault", ["import no_such_package", "raise SystemExit('no_such_package')"])
def test_a_broken_package_is_named_where_its_method_is_asked_for_and_breaks_no_other(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "broken_reducers", fault, "broken = broken_reducers")
    monkeypatch.delitem(sys.modules, "broken_reducers", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert registry.method("evit").name == "evit"
    with pytest.raises(UserError, match=r"package broken_reducers announces it, and it cannot be loaded .*no_such_package"):
        registry.method("broken")
    with pytest.raises(UserError, match="no method 'absent'"):
        registry.method("absent")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            "    def __init__(self, stage):\n        raise ValueError('boom')",
            "method keep_longest, block 2: line 12: ValueError: boom",
        ),
        ("    def __init__(self):\n        pass", r"method keep_longest, block 2: TypeError: .*__init__"),
        ("    def __init__(self, stage):\n        raise SystemExit(0)", "block 2: line 12: it ends the program"),
        ("    @classmethod\n    def fewest(cls, a, b):\n        raise KeyError('boom')", "fewest: line 13: KeyError: 'boom'"),
        ("    @classmethod\n    def fewest(cls):\n        return 2", r"method keep_longest, fewest: TypeError: .*fewest"),
        (
            "    @classmethod\n    def fewest(cls, a, b):\n        return 3.5",
            "fewest returned 3.5; return a whole number of tokens",
        ),
        ("    @classmethod\n    def fewest(cls, a, b):\n        return None", "fewest returned None"),
        ("    def __call__(self, x, evidence):\n        raise SystemExit(0)", "block 2: line 12: it ends the program"),
        ("    def __init__(self, stage):\n        pass", r"block 2: its __init__ does not call super\(\).__init__"),
        (
            "    def __init__(self, stage):\n        __import__('torch').nn.Module.__init__(self)\n        self.stage = stage",
            r"block 2: its __init__ does not call super\(\).__init__",
        ),
        (
            "    def __init__(self, stage):\n        self.stage = stage",
            r"block 2: its __init__ does not call super\(\).__init__",
        ),
        ("    def __new__(cls, stage):\n        return 3", r"block 2: its __init__ does not call super\(\).__init__"),
        ("    def __call__(self, x, evidence):\n        raise GeneratorExit", "block 2: line 12: GeneratorExit"),
        ("    def __init__(self, stage):\n        raise GeneratorExit", "block 2: line 12: GeneratorExit"),
        ("    def __call__(self, x, evidence):\n        x.zero_()\n        return self.forward(x, evidence)", "in place"),
    ],
)
def test_what_a_method_of_ones_own_does_wrong_is_one_line(changed: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SOURCE.replace("    def forward", f"{changed}\n\n    def forward"))
    plugins.load_plugin(tmp_path / "own.py")
    with pytest.raises(UserError, match=message), torch.no_grad():
        prune(small(), method="keep_longest", schedule=[17, 9, 5])(torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("where", ["import", "__init__", "forward"])
def test_what_a_plugin_sets_in_torch_is_put_back(where: str, tmp_path: Path) -> None:
    sets = "torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False); torch.set_default_device('meta')"
    source = f"import torch\n{SOURCE}"
    if where == "import":
        source += f"\n{sets}\n"
    elif where == "__init__":
        source = source.replace(
            "    def forward",
            f"    def __init__(self, stage):\n        super().__init__(stage)\n        {sets}\n\n    def forward",
        )
    else:
        source = source.replace("        return Keep", f"        {sets}\n        return Keep")
    (tmp_path / "own.py").write_text(source)
    plugins.load_plugin(tmp_path / "own.py")
    prune(small(), method="keep_longest", schedule=[17, 9, 5])(torch.zeros(2, 3, 32, 32))
    assert (torch.get_default_dtype(), torch.get_default_device().type, torch.is_grad_enabled()) == (torch.float32, "cpu", True)


def test_a_plugin_may_clear_the_path(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"import sys\nsys.path[:] = [p for p in sys.path if p != {str(tmp_path)!r}]\n{SOURCE}")
    assert plugins.load_plugin(tmp_path / "own.py") == ["keep_longest"]


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("default_blocks = ()", r"has default_blocks \(\): give a tuple of block numbers"),
        ("default_blocks = 'abc'", "has default_blocks 'abc'"),
        ("default_blocks = (1.5,)", "has default_blocks"),
        ("paper_blocks = ('a',)", r"has paper_blocks \('a',\): give a tuple of block numbers"),
        ("__doc__ = 5", "has __doc__ 5: give a text, or none"),
        ("paper_blocks = (0, 40)", r"has paper_blocks \(0, 40\)"),
        ("default_blocks = (20, 21, 22, 23)", "block numbers of a network of 12"),
        ("worth_searching = {'nope': [1]}", "worth_searching names the option 'nope', which it does not have"),
    ],
)
def test_class_attributes_that_cannot_be_are_refused(attribute: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SOURCE.replace("    def forward", f"    {attribute}\n\n    def forward"))
    with pytest.raises(UserError, match=message):
        plugins.load_plugin(tmp_path / "own.py")


def test_what_a_method_draws_is_the_same_each_time(tmp_path: Path) -> None:
    """Or two bundles of one fingerprint would hold two networks."""
    init = "\n    def __init__(self, stage):\n        super().__init__(stage)\n        self.mix = torch.nn.Linear(3, 1)\n"
    (tmp_path / "own.py").write_text(f"import torch\n{SOURCE}{init}")
    plugins.load_plugin(tmp_path / "own.py")
    before = torch.get_rng_state()
    made = [registry.make(registry.method("keep_longest"), registry.Stage(1, 2, 17, 9, 1, True), {}) for _ in range(2)]
    assert torch.equal(made[0].mix.weight, made[1].mix.weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(torch.get_rng_state(), before)


def test_one_token_may_be_appended_for_some_of_those_that_leave(tmp_path: Path) -> None:
    decision = "Append(top(x.norm(dim=-1) + self.bonus, self.stage.tokens_out - 1), places, places / 8)"
    source = SOURCE.replace("Keep(top(x.norm(dim=-1) + self.bonus, self.stage.tokens_out))", decision)
    source = source.replace("        return", "        places = torch.arange(1, 5).expand(len(x), -1)\n        return")
    source = source.replace("import Keep,", "import Append,")
    (tmp_path / "own.py").write_text(f"import torch\n{source}")
    plugins.load_plugin(tmp_path / "own.py")
    vit = small_model().model
    assert edge_tprune.prune(vit, method="keep_longest", budget=0.7, blocks=[2])(torch.randn(2, 3, 48, 48)).isfinite().all()


def test_a_plugin_whose_source_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for name in ("own.so", "own.pyc"):
        (tmp_path / name).write_bytes(b"no such format")
        with pytest.raises(UserError, match="is not a Python file: give one whose name ends with"):
            plugins.load_plugin(tmp_path / name)


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (
            "Merge(kept, places, torch.zeros(images, 2, 2))",
            r"the link of its outcome has the shape \(2, 2, 2\): expected \(2, 9, 3\)",
        ),
        ("Merge(kept, places + 9999, link)", "the source of its outcome must hold places from 0 to 16, as int64"),
        ("Merge(kept, places.int(), link)", "the source of its outcome must hold places from 0 to 16, as int64"),
        ("Merge(kept, places, link / 0)", "the link of its outcome holds numbers that are not finite"),
        (
            "Merge(kept, places, link, weights=torch.ones(images, 2))",
            r"the weights of its outcome has the shape \(2, 2\): expected",
        ),
        ("Merge.into(kept, places, places[:, :2])", "the target of its outcome has the shape"),
        ("Merge.into(kept, places, places + 9)", "the target of its outcome must hold places from 0 to 8"),
        ("Merge(kept, places, link, features=(x[:, :2], x[:, :1]))", "the features of its outcome has the shape"),
        ("Merge(kept, None, link)", "AttributeError"),
        ("Append(kept[:, :-1], places, link[:, 0, :2])", "the weights of its outcome has the shape"),
        ("Propagate(kept, places, link[:, :2])", "the link of its outcome has the shape"),
    ],
)
def test_an_outcome_that_cannot_be_applied_is_refused(tmp_path: Path, outcome: str, message: str) -> None:
    decide = f"""images, kept = len(x), {RANKED}
        places = torch.arange(1, 4).expand(images, -1)
        link = torch.zeros(images, 9, 3)
        return {outcome}"""
    source = SOURCE.replace(f"return Keep({RANKED})", decide).replace("import Keep,", "import Append, Keep, Merge, Propagate,")
    (tmp_path / "own.py").write_text(f"import torch\n{source}")
    plugins.load_plugin(tmp_path / "own.py")
    pruned = prune(small(), method="keep_longest", schedule=[17, 9, 5])
    with pytest.raises(UserError, match=f"method keep_longest, block 2: {message}"):
        pruned(torch.randn(2, 3, 32, 32))


def test_what_an_instance_needs_is_checked(tmp_path: Path) -> None:
    init = "\n    def __init__(self, stage):\n        super().__init__(stage)\n        self.needs = None\n"
    (tmp_path / "own.py").write_text(SOURCE + init)
    plugins.load_plugin(tmp_path / "own.py")
    with pytest.raises(UserError, match="method keep_longest, block 2: needs is None; choose from"):
        prune(small(), method="keep_longest", schedule=[17, 9, 5])


def test_an_option_need_not_be_keyword_only(tmp_path: Path) -> None:
    init = "\n    def __init__(self, stage, weight=0.5):\n        super().__init__(stage)\n        self.weight = weight\n"
    (tmp_path / "own.py").write_text(SOURCE + init)
    plugins.load_plugin(tmp_path / "own.py")
    assert list(registry.options(registry.method("keep_longest"))) == ["weight"]
    pruned = prune(small(), method="keep_longest", schedule=[17, 9, 5], weight=0.25)
    assert {reducer.weight for reducer in pruned.reducers.values()} == {0.25}
