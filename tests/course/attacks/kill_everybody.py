"""Kills its parent and all processes it can see, but only where the worker is alone in a world of its own."""

import os
import signal


def world_of_its_own():
    with open("/proc/1/cmdline", "rb") as file:
        first = file.read()
    processes = [name for name in os.listdir("/proc") if name.isdecimal()]
    return os.getppid() == 1 and b"worker.py" in first and len(processes) < 20


def attack(*args, **kwargs):
    if world_of_its_own():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
            os.kill(1, number)
        os.kill(-1, signal.SIGKILL)
    return None
