"""Programs that tests run as processes of their own: they change one bundle at the same time.

python -m tests.bundle.revising evaluate BUNDLE BUDGET    evaluates, and stores once a line arrives on stdin
python -m tests.bundle.revising add BUNDLE NAME COUNT SEED    adds files one by one, at random times
python -m tests.bundle.revising replace BUNDLE OTHER COUNT SEED    moves another bundle into place and back, at random times
"""

from __future__ import annotations

import random
import shutil
import sys
import time
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from edge_tprune.bundle import evaluate as evaluation
from edge_tprune.bundle.bundle import Bundle, set_aside
from edge_tprune.bundle.manifest import FileEntry
from edge_tprune.bundle.revision import Revision, manifest_lock, revise
from edge_tprune.errors import EdgeTPruneError


class Squares:
    """Eight random images."""

    name, labelled, fingerprint = "squares", True, "7" * 64

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = np.random.default_rng(index).integers(0, 255, (48, 48, 3), dtype=np.uint8)
        return Image.fromarray(pixels), index % 6


def evaluate(path: str, budget: str) -> None:
    store = evaluation.revise

    def wait_first(*arguments: object) -> Bundle:
        print("evaluated", flush=True)
        sys.stdin.readline()
        return store(*arguments)  # type: ignore[arg-type]

    evaluation.revise = wait_first  # type: ignore[assignment]
    evaluation.evaluate(Bundle.open(path), Squares(), budgets=[budget], threads=1)  # type: ignore[arg-type]


def add(path: str, name: str, count: str, seed: str) -> None:
    rng = random.Random(int(seed))
    bundle = Bundle.open(path, verify=False)
    for number in range(int(count)):
        time.sleep(rng.random() * 0.02)
        data = f"{name} {number}".encode()
        file, entry = f"{name}-{number}.txt", FileEntry(sha256=sha256(data).hexdigest(), bytes=len(data))

        def with_file(now: Bundle, file: str = file, entry: FileEntry = entry, data: bytes = data) -> Revision:
            files = {**now.manifest.files, file: entry}
            return Revision(msgspec.structs.replace(now.manifest, files=files), {file: data})

        try:
            revise(bundle, with_file)
        except EdgeTPruneError as error:
            print(f"refused: {error}", flush=True)
        else:
            print(file, flush=True)


def replace(path: str, other: str, count: str, seed: str) -> None:
    rng, place = random.Random(int(seed)), Path(path)
    for number in range(int(count)):
        time.sleep(rng.random() * 0.05)
        staging = place.with_name(f".staging-{number}")
        shutil.copytree(other, staging)
        with manifest_lock(place):
            place.rename(set_aside(place))
            staging.rename(place)
            shutil.rmtree(set_aside(place))


if __name__ == "__main__":
    {"evaluate": evaluate, "add": add, "replace": replace}[sys.argv[1]](*sys.argv[2:])
