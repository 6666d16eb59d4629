"""Labels by a class map: of images and of classes, which column says it, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from timm.data import ImageNetInfo
from timm.data.readers.reader_image_folder import find_images_and_targets

from edge_tprune.errors import UserError
from edge_tprune.models.class_names import ClassNames, read_class_map
from edge_tprune.models.images import list_images
from edge_tprune.models.labels import label
from tests.models.folders import save_classes, save_image
from tests.models.labelling import NAMED, by_folder, labelled, touch_classes

MAPS: dict[str, tuple[str, Callable[[Path], None] | None]] = {
    "space": ("x1.JPEG 2\nx2.JPEG 0\n", None),
    "tab": ("x1.JPEG\t2\t0\t0\t9\t9\nx2.JPEG\t0\t1\t1\t8\t8\n", None),
    "comma": ("ImageId,PredictionString\nx1,dog 85 1 499 272\nx2,bird 3 4 5 6 bird 7 8 9 10\n", None),
    "names": ("x1.JPEG dog\nx2.JPEG bird\n", None),
    "paths": ("val/x1.JPEG 2\n./val/x2.JPEG 0\n", None),
    "crlf and bom": ("\ufeffx1.JPEG 2\r\n\r\nx2.JPEG 0\r\n", None),
    "a path of 200,000 parts": (f"{'a/' * 200_000}x3.JPEG 1\nx1.JPEG 2\nx2.JPEG 0\n", None),
    "more images than there are": ("x0.JPEG 1\nx1.JPEG 2\nx2.JPEG 0\nx3.JPEG 0\n", None),
}


@pytest.mark.parametrize("kind", MAPS)
def test_a_flat_folder_with_a_map_of_its_images(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "val"
    for name in ("x1.JPEG", "x2.JPEG"):
        save_image(root / name, format="JPEG")
    file = tmp_path / ("map.csv" if kind == "comma" else "map.txt")
    file.write_bytes(MAPS[kind][0].encode())
    assert labelled(root, 3, file, NAMED) == {"x1.JPEG": 2, "x2.JPEG": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,bird,cat,dog\nx1.JPEG,0,0,1\nx2.JPEG,1,0,0\n", "line 2: 3 columns beside the image .bird, cat, dog."),
        ("x1.JPEG,0,0,1\nx2.JPEG,1,0,0\n", "one column per class"),
        ("x1.JPEG\t0\t0\t1\t0\t0\nx2.JPEG\t1\t0\t0\t0\t0\n", "one column per class"),
        ("name,width,height\nx1.JPEG,2,1\nx2.JPEG,1,2\n", "not clear which is the class"),
        ("path,class id,label\nx1.JPEG,2,dog\n", "not clear which is the class"),
        ("x1.JPEG,2,1\n", "not clear which is the class"),
        ("x1.JPEG,0,1,1,0,0\nx2.JPEG,1,0,0,0,0\n", "not clear which is the class"),
        ("x1.JPEG,1,2,8,9,10\nx2.JPEG,0,2,8,9,10\n", "five numbers beside each image, and it is not clear"),
        ("x1.JPEG dog house\n", "no class is called 'dog house'"),
    ],
)
def test_a_column_that_may_not_be_the_class_is_not_taken_for_it(tmp_path: Path, text: str, message: str) -> None:
    for name in ("x1.JPEG", "x2.JPEG"):
        save_image(tmp_path / "val" / name, format="JPEG")
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        labelled(tmp_path / "val", 3, tmp_path / "m.csv", NAMED)


@pytest.mark.parametrize(
    "text",
    [
        "path,split,label\nx1.JPEG,0,dog\nx2.JPEG,1,bird\n",
        "class_id,file,width\n2,x1.JPEG,9\n0,x2.JPEG,9\n",
        "file;label\nx1.JPEG;2\nx2.JPEG;0\n",
        "label,file\n2,x1.JPEG\n0,x2.JPEG\n",
        "x1.JPEG dog 85 1 499 272\nx2.JPEG bird 1 2 3 4 bird 5 6 7 8\n",
    ],
)
def test_the_column_of_the_class_is_found(tmp_path: Path, text: str) -> None:
    for name in ("x1.JPEG", "x2.JPEG"):
        save_image(tmp_path / "val" / name, format="JPEG")
    (tmp_path / "m.csv").write_text(text)
    assert labelled(tmp_path / "val", 3, tmp_path / "m.csv", NAMED) == {"x1.JPEG": 2, "x2.JPEG": 0}


@pytest.mark.parametrize(
    "text",
    [
        ",filename,label\n0,1.png,0\n1,2.png,1\n2,0.png,2\n",
        "class_id,image\n0,1\n1,2\n2,0\n",
        "label,Image Id,split\n0,1,2\n1,2,1\n2,0,0\n",
        "0,1.png\n1,2.png\n2,0.png\n",
    ],
    ids=["row numbers", "classes first", "three columns", "no header"],
)
def test_numbers_that_images_are_called_by_are_not_taken_from_another_column(tmp_path: Path, text: str) -> None:
    for name in ("0.png", "1.png", "2.png"):
        save_image(tmp_path / "val" / name)
    (tmp_path / "m.csv").write_text(text)
    assert labelled(tmp_path / "val", 3, tmp_path / "m.csv") == {"1.png": 0, "2.png": 1, "0.png": 2}


def test_a_line_about_another_directory_says_nothing_of_an_image_of_the_same_name(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "top.png"):
        save_image(tmp_path / "val" / name)
    for text in (
        "val/a/1.png 0\nval/b/1.png 1\nval/b/2.png 1\nval/top.png 2\n",
        '{"val/a/1.png": 0, "val/b/1.png": 1, "val/b/2.png": 1, "val/top.png": 2}',
    ):
        file = tmp_path / ("m.json" if text[0] == "{" else "m.txt")
        file.write_text(text)
        assert labelled(tmp_path / "val", 3, file) == {"a/1.png": 0, "top.png": 2}
    (tmp_path / "m.txt").write_text("x/1.png 0\nx/2.png 1\ny/1.png 2\n")
    with pytest.raises(UserError, match="names none of the images"):
        labelled(tmp_path / "val", 3, tmp_path / "m.txt")


def test_images_that_were_sorted_into_other_directories_are_known_by_their_names(tmp_path: Path) -> None:
    for name in ("bird/x1.png", "dog/x2.png"):
        save_image(tmp_path / "sorted" / name)
    (tmp_path / "m.txt").write_text("val/x1.png 0\nval/x2.png 2\nval/x3.png 1\n")
    assert labelled(tmp_path / "sorted", 3, tmp_path / "m.txt") == {"bird/x1.png": 0, "dog/x2.png": 2}


@pytest.mark.parametrize("lines", [3, 40])
def test_a_map_of_images_that_are_called_otherwise_says_so(tmp_path: Path, lines: int) -> None:
    for number in range(4):
        save_image(tmp_path / "val" / f"x{number}.JPEG", format="JPEG")
    (tmp_path / "m.txt").write_text("".join(f"x{number}.jpg {number % 3}\n" for number in range(lines)))
    with pytest.raises(
        UserError, match=r"its lines are of images \('x0\.jpg 0'\), and none of these is there|names none of the images"
    ):
        labelled(tmp_path / "val", 3, tmp_path / "m.txt", NAMED)


def test_a_map_against_the_models_own_names_says_so(tmp_path: Path) -> None:
    """The lists of ImageNet's development kit are in another order than the model's classes."""
    touch_classes(tmp_path / "d", ["cat", "dog"])
    (tmp_path / "m.txt").write_text("dog\ncat\nbird\n")
    said = label(
        list_images(tmp_path / "d"), 3, read_class_map(tmp_path / "m.txt"), ClassNames(("bird", "cat", "dog"), "ck")
    ).rule
    assert "dog is class 0, and class 2 by the model's own names (ck)" in said


@pytest.mark.parametrize("document", [{"x1.JPEG": 2, "x2.JPEG": 0}, {"x1.JPEG": "dog", "val/x2.JPEG": "bird"}])
def test_a_map_of_images_in_json(tmp_path: Path, document: dict[str, object]) -> None:
    for name in ("x1.JPEG", "x2.JPEG"):
        save_image(tmp_path / name, format="JPEG")
    (tmp_path / "m.json").write_text(json.dumps(document))
    assert labelled(tmp_path, 3, tmp_path / "m.json", NAMED) == {"x1.JPEG": 2, "x2.JPEG": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x1.JPEG 3\n", "line 1: class 3 is out of range: the model's 3 classes are 0 to 2"),
        ("x1.JPEG -1\n", "line 1: class -1 is out of range: the model's 3 classes are 0 to 2"),
        ("x1.JPEG fish\n", "line 1: no class is called 'fish'"),
        ("x1.JPEG 1\nx1.JPEG 2\n", "gives x1.JPEG class 1 and class 2"),
        ("y.JPEG 1\nz.JPEG 1\n", "its lines are of images .* and none of these is there"),
        ("490\n361\n490\n", "names none of the images"),
        ("a\nb\nc\n", "names none of the images"),
        ("", "is empty"),
    ],
)
def test_wrong_maps_of_images_are_refused(tmp_path: Path, text: str, message: str) -> None:
    save_image(tmp_path / "x1.JPEG", format="JPEG")
    (tmp_path / "m.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        labelled(tmp_path, 3, tmp_path / "m.txt", NAMED)


def test_images_that_the_map_does_not_name_are_left_out_and_counted(tmp_path: Path) -> None:
    for name in ("x1.png", "x2.png", "x3.png"):
        save_image(tmp_path / name)
    (tmp_path / "m.txt").write_text("x1.png 1\n")
    assert labelled(tmp_path, 3, tmp_path / "m.txt") == {"x1.png": 1}
    found = label(list_images(tmp_path), 3, read_class_map(tmp_path / "m.txt"))
    assert list(found.left_out.values()) == [2]


def test_a_bare_name_of_two_images_is_refused(tmp_path: Path) -> None:
    save_classes(tmp_path, ["a", "b"])
    (tmp_path / "m.txt").write_text("0.png 1\n")
    with pytest.raises(UserError, match=r"0\.png can be a/0\.png or b/0\.png"):
        labelled(tmp_path, 3, tmp_path / "m.txt")
    (tmp_path / "m.txt").write_text("a/0.png 1\nb/0.png 0\n")
    assert labelled(tmp_path, 3, tmp_path / "m.txt") == {"a/0.png": 1, "b/0.png": 0}


@pytest.mark.parametrize(
    "text",
    [
        "dog\ncat\nbird\n",
        '{"cat": 1, "dog": 0, "bird": 2}',
        '{"cat": "1", "dog": "0", "bird": "2"}',
        '{"id2label": {"0": "dog", "1": "cat", "2": "bird"}}',
        '{"0": "dog", "1": "cat", "2": "bird"}',
        '["dog", "cat", "bird"]',
        "cat 1\ndog 0\nbird 2\n",
    ],
)
def test_a_map_of_classes_comes_before_every_other_rule(tmp_path: Path, text: str) -> None:
    root = save_classes(tmp_path / "d", ["bird", "cat", "dog"])
    (tmp_path / "map").write_text(text)
    assert by_folder(root, 3, tmp_path / "map", NAMED) == {"dog": 0, "cat": 1, "bird": 2}
    _, timms = find_images_and_targets(str(root), class_to_idx={"dog": 0, "cat": 1, "bird": 2})
    assert by_folder(root, 3, tmp_path / "map") == timms


def test_a_map_finds_classes_in_any_depth(tmp_path: Path) -> None:
    root = save_classes(tmp_path / "d", ["train/cat", "val/dog/images", "other"])
    (tmp_path / "map.txt").write_text("dog\ncat\nbird\n")
    assert labelled(root, 3, tmp_path / "map.txt") == {"train/cat/0.png": 1, "val/dog/images/0.png": 0}


def test_a_directory_may_begin_with_its_synset(tmp_path: Path) -> None:
    names = ClassNames(tuple(ImageNetInfo("imagenet-1k").label_names()), "ImageNet-1k")
    touch_classes(tmp_path, ["n02110185-Siberian_husky", "n01440764_tench"])
    assert by_folder(tmp_path, 1000, None, names) == {"n02110185-Siberian_husky": 250, "n01440764_tench": 0}


def test_a_name_of_two_classes_finds_neither(tmp_path: Path) -> None:
    """ImageNet's lists in words have two cranes."""
    (tmp_path / "map.txt").write_text("crane\ndog\ncrane\n")
    root = save_classes(tmp_path / "d", ["dog"])
    assert by_folder(root, 3, tmp_path / "map.txt") == {"dog": 1}
    save_classes(root, ["crane"])
    with pytest.raises(UserError, match="crane is the name of several classes"):
        by_folder(root, 3, tmp_path / "map.txt")
    with pytest.raises(UserError, match="crane is not"):
        by_folder(root, 3, None, read_class_map(tmp_path / "map.txt").class_names(3))


@pytest.mark.parametrize("text", ['{"cat": 0, "dog": 1, "cat": 2}', '{"0": "cat", "0": "dog", "1": "cat"}'])
def test_a_key_that_json_gives_twice_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UserError, match="twice"):
        read_class_map(tmp_path / "m.json")


def test_a_class_map_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="named pipe"):
        read_class_map(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="device"):
        read_class_map(tmp_path / "zero")


@pytest.mark.timeout(20)  # it took hours
@pytest.mark.parametrize("part", [",", " ", ", ", ",1", "1,", "1 ", ":"])
def test_a_line_of_separators_ends(tmp_path: Path, part: str) -> None:
    for text in (f"a{part * 500_000}b\n", f"{part * 500_000}\n0"):
        (tmp_path / "m.txt").write_text(text)
        assert len(read_class_map(tmp_path / "m.txt").rows) <= 2


def test_a_comma_and_a_blank_divide_a_name_from_its_class(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("cat, 0\nthe dog ,1\n")
    assert dict(read_class_map(tmp_path / "m.txt").index) == {"cat": 0, "the dog": 1}


def test_only_line_ends_divide_a_class_map(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_bytes("cat\x0cx\r\ndog\u2028y\rbird\n".encode())
    assert [text for _, text in read_class_map(tmp_path / "m.txt").rows] == ["cat\x0cx", "dog\u2028y", "bird"]


@pytest.mark.parametrize("text", ["1 cat\n2 dog\n3 bird\n", "cat,1\nbird,3\ndog,2\n"])
def test_a_map_that_numbers_from_one_says_so(tmp_path: Path, text: str) -> None:
    touch_classes(tmp_path / "data", ["bird", "cat", "dog"], "photo.png")
    (tmp_path / "map.txt").write_text(text)
    with pytest.raises(UserError, match=r"numbers its 3 classes from 1, and a model's first class is 0"):
        by_folder(tmp_path / "data", 3, tmp_path / "map.txt")


def test_a_configuration_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    touch_classes(tmp_path / "data", ["cat", "dog"])
    file = tmp_path / "map.json"
    file.write_text('{"id2label": {"0": "cat", "1": "dog"}, "class_to_idx": {"cat": 1, "dog": 0}}')
    with pytest.raises(
        UserError, match="contradicts itself: 'cat' is class 0 in its id2label, and class 1 in its class_to_idx"
    ):
        by_folder(tmp_path / "data", 2, file)
    file.write_text('{"id2label": {"0": "cat", "1": "dog"}, "class_to_idx": {"dog": 1, "cat": 0}}')
    assert by_folder(tmp_path / "data", 2, file) == {"cat": 0, "dog": 1}


def test_a_class_of_four_hundred_digits_does_not_fill_the_screen(tmp_path: Path) -> None:
    touch_classes(tmp_path / "data", ["cat", "dog"])
    (tmp_path / "map.json").write_text('{"cat": 0, "dog": %s}' % ("9" * 400))
    with pytest.raises(UserError, match="'dog' would be class a number of more than twelve digits") as refused:
        by_folder(tmp_path / "data", 2, tmp_path / "map.json")
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("text", ['{"%s": "cat"}', "cat %s", "%s cat"])
def test_a_number_of_thousands_of_digits_is_no_class(tmp_path: Path, text: str) -> None:
    file = tmp_path / "map.txt"
    file.write_text(text % ("9" * 5000))
    with pytest.raises(UserError):
        read_class_map(file).class_names(10)


@pytest.mark.parametrize(
    "document",
    [
        ["2", "0", "1"],
        [2, 0, 1],
        {"id2label": {"0": "2", "1": "0", "2": "1"}},
        {"label_names": ["2", "0", "1"]},
        {"2": 0, "0": 1, "1": 2},
    ],
)
def test_classes_that_are_called_by_numbers(tmp_path: Path, document: object) -> None:
    """House numbers: the first class is called "2"."""
    (file := tmp_path / "map.json").write_text(json.dumps(document))
    assert sorted(read_class_map(file).classes(3), key=lambda pair: pair[1]) == [("2", 0), ("0", 1), ("1", 2)]


def test_numbers_for_numbers_are_not_guessed(tmp_path: Path) -> None:
    (file := tmp_path / "map.json").write_text('{"0": "2", "1": "0", "2": "1"}')
    with pytest.raises(UserError, match="numbers for numbers: which are the classes"):
        read_class_map(file)
    file.write_text('{"7": "0", "8": "1"}')
    assert read_class_map(file).classes(2) == [("7", 0), ("8", 1)]


@pytest.mark.parametrize(("name", "text"), [("map.json", '["2", "0", "1"]'), ("map.txt", "2\n0\n1\n")])
def test_a_map_that_names_every_directory_is_of_directories_whatever_the_images_are_called(
    tmp_path: Path, name: str, text: str
) -> None:
    """Classes that are called by digits, and images by numbers."""
    save_classes(tmp_path / "data", ["0", "1", "2"], each=4)
    (tmp_path / name).write_text(text)
    assert by_folder(tmp_path / "data", 3, tmp_path / name) == {"0": 1, "1": 2, "2": 0}
    assert len(labelled(tmp_path / "data", 3, tmp_path / name)) == 12
