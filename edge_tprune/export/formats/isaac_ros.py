"""Format `isaac-ros`: a launch description for Isaac ROS' TensorRT node.

`force_engine_update` is true by default there, which would replace an engine file that was checked by one that was not: it is set to false.
"""

from __future__ import annotations

import json

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import Artifact
from edge_tprune.errors import UserError
from edge_tprune.export.formats.readme import describe_input, describe_outputs, write_readme
from edge_tprune.export.formats.request import ExportRequest, Format, Package

_LAUNCH = '''"""Runs model.onnx in Isaac ROS' TensorRT node: ros2 launch {file}. Part of a package that edge-tprune exported."""

from pathlib import Path

from launch import LaunchDescription
from launch_ros.actions import ComposableNodeContainer
from launch_ros.descriptions import ComposableNode

FOLDER = Path(__file__).resolve().parent


def generate_launch_description() -> LaunchDescription:
    """The node; images as tensors come in on tensor_pub, scores go out on tensor_sub."""
    node = ComposableNode(
        name="edge_tprune",
        package="isaac_ros_tensor_rt",
        plugin="nvidia::isaac_ros::dnn_inference::TensorRTNode",
        parameters=[
            {{
                "model_file_path": str(FOLDER / "model.onnx"),
                "engine_file_path": str(FOLDER / "model.plan"),
                "input_tensor_names": ["input_tensor"],
                "input_binding_names": {inputs},
                "input_tensor_formats": ["nitros_tensor_list_nchw_rgb_f32"],
                "output_tensor_names": ["output_tensor"],
                "output_binding_names": {outputs},
                "output_tensor_formats": ["nitros_tensor_list_nchw_rgb_f32"],
                "force_engine_update": False,
                "enable_fp16": {half},
                "verbose": False,
            }}
        ],
    )
    container = ComposableNodeContainer(
        name="edge_tprune_container",
        namespace="",
        package="rclcpp_components",
        executable="component_container_mt",
        composable_node_descriptions=[node],
        output="screen",
    )
    return LaunchDescription([container])
'''
_FILE = "edge_tprune.launch.py"


class IsaacRos(Format):
    """A launch description."""

    def check(self, request: ExportRequest, bundle: Bundle, artifact: Artifact, name: str) -> None:
        """What the node can hold.

        Raises:
            UserError: a graph of opset 23, preprocessing or top-k in the graph.
        """
        if artifact.form == "attention-op":
            raise UserError(
                "Isaac ROS' TensorRT reads the graph of opset 18: give --runtime tensorrt (and build the bundle with it)"
            )
        if request.frame is not None or request.top_k is not None:
            option = "--top-k" if request.frame is None else "--fold-preprocessing"
            raise UserError(f"Isaac ROS' encoder hands over float32 tensors and its decoder reads logits: leave {option} out")

    def write(self, package: Package) -> None:
        """The launch description and the README."""
        text = _LAUNCH.format(
            file=_FILE,
            inputs=json.dumps([package.about.input.name]),
            outputs=json.dumps([output.name for output in package.about.outputs]),
            half=package.artifact.precision != "fp32",
        )
        package.write(_FILE, text)
        given = package.bundle.manifest.preprocessing
        size = f"network_image_width {given.size[1]}, network_image_height {given.size[0]}"
        lines = [
            "```sh",
            "trtexec --onnx=model.onnx --saveEngine=model.plan --stronglyTyped",
            f"ros2 launch {_FILE}",
            "```",
            "",
            f"Encoder (`isaac_ros_dnn_image_encoder`): {size}, image_mean {list(given.mean)}, image_stddev {list(given.std)}.",
            describe_input(package),
            describe_outputs(package),
        ]
        write_readme(package, lines)
