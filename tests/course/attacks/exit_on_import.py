"""Leaves with exit code 0 before anything was asked: a test run in the same process would end without a failure."""

import os

os._exit(0)


def attack(*args, **kwargs):
    return None
