"""Which class an image is of: each rule, their order, and what is refused. timm's own reader is the reference for natural order."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.data import ImageNetInfo
from timm.data.readers.reader_image_folder import find_images_and_targets

from edge_tprune.errors import UserError
from edge_tprune.models.class_names import ClassNames
from edge_tprune.models.images import list_images
from edge_tprune.models.labels import label
from tests.models.folders import save_classes, save_image
from tests.models.labelling import NAMED, by_folder, labelled, rule, touch_classes

WORDS = st.text(st.characters(codec="ascii", categories=("Ll", "Lu", "Nd"), include_characters="_ -."), min_size=1, max_size=6)


@settings(max_examples=60)
@given(st.lists(WORDS, min_size=2, max_size=12, unique_by=lambda name: name.lower()))
def test_natural_order_is_that_of_timms_reader(names: list[str]) -> None:
    assume(not any(name.startswith(".") or name.endswith(" ") or name.startswith(" ") for name in names))
    assume(not all(name.isdigit() for name in names))
    assume(not any(word in name.lower() for name in names for word in ("train", "val", "test", "dev")))
    with TemporaryDirectory() as folder:
        touch_classes(Path(folder), names)
        _, expected = find_images_and_targets(folder)
        assert by_folder(Path(folder), len(names)) == expected


@settings(max_examples=40)
@given(st.integers(2, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_numbers_below_the_number_of_classes_are_the_classes(drawn: tuple[int, set[int]]) -> None:
    classes, numbers = drawn
    with TemporaryDirectory() as folder:
        touch_classes(Path(folder), [str(n) for n in numbers])
        assert by_folder(Path(folder), classes) == {str(n): n for n in numbers}


@settings(max_examples=30)
@given(st.permutations(["bird", "cat", "dog"]), st.sets(st.sampled_from(["bird", "cat", "dog"]), min_size=1))
def test_names_decide_whatever_their_order(order: list[str], present: set[str]) -> None:
    names = ClassNames(tuple(order), "the checkpoint")
    with TemporaryDirectory() as folder:
        touch_classes(Path(folder), sorted(present))
        assert by_folder(Path(folder), 3, None, names) == {name: order.index(name) for name in present}


@pytest.mark.parametrize("pad", [1, 3, 5])
def test_a_thousand_numbered_folders_as_in_imagenet_v2(tmp_path: Path, pad: int) -> None:
    touch_classes(tmp_path, [str(n).zfill(pad) for n in range(1000)])
    synsets = ClassNames(tuple(ImageNetInfo("imagenet-1k").label_names()), "ImageNet-1k")
    assert by_folder(tmp_path, 1000, None, synsets) == {str(n).zfill(pad): n for n in range(1000)}
    assert "numbers below 1000" in rule(tmp_path, 1000, synsets)


def test_numbers_from_one_on_are_in_natural_order(tmp_path: Path) -> None:
    touch_classes(tmp_path, [str(n) for n in range(1, 13)])
    assert by_folder(tmp_path, 12) == {str(n): n - 1 for n in range(1, 13)}
    assert "natural order" in rule(tmp_path, 12)


def test_a_thousand_synsets_are_sorted_and_some_of_them_need_names(tmp_path: Path) -> None:
    synsets = ImageNetInfo("imagenet-1k").label_names()
    names = ClassNames(tuple(synsets), "ImageNet-1k")
    some = random.Random(1).sample(synsets, 20)
    touch_classes(tmp_path, some)
    assert by_folder(tmp_path, 1000, None, names) == {name: synsets.index(name) for name in some}
    with pytest.raises(UserError, match=r"20 class directories but the model has 1000 .* --class-map FILE"):
        by_folder(tmp_path, 1000)
    touch_classes(tmp_path, [name for name in synsets if name not in some])
    assert by_folder(tmp_path, 1000) == {name: i for i, name in enumerate(synsets)}
    assert "1000 ImageNet synsets, in sorted order" in rule(tmp_path, 1000)


def test_words_of_a_description_find_their_class(tmp_path: Path) -> None:
    info = ImageNetInfo("imagenet-1k")
    names = ClassNames(tuple(info.label_names()), "ImageNet-1k", tuple(info.index_to_description(i) for i in range(1000)))
    touch_classes(tmp_path, ["tench", "Great_White_Shark"])
    assert by_folder(tmp_path, 1000, None, names) == {"tench": 0, "Great_White_Shark": 2}
    touch_classes(tmp_path, ["crane"])  # a bird and a machine
    with pytest.raises(UserError, match="crane is not"):
        by_folder(tmp_path, 1000, None, names)


@pytest.mark.parametrize(
    "folders",
    [
        ["train/cat", "train/dog", "val/cat", "val/dog"],
        ["train", "val"],
        ["train", "validation", "test"],
        ["val/cat", "val/dog"],
        ["Train", "Test"],
        ["train2017", "val2017"],
        ["training_set", "test_set"],
        ["train/cat", "train/dog", "val/cat", "val/dog", "extra/x"],
        ["train-images", "test-images"],
    ],
)
def test_the_parts_of_a_data_set_are_not_its_classes(tmp_path: Path, folders: list[str]) -> None:
    save_classes(tmp_path, folders)
    with pytest.raises(UserError, match=r"the parts of a data set, not its classes. Give one of them, such as"):
        labelled(tmp_path, 2)
    with pytest.raises(UserError, match="the parts of a data set"):
        labelled(tmp_path, 2, None, NAMED)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    save_classes(tmp_path, ["bus", "car", "train"])
    assert by_folder(tmp_path, 3) == {"bus": 0, "car": 1, "train": 2}


@pytest.mark.parametrize(
    "folders", [["animals/cat", "animals/dog"], ["a/cat", "b/dog"], ["cat/images", "dog/images"], ["0/x", "1/y"]]
)
def test_images_one_level_down_are_refused_with_the_way_out(tmp_path: Path, folders: list[str]) -> None:
    save_classes(tmp_path, folders)
    with pytest.raises(UserError, match=r"holds no images itself, they lie deeper, in .* --class-map FILE"):
        labelled(tmp_path, 2)


def test_images_below_a_class_that_has_some_itself_are_its_own(tmp_path: Path) -> None:
    save_classes(tmp_path, ["cat", "dog", "cat/more", "dog/more"])
    assert set(labelled(tmp_path, 2).items()) == {
        ("cat/0.png", 0),
        ("cat/more/0.png", 0),
        ("dog/0.png", 1),
        ("dog/more/0.png", 1),
    }


def test_named_classes_may_nest(tmp_path: Path) -> None:
    save_classes(tmp_path, ["cat/images", "dog/images"])
    assert by_folder(tmp_path, 3, None, NAMED) == {"cat": 1, "dog": 2}
    save_classes(tmp_path, ["cat/bird"])
    with pytest.raises(UserError, match="they lie deeper"):
        by_folder(tmp_path, 3, None, NAMED)


def test_some_names_that_are_not_the_models_are_refused(tmp_path: Path) -> None:
    save_classes(tmp_path, ["cat", "dog", "fish", "horse"])
    with pytest.raises(UserError, match=r"2 of its directories are classes of the model .* and fish, horse are not"):
        labelled(tmp_path, 3, None, NAMED)


def test_numbers_do_not_overrule_names_that_are_numbers(tmp_path: Path) -> None:
    touch_classes(tmp_path, ["1", "2"])
    assert by_folder(tmp_path, 3, None, ClassNames(("1", "2", "3"), "the checkpoint")) == {"1": 0, "2": 1}
    touch_classes(tmp_path, ["0"])
    with pytest.raises(UserError, match="0 is not"):
        by_folder(tmp_path, 3, None, ClassNames(("1", "2", "3"), "the checkpoint"))


def test_a_negative_number_is_no_class_of_its_digits(tmp_path: Path) -> None:
    """ "-1" is what many call images that have no label."""
    touch_classes(tmp_path, ["-1", "2"])
    with pytest.raises(UserError, match="and -1 is not"):
        by_folder(tmp_path, 3, None, ClassNames(("1", "2", "3"), "the checkpoint"))
    assert by_folder(tmp_path, 3, None, ClassNames(("- 1", "2", "3"), "the checkpoint")) == {"-1": 0, "2": 1}


def test_decomposed_and_differently_written_names(tmp_path: Path) -> None:
    touch_classes(tmp_path, [unicodedata.normalize("NFD", "café"), "golden_retriever"])
    names = ClassNames(("Golden Retriever", "café", "x"), "the checkpoint")
    assert sorted(by_folder(tmp_path, 3, None, names).values()) == [0, 1]


def test_names_that_differ_in_case_only_are_kept_apart(tmp_path: Path) -> None:
    touch_classes(tmp_path, ["Crane", "crane"])
    assert by_folder(tmp_path, 3, None, ClassNames(("crane", "x", "Crane"), "m")) == {"Crane": 2, "crane": 0}


def test_a_wrong_number_of_classes_is_refused(tmp_path: Path) -> None:
    save_classes(tmp_path, ["a", "b"])
    with pytest.raises(UserError, match="2 class directories but the model has 3 classes"):
        labelled(tmp_path, 3)
    save_classes(tmp_path / "n", ["1", "5"])
    with pytest.raises(UserError, match="which are 0 to 3: 5 is none of them"):
        labelled(tmp_path / "n", 4)


def test_two_folders_for_one_class_are_refused(tmp_path: Path) -> None:
    touch_classes(tmp_path, ["1", "01"])
    with pytest.raises(UserError, match="both class 1"):
        labelled(tmp_path, 12)


def test_a_class_without_images_keeps_its_place(tmp_path: Path) -> None:
    save_classes(tmp_path, ["b", "c"])
    (tmp_path / "a").mkdir()
    assert by_folder(tmp_path, 3) == {"b": 1, "c": 2}
    assert by_folder(tmp_path, 2) == {"b": 0, "c": 1}, "as timm, which does not see empty folders"


def test_images_beside_the_class_directories_are_left_out_and_counted(tmp_path: Path) -> None:
    save_classes(tmp_path, ["a", "b"])
    save_image(tmp_path / "collage.png")
    found = label(list_images(tmp_path), 2)
    assert len(found.dropped) == 1
    assert found.left_out == {"image outside the class directories": 1}


def test_a_flat_folder_says_why_it_has_no_labels(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / "map.txt").write_text("a.png 0\n")
    (tmp_path / "notes").mkdir()
    assert labelled(tmp_path, 2) == {"a.png": -1}
    assert "not in one directory per class. For labels, give --class-map FILE" in rule(tmp_path, 2)
    assert "map.txt" in rule(tmp_path, 2)


def test_one_output_has_no_labels(tmp_path: Path) -> None:
    save_classes(tmp_path, ["a", "b"])
    assert set(labelled(tmp_path, 1).values()) == {-1}
    assert "one output" in rule(tmp_path, 1)
