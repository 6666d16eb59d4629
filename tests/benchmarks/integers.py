"""Which form of INT8 ONNX Runtime runs fastest: Q/DQ with constant ranges, as we write it, or ranges found again for every image.

    python -m tests.benchmarks.integers --model deit_tiny_patch16_224 --batches 1,8

Times, in turn, the unpruned network in float32, its INT8 graph, and the same graph with DynamicQuantizeLinear and MatMulInteger in the place of
Q/DQ. Weights are random: the time does not depend on them. What ONNX Runtime made of each graph is counted from the graph that it optimised.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from edge_tprune.cli.terminal import Heading, Table, print_table
from edge_tprune.export.graph import FORMS, export
from edge_tprune.models.loading import load_model
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT, network_shape
from edge_tprune.reduction.precision import PRECISIONS
from edge_tprune.reduction.quantization import quantizable, quantize_layers

FORM = FORMS["onnxruntime"]
_KINDS = ("Gemm", "MatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QuantizeLinear", "DequantizeLinear")


def with_dynamic_ranges(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the range of every product's input taken from the input itself."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    source = {name: node for node in model.graph.node for name in node.output}
    nodes = []
    for node in model.graph.node:
        weight = source.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None and weight.op_type == "DequantizeLinear":
            read = source[source[node.input[0]].input[0]].input[0]  # before both roundings
            out, (integers, scale) = node.output[0], weight.input[:2]
            nodes += [
                helper.make_node("DynamicQuantizeLinear", [read], [f"{out}_q", f"{out}_s", f"{out}_z"]),
                helper.make_node("MatMulInteger", [f"{out}_q", integers, f"{out}_z"], [f"{out}_sum"]),
                helper.make_node("Cast", [f"{out}_sum"], [f"{out}_float"], to=onnx.TensorProto.FLOAT),
                helper.make_node("Mul", [f"{out}_s", scale], [f"{out}_scale"]),
                helper.make_node("Mul", [f"{out}_float", f"{out}_scale"], [out]),
            ]
        elif node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            nodes.append(node)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def open_session(model: onnx.ModelProto, folder: Path, threads: int) -> tuple[ort.InferenceSession, Counter[str]]:
    """A session whose idle threads do not spin, so that the others are not disturbed, and the operators that it runs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(folder / "optimised.onnx", load_external_data=False).graph.node)
    return session, kinds


def time_in_turn(
    sessions: dict[str, ort.InferenceSession], image: dict[str, np.ndarray], rounds: int
) -> dict[str, list[float]]:
    """By name, the median latency (ms) of each round."""
    found: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            session.run(None, image)
            times = []
            for _ in range(5):
                begin = time.perf_counter()
                session.run(None, image)
                times.append(1e3 * (time.perf_counter() - begin))
            found[name].append(statistics.median(times))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    loaded = load_model(options.model, "random")
    names = quantizable(loaded.model)
    integers = quantize_layers(loaded.model, dict.fromkeys(names, (-4.0, 4.0)), FORM.inputs)
    none, shape = registry.method("none"), loaded.preprocessing.input_size
    rows = []
    for batch in map(int, options.batches.split(",")):
        networks = {"float32": (loaded.model, PRECISIONS["fp32"]), "int8, constant ranges": (integers, FORM.integers)}
        graphs = {
            name: export(PrunedViT(network, none, network_shape(network).full_schedule(), {}, precision), FORM, batch, shape)
            for name, (network, precision) in networks.items()
        }
        graphs["int8, dynamic ranges"] = with_dynamic_ranges(graphs["int8, constant ranges"])
        with tempfile.TemporaryDirectory() as folder:
            sessions = {name: open_session(model, Path(folder), options.threads) for name, model in graphs.items()}
        image = {"image": np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)}
        medians = time_in_turn({name: session for name, (session, _) in sessions.items()}, image, options.rounds)
        for name, found in medians.items():
            ratios = [one / other for one, other in zip(medians["float32"], found)]
            kinds = " ".join(f"{kind} {count}" for kind, count in sessions[name][1].items() if kind in _KINDS)
            rows.append([str(batch), name, f"{statistics.median(found):.1f}", f"{statistics.median(ratios):.2f}", kinds])
    labels = ("batch", "form", "ms", "times float32's speed", "operators")
    print_table(
        Table(list(map(Heading, labels)), rows, f"{options.model}, ONNX Runtime {ort.__version__}, {options.threads} threads")
    )


if __name__ == "__main__":
    main()
