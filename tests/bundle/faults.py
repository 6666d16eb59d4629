"""Faults put into real graphs, by the onnx package, and bundles that hold such graphs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.files import sha256_file

Fault = Callable[[onnx.ModelProto], None]


def half_bundle(source: Path, target: Path) -> Path:
    """A copy of a bundle whose graphs in fp16, made for TensorRT, are ONNX Runtime's, so that they can run here."""
    shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    for budget in manifest["budgets"]:
        budget["artifacts"] = [
            {**artifact, "runtime": "onnxruntime"}
            for artifact in budget["artifacts"]
            if (artifact["runtime"], artifact["precision"]) in (("onnxruntime", "fp32"), ("tensorrt", "fp16"))
        ]
        budget["parity"] = {
            "onnxruntime": budget["parity"]["onnxruntime"],
            "onnxruntime-fp16": budget["parity"]["tensorrt-fp16"],
        }
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def damage(path: Path, budget: str, precision: str, fault: Fault) -> Bundle:
    """Puts a fault into a graph of the bundle at `path`, and makes its manifest agree, as if it had been built so."""
    manifest = json.loads((path / "manifest.json").read_text())
    for entry in manifest["budgets"]:
        for artifact in entry["artifacts"]:
            if (entry["name"], artifact["precision"]) == (budget, precision):
                file = path / artifact["file"]
                put_into(file, file, fault)
                artifact.update(sha256=sha256_file(file), bytes=file.stat().st_size)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(path)


def put_into(file: Path, target: Path, fault: Fault) -> None:
    """Writes the graph with a fault; weights stay outside."""
    model = onnx.load(file, load_external_data=False)
    fault(model)
    target.write_bytes(model.SerializeToString())


def _insert_after(model: onnx.ModelProto, place: int, nodes: list[onnx.NodeProto]) -> None:
    """Puts nodes behind the output of one node: the first reads that output as "faulty", the last gives what it was called."""
    for offset, node in enumerate(nodes):
        model.graph.node.insert(place + 1 + offset, node)


def double(block: int) -> Fault:
    """A scale that is off by 2: what the MLP of a block, counted from 1, adds to the stream."""

    def fault(model: onnx.ModelProto) -> None:
        last = tuple(f"model.blocks.{block - 1}.mlp.fc2/{kind}" for kind in ("Add", "Gemm"))  # the bias is added by one of them
        places = [place for place, node in enumerate(model.graph.node) if node.name.startswith(last)]
        if not places:
            return
        node = model.graph.node[places[0]]
        output, node.output[0] = node.output[0], "faulty"
        name = f"model.blocks.{block - 1}.mlp.fc2/Add_fault"
        _insert_after(model, places[0], [helper.make_node("Add", ["faulty", "faulty"], [output], name)])

    return fault


def overflow_norm(block: int, limit: float) -> Fault:
    """The first norm of a block, counted from 1, reads its input in half precision, scaled so that numbers beyond `limit` overflow."""

    def fault(model: onnx.ModelProto) -> None:
        prefix = f"model.blocks.{block - 1}.norm1/"
        place = next(p for p, n in enumerate(model.graph.node) if n.name.startswith(prefix + "Cast"))
        node = model.graph.node[place]
        output, node.output[0] = node.output[0], "faulty"
        scale = np.float32(65504.0 / limit)
        for name, value in (("fault_up", scale), ("fault_down", 1 / scale), ("fault_axis", np.array([0]))):
            kind = np.int64 if name == "fault_axis" else np.float32
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, kind), name))
        steps = [
            ("Mul", ["faulty", "fault_up"], {}),
            ("Cast", [], {"to": TensorProto.FLOAT16}),
            ("Unsqueeze", ["fault_axis"], {}),  # so that ONNX Runtime does not join the two casts
            ("Squeeze", ["fault_axis"], {}),
            ("Cast", [], {"to": TensorProto.FLOAT}),
            ("Mul", ["fault_down"], {}),
        ]
        nodes, value = [], ""
        for number, (kind, inputs, attributes) in enumerate(steps):
            made = output if number == len(steps) - 1 else f"fault_{number}"
            nodes.append(
                helper.make_node(kind, [*([value] if value else []), *inputs], [made], f"{prefix}fault_{number}", **attributes)
            )
            value = made
        _insert_after(model, place, nodes)

    return fault
