"""Leaves politely, with exit code 0."""

import sys


def attack(*args, **kwargs):
    sys.exit(0)
