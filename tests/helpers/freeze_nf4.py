"""Writes tests/compress/frozen_nf4.json: what bitsandbytes makes of weights that any machine can compute again.

Run where it is installed: python tests/helpers/freeze_nf4.py
"""

import hashlib
import json
from pathlib import Path

import torch

FILE = Path(__file__).parents[1] / "compress" / "frozen_nf4.json"
SIZES = {"small": 150, "odd": 77, "many": 301 * 64, "ragged": 258 * 64 + 9}


def weights(n_weights):
    """Numbers between -0.06 and 0.06, most small, exact in fp32 on every machine; one block in seven is weak."""
    index = torch.arange(n_weights, dtype=torch.int64)
    whole = ((index + 1) * 2654435761 % 2**20 - 2**19).double()
    strength = torch.where(index // 64 % 7 == 3, 0.01, 0.06).double()
    return ((whole / 2**19) ** 3 * strength).float()


def made_by_bitsandbytes(n_weights):
    from bitsandbytes import functional

    values = weights(n_weights)
    packed, state = functional.quantize_4bit(values, blocksize=64, quant_type="nf4")
    again = functional.dequantize_4bit(packed, state)
    _, double = functional.quantize_4bit(values, blocksize=64, quant_type="nf4", compress_statistics=True)
    twice = functional.dequantize_4bit(packed, double)
    return {
        "packed": hex_of(packed) if n_weights < 1000 else digest_of(packed),
        "absmax": digest_of(state.absmax),
        "weights": digest_of(again),
        "codes": hex_of(double.absmax),
        "largest": hex_of(double.state2.absmax),
        "mean": hex_of(double.offset),
        "weights with small scales": digest_of(twice),
    }


def bytes_of(tensor):
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def hex_of(tensor):
    return bytes_of(tensor).hex()


def digest_of(tensor):
    return hashlib.sha256(bytes_of(tensor)).hexdigest()


def main():
    import bitsandbytes

    made = {"bitsandbytes": bitsandbytes.__version__}
    made |= {name: made_by_bitsandbytes(n_weights) for name, n_weights in SIZES.items()}
    FILE.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
