"""Sends a few bytes that claim to be a tensor of 2**60 numbers."""

import json
import os
import struct


def attack(*args, **kwargs):
    tensor = {"type": "tensor", "value": "a0", "dtype": "float64", "shape": [2**30, 2**30]}
    structure = {"type": "dict", "value": [{"type": "list", "value": ["value", tensor]}]}
    text = json.dumps(structure).encode()
    os.write(3, struct.pack(">II", len(text), 0) + text)
    os._exit(0)
