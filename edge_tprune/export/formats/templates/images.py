"""From an image to what the network takes, and from its scores to names. Needs numpy and pillow. Part of a package that edge-tprune exported."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Description = dict[str, Any]  # of model.json

FOLDER = Path(__file__).resolve().parent


def read_description(folder: Path = FOLDER) -> Description:
    """What model.json says: inputs, outputs, preprocessing."""
    try:
        description: Description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"model.json cannot be read ({printable(str(error))}): copy the whole package again") from error
    return description


def open_image(file: str) -> Image.Image:
    """The image in a file."""
    try:
        if Path(file).exists() and not Path(file).is_file():  # a pipe would be waited for
            raise OSError("it is no regular file")
        Image.init()
        formats = [name for name in Image.ID if name != "EPS"]  # which Pillow gives to another program to run
        image = Image.open(file, formats=formats)
        if max(image.size) > 200 * min(image.size):  # resized, it would fill the memory
            raise OSError(f"it has {image.width} x {image.height} pixels: one side is more than 200 times the other")
        image.load()
    except Exception as error:  # Pillow raises nearly everything
        raise SystemExit(f"{printable(file)} cannot be read as an image: {printable(str(error))}") from error
    return image


def run_program(make_model: Callable[[], Any]) -> None:
    """Prints what a model says of the images on the command line. What goes wrong is one line; where nobody reads its output any more it ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.stdout is None:
        raise SystemExit("stdout is closed: there is nowhere to write the answer")
    try:
        model = make_model()
        for file in sys.argv[1:] or [str(FOLDER / "golden.png")]:
            print(printable(file))
            for line in describe(model(open_image(file)), model.description):
                print(f"  {line}")
        sys.stdout.flush()
    except Exception as error:
        if isinstance(error, OSError):  # Python writes what is left as it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(141) from None
        raise SystemExit(f"{type(error).__name__}: {printable(str(error).strip().partition(chr(10))[0])}") from None


def printable(text: str) -> str:
    """A text for the terminal, with no control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def prepare(image: Image.Image, description: Description) -> np.ndarray:
    """One image as the graph takes it: uint8 (H, W, 3) where the graph prepares frames itself, else float32 (C, H, W)."""
    given = description["preprocessing"]
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise SystemExit(
            "the pixels of this image are floating-point or 32-bit numbers, of which it is not known which value is white"
        )
    if image.mode.startswith("I"):  # sixteen bits of grey, which Pillow would clip to white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if given is None:
        height, width = description["input"]["shape"][1:3]
        if image.size != (width, height):
            raise SystemExit(
                f"the graph takes frames of {width} x {height} pixels, and this image has {image.size[0]} x {image.size[1]}"
            )
        frame = np.asarray(image.convert("RGB"))
        return frame[..., ::-1] if description["channel_order"] == "bgr" else frame
    channels, height, width = given["input_size"]
    image = image.convert("RGB")
    image = image if channels == 3 else image.convert("L")
    resized = image.resize(_resized(image.size, given), Image.Resampling[given["interpolation"].upper()])
    fill = tuple(round(255 * value) if given["crop_mode"] == "border" else 0 for value in given["mean"])
    left, top = (_offset(size, goal) for size, goal in zip(resized.size, (width, height)))
    canvas = Image.new(image.mode, (width, height), fill if channels == 3 else fill[0])
    canvas.paste(resized, (-left, -top))
    pixels = np.asarray(canvas, np.float32).reshape(height, width, channels).transpose(2, 0, 1) / np.float32(255)
    mean, std = (np.array(given[key], np.float32)[:, None, None] for key in ("mean", "std"))
    return np.ascontiguousarray((pixels - mean) / std)


def _resized(size: tuple[int, int], given: Description) -> tuple[int, int]:
    width, height = size
    goal_h, goal_w = (math.floor(side / given["crop_pct"]) for side in given["input_size"][1:])
    if given["crop_mode"] == "squash":
        return goal_w, goal_h
    if given["crop_mode"] == "center" and goal_h == goal_w:
        longer = int(goal_h * max(size) / min(size))
        return (goal_h, longer) if width <= height else (longer, goal_h)
    ratio = (max if given["crop_mode"] == "border" else min)(width / goal_w, height / goal_h)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _offset(size: int, goal: int) -> int:
    return round((size - goal) / 2.0) if size >= goal else -((goal - size) // 2)


def describe(outputs: list[np.ndarray], description: Description) -> list[str]:
    """The best classes of one image with their probabilities; of another output its shape and first values."""
    name = description["outputs"][0]["name"]
    if name in ("logits", "probabilities"):
        return [f"{probability:6.1%}  {label}" for label, probability in best(outputs)]
    first = ", ".join(f"{value:.5f}" for value in outputs[0].ravel()[:5])
    return [f"{name} {outputs[0].shape}: {first}, ..."]


def best(outputs: list[np.ndarray], count: int = 5, folder: Path = FOLDER) -> list[tuple[str, float]]:
    """(label, probability) of the best classes of one image, from the graph's outputs without their axis of images."""
    file = folder / "labels.txt"
    labels = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    if len(labels) <= (int(outputs[1].max()) if len(outputs) == 2 else len(outputs[0]) - 1):
        raise SystemExit(f"{file} has {len(labels)} lines, fewer than the network has classes: copy the whole package")
    if len(outputs) == 2:  # probabilities and classes: the graph has chosen
        return [(labels[int(i)], float(p)) for p, i in zip(*outputs)][:count]
    logits = outputs[0].astype(np.float64)
    if len(logits) == 1:  # one class against its absence
        return [(labels[0], float(0.5 * (1 + np.tanh(logits[0] / 2))))][:count]
    exact = np.exp(logits - logits.max())
    return [(labels[i], float(exact[i] / exact.sum())) for i in np.argsort(-exact, kind="stable")[:count]]
