"""Takes 74 GiB, and touches every page of it."""

import numpy as np


def attack(*args, **kwargs):
    return np.ones(74 << 27)
