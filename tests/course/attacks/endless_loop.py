"""Never answers, and computes."""


def attack(*args, **kwargs):
    while True:
        pass
