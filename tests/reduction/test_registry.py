"""The list of methods, and adding one's own."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import edge_tprune
from edge_tprune.errors import UserError
from edge_tprune.reduction import Evidence, First, Keep, Outcome, Reducer, register, registry, solve_schedule, unregister


def test_every_method_names_its_paper_and_documents_itself() -> None:
    for name, method in {**registry.methods(), **registry.baselines()}.items():
        assert method.name == name
        assert method.paper
        assert method.__doc__
        assert method.needs <= registry.EVIDENCE.keys()
        module = __import__(method.__module__, fromlist=["x"])
        assert f"`{name}`" in (module.__doc__ or ""), "the file of a method says what it computes"
        for option in registry.options(method).keys() - {registry.FAITHFUL}:
            assert f"{option}:" in method.__doc__, f"option {option} of {name} is not documented"


def test_adding_a_method_takes_one_decorated_class(vit: VisionTransformer, images: torch.Tensor) -> None:
    @register
    class KeepLast(Reducer):
        """Keeps the class token and the last tokens."""

        name, paper = "keep_last_of_test", "none"

        def __init__(self, stage: registry.Stage, *, reverse: bool = False) -> None:
            super().__init__(stage)
            self.reverse = reverse

        def forward(self, x: torch.Tensor, evidence: Evidence) -> Outcome:
            last = torch.arange(self.stage.tokens_in - self.stage.tokens_out + 1, self.stage.tokens_in)
            kept = torch.cat([torch.zeros(1, dtype=torch.int64), last.flip(0) if self.reverse else last])
            return Keep(kept.expand(len(x), -1))

    try:
        plain = edge_tprune.prune(vit, method="keep_last_of_test", schedule=[17, 9, 9, 5])(images)
        flipped = edge_tprune.prune(vit, method="keep_last_of_test", schedule=[17, 9, 9, 9], reverse=True)(images)
        assert plain.shape == flipped.shape == (3, 7)
        assert registry.parse_options(registry.method("keep_last_of_test"), {"reverse": "yes"}) == {"reverse": True}
    finally:
        registry._METHODS.pop("keep_last_of_test")


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(TypeError, match="taken"):

        @register
        class Other(Reducer):
            name, paper = "evit", "none"

            def forward(self, x: torch.Tensor, evidence: Evidence) -> Outcome:
                return First(self.stage.tokens_out)


def test_a_method_that_names_no_paper_is_refused() -> None:
    with pytest.raises(TypeError, match="Unpublished has no paper: a registered reducer needs"):

        @register
        class Unpublished(Reducer):
            name = "unpublished_of_test"

            def forward(self, x: torch.Tensor, evidence: Evidence) -> Outcome:
                return First(self.stage.tokens_out)

    assert "unpublished_of_test" not in registry.methods()


def test_unknown_names_come_with_near_matches(vit: VisionTransformer) -> None:
    with pytest.raises(UserError, match=r"no method 'evitt'\. Did you mean evit"):
        edge_tprune.prune(vit, method="evitt", budget=0.5)
    with pytest.raises(UserError, match=r"no option 'fusee'\. Did you mean fuse"):
        edge_tprune.prune(vit, method="evit", budget=0.8, fusee=True)
    for text in ("nan", "inf", "-inf"):
        with pytest.raises(UserError, match=f"similar='{text}' is no finite number"):
            registry.parse_options(registry.method("zero_tprune"), {"similar": text})
    with pytest.raises(UserError, match="votes='many' is not a whole number"):
        registry.parse_options(registry.method("zero_tprune"), {"votes": "many"})
    with pytest.raises(UserError, match="fuse='perhaps' is not true or false"):
        registry.parse_options(registry.method("evit"), {"fuse": "perhaps"})


@pytest.mark.parametrize("name", ["atc", "ATC", "DynamicViT", "dynamic_vit", "Token Cropr", "prance", "ImagePiece"])
def test_a_known_method_that_is_absent_says_why(name: str) -> None:
    with pytest.raises(UserError, match=rf"method {name} is not included: .*(static graph|as it is)\. Known: .*evit"):
        registry.method(name)


def test_no_method_is_both_here_and_absent() -> None:
    letters = {registry._letters(name) for name in registry.methods()}
    assert not letters & {registry._letters(name) for name in registry.ABSENT}
    assert all(reason and not reason.endswith(".") for reason in registry.ABSENT.values())


def test_option_values_are_checked(vit: VisionTransformer) -> None:
    with pytest.raises(UserError, match=r"similar is 1\.5"):
        edge_tprune.prune(vit, method="zero_tprune", budget=0.8, similar=1.5)
    with pytest.raises(UserError, match="votes is -1"):
        edge_tprune.prune(vit, method="zero_tprune", budget=0.8, votes=-1)
    with pytest.raises(UserError, match="partition is 'halves'; it is one of sequential, alternate"):
        edge_tprune.prune(vit, method="zero_tprune", budget=0.8, partition="halves")
    with pytest.raises(UserError, match="renormalise has nothing to divide where duplicates merge"):
        edge_tprune.prune(vit, method="zero_tprune", budget=0.8, renormalise=True)
    with pytest.raises(UserError, match="matched is -1"):
        edge_tprune.prune(vit, method="bat", budget=0.8, matched=-1)
    for method in ("bat", "dpc_knn"):
        with pytest.raises(UserError, match=f"{method}: neighbours is 1; a token counts as its own nearest"):
            edge_tprune.prune(vit, method=method, budget=0.8, neighbours=1)


def test_none_removes_nothing_and_says_so(vit: VisionTransformer) -> None:
    with pytest.raises(UserError, match=r"method none, which removes nothing: the least is 0\.824\. Choose another method"):
        edge_tprune.prune(vit, method="none", budget=0.5)
    with pytest.raises(UserError, match=r"removes nothing\)\. Choose another method"):
        edge_tprune.prune(vit, method="none", schedule=[17, 9, 9, 9])


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [
        ("faithful", 5, "has faithful 5: give a mapping, or None"),
        ("faithful", {"nothing": 1}, "faithful names the option 'nothing', which it does not have"),
        ("needs", "keys", "has needs 'keys': give a set of names"),
        ("merges", 1, "has merges 1: give True or False"),
        ("needs_class_token", None, "give True or False"),
        ("limit", 3, "has limit 3: give a text"),
        ("code", None, "has code None: give a text"),
        ("differs", b"x", "give a text"),
        ("removal", "half", "has removal 'half': it is one of share, count"),
        ("paper_blocks", 3, "give a tuple of block numbers"),
        ("worth_searching", ["ratio"], "give a mapping"),
    ],
)
def test_attributes_of_another_kind_are_refused_when_a_method_is_registered(attribute: str, value: object, says: str) -> None:
    body = {"name": "wrong_of_test", "paper": "none", "forward": lambda self, x, evidence: None, attribute: value}
    with pytest.raises(TypeError, match=says):
        registry.register(type("Wrong", (registry.Reducer,), body))


def test_a_method_can_be_removed_and_registered_again() -> None:
    cls = unregister("tome")
    try:
        assert "tome" not in registry.methods()
        with pytest.raises(UserError, match="no method 'tome' to remove"):
            unregister("tome")
    finally:
        register(cls)
    assert registry.method("tome") is cls


def test_a_last_block_that_cannot_remove_is_remarked(vit: VisionTransformer) -> None:
    given = solve_schedule(vit, "evit", budget=0.7, blocks=[2, 4])
    assert given.remark == "budget 0.7: block 4 removes nothing, because it computes only what the head reads"
    assert given.tokens == solve_schedule(vit, "evit", budget=0.7, blocks=[2]).tokens
    assert not solve_schedule(vit, "evit", budget=0.7, blocks=[2, 4], exact_savings=False).remark
