"""Named dimensions, checked at the door of a function, for torch tensors and numpy arrays; does not import torch."""

from typing import Protocol

from minillm.errors import ShapeError


class HasShape(Protocol):
    """Anything with a `.shape`: a numpy array or a torch tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def check_shape(name: str, tensor: HasShape, dims: str, sizes: dict[str, int]) -> None:
    """Check `tensor` against `dims` such as "B H T D", learning each new letter into `sizes`.

    Args:
        name: how the error message calls the tensor.
        tensor: the tensor or array to check.
        dims: one letter (learned) or number (fixed) per dimension, separated by spaces;
            a leading "..." allows any number of dimensions before them.
        sizes: letter -> size; letters already there must agree, new ones are added only if the whole check passes.

    Raises:
        ShapeError: if the number of dimensions or a known size differs.

    Example:
        >>> import numpy as np
        >>> sizes = {"B": 2}
        >>> check_shape("query", np.zeros((2, 3, 4)), "B T D", sizes)
        >>> sizes
        {'B': 2, 'T': 3, 'D': 4}
        >>> check_shape("key", np.zeros((2, 3, 5)), "B S D", sizes)
        Traceback (most recent call last):
        minillm.errors.ShapeError: key has shape (2, 3, 5), expected (B=2, S, D=4)
    """
    letters = dims.split()
    shape = tuple(tensor.shape)
    open_front = letters[:1] == ["..."]
    if open_front:
        letters = letters[1:]
    tail = shape[len(shape) - len(letters) :] if open_front else shape
    learned = dict(sizes)
    fits = len(tail) == len(letters) and all(
        (int(letter) if letter.isdigit() else learned.setdefault(letter, size)) == size
        for letter, size in zip(letters, tail, strict=True)
    )
    if not fits:
        expected = ", ".join(
            ["..."] * open_front + [f"{letter}={sizes[letter]}" if letter in sizes else letter for letter in letters]
        )
        raise ShapeError(f"{name} has shape {shape}, expected ({expected})")
    sizes.update(learned)
