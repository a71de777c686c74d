"""Never answers, and does not compute."""

import time


def attack(*args, **kwargs):
    time.sleep(1e6)
