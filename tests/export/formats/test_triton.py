"""config.pbtxt, read by Triton's own schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.errors import UserError
from edge_tprune.export.formats.package import export_package
from edge_tprune.export.formats.request import ExportRequest


def read_config(file: Path) -> Any:
    """The configuration as Triton reads it: an unknown field is an error."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")
    from google.protobuf import text_format

    return text_format.Parse(file.read_text(), schema.ModelConfig())


def export(built: Path, out: Path, **changes: Any) -> Path:
    request = ExportRequest(**{"budget": "0.6", "format": "triton", "out": out} | changes)
    return export_package(Bundle.open(built), request).path


def test_a_model_of_a_repository(built: Path, tmp_path: Path) -> None:
    (tmp_path / "other/1").mkdir(parents=True)  # another model of the same repository
    path = export(built, tmp_path)
    assert path == tmp_path / "small-test-evit-0.6"
    assert (path / "1/model.onnx").is_file()
    config = read_config(path / "config.pbtxt")
    assert (config.name, config.platform, config.max_batch_size) == (path.name, "onnxruntime_onnx", 0)
    (image,), (logits,) = config.input, config.output
    assert (image.name, image.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[image.data_type].name) == (
        "image",
        "TYPE_FP32",
    )
    assert (list(image.dims), list(logits.dims)) == ([1, 3, 48, 48], [1, 6])
    assert (path / logits.label_filename).read_text().splitlines() == list("012345")
    assert (path / "1" / config.default_model_filename).is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", path.name]
    with pytest.raises(UserError, match="exists"):
        export(built, tmp_path)
    assert export(built, tmp_path, force=True) == path


def test_frames_and_best_classes(built: Path, tmp_path: Path) -> None:
    config = read_config(export(built, tmp_path, frame=(48, 64), top_k=3, name="cam.0") / "config.pbtxt")
    assert config.name == "cam.0"
    assert [(t.name, t.data_type, list(t.dims)) for t in (*config.input, *config.output)] == [
        ("frames", 2, [1, 48, 64, 3]),
        ("probabilities", 11, [1, 3]),
        ("classes", 9, [1, 3]),
    ]  # TYPE_UINT8, TYPE_FP32, TYPE_INT64
    assert not any(output.label_filename for output in config.output)


def test_an_engine_file_per_board(built: Path, tmp_path: Path) -> None:
    (tmp_path / "orin.plan").write_bytes(b"engine of Orin")
    (tmp_path / "pc.plan").write_bytes(b"engine of a PC")
    plans = (("8.7", tmp_path / "orin.plan"), ("8.9", tmp_path / "pc.plan"))
    path = export(built, tmp_path / "repository", runtime="tensorrt", plans=plans)
    config = read_config(path / "config.pbtxt")
    assert config.platform == "tensorrt_plan"
    files = dict(config.cc_model_filenames)
    assert files == {"8.7": "model_sm87.plan", "8.9": "model_sm89.plan"}
    assert (path / "1" / files["8.7"]).read_bytes() == b"engine of Orin"
    assert (path / "1" / config.default_model_filename).is_file()
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "Triton refuses the name 'a/b'"),
        ({"name": "..x"}, "Triton refuses the name"),
        ({"plans": (("8.7", Path("none.plan")),)}, "give --runtime tensorrt too"),
        ({"plans": (("8.7", Path("none.plan")),), "runtime": "tensorrt"}, r"8\.7=none\.plan: there is no such file"),
        ({"plans": (("orin", Path("none.plan")),), "runtime": "tensorrt"}, "'orin' is no compute capability"),
    ],
)
def test_what_triton_does_not_take(built: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        export(built, tmp_path / "out", **changes)
    assert list(tmp_path.iterdir()) == []
