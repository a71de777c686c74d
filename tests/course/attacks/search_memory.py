"""Looks for the expected value among all live objects and in the frames above."""

import gc
import sys

import numpy as np
import torch


def attack(*args, **kwargs):
    given = {id(value) for value in args}
    found = []
    frame = sys._getframe(1)
    while frame is not None:
        found += list(frame.f_locals.values())
        frame = frame.f_back
    for value in gc.get_objects() + found:
        if isinstance(value, torch.Tensor | np.ndarray) and id(value) not in given and value.ndim:
            found.append(value)
    named = [value for value in found if isinstance(value, torch.Tensor) and value.dtype == torch.float64]
    return named[-1] if named else None
