"""A board has no torch, timm or onnx: everything it needs must import without them."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "timm", "onnx"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
names = ["edge_tprune.models.data", "edge_tprune.models.preprocess"]
for room in ("schedule", "bundle", "runtime", "telemetry", "simulator", "record", "agent", "analysis", "deploy"):
    package = importlib.import_module(f"edge_tprune.{room}")
    names += [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
assert "onnxruntime" not in sys.modules, "onnxruntime is imported before it is needed"
print(len(names))
"""


def test_board_rooms_import_without_the_host_packages() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 12
