"""Writes files until there is no room, also where it should not."""
# needs: read-only work

import os


def attack(*args, **kwargs):
    for number in range(40):
        for folder in (".", "/tmp", "/dev/shm", "/var/tmp"):
            try:
                with open(os.path.join(folder, f"minillm-attack-{number}"), "wb") as file:
                    file.write(b"x" * (1 << 24))
            except OSError:
                continue
    return None
