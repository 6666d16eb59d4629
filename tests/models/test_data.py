"""Image folders: labels by position or by ImageNet name, and refusals that name the folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edge_tprune.errors import UserError
from edge_tprune.models.data import batches, eight_bit_rgb, open_dataset, sample_images


def make_folder(root: Path, classes: list[str], each: int = 2) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (12, 10), (number * 20, i, 0)).save(root / name / f"{i}.png")
    return root


def test_class_directories_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    dataset = open_dataset(make_folder(tmp_path / "d", ["b", "c", "a"]), 3)
    assert len(dataset) == 6
    assert dataset.labelled
    assert [dataset[i][1] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert dataset[0][0].getpixel((0, 0)) == (40, 0, 0), "class 0 is directory a"


def test_imagenet_names_find_their_own_index(tmp_path: Path) -> None:
    dataset = open_dataset(make_folder(tmp_path / "d", ["n01443537", "n01440764", "n15075141"], 1), 1000)
    assert [dataset[i][1] for i in range(3)] == [0, 1, 999]


def test_folders_that_do_not_match_are_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "d", ["a", "b"])
    with pytest.raises(UserError, match="2 class directories but the model has 3 classes"):
        open_dataset(root, 3)
    with pytest.raises(UserError, match="does not exist"):
        open_dataset(tmp_path / "absent", 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        open_dataset(tmp_path / "empty", 3)
    with pytest.raises(UserError, match="reference task has 10 classes and the model 1000"):
        open_dataset("reference", 1000)
    with pytest.raises(UserError, match="0 images"):
        open_dataset(root, 2, limit=0)


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("L", (5, 5), i).save(tmp_path / f"{i}.png")
    dataset = open_dataset(tmp_path, 7)
    assert not dataset.labelled
    assert dataset[1][1] == -1
    assert dataset[1][0].mode == "RGB"


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
    one, two = open_dataset(make_folder(tmp_path / "d", ["a", "b"]), 2), open_dataset("reference", 10)
    assert len({one.fingerprint, two.fingerprint, open_dataset(tmp_path / "d", 2, limit=2).fingerprint}) == 3


def test_sample_images_are_real_and_differ() -> None:
    for name in ("reference", "vit_tiny_patch16_224"):
        images = sample_images(name, 10)
        assert len({image.tobytes() for image in images}) == 10
        assert all(np.asarray(image).std() > 10 for image in images)


def test_sixteen_bits_of_grey_are_scaled_and_floats_refused(tmp_path: Path) -> None:
    grey = np.array([[0, 256, 65535, 32896]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    image, _ = open_dataset(tmp_path, 10)[0]
    assert np.asarray(image).tolist() == [[[value] * 3 for value in (0, 0, 255, 128)]]
    assert np.asarray(eight_bit_rgb(Image.fromarray(grey.astype(np.int32)))).max() == 255
    with pytest.raises(ValueError, match="floating-point"):
        eight_bit_rgb(Image.fromarray(grey.astype(np.float32)))
