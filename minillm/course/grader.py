"""What the tests in `tests/graders` import: the mark that ties a test to its task, inputs, and comparisons.

A grader's test takes `impl` (the library or a learner's file) and, if it needs random inputs, `rng`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from minillm.course.comparison import Wrong, expect, expect_close, expect_equal, expect_error
from minillm.course.proxy import RaisedThere
from minillm.course.wire import Endless, Seeded

__all__ = [
    "Endless",
    "Grading",
    "RaisedThere",
    "Seeded",
    "Wrong",
    "case_rng",
    "expect",
    "expect_close",
    "expect_equal",
    "expect_error",
    "grading",
    "normal",
    "task",
]


@dataclass(frozen=True)
class Grading:
    """What a test grades.

    Args:
        task_id: the task it belongs to.
        cases: how often it runs, each time with other random numbers.
        needs: other tasks of the chapter whose library functions the test itself calls.
    """

    task_id: str
    cases: int = 1
    needs: tuple[str, ...] = ()


def task(task_id: str, cases: int = 1, needs: tuple[str, ...] = ()) -> Callable[[Callable], Callable]:
    """Mark a test as one of a task's; see `Grading`."""

    def mark(test: Callable) -> Callable:
        test.grading = Grading(task_id, cases, tuple(needs))
        return test

    return mark


def grading(test: Any) -> Grading | None:
    """The mark of a test function, or None."""
    found = getattr(test, "grading", None)
    return found if isinstance(found, Grading) else None


def case_rng(seed: int, test_name: str, case: int) -> np.random.Generator:
    """The random numbers of one case of one test: the same for the same three arguments, on every machine."""
    digest = hashlib.sha256(f"{seed}/{test_name}/{case}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def normal(rng: np.random.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Normally distributed numbers as a torch tensor of this shape."""
    return torch.from_numpy(np.asarray(rng.standard_normal(shape))).to(dtype)
