"""Prints what the network says of images: python classify.py golden.png cat.jpg. Needs numpy, pillow and onnxruntime, and nothing of edge-tprune."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from images import FOLDER, prepare, read_description, run_program
from PIL import Image


class Model:
    """The network in an ONNX Runtime session. `model(image)` gives its outputs for one image of Pillow."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.description = read_description(folder)
        needed, found = (tuple(map(int, v.split(".")[:2])) for v in (self.description["onnxruntime"], onnxruntime.__version__))
        if found < needed:
            raise SystemExit(
                f"this graph needs onnxruntime {self.description['onnxruntime']} or newer, and {onnxruntime.__version__} is installed"
            )
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=onnxruntime.get_available_providers())

    def __call__(self, image: Image.Image) -> list[np.ndarray]:
        """The graph's outputs for one image, without their axis of images."""
        given = self.description["input"]
        batch = np.zeros(given["shape"], given["dtype"])
        batch[0] = prepare(image, self.description)
        return [output[0] for output in self.session.run(None, {given["name"]: batch})]


if __name__ == "__main__":
    run_program(Model)
