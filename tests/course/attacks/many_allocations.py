"""Takes memory piece by piece, and goes on when a piece is refused."""


def attack(*args, **kwargs):
    pieces = []
    while True:
        try:
            pieces.append(b"x" * (1 << 24))
        except MemoryError:
            pass
