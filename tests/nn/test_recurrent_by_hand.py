"""Back-propagation through time by hand against torch's autograd and against finite differences."""

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from minillm.errors import ConfigError
from minillm.nn.recurrent_by_hand import lstm_forward_step, lstm_gradients, rnn_gradients, rnn_states, sigmoid

T, B, D = 6, 3, 4


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def leaves(*arrays):
    return [torch.from_numpy(array.copy()).requires_grad_() for array in arrays]


@pytest.mark.parametrize("window", [None, 1, 2, 4, 6, 9])
def test_rnn_against_autograd_with_detached_states(window):
    from_input, first, weight, from_above = numbers(T, B, D), numbers(B, D), numbers(D, D), numbers(T, B, D, seed=9)
    states = rnn_states(from_input, first, weight)
    ours = rnn_gradients(states, weight, from_above, window)
    x, hidden, matrix = leaves(from_input, first, weight)
    state, loss = hidden, 0.0
    for step in range(T):
        if window and step % window == 0:
            state = state.detach()
        state = torch.tanh(x[step] + linear(state, matrix))
        np.testing.assert_allclose(states[step + 1], state.detach(), rtol=1e-12)
        loss = loss + (state * torch.from_numpy(from_above[step])).sum()
    expected = torch.autograd.grad(loss, (x, matrix, hidden), allow_unused=True)
    for mine, theirs in zip(ours, expected, strict=True):
        np.testing.assert_allclose(mine, 0.0 if theirs is None else theirs.numpy(), rtol=1e-10, atol=1e-12)


def test_rnn_against_finite_differences():
    from_input, first, weight, from_above = numbers(T, B, D), numbers(B, D), numbers(D, D), numbers(T, B, D, seed=9)
    _, by_weight, _ = rnn_gradients(rnn_states(from_input, first, weight), weight, from_above)
    for place in np.ndindex(D, D):
        step = np.zeros((D, D))
        step[place] = 1e-6
        up, down = (rnn_states(from_input, first, weight + sign * step)[1:] for sign in (1, -1))
        assert abs(((up - down) * from_above).sum() / 2e-6 - by_weight[place]) < 1e-6 * max(1, abs(by_weight[place]))


def test_a_window_must_hold_a_step():
    with pytest.raises(ConfigError, match="window is 0"):
        rnn_gradients(np.zeros((2, 1, 1)), np.zeros((1, 1)), np.zeros((1, 1, 1)), window=0)


def test_lstm_against_torch():
    """torch's LSTM reads the inputs through a unit matrix, so that its gradient by the input is ours by from_input."""
    from_input, weight, from_above = numbers(T, B, 4 * D), numbers(4 * D, D), numbers(T, B, D, seed=9)
    hidden, cell = numbers(B, D, seed=3), numbers(B, D, seed=4)
    theirs = torch.nn.LSTM(4 * D, D, bias=False).double()
    theirs.load_state_dict({"weight_ih_l0": torch.eye(4 * D), "weight_hh_l0": torch.from_numpy(weight)})
    x, first, first_cell = leaves(from_input, hidden[None], cell[None])
    outputs, _ = theirs(x, (first, first_cell))
    wanted = (x, theirs.weight_hh_l0, first, first_cell)
    expected = torch.autograd.grad((outputs * torch.from_numpy(from_above)).sum(), wanted)
    for mine, torchs in zip(lstm_gradients(from_input, hidden, cell, weight, from_above), expected, strict=True):
        np.testing.assert_allclose(mine, torchs.numpy().reshape(mine.shape), rtol=1e-9, atol=1e-12)
    step = lstm_forward_step(from_input[0], hidden, cell, weight)
    np.testing.assert_allclose(step[0], outputs[0].detach(), rtol=1e-12)


def test_sigmoid_at_both_ends():
    np.testing.assert_allclose(sigmoid(np.array([-1e4, 0.0, 1e4, 1.0])), [0, 0.5, 1, 1 / (1 + np.exp(-1))], atol=1e-15)
