"""Writes tests/compress/frozen_ggml.json: the bytes that ggml's C makes of weights that any machine can compute again.

Run where `pywhispercpp` is installed, whose wheel carries the library: python tests/helpers/freeze_ggml.py
"""

import ctypes
import hashlib
import importlib.metadata
import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).parents[1] / "compress" / "frozen_ggml.json"
SIZES = {"q8_0": 34, "q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q4_k": 144, "q6_k": 210}  # bytes of a block
SHAPE = (3, 8 * 256)


def numbers(start=1):
    """Numbers between -1 and 1, most small, exact in float32 on every machine."""
    index = np.arange(start, start + SHAPE[0] * SHAPE[1], dtype=np.int64)
    return ((index * 2654435761 % 2**20 - 2**19) / 2**19) ** 3


def cases():
    """Name -> weights, (rows, width) float32."""
    block = np.arange(SHAPE[0] * SHAPE[1]) // 32
    made = {
        "plain": numbers() * 0.06,
        "strong": numbers(7) * 1234.5,
        "weak": numbers(11) * 1e-6,
        "scales of all sizes": numbers(13) * 10.0 ** -(block % 11),
        "all positive": np.abs(numbers(17)) + 0.01,
        "all negative": -np.abs(numbers(19)) - 0.01,
        "far from zero": numbers(23) * 0.1 + 3,
        "many equal": np.round(numbers(29) * 8) / 8,
        "zero blocks": np.where(block % 3 == 1, 0.0, numbers(31)),
        "zero half blocks": np.where((np.arange(len(block)) // 16) % 3 == 1, 0.0, numbers(37)),
        "outliers": np.where(np.arange(len(block)) % 97 == 5, 40.0, 1.0) * numbers(41),
        "zeros": np.zeros(len(block)),
        "constant": np.full(len(block), 0.3),
        "negative constant": np.full(len(block), -0.3),
    }
    return {name: values.astype(np.float32).reshape(SHAPE) for name, values in made.items()}


def library():
    """ggml's own encoders; needs pywhispercpp."""
    (path, *_) = [file for file in importlib.metadata.files("pywhispercpp") if file.name == "libggml-base.so"]
    return ctypes.CDLL(str(path.locate()))


def made_by_c(name, weights):
    """The bytes of a matrix."""
    values = np.ascontiguousarray(weights, dtype=np.float32)
    per_block = 256 if name.endswith("k") else 32
    out = np.zeros((len(values), values.shape[1] // per_block * SIZES[name]), dtype=np.uint8)
    encoder = getattr(library(), f"quantize_row_{name.replace('k', 'K')}_ref")
    encoder.argtypes, encoder.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    encoder(values.ctypes.data, out.ctypes.data, values.size)
    return out


def decoded_by_c(name, data):
    """The numbers that bytes mean, by ggml's own decoder."""
    per_block = 256 if name.endswith("k") else 32
    out = np.zeros((len(data), data.shape[1] // SIZES[name] * per_block), dtype=np.float32)
    decoder = getattr(library(), f"dequantize_row_{name.replace('k', 'K')}")
    decoder.argtypes, decoder.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    decoder(np.ascontiguousarray(data).ctypes.data, out.ctypes.data, out.size)
    return out


def digest_of(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def main():
    made = {"library": f"pywhispercpp {importlib.metadata.version('pywhispercpp')}"}
    for name in SIZES:
        encoded = {case: made_by_c(name, weights) for case, weights in cases().items()}
        made[name] = {
            "first block": encoded["plain"][0, : SIZES[name]].tobytes().hex(),
            "encoded": {case: digest_of(data) for case, data in encoded.items()},
            "decoded": {case: digest_of(decoded_by_c(name, data)) for case, data in encoded.items()},
        }
    FILE.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
