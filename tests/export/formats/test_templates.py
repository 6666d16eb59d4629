"""The parts of an exported package that run alone: what they do with files that are no images, and with a package that is not whole."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageCms

from edge_tprune.export import formats
from edge_tprune.models.images import read_image
from edge_tprune.models.preprocess import Preprocessing

TEMPLATES = Path(formats.__file__).parent / "templates"


@pytest.fixture(scope="module")
def images() -> ModuleType:
    found = importlib.util.spec_from_file_location("images_of_a_package", TEMPLATES / "images.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_files_that_are_no_images(images: ModuleType, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "\x1b[31mred.jpg").write_bytes(b"no image")
    (tmp_path / "eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")  # for Ghostscript
    for name, says in (
        ("eps.jpg", "cannot identify"),
        ("pipe", "it is no regular file"),
        ("\x1b[31mred.jpg", "cannot identify"),
        ("none", "No such file"),
    ):
        with pytest.raises(SystemExit, match=f"cannot be read as an image.*{says}") as stop:
            images.open_image(str(tmp_path / name))
        assert str(stop.value).isprintable()


def test_a_package_that_lacks_names_of_classes(images: ModuleType, tmp_path: Path) -> None:
    scores = [np.array([0.1, 3.0, 0.2], np.float32)]
    chosen = [np.array([0.9, 0.1], np.float32), np.array([2, 0])]
    for lines in (None, "", "a\nb\n"):
        if lines is not None:
            (tmp_path / "labels.txt").write_text(lines)
        for outputs in (scores, chosen):
            with pytest.raises(SystemExit, match="fewer than the network has classes"):
                images.best(outputs, folder=tmp_path)
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    assert images.best(scores, 1, tmp_path)[0][0] == "b"
    assert images.best(chosen, folder=tmp_path) == [("c", pytest.approx(0.9)), ("a", pytest.approx(0.1))]


def test_a_grey_network_sees_what_evaluation_sees(images: ModuleType, tmp_path: Path) -> None:
    """Red, green and blue first, from which grey is made: of YCbCr, Pillow would take the luminance as it is."""
    record = {
        "input_size": [1, 48, 48],
        "mean": [0.5],
        "std": [0.5],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    pixels = np.random.default_rng(0).integers(0, 256, (60, 53, 3), dtype=np.uint8)
    for number, mode in enumerate(("RGB", "YCbCr", "CMYK", "LAB", "L", "P")):
        picture = Image.fromarray(pixels)
        picture = ImageCms.profileToProfile(picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB") if (
            mode == "LAB"
        ) else picture.convert(mode)  # fmt: skip
        file = tmp_path / f"{number}.tif"
        picture.save(file)
        found = images.prepare(images.open_image(str(file)), {"preprocessing": record})
        np.testing.assert_array_equal(found, msgspec.convert(record, Preprocessing)(read_image(file)), mode)


def test_a_single_output_is_that_of_a_class_against_its_absence(images: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\n")
    for logit in (-800.0, -5.0, 0.0, 0.0082, 5.0, 800.0):
        ((label, probability),) = images.best([np.array([logit], np.float32)], folder=tmp_path)
        assert label == "cat"
        assert probability == pytest.approx(1 / (1 + math.exp(min(-logit, 700))), rel=1e-6, abs=1e-12)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_same_in_cpp(tmp_path: Path) -> None:
    (tmp_path / "main.cc").write_text(
        f'#include "{TEMPLATES}/frames.h"\n'
        """struct Model {
          int64_t height() const { return 1; }
          int64_t width() const { return 2; }
          Answer operator()(const std::vector<uint8_t>&) const { const float logits[] = {0, 2, 1}; return rank(logits, 3); }
        };
        int main(int count, char** arguments) { return classify(Model(), model_folder(), count, arguments); }
        """
    )
    subprocess.run(["g++", f"-std=c++{cpp_standard()}", "-Wall", "-Wextra", "-o", "main", "main.cc"], cwd=tmp_path, check=True)
    (tmp_path / "\x1b[31mred.ppm").write_bytes(b"P6 2 1 255\n" + bytes(6))

    def run(file: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([tmp_path / "main", file], cwd=tmp_path, capture_output=True, text=True, check=False)

    for lines in (None, "a\nb\n"):
        if lines is not None:
            (tmp_path / "labels.txt").write_text(lines)
        done = run("\x1b[31mred.ppm")
        assert (done.returncode, done.stderr[-35:]) == (2, "fewer than the network has classes\n")
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    done = run("\x1b[31mred.ppm")
    assert (done.returncode, done.stdout.split()[::2]) == (0, ["?[31mred.ppm", "b", "c", "a"])
    assert "\x1b" not in run("\x1b[31mnone.ppm").stderr
    assert "\x9b" not in run("\x9b31mnone.ppm").stderr
    head, frame = b"P6\n# CREATOR: GIMP\n2 #wide\n1\n#\n#\n255\n", b"# \xff\n\xff#"
    for content, says in {
        head + frame: "",
        head + frame[:-1]: "x.ppm is cut off\n",
        head + frame + head + frame: "x.ppm holds more than one frame\n",
        b"P5 2 1 255\n" + frame: "x.ppm is no binary PPM file of 8 bits\n",
        b"": "x.ppm is no binary PPM file of 8 bits\n",
    }.items():
        (tmp_path / "x.ppm").write_bytes(content)
        done = run("x.ppm")
        assert (done.returncode, done.stderr) == (2 if says else 0, says)
    assert run("none.ppm").stderr == "none.ppm cannot be read: No such file or directory\n"
    alone = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=False)
    assert (alone.returncode, alone.stderr[:7]) == (2, "usage: ")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [tmp_path / "main", "\x1b[31mred.ppm"], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (2, "the answers cannot be written\n")


def cpp_standard() -> str:
    """The one that the exported programs are compiled with: the headers of ONNX Runtime 1.32 are no C++14."""
    files = [(TEMPLATES / f"CMakeLists_{runtime}.txt").read_text() for runtime in ("onnxruntime", "tensorrt")]
    (standard,) = {found for file in files for found in re.findall(r"CXX_STANDARD (\d+)", file)}
    assert int(standard) >= 17
    return standard
