"""The README of a package: what it is, how to run it, what goes in and comes out, and the answer that proves it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from edge_tprune.export.formats.request import GOLDEN_ANSWER, Package


def write_readme(package: Package, lines: Sequence[str]) -> None:
    """Writes README.md: a head that every format has, then `lines`, then the golden answer."""
    about = package.about
    head = [
        f"# {package.name}",
        "",
        f"{about.model}, {about.method} at budget {about.budget} ({about.macs_share:.0%} of the unpruned network's MACs), "
        f"{about.precision}, opset {about.opset}. Written by edge-tprune {about.tool_version}.",
        "",
    ]
    answer = json.loads((package.folder / GOLDEN_ANSWER).read_text(encoding="utf-8"))
    tail = ["", "`golden.png` is a test image, `golden.json` the model's output for it."]
    if answer.get("top"):
        first = answer["top"][0]
        tail[-1] += f" The best class is {first['label']!r}, probability {first['probability']:.3f}."
    package.write("README.md", "\n".join([*head, *lines, *tail]) + "\n")


def describe_input(package: Package) -> str:
    """What the graph takes, in words."""
    given, name = package.about.preprocessing, package.about.input.name
    shape = " x ".join(map(str, package.about.input.shape))
    if given is None:
        order = package.about.channel_order.upper()
        return f"Input `{name}`: uint8, {shape} (images, height, width, {order}); resizing, cropping and normalisation are in the graph."
    return (
        f"Input `{name}`: {package.about.input.dtype}, {shape}, RGB. Resize ({given.interpolation}, crop_pct {given.crop_pct:g}, "
        f"{given.crop_mode}), scale to 0..1, subtract mean {_listed(given.mean)}, divide by std {_listed(given.std)}."
    )


def describe_outputs(package: Package) -> str:
    """What the graph gives, in words."""
    listed = ", ".join(f"`{o.name}` ({o.dtype}, {' x '.join(map(str, o.shape))})" for o in package.about.outputs)
    names = "Names of the classes: `labels.txt`, one per line." if package.labels else ""
    return f"Output: {listed}. {names}".strip()


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
