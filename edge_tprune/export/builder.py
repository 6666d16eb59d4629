"""Builds a bundle: for each budget a schedule, a pruned module, a graph per runtime, and the proof that they are the same network.

Everything is written beside its destination and moved into place at the end, so an interrupted build leaves the old bundle, or nothing.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from edge_tprune.bundle import bundle as bundle_format
from edge_tprune.bundle.bundle import Bundle, artifact_key, locked
from edge_tprune.errors import NegativeAnswer, UserError, did_you_mean
from edge_tprune.export import parity
from edge_tprune.export.graph import FORMS, INPUT, OUTPUT, Form, SharedWeights, export, save
from edge_tprune.files import clear_write_errors, sha256_file, sha256_json, sync_directory, write_json
from edge_tprune.models.data import sample_images
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import registry, solve_schedule
from edge_tprune.reduction.attention import explicit_attention
from edge_tprune.reduction.host import PrunedViT, network_shape
from edge_tprune.reduction.plugins import method_code_sha256
from edge_tprune.reduction.precision import DEFAULT, precision
from edge_tprune.runtime.engine import runtime_version
from edge_tprune.schedule import TOLERANCE, Schedule
from edge_tprune.version import __version__

PARITY_IMAGES = 8
MOST_CANDIDATES = 3  # sample images looked at for each one needed
ROUNDING, MORE = (1e-6, 2), (1e-5, 6)  # noise on normalised pixels, and how many draws
FLIP = 5.0  # times the median change of logits: more than that is another choice of tokens
USELESS = 1000
GOLDEN_BATCHES = 2

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What a build will do, decided before anything is computed."""

    method: str
    options: Mapping[str, Any]
    blocks: tuple[int, ...]  #: that remove tokens in any of the schedules
    schedules: dict[str, Schedule]  #: by budget name
    batch: int = 1
    runtimes: tuple[str, ...] = ("onnxruntime",)
    precisions: tuple[str, ...] = (DEFAULT,)  #: the first is what a runtime is given that is asked for none

    @property
    def graphs(self) -> list[tuple[str, Form, str]]:
        """(runtime, form, precision) of every graph of a budget. A runtime that takes none of the precisions gets float32."""
        forms = [(runtime, FORMS[runtime]) for runtime in self.runtimes]
        return [
            (runtime, form, name)
            for runtime, form in forms
            for name in [p for p in self.precisions if p in form.precisions] or [DEFAULT]
        ]

    @property
    def remarks(self) -> list[str]:
        """Clear statements about budgets that could not be met within 1 %."""
        return [s.remark for s in self.schedules.values() if s.remark]


@dataclass
class Built:
    """What a build did."""

    bundle: Bundle
    reused: bool  #: True where an equal bundle was there already and nothing was done
    remarks: list[str] = field(default_factory=list)


def make_plan(
    loaded: LoadedModel,
    method: str,
    *,
    budgets: Sequence[float] = (),
    schedules: Sequence[Sequence[int]] = (),
    found: Mapping[str, Sequence[int]] | None = None,
    blocks: Sequence[int] | None = None,
    multiple_of: int = 1,
    options: Mapping[str, Any] | None = None,
    batch: int = 1,
    runtimes: Sequence[str] = ("onnxruntime",),
    precisions: Sequence[str] = (DEFAULT,),
) -> Plan:
    """Decides every budget's schedule; refuses what cannot be before any work is done.

    Args:
        loaded: the model.
        method: its name.
        budgets: shares of the unpruned MACs.
        schedules: token counts after each block, in addition.
        found: schedules by budget, as a search found them, in addition.
        blocks: where `budgets` remove tokens, counted from 1; the method's own choice by default.
        multiple_of: of the token counts that `budgets` lead to.
        options: of the method.
        batch: images per inference.
        runtimes: to write graphs for.
        precisions: to write them in (`edge_tprune.reduction.precision`), where the runtime takes them.

    Raises:
        UserError: as `edge_tprune.reduction.plan`, or a repeated budget, batch below 1, an unknown runtime or precision, a precision that none of the
            runtimes takes, nothing to build.
    """
    for runtime in runtimes:
        if runtime not in FORMS:
            raise UserError(
                f"no graph form for runtime {runtime!r}.{did_you_mean(runtime, FORMS)} Known: {', '.join(sorted(FORMS))}"
            )
    for name in precisions:
        precision(name)
        if not any(name in FORMS[runtime].precisions for runtime in runtimes):
            raise UserError(
                f"precision {name} is not for {' or '.join(runtimes)}, which computes in float32 on a CPU whatever the graph says: "
                "add --runtime tensorrt"
            )
    if batch < 1:
        raise UserError(f"batch {batch} is out of range: give 1 or more images per inference")
    shape = network_shape(loaded.model, loaded.name)
    chosen: dict[str, Schedule] = {}

    def add(name: str, schedule: Schedule) -> None:
        if name in chosen:
            raise UserError(f"budget {name} is given twice")
        chosen[name] = schedule

    for budget in budgets:
        how = "none" if budget == 1 else method  # the unpruned network needs nothing of any method
        schedule = solve_schedule(
            loaded.model,
            how,
            budget=budget,
            blocks=blocks,
            multiple_of=multiple_of,
            exact_savings=False,
            name=loaded.name,
        )
        add(f"{budget:.1f}" if budget == round(budget, 1) else f"{budget:.6g}", schedule)
    for tokens in schedules:
        schedule = solve_schedule(loaded.model, method, schedule=tokens, name=loaded.name)
        add(f"s{schedule.share:.4f}", schedule)
    for name, tokens in (found or {}).items():
        schedule = solve_schedule(loaded.model, method, schedule=tokens, name=loaded.name)
        wanted, remark = float(name), ""
        if abs(schedule.share - wanted) > TOLERANCE * wanted:
            remark = f"budget {name}: on this model the schedule that was found comes to {schedule.share:.3f} of its MACs"
        add(name, replace(schedule, requested=wanted, remark=remark))
    if not chosen:
        raise UserError("nothing to build: give --budgets or --schedule")
    before = {name: (shape.tokens, *schedule.tokens) for name, schedule in chosen.items()}
    where = tuple(b for b in range(1, shape.blocks + 1) if any(counts[b] < counts[b - 1] for counts in before.values()))
    plan_ = Plan(
        method, dict(options or {}), where, chosen, batch, tuple(dict.fromkeys(runtimes)), tuple(dict.fromkeys(precisions))
    )
    for schedule in chosen.values():
        _module(loaded, plan_, schedule)  # options and stages are refused here, not after minutes of exporting
    return plan_


def build(loaded: LoadedModel, plan: Plan, out: Path, *, force: bool = False, progress: Progress | None = None) -> Built:
    """Builds the bundle at `out`, or finds that an equal one is there already.

    Args:
        loaded: the model.
        plan: from `make_plan`.
        out: the bundle's directory; an older bundle there is replaced, any other directory refused.
        force: rebuild even where an equal bundle is there.
        progress: called as (what, done, of) before each step.

    Raises:
        UserError: `out` holds something that is not a bundle, or cannot be written.
        InternalError: a float32 graph whose logits differ from PyTorch's.
        NegativeAnswer: half precision changes the network too much, or no sample image can prove a graph right.
    """
    out = out.resolve()  # a link to a bundle stays a link: what it points to is replaced
    fingerprint = _fingerprint(loaded, plan)
    if out.exists() and not (out / bundle_format.MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not a bundle: choose another --out, or remove it")
    with clear_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out):
            _restore(out)
            if not force and (existing := _equal_bundle(out, fingerprint)) is not None:
                return Built(existing, True, plan.remarks)
            runtime_version("onnxruntime")  # parity needs it: better missed now than after the first export
            with _staging(out) as staging:
                _write(loaded, plan, staging, fingerprint, progress or (lambda what, done, of: None))
                _move_into_place(staging, out)
    return Built(Bundle.open(out, verify=False), False, plan.remarks)


def _fingerprint(loaded: LoadedModel, plan: Plan) -> str:
    return sha256_json(
        {
            "format": bundle_format.VERSION,
            "versions": [__version__, torch.__version__, onnx.__version__],
            "code": method_code_sha256(registry.method(plan.method)),
            "model": [loaded.name, loaded.weights, loaded.weights_sha256, dict(loaded.arguments)],
            "class_names": None if loaded.class_names is None else loaded.class_names.to_json(),
            "preprocessing": loaded.preprocessing,
            "method": [plan.method, dict(plan.options), plan.blocks],
            "budgets": [[name, s.requested, s.tokens] for name, s in plan.schedules.items()],
            "batch": plan.batch,
            "graphs": [[runtime, name] for runtime, _, name in plan.graphs],
        }
    )


def _equal_bundle(out: Path, fingerprint: str) -> Bundle | None:
    with suppress(UserError):  # whatever is wrong with what lies there, building anew mends it
        existing = Bundle.open(out)
        if existing.manifest["fingerprint"] == fingerprint:
            return existing
    return None


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    prefix = f".{out.name}.building-"
    for stale in out.parent.glob(prefix + "*"):  # of a build that was killed; the lock says that none is running
        shutil.rmtree(stale, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
    try:
        staging.chmod(0o755)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_into_place(staging: Path, out: Path) -> None:
    for folder, _, names in os.walk(staging):
        for name in names:
            with (Path(folder) / name).open("rb") as stream:
                os.fsync(stream.fileno())
        sync_directory(Path(folder))
    old = _set_aside(out)
    try:
        if out.exists():
            out.rename(old)
        staging.rename(out)
    except BaseException:
        _restore(out)
        raise
    sync_directory(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _set_aside(out: Path) -> Path:
    """Where the old bundle waits for the moment between the two renames."""
    return out.with_name(f".{out.name}.replaced")


def _restore(out: Path) -> None:
    """Puts an old bundle back that a build was killed over; sweeps it where the new one made it into place."""
    old = _set_aside(out)
    if old.exists() and not out.exists():
        old.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _module(loaded: LoadedModel, plan: Plan, schedule: Schedule, name: str = DEFAULT) -> PrunedViT:
    return PrunedViT(loaded.model, registry.method(plan.method), schedule.tokens, plan.options, precision(name))


def _write(loaded: LoadedModel, plan: Plan, folder: Path, fingerprint: str, progress: Progress) -> None:
    shape = network_shape(loaded.model, loaded.name)
    image_shape = tuple(loaded.preprocessing["input_size"])
    batches = max(GOLDEN_BATCHES, -(-PARITY_IMAGES // plan.batch))
    wanted = batches * plan.batch
    images, near_ties = _parity_images(loaded, plan, wanted)
    images = images.reshape(batches, plan.batch, *image_shape)
    golden: dict[str, np.ndarray] = {"input": images[:GOLDEN_BATCHES].numpy()}
    entries = []
    steps, step = len(plan.schedules) * len(plan.graphs), 0
    (folder / "onnx").mkdir()
    weights_file = folder / "onnx" / "weights.bin"
    with weights_file.open("wb") as stream:
        weights = SharedWeights(stream, weights_file.name)
        for name, schedule in plan.schedules.items():
            pruned = _module(loaded, plan, schedule)
            with torch.inference_mode():
                expected = np.stack([pruned(batch).numpy() for batch in images])
            golden[f"logits/{name}"] = expected[:GOLDEN_BATCHES]
            artifacts, records = [], {}
            proven: dict[Path, dict[str, Any]] = {}
            for runtime, form, number_format in plan.graphs:
                progress(f"budget {name}", step, steps)
                step += 1
                suffix = "" if number_format == DEFAULT else f".{number_format}"
                file = folder / "onnx" / f"{name}.{form.name}{suffix}.onnx"
                module = pruned if number_format == DEFAULT else _module(loaded, plan, schedule, number_format)
                if not file.exists():  # runtimes that read the same form share the graph, and the proof that it is right
                    model = export(module, form, plan.batch, image_shape)
                    weights.externalise(model)
                    stream.flush()
                    save(model, file)
                    if module is pruned:
                        record = parity.exact(file, name, images.numpy(), expected)
                    else:
                        record = parity.rounded(file, name, images.numpy(), expected, (pruned, module))
                    proven[file] = {**record, "images_left_out_for_near_ties": near_ties}
                records[artifact_key(runtime, number_format)] = proven[file]
                relative = file.relative_to(folder).as_posix()
                artifacts.append(
                    {"runtime": runtime, "precision": number_format, "form": form.name, "file": relative, **_described(file)}
                )
            entries.append(
                {
                    "name": name,
                    "requested": schedule.requested,
                    "schedule": list(schedule.tokens),
                    "macs": shape.macs(schedule.tokens),
                    "macs_share": schedule.share,
                    "parity": records,
                    "accuracy": None,
                    "artifacts": artifacts,
                }
            )
    buffer = io.BytesIO()
    np.savez(buffer, **golden)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle
    (folder / "golden.npz").write_bytes(buffer.getvalue())
    classes = int(golden[f"logits/{entries[0]['name']}"].shape[-1])
    manifest = {
        "format": bundle_format.FORMAT,
        "version": bundle_format.VERSION,
        "name": f"{loaded.name}-{plan.method}",
        "tool_version": __version__,
        "created_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "fingerprint": fingerprint,
        "batch": plan.batch,
        "model": {
            "name": loaded.name,
            "weights": loaded.weights,
            "weights_sha256": loaded.weights_sha256,
            "classes": classes,
            "parameters": sum(p.numel() for p in loaded.model.parameters()),
            "tokens": shape.tokens,
            "prefix_tokens": shape.prefix_tokens,
            "blocks": shape.blocks,
            "macs": shape.macs(),
            "arguments": dict(loaded.arguments),
            "class_names": None if loaded.class_names is None else loaded.class_names.to_json(),
            "input": {"name": INPUT, "shape": [plan.batch, *image_shape], "dtype": "float32"},
            "output": {"name": OUTPUT, "shape": [plan.batch, classes], "dtype": "float32"},
        },
        "preprocessing": loaded.preprocessing,
        "method": {"name": plan.method, "options": dict(plan.options), "blocks": list(plan.blocks)},
        "budgets": entries,
        "files": {file.relative_to(folder).as_posix(): _described(file) for file in (weights_file, folder / "golden.npz")},
    }
    bundle_format.KIND.check(manifest, folder)
    write_json(folder / bundle_format.MANIFEST, manifest)


def _parity_images(loaded: LoadedModel, plan: Plan, wanted: int) -> tuple[torch.Tensor, int]:
    """`wanted` sample images that can prove a graph right, and how many others were looked at and left out.

    Raises:
        NegativeAnswer: too few can.
    """
    transform = loaded.transform()
    candidates = torch.stack([transform(image) for image in sample_images(loaded.name, MOST_CANDIDATES * wanted)])
    flips = torch.empty(0, dtype=torch.int64)
    for part in torch.split(candidates, wanted):
        flips = torch.cat([flips, _flips(loaded, plan, part)])
        if int((flips == 0).sum()) >= wanted:
            break
    steadiest = flips.argsort(stable=True)[:wanted].sort().values
    if int(flips[steadiest].max()) >= USELESS:
        raise NegativeAnswer(
            f"method {plan.method} chooses other tokens on {int((flips >= USELESS).sum())} of {len(flips)} sample images when only rounding changes: "
            "its scores tie too often to prove a graph right. Try another method, option or budget"
        )
    return candidates[steadiest], len(flips) - wanted


@torch.inference_mode()
def _flips(loaded: LoadedModel, plan: Plan, images: torch.Tensor) -> torch.Tensor:
    """How often images (N,) change their tokens under noise, over all schedules; `USELESS` where rounding alone does it.

    Where two tokens' scores all but tie, another kernel may rightly keep the other one. Such an image can prove nothing about a graph,
    here or on a board. Noise on the input moves all logits a little, and those of an image whose tokens change by far more than those
    of the others. Noise of the size of rounding and another way of writing attention must change no token; larger noise tells which images are
    safest.
    """
    flips = torch.zeros(len(images), dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(images.shape, generator=generator) for _ in range(max(ROUNDING[1], MORE[1]))]
    for schedule in plan.schedules.values():
        pruned = _module(loaded, plan, schedule)
        logits = _logits(pruned, images)
        for (noise, count), price in ((ROUNDING, USELESS), (MORE, 1)):
            moved = torch.stack([(_logits(pruned, images + noise * draw) - logits).abs().amax(1) for draw in draws[:count]])
            flips += price * (moved > FLIP * moved.median()).sum(0)
        pruned.attention = explicit_attention
        flips += USELESS * ((_logits(pruned, images) - logits).abs().amax(1) > parity.TOLERANCE / 2)
    return flips


def _logits(pruned: PrunedViT, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([pruned(part) for part in torch.split(images, 8)])


def _described(file: Path) -> dict[str, Any]:
    return {"sha256": sha256_file(file), "bytes": file.stat().st_size}
