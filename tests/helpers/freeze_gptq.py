"""Writes tests/compress/frozen_gptq.json: codes that neural-compressor's GPTQ gives to matrices all machines can make.

Run where it is installed (neural-compressor-pt 3.10, py-cpuinfo, prettytable): python tests/helpers/freeze_gptq.py
"""

import hashlib
import json
import warnings
from pathlib import Path

import torch

from minillm.compress.grid import Grid, QuantSpec, find_grid, quantize

FILE = Path(__file__).parents[1] / "compress" / "frozen_gptq.json"
SHAPE = {"whole rows": (12, 72), "wide": (5, 150)}
KINDS = {  # group size, activation order, when grids are found, block size
    "whole rows": (0, False, "fresh", 128),
    "whole rows, activation order": (0, True, "fresh", 128),
    "wide": (0, False, "fresh", 128),
    "groups as wide as blocks": (24, False, "fresh", 24),
    "groups in wide blocks": (24, False, "reference", 48),
    "groups, activation order": (24, True, "static", 128),
}
LATE = ("groups as wide as blocks", "groups in wide blocks")  # there the largest weight, 3.5 steps, is a tie by chance
CASES = {
    f"{kind}, {bits} bits, {'symmetric' if symmetric else 'asymmetric'}": (kind, bits, symmetric)
    for kind in KINDS
    for bits in (4, 3, 2)
    for symmetric in ((False,) if kind in LATE else (False, True))
}


def mixed(n_numbers, salt):
    """Whole numbers from -512 to 511 that look random."""
    index = torch.arange(1, n_numbers + 1, dtype=torch.int64)
    for _ in range(3):
        index = (index * 2654435761 + salt * 40503) % 2**31
        index = index ^ (index >> 13)
    return index % 1024 - 512


def matrices(case):
    """Weights (O, I) and products of inputs (I, I), exact in fp32 on every machine; neighbouring inputs are alike."""
    kind, bits, symmetric = CASES[case]
    n_rows, n_columns = SHAPE.get(kind, SHAPE["whole rows"])
    salt = 10 * bits + symmetric
    weight = (mixed(n_rows * n_columns, salt).float() / 512).view(n_rows, n_columns)
    drawn = (mixed(3 * n_columns * n_columns, salt + 1000) // 64).float().view(-1, n_columns)
    inputs = drawn + drawn.roll(1, 1) + (drawn.sum(1, keepdim=True) / n_columns).round()
    return weight, 128 * (inputs.T @ inputs) + torch.arange(n_columns).float().diag()  # no two of 128 columns tie


def made_by_neural_compressor(case):
    """The rounded matrix, its scales and its zeros."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from neural_compressor.torch.algorithms.weight_only.gptq import GPTQ

    kind, bits, symmetric = CASES[case]
    group, activation_order, groups, block_size = KINDS[kind]
    weight, hessian = matrices(case)
    work = GPTQ(torch.nn.Linear(*weight.T.shape, bias=False), weight.clone())
    settings = {"bits": bits, "sym": symmetric, "dtype": "int", "group_size": group or -1, "mse": False}
    work.quantizer.configure(settings | {"perchannel": True, "use_double_quant": False, "double_quant_sym": False})
    work.H = hessian.clone()
    static, width = groups == "static", group or -1
    order = {"act_order": activation_order, "static_groups": static}
    scale, _, zero, rounded = work.fasterquant(weight.clone(), block_size, 0.01, width, **order)
    return rounded, scale, zero


def spec_of(case):
    kind, bits, symmetric = CASES[case]
    return QuantSpec(bits, KINDS[kind][0], symmetric, "full_range" if symmetric else "textbook")


def frozen(case, rounded, scale, zero):
    """What is written down: the first row's codes, to read; a digest of all; the mean scale."""
    spec = spec_of(case)
    if scale.shape[1] != spec.n_groups(rounded.shape[1]):          # of static groups it hands out the last scales only
        scale, zero = (grid := find_grid(matrices(case)[0], spec)).scale, grid.zero
    codes = quantize(rounded, Grid(scale, zero, spec))
    digest = hashlib.sha256(codes.numpy().tobytes()).hexdigest()
    first = "".join(f"{code:x}" for code in codes[0].tolist())
    return {"first row": first, "codes": digest, "mean scale": round(scale.double().mean().item(), 6)}


def main():
    found = {case: frozen(case, *made_by_neural_compressor(case)) for case in CASES}
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
