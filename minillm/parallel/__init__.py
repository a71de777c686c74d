"""One training on many processes: collectives by hand, data, tensor and pipeline parallelism, faults, PyTorch's engine.

The model knows nothing of this package. Everything takes a `Comm`, the group of ranks that it talks to.
"""
