from __future__ import annotations

import threading
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_tprune.errors import UserError
from edge_tprune.finetune.photos import Joined, Photos, Spot, _box, split, spots
from edge_tprune.models.data import ImageFolder, ReferenceTask, open_images
from edge_tprune.models.loading import LoadedModel, load_model


@given(photos=st.integers(1, 50), batch=st.integers(1, 20), seed=st.integers(0, 5), epochs=st.integers(1, 4))
def test_every_photo_is_shown_once_per_epoch(photos: int, batch: int, seed: int, epochs: int) -> None:
    steps = -(-epochs * photos // batch)
    shown = list(chain.from_iterable(spots(photos, batch, seed, 0, steps)))
    for epoch in range(epochs):
        assert sorted(spot.photo for spot in shown[epoch * photos : (epoch + 1) * photos]) == list(range(photos))
        assert {spot.epoch for spot in shown[epoch * photos : (epoch + 1) * photos]} == {epoch}


@given(batch=st.integers(1, 16), processes=st.integers(1, 4), first=st.integers(0, 6))
def test_processes_share_the_steps_and_a_late_start_skips_nothing(batch: int, processes: int, first: int) -> None:
    whole = list(spots(20, batch, 3, 0, 8))
    assert list(spots(20, batch, 3, first, 8)) == whole[first:]
    parts = [list(spots(20, batch, 3, 0, 8, (rank, processes))) for rank in range(processes)]
    for step, expected in enumerate(whole):
        together = [spot for part in parts for spot in part[step]]
        assert sorted(together, key=lambda s: (s.epoch, s.photo)) == sorted(expected, key=lambda s: (s.epoch, s.photo))


@given(
    width=st.integers(8, 400),
    height=st.integers(8, 400),
    ratio=st.floats(0.5, 2),
    least_area=st.sampled_from([0.1, 0.4, 0.8, 1.0]),
    seed=st.integers(0, 100),
)
def test_a_crop_lies_in_the_photo(width: int, height: int, ratio: float, least_area: float, seed: int) -> None:
    left, top, right, bottom = _box((width, height), ratio, least_area, np.random.default_rng(seed))
    tiny = 1e-6 * max(width, height)
    assert -tiny <= left < right <= width + tiny
    assert -tiny <= top < bottom <= height + tiny
    shape = (right - left) / (bottom - top) / ratio
    assert 3 / 4 - 1e-6 <= shape <= 4 / 3 + 1e-6
    largest = min(width, height * ratio) ** 2 / ratio
    assert (right - left) * (bottom - top) >= min(least_area * width * height, largest) * (1 - 1e-6)


def test_the_largest_crop_of_any_shape_is_drawn() -> None:
    """Where the height is a quotient that rounds up, too."""
    for high in range(32, 257, 16):
        for wide in range(32, 257, 16):
            for size in ((wide, high), (300, high), (wide, 300), (500, 375)):
                left, top, right, bottom = _box(size, wide / high, 1.0, np.random.default_rng(0))
                assert 0 <= left < right <= size[0] * (1 + 1e-12)
                assert 0 <= top < bottom <= size[1] * (1 + 1e-12)


def test_crops_for_a_grey_network_are_grey(dataset: ImageFolder, network: LoadedModel) -> None:
    grey = msgspec.structs.replace(network.preprocessing, input_size=(1, 48, 48), mean=(0.5,), std=(0.5,))
    photos = Photos(dataset, range(4), grey, seed=0, workers=1)
    (pixels, _), *_ = photos.batches(iter([[Spot(0, 0), Spot(1, 0)]]), 0.5, True)
    assert pixels.shape == (2, 1, 48, 48)


def test_crops_are_those_of_the_seed_the_epoch_and_the_photo(
    dataset: ImageFolder, network: LoadedModel, photos: Photos
) -> None:
    again = Photos(dataset, range(32), network.preprocessing, seed=0, workers=2)
    again.read()
    assert torch.equal(photos.crop(Spot(5, 2), 0.4, True), again.crop(Spot(5, 2), 0.4, True))
    assert not torch.equal(photos.crop(Spot(5, 2), 0.4, True), photos.crop(Spot(5, 3), 0.4, True))
    other = Photos(dataset, range(32), network.preprocessing, seed=1, workers=1)
    assert not torch.equal(photos.crop(Spot(5, 2), 0.4, True), other.crop(Spot(5, 2), 0.4, True))
    plan = [[Spot(1, 0), Spot(2, 0)], [Spot(3, 0)], [Spot(4, 1)], [Spot(0, 1)], [Spot(9, 7)]]
    batches = list(again.batches(iter(plan), 0.4, True))
    for batch, (images, _) in zip(plan, batches):
        assert torch.equal(images, torch.stack([photos.crop(spot, 0.4, True) for spot in batch]))


def test_threads_that_crop_leave_arithmetic_to_the_trainers_thread(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would start PyTorch's own threads, and those take the cores from the networks: it cost a fifth of the speed."""
    monkeypatch.setattr(Photos, "_normalise", lambda self, crops: (threading.current_thread(), {crop.dtype for crop in crops}))
    ((found, _),) = photos.batches(iter([[Spot(1, 0), Spot(2, 0)]]), 0.4, True)
    assert found == (threading.current_thread(), {np.dtype(np.uint8)})


def test_what_does_not_fit_the_cache_gives_the_same_crops(
    dataset: ImageFolder, network: LoadedModel, photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_tprune.finetune.photos._CACHE_BYTES", 50_000)
    few = Photos(dataset, range(32), network.preprocessing, seed=0, workers=1)
    few.read()
    assert 0 < len(few._small) < 32
    for number in (0, 1, 30, 31):
        assert torch.equal(few.crop(Spot(number, 0), 0.4, True), photos.crop(Spot(number, 0), 0.4, True))


def test_the_whole_photo_is_what_evaluation_sees() -> None:
    loaded = load_model("reference")
    task = ReferenceTask(3, "train")
    photos = Photos(task, range(3), loaded.preprocessing, seed=0, workers=1)
    photos.read()
    for number in range(3):
        image, label = task[number]
        assert photos.labels[number] == label
        assert torch.allclose(photos.crop(Spot(number, 0), 1.0, False), loaded.transform()(image), atol=1e-6)


def test_all_photos_that_cannot_be_read_are_counted(tmp_path: Path, network: LoadedModel) -> None:
    for number in range(4):
        Image.new("RGB", (50, 50)).save(tmp_path / f"{number}.png")
    for number in (1, 3):
        (tmp_path / f"{number}.png").write_bytes(b"\x89PNG broken")
    photos = Photos(open_images(tmp_path), range(4), network.preprocessing, seed=0, workers=2)
    with pytest.raises(UserError, match=r"1\.png cannot be read.* And 1 more cannot be read"):
        photos.read()


@given(count=st.integers(2, 200), seed=st.integers(0, 3))
def test_nothing_is_both_trained_on_and_held_out(count: int, seed: int) -> None:
    training, held_out = split(count, count // 2, seed)
    assert sorted(training + held_out) == list(range(count))
    assert len(held_out) == count // 2
    assert (training, held_out) == split(count, count // 2, seed)


def test_joined_datasets(dataset: ImageFolder) -> None:
    some = dataset.first(2)
    both = Joined((some, dataset))
    assert len(both) == 42
    assert both[1][0].tobytes() == dataset[39][0].tobytes()
    assert both[2][0].tobytes() == dataset[0][0].tobytes()
    assert len({some.fingerprint, both.fingerprint, dataset.fingerprint}) == 3
    assert len(both.without({dataset.files[39]}, "unreadable")) == 40
    assert both.unreadable() == {}
    with pytest.raises(IndexError):
        both[42]
