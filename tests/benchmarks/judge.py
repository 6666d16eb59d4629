"""Pruned networks judged on the same images: KL from the unpruned network and top-1, image by image, in PyTorch.

For tables with many rows. Images are taken in parts, spread evenly over the data set, and all rows see a part before the next one begins: when time is
up, all rows have been judged on about the same images, and each row says on how many. What was judged is kept, row by row, so a run that was interrupted
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_tprune.cli.progress import Advance
from edge_tprune.files import write_json
from edge_tprune.models.data import Dataset, open_dataset
from edge_tprune.models.loading import LoadedModel, load_model
from edge_tprune.reduction import host, network_shape, registry
from edge_tprune.reduction.host import PrunedViT, Stream
from edge_tprune.runtime.engine import default_threads
from edge_tprune.statistics import mean_interval, paired_difference

BATCH = 20
PART = 50  # images
SHARED = ("attention", "host", "matching", "ops", "outcome", "precision")  #: modules that every method's result depends on


def code_of(method: type[registry.Reducer]) -> str:
    """SHA-256 of the code that computes a method: its own file and the shared ones."""
    files = [Path(host.__file__).with_name(f"{name}.py") for name in SHARED]
    files.append(Path(inspect.getsourcefile(method) or ""))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@dataclass(frozen=True)
class Form:
    """A method with options and tokens after each block."""

    method: str
    tokens: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same for forms that compute the same with today's code of the method."""
        reducer = registry.method(self.method)
        defaults = {key: parameter.default for key, parameter in registry.options(reducer).items()}
        given = registry.expanded(reducer, self.options)
        changed = sorted((key, value) for key, value in given.items() if defaults[key] != value)
        text = json.dumps([self.method, code_of(reducer), list(self.tokens), changed])
        return sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Judgement:
    """What one network gave on every image: `kl` (N,) in nats from the unpruned network, `right` (N,) 100 where the first class is right, else 0."""

    kl: NDArray[np.float64]
    right: NDArray[np.float64]


class Judge:
    """Judges a network's pruned forms on the images of a data set with labels.

    Args:
        loaded: the unpruned network.
        dataset: images and labels.
        folder: where what was judged is kept.
    """

    def __init__(self, loaded: LoadedModel, dataset: Dataset, folder: Path) -> None:
        if not dataset.labelled:
            raise SystemExit(f"{dataset.name} has no labels: give --data with one sub-directory per class")
        self.loaded, self.dataset = loaded, dataset
        identity = sha256(f"{loaded.weights_sha256} {dataset.fingerprint}".encode()).hexdigest()[:16]
        self.file = folder / f"{loaded.name}-{identity}.json"
        # form -> part -> [KL of its images, whether their first class is right]; the unpruned network is the form "".
        self.known: dict[str, dict[str, list[list[float]]]] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.parts = -(-len(dataset) // PART)

    def judge(self, forms: Sequence[Form], minutes: float | None, advance: Advance) -> None:
        """Judges all forms on as many parts as time allows; at least one."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        keys = {form.key: form for form in forms}
        start = time.monotonic()
        for part in range(self.parts):
            missing = {key: form for key, form in keys.items() if str(part) not in self.known.get(key, {})}
            if not missing:
                continue
            if part and minutes is not None and time.monotonic() - start > 60 * minutes:
                break
            self._judge_part(part, missing, len(keys), advance)

    def together(self, *forms: Form) -> list[Judgement]:
        """What forms, and at last the unpruned network, gave on the images that all of them have seen."""
        found = [self.known[key] for key in (*(form.key for form in forms), "")]
        parts = [str(part) for part in range(self.parts) if all(str(part) in each for each in found)]
        return [
            Judgement(
                np.concatenate([each[part][0] for part in parts]), 100.0 * np.concatenate([each[part][1] for part in parts])
            )
            for each in found
        ]

    @torch.inference_mode()
    def _judge_part(self, part: int, missing: Mapping[str, Form], of: int, advance: Advance) -> None:
        transform, chosen = self.loaded.transform(), range(part, len(self.dataset), self.parts)
        pairs = [self.dataset[index] for index in chosen]
        pixels = torch.stack([torch.from_numpy(np.asarray(transform(image))) for image, _ in pairs])
        images = torch.split(pixels, BATCH)
        labels = np.array([label for _, label in pairs])
        unpruned = PrunedViT(self.loaded.model, registry.method("none"), network_shape(self.loaded.model).full_schedule(), {})
        streams = [self._run(unpruned, [unpruned._embed(batch)]) for batch in images]
        expected = torch.cat([self._log_shares(unpruned, batch) for batch in streams])
        share = expected.exp()

        def keep(key: str, found: torch.Tensor) -> None:
            kl = (share * (expected - found)).sum(1).clamp_min(0)
            right = found.argmax(1).numpy() == labels
            self.known.setdefault(key, {})[str(part)] = [kl.tolist(), right.astype(float).tolist()]

        keep("", expected)
        for number, (key, form) in enumerate(missing.items(), of - len(missing)):
            advance(f"{form.method}, part {part + 1} of {self.parts}", part * of + number, self.parts * of)
            pruned = PrunedViT(self.loaded.model, registry.method(form.method), form.tokens, form.options)
            # What comes before the first removal is the unpruned network's.
            first = min(map(int, pruned.reducers), default=1)
            parts = []
            for batch, known in zip(images, streams):
                begin = replace(pruned._embed(batch), x=known[first - 1].x)
                parts.append(self._log_shares(pruned, self._run(pruned, [begin], first)))
            keep(key, torch.cat(parts))
            write_json(self.file, self.known)

    @staticmethod
    def _run(network: PrunedViT, streams: list[Stream], first: int = 1) -> list[Stream]:
        """The stream before block `first`, and after it and each block that follows."""
        for number in range(first, network.shape.blocks + 1):
            streams.append(network._block(number, streams[-1]))
        return streams

    @staticmethod
    def _log_shares(network: PrunedViT, streams: list[Stream]) -> torch.Tensor:
        return network._head(streams[-1]).double().log_softmax(-1)


def describe(judged: Judgement, unpruned: Judgement) -> dict[str, Any]:
    """The numbers of one form: mean KL, and the change of top-1 against the unpruned network, paired by image, with 95 % intervals."""
    change = paired_difference(judged.right, unpruned.right)
    return {"kl": mean_interval(judged.kl).to_json(), "top1_change_points": change.to_json()}


def compare(judged: Judgement, other: Judgement) -> dict[str, Any]:
    """Differences of two forms, paired by image: `judged` less `other`."""
    return {
        "kl_difference": paired_difference(judged.kl, other.kl).to_json(),
        "top1_difference_points": paired_difference(judged.right, other.right).to_json(),
    }


def arguments(doc: str | None, budgets: str) -> argparse.ArgumentParser:
    """What every command that judges is asked: network, images, budgets, time, where what was judged is kept."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--weights")
    parser.add_argument("--data", default="reference")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--budgets", default=budgets)
    parser.add_argument("--minutes", type=float, help="stop after so long, with the images seen so far")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--work", type=Path, default=Path("out/judged"), help="what was judged; a run goes on with it")
    return parser


def open_judge(options: argparse.Namespace) -> Judge:
    """The judge that `arguments` ask for."""
    torch.set_num_threads(options.threads)
    loaded = load_model(options.model, options.weights)
    return Judge(loaded, open_dataset(options.data, int(loaded.model.num_classes), options.images), options.work)


def is_resolved(interval: Mapping[str, Any]) -> bool:
    """Whether an interval, as a row holds it, does not reach 0."""
    low, high = interval["low"], interval["high"]
    return low is not None and high is not None and (low > 0 or high < 0)


def show_interval(interval: Mapping[str, Any], digits: int, sign: str = "+") -> str:
    """ "+0.012 (+0.008 to +0.016)"."""
    value = f"{interval['value']:{sign}.{digits}f}"
    if interval["low"] is None or interval["low"] == interval["high"]:
        return value
    return f"{value} ({interval['low']:{sign}.{digits}f} to {interval['high']:{sign}.{digits}f})"


def with_other_methods(
    rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any], kept: Mapping[str, Any] | None
) -> list[Mapping[str, Any]]:
    """New rows, and those that a file keeps of other methods where it is of the same weights and images; by budget from the largest, then by method."""
    same = kept is not None and all(kept.get(key) == found[key] for key in ("weights_sha256", "data"))
    asked = {row["method"] for row in rows}
    others = [row for row in kept["rows"] if row["method"] not in asked] if kept is not None and same else []
    return sorted([*rows, *others], key=lambda row: (-float(row["budget"]), row["method"]))
