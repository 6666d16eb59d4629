"""Data sets: folders with labels and without, what cannot be read, and batches. Which label an image has is tested in test_labels.py."""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edge_tprune.errors import UserError
from edge_tprune.models.data import Dataset, ImageFolder, batches, check_readable, open_dataset, open_images, sample_images
from tests.models.folders import save_classes, save_image


def make_folder(root: Path, classes: list[str], each: int = 2) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (12, 10), (number * 20, i, 0)).save(root / name / f"{i}.png")
    return root


def test_folders_have_labels_and_say_by_which_rule(tmp_path: Path) -> None:
    dataset = open_dataset(make_folder(tmp_path / "d", ["b", "c", "a"]), 3)
    assert len(dataset) == 6
    assert dataset.labelled
    assert [dataset[i][1] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert dataset[0][0].getpixel((0, 0)) == (40, 0, 0), "class 0 is directory a"
    assert "natural order of the 3 directory names" in dataset.label_rule


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_dataset(tmp_path / "absent", 3)
    with pytest.raises(UserError, match="reference task has 10 classes and the model 1000"):
        open_dataset("reference", 1000)
    with pytest.raises(UserError, match="0 images"):
        open_dataset(make_folder(tmp_path / "d", ["a", "b"]), 2, limit=0)


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("L", (5, 5), i).save(tmp_path / f"{i}.png")
    dataset = open_dataset(tmp_path, 7)
    assert not dataset.labelled
    assert dataset[1][1] == -1
    assert dataset[1][0].mode == "RGB"
    assert dataset.label_rule.startswith("no labels: ")


def test_a_map_of_images_drops_what_it_does_not_name(tmp_path: Path) -> None:
    for i in range(3):
        save_image(tmp_path / f"{i}.png", i)
    (tmp_path / "map.txt").write_text("0.png 4\n2.png 1\n")
    dataset = open_dataset(tmp_path, 7, class_map=tmp_path / "map.txt")
    assert [dataset[i][1] for i in range(len(dataset))] == [4, 1]
    assert dataset.left_out == {".txt": 1, f"image that {tmp_path / 'map.txt'} does not name": 1}


def test_images_are_labelled_by_directory_where_all_lie_in_several(tmp_path: Path) -> None:
    root = save_classes(tmp_path / "d", ["b/x", "a", "b/y"])
    found = open_images(root, by_directory=True)
    assert found.labels == (0, 1, 1)
    assert found.label_rule == "labels: the 2 sub-directories"
    assert not open_images(root).labelled
    for one in (tmp_path, root / "a"):
        assert not open_images(one, by_directory=True).labelled
    save_image(root / "0.png")
    assert not open_images(root, by_directory=True).labelled


@pytest.mark.parametrize("labelled", [True, False])
def test_every_way_to_list_finds_the_same_images(tmp_path: Path, labelled: bool) -> None:
    save_classes(tmp_path / "store", ["x/y"], 2)
    save_classes(tmp_path / "d", ["a", "b"])
    (tmp_path / "d/a/link").symlink_to(tmp_path / "store/x")
    save_image(tmp_path / "d/b/._0.png")
    found = open_dataset(tmp_path / "d", 2) if labelled else open_images(tmp_path / "d")
    assert len(found) == 4


def unreadable(tmp_path: Path) -> Dataset:
    root = save_classes(tmp_path / "d", ["a", "b"], 2)
    (root / "a/0.png").write_bytes(b"")
    (root / "b/1.png").write_bytes(b"no image")
    return open_dataset(root, 2)


def test_all_unreadable_images_are_named_before_anything_is_done(tmp_path: Path) -> None:
    dataset = unreadable(tmp_path)
    with pytest.raises(UserError, match=r"2 of 4 images in d cannot be read.*--skip-unreadable.*a/0\.png.*b/1\.png"):
        check_readable(dataset)
    kept = check_readable(dataset, skip=True)
    assert len(kept) == 2
    assert kept.left_out == {"unreadable": 2}
    assert [kept[i][1] for i in range(2)] == [0, 1]
    assert kept.fingerprint != dataset.fingerprint


def test_a_folder_of_unreadable_images_is_refused_even_when_they_are_to_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 1 images"):
        check_readable(open_dataset(tmp_path, 2), skip=True)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "d", ["a", "b"], 1)
    whole = (root / "b" / "0.png").read_bytes()
    for damage in (b"no image", b"", whole[:40], whole[:16] + b"\xff" * 40, b"P6 -1 -1 255 "):
        (root / "b" / "0.png").write_bytes(damage)
        with pytest.raises(UserError, match=r"b/0\.png cannot be read"):
            list(batches(open_dataset(root, 2), lambda image: torch.zeros(3, 2, 2), 1))


def test_a_limit_spreads_over_the_classes(tmp_path: Path) -> None:
    dataset = open_dataset(make_folder(tmp_path / "d", list("abcde"), 4), 5, limit=5)
    assert [dataset[i][1] for i in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_batches_keep_every_image_in_order(tmp_path: Path, size: int) -> None:
    dataset = open_dataset(make_folder(tmp_path / "d", ["a", "b", "c"], 5), 3)
    seen = list(batches(dataset, lambda image: torch.tensor(image.getpixel((0, 0))).float()[:, None, None], size))
    assert all(len(pixels) == len(labels) <= size for pixels, labels in seen)
    labels = np.concatenate([labels for _, labels in seen])
    pixels = np.concatenate([pixels for pixels, _ in seen])[:, :, 0, 0]
    assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert pixels.tolist() == [[20.0 * c, i, 0] for c in range(3) for i in range(5)]


def test_fingerprints_tell_datasets_apart(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "d", ["a", "b"])
    (tmp_path / "map.txt").write_text("b\na\n")
    found = [
        open_dataset(root, 2),
        open_dataset("reference", 10),
        open_dataset(root, 2, limit=2),
        open_images(root),
        open_dataset(root, 2, class_map=tmp_path / "map.txt"),  # the same images, other labels
    ]
    assert len({dataset.fingerprint for dataset in found}) == len(found)
    before = found[0].fingerprint
    shutil.move(root, tmp_path / "moved")
    assert open_dataset(tmp_path / "moved", 2).fingerprint == before
    photo = next((tmp_path / "moved").rglob("*.png"))
    data = photo.read_bytes()
    photo.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # of the same name and size
    assert open_dataset(tmp_path / "moved", 2).fingerprint != before


def test_an_image_that_keeps_its_size_and_time_is_known_for_another(tmp_path: Path) -> None:
    """As `cp -p` and `rsync -t` leave it."""
    for number in range(3):
        save_image(tmp_path / "photos" / f"{number}.bmp", number)
    folder = open_images(tmp_path / "photos")
    _ = folder[1]
    before = folder.files[1].stat()
    save_image(tmp_path / "new.bmp", 9)
    assert (tmp_path / "new.bmp").stat().st_size == before.st_size
    os.utime(tmp_path / "new.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "new.bmp").replace(folder.files[1])
    with pytest.raises(UserError, match=r"image .*1\.bmp was changed while it was in use"):
        _ = folder.fingerprint


def test_images_that_change_while_they_are_in_use_are_refused(tmp_path: Path) -> None:
    for number in range(3):
        save_image(tmp_path / "photos" / f"{number}.png", number)
    save_image(tmp_path / "other.png", 9)

    def opened() -> ImageFolder:
        return open_images(tmp_path / "photos")

    def use(folder: ImageFolder, how: str) -> None:
        _ = folder.fingerprint if how == "hash" else [folder[index] for index in range(len(folder))]

    for first, then in itertools.product(("hash", "read"), repeat=2):
        folder, other = opened(), (tmp_path / "other.png").read_bytes()
        use(folder, first)
        file = tmp_path / "photos" / "1.png"
        (tmp_path / "new.png").write_bytes(other + bytes(len(first) + 2 * len(then)))
        (tmp_path / "new.png").replace(file)
        use(opened(), then)
        picked = replace(folder, files=folder.files[1:], labels=folder.labels[1:])
        with pytest.raises(UserError, match=r"image .*1\.png was changed while it was in use"):
            use(picked, then)
    folder = opened()
    use(folder, "read")
    (tmp_path / "photos" / "2.png").unlink()
    for how in ("read", "hash"):
        with pytest.raises(UserError, match=r"2\.png cannot be read any more: No such file"):
            use(folder, how)


def test_sample_images_are_real_and_differ() -> None:
    for name in ("reference", "vit_tiny_patch16_224"):
        images = sample_images(name, 10)
        assert len({image.tobytes() for image in images}) == 10
        assert all(np.asarray(image).std() > 10 for image in images)
