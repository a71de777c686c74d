"""Options and settings that all tests share."""

import random

import numpy as np
import pytest
import torch

SEED = 0


def pytest_addoption(parser):
    parser.addoption(
        "--skips-are-errors",
        action="store_true",
        help="fail when a test is skipped for want of a package; files that are no part of the project may be missing",
    )
    parser.addoption("--solution", metavar="FILE", help="run the graders in tests/graders on a learner's file")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--skips-are-errors"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        if not reason.endswith("not here"):
            report.outcome, report.longrepr = "failed", f"skipped, which is an error here: {reason}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Models and peers made without a generator of their own draw the same numbers in every run, in any order."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small gain nothing from a second thread, and lose much where something else computes beside them.

    Ranks compute with one thread each, too; so what they are compared with does, to the last bits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
