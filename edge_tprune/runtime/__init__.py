"""A graph or an engine file in, an `Engine` that runs it out: ONNX Runtime, TensorRT, TensorRT-RTX.

May import: nothing of the other rooms. No torch; runs on boards. A runtime's library is imported by the first call that needs it.
"""
