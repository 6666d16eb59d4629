"""A network with a pruned ViT inside (`edge_tprune.prune_in`): as one ONNX graph that is proved to answer as PyTorch does, and how far its answers are
from those of the network that was not pruned.

    pruned = edge_tprune.prune_in(detector, "backbone.encoder", budget=0.65)
    edge_tprune.export_network(pruned, images, "detector.onnx")
    edge_tprune.network_error(detector, pruned, batches)
"""

from __future__ import annotations

import stat
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edge_tprune.bundle.outputs import scale
from edge_tprune.errors import InternalError, NegativeAnswer, UserError, did_you_mean
from edge_tprune.export.exporter import kept_translations, quiet_exporter
from edge_tprune.export.folds import fold
from edge_tprune.export.graph import (
    FORBIDDEN,
    FORMS,
    INPUT,
    UNNAMED,
    GraphError,
    describe_cause,
    infer_values,
    name_nodes,
    name_outputs,
    shape_maps,
    tokens_in_mlp,
)
from edge_tprune.export.parity import TOLERANCE
from edge_tprune.files import check_text_path, clear_write_errors, sync_directory, sync_tree
from edge_tprune.reduction.attention import AttentionForm, explicit_attention
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.statistics import Interval, mean_interval
from edge_tprune.text import first_line, is_text

Metric = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""(outputs of the pruned network, outputs of the network as it was) -> a number per image, (B,)."""

# Share of an output of integers that may be others: where two values tie, rounding decides which is the larger.
_INTEGERS = 0.001
_NOISE = 3e-6  # in units of the root mean square of what it is added to: it moves scores at least as much as rounding does
_TYPES = (
    torch.float16,
    torch.float32,
    torch.float64,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
)
_NO_BATCHES = "give batches of images: a list of tensors (B, 3, H, W), such as [images]"
_LARGEST_BYTES = (1 << 31) - (1 << 20)  # of a protocol buffer


@dataclass(frozen=True)
class NetworkExport:
    """What was written, and how it was proved."""

    file: Path
    outputs: dict[str, tuple[int, ...]]  #: name -> shape
    #: Name -> largest difference from PyTorch's, in units of the root mean square; of integers the share of others.
    differences: dict[str, float]
    images: int  #: on which it was proved
    left_out: int  #: images whose answer rounding alone changes, because two tokens' scores tie: they can prove nothing
    schedules: dict[str, tuple[int, ...]]  #: path of each pruned ViT that the graph calls -> tokens after each block


@dataclass(frozen=True)
class NetworkError:
    """How far a pruned network's answers are from those of the network as it was, on the same images."""

    mean: Interval  #: over the images, paired, with its 95 % interval
    worst: float  #: of an image
    images: int


def export_network(
    network: nn.Module,
    images: Tensor | Sequence[Tensor],
    file: Path | str,
    *,
    runtime: str = "onnxruntime",
    tolerance: float = TOLERANCE,
) -> NetworkExport:
    """Writes a network as one ONNX graph with its weights inside, once ONNX Runtime has answered as PyTorch does.

    The graph's input is called `image`, of the shape of `images`. Its outputs are called `output`, or `output_0`, `output_1`, ... of a sequence, or
    by the keys of a mapping.

    Args:
        network: of one input, in eval mode; any ViT inside may be pruned (`edge_tprune.prune_in`).
        images: a batch (B, 3, H, W), or several of one shape: the graph is proved on all of them.
        file: to write, ends in .onnx; what is there is replaced. Weights of more than 2 GB go to a second file beside it.
        runtime: that the graph is for: "onnxruntime" (opset 23), or "tensorrt" or "tensorrt-rtx" (opset 18).
        tolerance: how far an output may be off, in units of its root mean square.

    Raises:
        UserError: a network in training mode, or one that has no static graph; another file name; a file that cannot be written.
        NegativeAnswer: rounding alone changes the answers to all the images.
        InternalError: the graph does not answer as PyTorch does.
    """
    file, batches = _check(network, images, file, runtime, tolerance)
    form, flat = FORMS[runtime], _Flat(network)
    steady = [(batch, answer) for batch in batches if (answer := _steady_answer(flat, batch, tolerance)) is not None]
    if not steady and not any(isinstance(part, PrunedViT) for part in network.modules()):
        raise UserError(
            f"{type(network).__name__} answers otherwise the second time: it draws random numbers, or changes its images in place, and has no "
            "static graph"
        )
    if not steady:
        raise NegativeAnswer(
            f"rounding alone changes the answers to all {_count(batches)} images: scores of tokens tie too often to prove a graph right. "
            "Give more images, or try another method or budget"
        )
    model = _to_onnx(flat, batches[0], form.opset, form.attention)
    schedules = _check_graph(model, network)
    with clear_write_errors(file), tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        _save(model, Path(folder) / file.name)
        differences = _prove(Path(folder) / file.name, steady, tolerance)
        sync_tree(Path(folder))
        for made in sorted(Path(folder).iterdir(), key=lambda path: path.name == file.name):  # the graph last
            made.replace(file.parent / made.name)
        sync_directory(file.parent)
    shapes = {name: tuple(value.shape) for name, value in steady[0][1].items()}
    used = _count([batch for batch, _ in steady])
    return NetworkExport(file, shapes, differences, used, _count(batches) - used, schedules)


@torch.inference_mode()
def network_error(
    network: nn.Module, pruned: nn.Module, batches: Iterable[Tensor], metric: Metric | None = None
) -> NetworkError:
    """How far a pruned network's answers are from the network's own. No labels needed.

    Args:
        network: as it was, in eval mode.
        pruned: from `edge_tprune.prune_in`.
        batches: of images (B, 3, H, W).
        metric: of the outputs by name (see `export_network`), a number per image. By default the relative error: per image the sum of |pruned -
            network| over the sum of |network|, of all outputs' values; an output of integers counts by the share of values that are others.

    Raises:
        UserError: no images, a network in training mode or one that fails on them, or a metric that does not give a number per image.
    """
    for each in (network, pruned):
        if not isinstance(each, nn.Module):
            raise UserError(f"a {type(each).__name__} is no network of PyTorch's")
        _check_mode(each)
    if metric is not None and not callable(metric):
        raise UserError(f"the metric is {metric!r:.60}: give a function of the outputs of both networks")
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise UserError(_NO_BATCHES)
    found: list[float] = []
    for batch in batches:
        if not isinstance(batch, Tensor) or batch.ndim != 4 or not len(batch):
            raise UserError(_NO_BATCHES)
        found += _errors(pruned, network, batch, metric)
    if not found:
        raise UserError("no images to compare the networks on")
    mean = mean_interval(found)
    return NetworkError(mean.within(0) if min(found) >= 0 else mean, max(found), len(found))


def _errors(pruned: nn.Module, network: nn.Module, batch: Tensor, metric: Metric | None) -> list[float]:
    """How far the answers to each image of a batch are from the network's own."""
    outputs = [_answers(each, batch) for each in (pruned, network)]
    try:
        values = torch.as_tensor((metric or _relative_error)(*outputs))
        whole = values.shape == (len(batch),) and bool(values.isfinite().all())
    except UserError:
        raise
    except Exception as error:  # whatever a metric of a person's raises, or returns
        raise UserError(f"the metric fails ({type(error).__name__}: {first_line(error)})") from error
    if not whole:
        what = f"the metric gave {tuple(values.shape)} for {len(batch)} images: give a finite number per image"
        raise UserError(what if metric is not None else "an output is NaN or infinite: such images compare nothing")
    return [float(value) for value in values]


def _answers(network: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """The outputs by name.

    Raises:
        UserError: the network fails on these images.
    """
    try:
        return _Flat(network).named(batch)
    except UserError:
        raise
    except Exception as error:  # whatever a network of a person's raises
        raise UserError(
            f"{type(network).__name__} fails on images {tuple(batch.shape)} of {batch.dtype}: {first_line(error)}"
        ) from error


class _Flat(nn.Module):
    """A network whose outputs are a tuple of tensors, whatever it returns."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(images).values())

    def named(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        values = list(_named(self.network(images), ""))
        if not values:
            raise UserError(f"{type(self.network).__name__} returns no tensor")
        names = Counter(name for name, _ in values)
        (name, count), *_ = names.most_common(1)
        if count > 1:
            raise UserError(f"{count} outputs of {type(self.network).__name__} would be called {name!r}: rename their keys")
        return dict(values)


def _named(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name or "output", value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _named(part, f"{name}_{key}" if name else str(key))
    elif isinstance(value, (tuple, list)):
        for number, part in enumerate(value):
            yield from _named(part, f"{name or 'output'}_{number}")
    elif value is not None:
        raise UserError(f"a network returns tensors, or sequences or mappings of them, and this one a {type(value).__name__}")


def _check(network: Any, images: Any, file: Any, runtime: Any, tolerance: Any) -> tuple[Path, list[Tensor]]:
    """The file and the batches, once all that can be wrong with the arguments was looked at."""
    if not isinstance(network, nn.Module):
        raise UserError(f"a {type(network).__name__} is no network of PyTorch's")
    if runtime not in list(FORMS):
        raise UserError(f"unknown runtime {runtime!r} (known: {', '.join(FORMS)}).{did_you_mean(str(runtime), FORMS)}")
    if not isinstance(tolerance, Real) or not 0 < tolerance < 1e30:  # type: ignore[operator]
        raise UserError(f"tolerance is {tolerance!r}: give a number above 0")
    try:
        file = Path(file)
        is_file = stat.S_ISREG(file.stat().st_mode)
    except FileNotFoundError:
        is_file = True
    except (TypeError, ValueError, OSError) as error:  # what no file system takes
        raise UserError(f"no file can be called {file!r:.200} ({first_line(error)})") from error
    check_text_path(file, str(file))
    if file.suffix != ".onnx" or not is_file:
        raise UserError(f"{file}: a graph is a file whose name ends in .onnx")
    if not file.parent.is_dir():
        raise UserError(f"{file.parent} is no directory: make it first")
    _check_mode(network)
    given = list(images) if isinstance(images, (list, tuple)) else [images]
    batches = [batch.detach() for batch in given if isinstance(batch, Tensor) and batch.ndim == 4 and len(batch)]
    if not batches or len(batches) < len(given) or len({batch.shape for batch in batches}) != 1:
        raise UserError("give a batch of images, a tensor (B, 3, H, W), or several of one shape")
    odd = [
        batch
        for batch in batches
        if batch.layout is not torch.strided or batch.is_meta or batch.is_quantized or batch.dtype not in _TYPES
    ]
    if odd:
        kind = "meta" if odd[0].is_meta else f"{odd[0].layout}, {odd[0].dtype}"
        raise UserError(
            f"the images are a tensor of a kind that ONNX Runtime is not given ({kind}): give a dense one, such as of float32"
        )
    numbers = [number for number, image in enumerate(torch.cat(batches)) if not bool(image.isfinite().all())]
    if numbers:
        raise UserError(f"image {numbers[0]} has a value that is NaN or infinite")
    with torch.no_grad():
        for name, value in _answers(network, batches[0]).items():
            if value.dtype not in _TYPES:
                raise UserError(f"{name} of {type(network).__name__} is of {value.dtype}, which is not compared: convert it")
    return file, batches


def _check_mode(network: nn.Module) -> None:
    for path, part in network.named_modules():
        if part.training:
            name = f"{path} ({type(part).__name__})" if path else type(part).__name__
            raise UserError(f"{name} is in training mode: call .eval() of the whole network first")


@contextmanager
def _attention(network: nn.Module, form: AttentionForm) -> Iterator[None]:
    """Every pruned ViT inside writes its attention in a form."""
    vits = [(vit, vit.attention) for vit in network.modules() if isinstance(vit, PrunedViT)]
    for vit, _ in vits:
        vit.attention = form
    try:
        yield
    finally:
        for vit, before in vits:
            vit.attention = before


@contextmanager
def _one_name_each(network: nn.Module) -> Iterator[None]:
    """Every pruned ViT inside is a member once: of one that is called by several names the exporter does not say where its nodes came from."""
    seen, moved = set[int](), []
    for path, vit in list(network.named_modules(remove_duplicate=False)):
        parent, _, name = path.rpartition(".")
        holder = network.get_submodule(parent)
        if (
            isinstance(vit, PrunedViT)
            and id(vit) in seen
            and not isinstance(holder, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        ):
            moved.append((holder, name, holder._modules.pop(name)))
            holder.__dict__[name] = vit
        seen.add(id(vit))
    try:
        yield
    finally:
        for holder, name, vit in moved:
            del holder.__dict__[name]
            holder._modules[name] = vit


@torch.inference_mode()
def _steady_answer(flat: _Flat, batch: Tensor, tolerance: float) -> dict[str, np.ndarray] | None:
    """PyTorch's outputs; None where another way of writing attention, and noise of the size of rounding, change them by more than half the tolerance."""
    expected = {name: value.cpu().numpy() for name, value in flat.named(batch).items()}
    for name, value in expected.items():
        if not np.isfinite(value).all():
            raise UserError(
                f"{name} of {type(flat.network).__name__} is NaN or infinite: such a value proves nothing of a graph"
            )
    with _attention(flat, explicit_attention):
        for sign in (1, -1):  # of two tokens that tie, one lifts the one and the other the other
            with _noise(flat, sign):
                moved = flat.named(batch)
            if not all(_difference(value.cpu().numpy(), expected[name]) <= tolerance / 2 for name, value in moved.items()):
                return None
    return expected


@contextmanager
def _noise(network: nn.Module, sign: int) -> Iterator[None]:
    """Adds noise to what every pruned ViT inside is given, whatever the network makes of its images before."""
    generator = torch.Generator().manual_seed(0)

    def add(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = given
        size = x.double().square().mean().sqrt().to(x.dtype)
        return x + sign * _NOISE * size * torch.randn(x.shape, generator=generator).to(x), *others

    embeddings = {vit.patch_embed for vit in network.modules() if isinstance(vit, PrunedViT)}
    handles = [embedding.register_forward_pre_hook(add) for embedding in embeddings]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest, in units of the root mean square; of integers the share of values that are others."""
    if not expected.size:
        return 0.0
    if not np.issubdtype(expected.dtype, np.floating):
        return float((found != expected).mean())
    return float(np.abs(found.astype(np.float64) - expected).max() / scale(expected))


def _to_onnx(flat: _Flat, batch: Tensor, opset: int, attention: AttentionForm) -> onnx.ModelProto:
    names = list(flat.named(batch))
    if INPUT in names:
        raise UserError(
            f"an output of {type(flat.network).__name__} is called {INPUT!r}, as the graph's input is: rename its key"
        )
    if odd := next((name for name in names if not is_text(name)), None):
        raise UserError(f"an output of {type(flat.network).__name__} is called {odd!r}, which is no UTF-8 text: rename its key")
    exported = [f"{UNNAMED}_{number}" for number in range(len(names))]
    try:
        with (
            torch.no_grad(),
            warnings.catch_warnings(),
            quiet_exporter(),
            kept_translations(),
            _attention(flat, attention),
            _one_name_each(flat),
        ):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                flat, (batch,), dynamo=True, opset_version=opset, input_names=[INPUT], output_names=exported, verbose=False
            )
    except Exception as error:  # the exporter raises whatever it meets
        raise UserError(
            f"{type(flat.network).__name__} cannot be exported ({describe_cause(error)}): no shape and no branch may depend on an image"
        ) from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    name_outputs(model, dict(zip(exported, names)))
    shape_maps(model)
    fold(model)
    name_nodes(model)
    return model


def _check_graph(model: onnx.ModelProto, network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Refuses what runtimes do not take; holds every pruned ViT against its schedule. The schedules, by path."""
    for node in model.graph.node:
        if node.op_type in FORBIDDEN or node.domain not in ("", "ai.onnx"):
            raise UserError(
                f"the network's graph contains {node.op_type} ({node.name}), which is not a plain static operation: leave that part out of the "
                "network that is exported"
            )
    values = infer_values(model)
    names = [node.name for node in model.graph.node]
    found = {}
    for path, vit in network.named_modules(remove_duplicate=False):
        if not isinstance(vit, PrunedViT):
            continue
        inside = ".".join(part for part in ("network", path, "model.blocks") if part)
        if not any(name.startswith(f"{inside}.") for name in names):
            continue  # the graph calls it by another of its names, or not at all
        for block, tokens in enumerate(vit.schedule):
            if not any(name.startswith(f"{inside}.{block}.mlp") for name in names):
                continue  # nothing in the network reads it
            realised = tokens_in_mlp(model, values, f"{inside}.{block}", block)
            if realised != tokens:
                raise GraphError(f"the graph keeps {realised} tokens after block {block + 1}, but the schedule says {tokens}")
        found[path] = vit.schedule
    return found


def _save(model: onnx.ModelProto, file: Path) -> None:
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _LARGEST_BYTES
    onnx.save(model, str(file), save_as_external_data=large, location=f"{file.name}.data" if large else None)


def _prove(file: Path, steady: Sequence[tuple[Tensor, dict[str, np.ndarray]]], tolerance: float) -> dict[str, float]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception types share no base
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run the network's graph: {first_line(error)}"
        ) from error
    worst = dict.fromkeys(steady[0][1], 0.0)
    for batch, expected in steady:
        outputs = dict(zip(expected, session.run(list(expected), {INPUT: batch.cpu().numpy()})))
        worst = {name: max(value, _difference(outputs[name], expected[name])) for name, value in worst.items()}
    floating = {name: np.issubdtype(value.dtype, np.floating) for name, value in steady[0][1].items()}
    bad = [name for name in worst if not worst[name] <= (tolerance if floating[name] else _INTEGERS)]
    if bad:
        name = max(bad, key=lambda each: worst[each])
        raise InternalError(
            f"the exported graph is not the same network: {name} is off by {worst[name]:.2e}"
            + (
                f" of its root mean square (allowed {tolerance:.0e})"
                if floating[name]
                else f" of its values (allowed {_INTEGERS:g})"
            )
            + ". Nothing was written"
        )
    return worst


def _relative_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Tensor:
    shapes = [{name: tuple(value.shape) for name, value in outputs.items()} for outputs in (found, expected)]
    if shapes[0] != shapes[1]:
        raise UserError(f"the pruned network gives {shapes[0]} and the other one {shapes[1]}: give a metric")
    count = len(next(iter(expected.values())))
    off, size = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for name, value in expected.items():
        if value.ndim == 0 or len(value) != count:
            raise UserError(f"output {name} {tuple(value.shape)} does not have an entry per image: give a metric")
        if value.is_floating_point():
            exact = value.double().reshape(count, -1)
            off += (found[name].double().reshape(count, -1) - exact).abs().sum(1).cpu()
            size += exact.abs().sum(1).cpu()
        else:
            off += (found[name] != value).double().reshape(count, -1).sum(1).cpu()
            size += value[0].numel()
    return off / size.clamp_min(torch.finfo(torch.float64).tiny)


def _count(batches: Sequence[Tensor]) -> int:
    return sum(len(batch) for batch in batches)
