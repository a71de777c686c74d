"""Announces an answer of 4 GiB, then sends for as long as anybody reads."""

import os
import struct


def attack(*args, **kwargs):
    os.write(3, struct.pack(">II", 2**32 - 1, 2**32 - 1))
    while True:
        os.write(3, b"[" * (1 << 20))
