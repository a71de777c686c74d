"""The warm-up schedule of the Transformer."""

import pytest

from minillm.errors import ConfigError
from minillm.train.schedule import warmup_inverse_square_root


def test_formula_and_peak():
    rates = [warmup_inverse_square_root(step, 512, 4000) for step in range(20_000)]
    assert max(rates) == rates[3999] == pytest.approx((512 * 4000) ** -0.5, rel=1e-12)
    assert rates[999] == pytest.approx(rates[3999] / 4, rel=1e-12)  # straight up
    assert rates[15_999] == pytest.approx(rates[3999] / 2, rel=1e-12)  # four times the steps, half the rate
    assert rates[0] > 0


@pytest.mark.parametrize("arguments", [(-1, 4, 4), (0, 0, 4), (0, 4, 0)])
def test_bad_input(arguments):
    with pytest.raises(ConfigError, match="expected"):
        warmup_inverse_square_root(*arguments)
