"""The launch file, run with stand-ins for ROS' two packages that take what it says: no package registry has them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.errors import UserError
from edge_tprune.export.formats.isaac_ros import _LAUNCH
from edge_tprune.export.formats.package import export_package
from edge_tprune.export.formats.request import ExportRequest

#: Of Isaac ROS' TensorRTNode.
PARAMETERS = {
    "model_file_path", "engine_file_path", "input_tensor_names", "input_binding_names", "output_tensor_names", "output_binding_names",
    "input_tensor_formats", "output_tensor_formats", "force_engine_update", "dla_core", "max_workspace_size", "verbose", "enable_fp16",
}  # fmt: skip


def launch(file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def module(name: str, **names: Any) -> None:
        made = ModuleType(name)
        vars(made).update(names)
        monkeypatch.setitem(sys.modules, name, made)

    module("launch", LaunchDescription=list)
    module("launch_ros")
    module("launch_ros.actions", ComposableNodeContainer=SimpleNamespace)
    module("launch_ros.descriptions", ComposableNode=SimpleNamespace)
    (container,) = runpy.run_path(str(file))["generate_launch_description"]()
    (node,) = container.composable_node_descriptions
    return node


def export(built: Path, out: Path, **changes: Any) -> Path:
    request = ExportRequest(**{"budget": "0.6", "format": "isaac-ros", "out": out, "runtime": "tensorrt"} | changes)
    return export_package(Bundle.open(built), request).path


def test_the_node_gets_our_names_and_keeps_our_engine(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export(built, tmp_path / "out")
    node = launch(path / "edge_tprune.launch.py", monkeypatch)
    assert node.plugin == "nvidia::isaac_ros::dnn_inference::TensorRTNode"
    (parameters,) = node.parameters
    assert set(parameters) <= PARAMETERS
    assert parameters["force_engine_update"] is False
    assert (parameters["input_binding_names"], parameters["output_binding_names"]) == (["image"], ["logits"])
    assert Path(parameters["model_file_path"]).is_file()
    assert Path(parameters["engine_file_path"]).parent == path
    assert parameters["enable_fp16"] is False
    assert "network_image_width 48" in (path / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"runtime": "onnxruntime"}, "opset 18"), ({"frame": (48, 48)}, "--fold-preprocessing"), ({"top_k": 2}, "--top-k")],
)
def test_what_the_node_cannot_hold(built: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        export(built, tmp_path / "out", **changes)


def test_a_name_is_no_code() -> None:
    assert "{name}" not in _LAUNCH
