"""TensorRT and TensorRT-RTX: the library at hand, the builder, the cache of engine files, the runner, the inspection."""
