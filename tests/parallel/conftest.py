"""What the tests of many processes share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Ranks compute with one thread each; so does the one process that they are compared with, to the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
