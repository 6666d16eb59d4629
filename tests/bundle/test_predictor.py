from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

import edge_tprune
from edge_tprune.bundle import predictor
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.predictor import Predictor
from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.models.class_names import ClassNames
from edge_tprune.models.transform import make_transform
from edge_tprune.runtime.engine import Engine, EngineInfo


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(3)
    sizes = [(60, 50), (91, 64), (48, 120)]
    return [
        Image.fromarray(random.integers(0, 256, (9, 7, 3)).astype(np.uint8)).resize(s, Image.Resampling.BICUBIC) for s in sizes
    ]


def test_answers_with_the_golden_outputs(built: Path) -> None:
    golden = Bundle.open(built).golden()
    with edge_tprune.open(built, budget=0.6, threads=1) as model:
        assert (model.budget, model.precision, model.batch) == ("0.6", "fp32", 1)
        assert (model.input_shape, model.output_shape) == ((1, 3, 48, 48), (1, 6))
        for image, expected in zip(golden.images, golden.outputs["0.6"]):
            np.testing.assert_allclose(model.run(image), expected, atol=1e-4)
            np.testing.assert_array_equal(model(image[0]), model.run(image)[0])  # float32 arrays are prepared already


def test_an_image_is_prepared_as_timm_does_whatever_it_comes_as(
    built: Path, pictures: list[Image.Image], tmp_path: Path
) -> None:
    with edge_tprune.open(built, budget="1.0", threads=1) as model:
        expected = [make_transform(model.bundle.manifest.preprocessing)(picture).numpy() for picture in pictures]
        for picture, prepared in zip(pictures, expected):
            picture.save(tmp_path / "picture.png")
            frames = (picture, np.asarray(picture), tmp_path / "picture.png", str(tmp_path / "picture.png"), prepared)
            for frame in frames:
                np.testing.assert_array_equal(model.preprocess(frame), prepared)
                np.testing.assert_array_equal(model(frame), model.run(prepared[None])[0])
        found = model(pictures)
        assert found.shape == (3, 6)
        np.testing.assert_array_equal(found, np.concatenate([model.run(prepared[None]) for prepared in expected]))
        np.testing.assert_array_equal(model(np.stack(expected)), found)
    with edge_tprune.open(built, budget="1.0", threads=1, channel_order="bgr") as model:
        np.testing.assert_array_equal(model.preprocess(np.asarray(pictures[0])[..., ::-1]), expected[0])
        grey = pictures[0].convert("L")
        np.testing.assert_array_equal(model.preprocess(np.asarray(grey)), model.preprocess(grey.convert("RGB")))


def test_sixteen_bits_of_grey_are_the_same_as_a_file_and_as_an_image_of_pillow(built: Path, tmp_path: Path) -> None:
    file = tmp_path / "deep.png"
    Image.fromarray(np.random.default_rng(4).integers(0, 65536, (60, 50)).astype(np.uint16)).save(file)
    with edge_tprune.open(built, budget="1.0", threads=1) as model, Image.open(file) as picture:
        np.testing.assert_array_equal(model.preprocess(picture), model.preprocess(file))
        np.testing.assert_array_equal(model(picture), model(file))


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((4, 5, 3)),
        np.zeros((3, 47, 48), np.float32),
        np.zeros((0, 5, 3), np.uint8),
        5,
        None,
    ],
)
def test_what_is_no_image_is_refused_in_one_line(built: Path, frame: object) -> None:
    with edge_tprune.open(built, budget="1.0", threads=1) as model:
        with pytest.raises(UserError, match="an image is") as error:
            model(frame)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match="no image"):
            model([])
        with pytest.raises(UserError, match=r"cannot be read .*Give another file"):
            model("absent.jpg")


def test_numbers_that_are_none_are_no_scores(built: Path) -> None:
    with edge_tprune.open(built, budget="1.0", threads=1) as model:
        frames = np.zeros((3, *model.input_shape[1:]), np.float32)
        for value in (np.nan, np.inf):
            frames[1, 0, 5, 5] = value
            with pytest.raises(UserError, match="image 1 has NaN or infinity among its values"):
                model(frames)
            with pytest.raises(UserError, match="image 0 has NaN"):
                model(frames[1])
        frames[1] = 3e38  # which overflows within the network
        with pytest.raises(UserError, match=r"budget 1\.0 in fp32 gives NaN or infinity for image 1"):
            model(list(frames))


def test_the_best_classes(built: Path) -> None:
    bundle = Bundle.open(built)
    scores = np.array([0.0, 3.0, -1.0, 3.0, 1.0, 800.0], np.float32)
    with edge_tprune.open(bundle, budget="1.0", threads=1) as model:
        assert model.labels == ("0", "1", "2", "3", "4", "5")
        best = model.top(scores, 3)
        assert [label for label, _ in best] == ["5", "1", "3"]  # ties by index
        assert best[0][1] == pytest.approx(1.0)
        exact = np.exp(scores[[0, 1, 2, 3, 4, 0]].astype(float))
        all_of_them = model.top(scores[[0, 1, 2, 3, 4, 0]], 9)
        assert all_of_them[0] == ("1", pytest.approx(exact[1] / exact.sum()))
        assert len(all_of_them) == 6
        with pytest.raises(UserError, match=r"shape \(1, 6\)"):
            model.top(scores[None])
        for others in (scores.astype(np.uint8), scores[:0], scores[:5], np.zeros(7, np.float32), scores > 0, scores * np.nan):
            with pytest.raises(UserError, match="scores are finite floating-point numbers of the model's 6 classes"):
                model.top(others)
        for count in (-1, 2.5, "3", None):
            with pytest.raises(UserError, match=f"count is {count!r}: give a whole number from 1"):
                model.top(scores, count)  # type: ignore[arg-type]
    names = ClassNames(tuple("abcdef"), "test", ("tench, Tinca", "", "", "", "", "f"))
    named = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, class_names=names))
    with edge_tprune.open(named, budget="1.0", threads=1) as model:
        assert model.labels == ("tench", "b", "c", "d", "e", "f")


def test_budgets_by_name_and_by_share(built: Path) -> None:
    bundle = Bundle.open(built)
    for given, name in ((0.6, "0.6"), ("0.6", "0.6"), (1, "1.0"), (1.0, "1.0"), (0.8, "0.8")):
        assert predictor.find_budget(bundle, given) == name
    with pytest.raises(UserError, match=r"no budget '0\.7' \(there are: 1\.0, 0\.8, 0\.6\)"):
        edge_tprune.open(bundle, budget=0.7)
    with pytest.raises(UserError, match=r"has 3 budgets: name one of 1\.0, 0\.8, 0\.6"):
        edge_tprune.open(bundle)
    with pytest.raises(UserError, match="channel_order"):
        edge_tprune.open(bundle, budget=1, channel_order="yuv")  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [[0.6], {}, b"0.6", object(), 10**400, -1, float("nan"), 0])
def test_a_budget_of_another_kind_is_refused(built: Path, budget: object) -> None:
    with pytest.raises(UserError, match="a budget is a name, or a share of MACs above 0 and at most 1, not"):
        edge_tprune.open(built, budget=budget)  # type: ignore[arg-type]


def test_what_is_no_image_is_refused(built: Path, tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-900])
    with edge_tprune.open(built, budget=1.0, threads=1) as model:
        for frame in (Image.new("RGB", (0, 5)), Image.open(tmp_path / "cut.png"), Image.new("La", (8, 8))):
            with pytest.raises(UserError, match="this image cannot be read"):
                model.preprocess(frame)
        for other in (5, None, object(), [1, 2]):
            with pytest.raises(UserError, match="an image is an array, a file's name or an image of Pillow"):
                model.preprocess(other)  # type: ignore[arg-type]
            with pytest.raises(UserError, match="the graph takes an array"):
                model.run(other)  # type: ignore[arg-type]
            with pytest.raises(UserError, match="scores of one image have one axis"):
                model.top([[1, 2]] if other == [1, 2] else other)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"image \\ud800 cannot be read"):
            model("\ud800")
        os.mkfifo(tmp_path / "pipe.jpg")
        with pytest.raises(UserError, match=r"pipe\.jpg cannot be read \(it is a named pipe, not a file\)"):
            model(tmp_path / "pipe.jpg")
        with pytest.raises(UserError, match="scores are an array of numbers"):
            model.top([[1, 2], [3]])  # type: ignore[arg-type]
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    for path in (str(tmp_path / "one"), None, 1, [], "\0", "\ud800", "a" * 5000):
        with pytest.raises(UserError, match="no bundle"):
            edge_tprune.open(path, budget=1.0)  # type: ignore[arg-type]
    for budgets in (0.6, "0.6", None):
        with pytest.raises(UserError, match="budgets is a list of names or shares of MACs, not"):
            edge_tprune.open(built, budget=1.0, budgets=budgets)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the engine is closed: open it again"):
        model.run(np.zeros(model.input_shape, np.float32))
    for threads in ("2", 2.5, 0):
        with pytest.raises(UserError, match="1 to 1024 threads"):
            edge_tprune.open(built, budget=1.0, threads=threads)  # type: ignore[arg-type]


def test_a_wrong_engine_is_refused_and_closed(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(built)
    real = predictor.open_engine
    monkeypatch.setattr(
        predictor,
        "open_engine",
        lambda file, runtime, threads, shared: real(file.with_name("1.0.attention-op.onnx"), runtime, threads=1),
    )
    with pytest.raises(NegativeAnswer, match=r"budget 0\.6 failed its golden check on onnxruntime .* \(allowed 0\.001\)"):
        edge_tprune.open(bundle, budget=0.6)
    edge_tprune.open(bundle, budget=0.6, check=False).close()


def test_another_budget_answers_the_next_frame(built: Path) -> None:
    golden = Bundle.open(built).golden()
    with edge_tprune.open(built, budget=1.0, budgets=[0.8, "0.6"], threads=1) as model:
        assert model.budgets == ("1.0", "0.8", "0.6")
        for budget in (0.6, "1.0", 0.8, "0.6"):
            model.budget = budget  # type: ignore[assignment]  # a name or a share in, a name out
            np.testing.assert_allclose(model.run(golden.images[0]), golden.outputs[model.budget][0], atol=1e-4)
            assert model.last_ms is not None
    with edge_tprune.open(built, budget=1.0, threads=1) as model:
        with pytest.raises(UserError, match=r"budget 0\.6 is not open \(open are: 1\.0\)"):
            model.budget = 0.6  # type: ignore[assignment]
        assert model.budget == "1.0"


def test_threads_get_the_answers_of_their_own_images(built: Path, pictures: list[Image.Image]) -> None:
    with edge_tprune.open(built, budget=0.8, threads=1) as model:
        assert model.latency_ms is None or model.latency_ms > 0
        expected = [model(picture) for picture in pictures]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(model, pictures * 20))
        for number, scores in enumerate(found):
            np.testing.assert_array_equal(scores, expected[number % 3])
        assert model.latency_ms is not None
        assert 0 < model.latency_ms < 10_000


class OneAtATime(Engine):
    """An engine that, like TensorRT's, must not be entered twice; it says so where it is."""

    input_shape, output_shape = (1, 3, 48, 48), (1, 6)

    def __init__(self) -> None:
        self.info = EngineInfo(runtime="onnxruntime", version="0", threads=1, providers=())
        self.inside = threading.Lock()
        self.closed = False

    def run(self, image: np.ndarray) -> np.ndarray:
        assert self.inside.acquire(blocking=False), "two threads in one engine"
        assert not self.closed
        answer = np.repeat(image.reshape(1, -1)[:, :1], 6, axis=1)
        self.inside.release()
        return answer

    def close(self) -> None:
        assert self.inside.acquire(blocking=False), "closed while it runs"
        self.closed = True
        self.inside.release()


def test_an_engine_for_one_thread_is_entered_by_one(built: Path) -> None:
    engine = OneAtATime()
    model = Predictor(Bundle.open(built), {"1.0": engine}, "1.0")
    images = [np.full((3, 48, 48), number, np.float32) for number in range(40)]
    with model, ThreadPoolExecutor(8) as pool:
        assert [scores[0] for scores in pool.map(model, images)] == list(range(40))
    assert engine.closed


WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "timm", "onnx", "torchvision"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import edge_tprune
with edge_tprune.open(sys.argv[1], budget=0.6, threads=1) as model:
    print(model.top(model(sys.argv[2]), 1)[0][0], len(model.labels))
"""


def test_needs_no_torch(built: Path, pictures: list[Image.Image], tmp_path: Path) -> None:
    pictures[0].save(tmp_path / "a.png")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(built), str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    with edge_tprune.open(built, budget=0.6, threads=1) as model:
        assert done.stdout.split() == [model.top(model(pictures[0]))[0][0], "6"], done.stderr


def test_what_a_library_of_others_cannot_decode_is_refused(built: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    try:
        Image.radial_gradient("L").convert("RGB").resize((64, 48)).save(buffer, "AVIF")
    except (KeyError, OSError):
        pytest.skip("this Pillow writes no AVIF")
    good, said = buffer.getvalue(), list[str]()
    with edge_tprune.open(built, budget=1.0, threads=1) as model:
        for place in range(300, len(good), 7):
            damaged = bytearray(good)
            damaged[place] ^= 0x5A
            try:
                model.preprocess(Image.open(io.BytesIO(bytes(damaged))))
            except UnidentifiedImageError:
                continue
            except UserError as error:
                said.append(str(error))
    assert said
    assert all("this image cannot be read" in text for text in said)


def test_a_file_may_be_named_in_bytes(built: Path, tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    with edge_tprune.open(built, budget=1.0, threads=1) as model, os.scandir(os.fsencode(tmp_path)) as entries:
        (entry,) = entries
        np.testing.assert_array_equal(model.preprocess(entry), model.preprocess(tmp_path / "a.png"))
