"""What another way of preparing images costs: top-1 of a bundle's budget, each way against Pillow's, paired by image.

    python -m tests.benchmarks.preprocessing BUNDLE --budget 1.0 --data imagenet-sample --frame-size 341x256

Every image is first brought to one frame size (bilinear), as a camera would give it, because a graph takes frames of one size. Ways:
graph (`--fold-preprocessing`); bilinear without antialiasing, then the same crop (OpenCV's INTER_LINEAR); the whole frame squashed to the
network's size, bilinear without antialiasing (DeepStream's nvinfer).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.predictor import open_predictor
from edge_tprune.cli.commands.export import parse_frame_size
from edge_tprune.cli.data_options import known_class_names, open_data
from edge_tprune.export.formats.graphs import fold_preprocessing, read_graph
from edge_tprune.models.preprocess import Preprocessing
from edge_tprune.statistics import mean_interval


def bilinear(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 resized between the two nearest pixels of each axis, whatever the scale; rounded."""
    found = pixels.astype(np.float32)
    for axis, size in ((0, height), (1, width)):
        given = found.shape[axis]
        place = np.clip((np.arange(size) + 0.5) * given / size - 0.5, 0, given - 1)
        first = np.minimum(place.astype(int), max(given - 2, 0))
        share = (place - first).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        found = found.take(first, axis) * (1 - share) + found.take(np.minimum(first + 1, given - 1), axis) * share
    return np.round(found)


def normalised(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    mean, std = (np.array(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    return np.ascontiguousarray(((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--budget", default="1.0")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--frame-size", default="341x256")
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    preprocessing = bundle.manifest.preprocessing
    height, width = parse_frame_size(options.frame_size)
    graph = read_graph(bundle, bundle.budget(options.budget).artifact("onnxruntime", "fp32"))
    fold_preprocessing(graph, preprocessing, (height, width))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    classes, names = bundle.manifest.model.classes, known_class_names(bundle)
    data = open_data(
        str(options.data),
        classes,
        labels=True,
        limit=None,
        class_map=None,
        class_names=names,
        skip_unreadable=False,
        quiet=True,
    )
    count = min(len(data), options.limit or len(data))
    places = np.linspace(0, len(data) - 1, count).astype(int)
    first: dict[str, list[int]] = {"pillow": [], "graph": [], "bilinear, cropped": [], "bilinear, squashed": []}
    truth, differences = [], []
    resized_w, resized_h = preprocessing.resized(width, height)
    left, top = preprocessing.crop_offset(resized_w, resized_h)
    goal_h, goal_w = preprocessing.size
    with open_predictor(bundle, options.budget, threads=1) as model:
        for place in places:
            picture, label = data[int(place)]
            truth.append(label)
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(picture)
            cropped = bilinear(pixels, resized_h, resized_w)[top : top + goal_h, left : left + goal_w]
            outputs = {
                "pillow": model(picture),
                "graph": session.run(None, {"frames": pixels[None]})[0][0],
                "bilinear, cropped": model(normalised(cropped, preprocessing)),
                "bilinear, squashed": model(normalised(bilinear(pixels, goal_h, goal_w), preprocessing)),
            }
            differences.append(np.abs(outputs["graph"] - outputs["pillow"]).max())
            for way, logits in outputs.items():
                first[way].append(int(logits.argmax()))
    labels, pillow = np.array(truth), np.array(first["pillow"])
    print(f"{count} images as frames of {width} x {height}; budget {options.budget}")
    print(f"largest logit difference of the graph from pillow: {max(differences):.2g}, median {np.median(differences):.2g}")
    for way, found in first.items():
        right = np.array(found) == labels
        change = mean_interval(100.0 * (right.astype(float) - (pillow == labels)))
        same = 100 * np.mean(np.array(found) == pillow)
        print(
            f"{way:20} top-1 {100 * right.mean():5.1f} %  change {change.value:+.1f} [{change.low:+.1f}, {change.high:+.1f}]  same class {same:.1f} %"
        )


if __name__ == "__main__":
    main()
