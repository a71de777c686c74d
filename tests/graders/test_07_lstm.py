"""Graders of chapter 07: each test names the task it belongs to; `impl` is the library or a learner's file.

The oracles are torch's own cells, fed through a unit matrix, loops over single numbers, and finite differences.
"""

import math

import numpy as np
import torch

from minillm.course.grader import expect, expect_close, expect_equal, expect_error, normal, task
from minillm.nn.recurrent_by_hand import LSTMMemory


def sizes(rng):
    return int(rng.integers(1, 5)), int(rng.integers(2, 6))


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def cell_inputs(rng, n_gates, n_states, scale=1.0):
    """from_input, state, weight_hh and bias_hh of a random cell of random size."""
    n_rows, width = sizes(rng)
    state = tuple(normal(rng, n_rows, width) for _ in range(n_states))
    shapes = (n_gates * width, width), (n_gates * width,)
    return scale * normal(rng, n_rows, n_gates * width), state, *(normal(rng, *shape) for shape in shapes)


def torch_cell(kind, from_input, state, weight, bias):
    """torch's cell of this kind; its input weights are a unit matrix, so that from_input is what they give."""
    n_rows, width = weight.shape
    cell = kind(n_rows, width).double()
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    bias = torch.zeros(n_rows).double() if bias is None else bias
    for name, value in zip(names, (torch.eye(n_rows), weight, torch.zeros(n_rows), bias), strict=True):
        setattr(cell, name, torch.nn.Parameter(value.double()))
    with torch.no_grad():
        got = cell(from_input, state if len(state) > 1 else state[0])
    return got if isinstance(got, tuple) else (got,)


def expect_step(step, oracle, arguments, what):
    """Value with and without a bias, and that no argument was changed."""
    got, after = step.after(*arguments)
    expect_close(got, torch_cell(oracle, *arguments), what=f"{what}, new state")
    expect_close(step(*arguments[:3]), torch_cell(oracle, *arguments[:3], None), what=f"{what}, new state without bias")
    for name, given, left in zip(("from_input", "state", "weight_hh", "bias_hh"), arguments, after, strict=True):
        expect_equal(left, given, what=f"{name} after the call")


def expect_gradients(step, arguments, formula, rng, what):
    """Gradients by from_input, weight and bias against those of the formula, a function of all four."""
    directions = [normal(rng, *each.shape) for each in arguments[1]]
    leaves = [arguments[place].clone().requires_grad_() for place in (0, 2, 3)]
    values = formula(leaves[0], arguments[1], *leaves[1:])
    expected = torch.autograd.grad(values, leaves, directions)
    _, got = step.gradients(*arguments, output_gradient=directions)
    for name, place, theirs in zip(("from_input", "weight_hh", "bias_hh"), (0, 2, 3), expected, strict=True):
        expect_close(got[place], theirs, what=f"{what}, gradient of {name}")


def sigma(x):
    return 1 / (1 + torch.exp(-x))


# 7.1 the simplest cell


@task("7.1")
def test_rnn_by_hand(impl, rng):
    got = impl.rnn_step(tensor([0.5, -1.0]), (tensor([1.0, 2.0]),), tensor([0.1, 0.2], [0.0, 0.5]))
    expect_close(got, (tensor([math.tanh(1.0), math.tanh(0.0)]),), what="tanh of 0.5 + 0.1 + 0.4 and of -1 + 1")
    got = impl.rnn_step(tensor([0.5]), (tensor([1.0]),), tensor([2.0]), torch.tensor([-2.0], dtype=torch.float64))
    expect_close(got, (tensor([math.tanh(0.5)]),), what="tanh of 0.5 + 2 - 2")


@task("7.1", cases=4)
def test_rnn_is_torchs(impl, rng):
    expect_step(impl.rnn_step, torch.nn.RNNCell, cell_inputs(rng, 1, 1), "a simple cell")


@task("7.1", cases=2)
def test_rnn_gradients_of_the_step(impl, rng):
    arguments = cell_inputs(rng, 1, 1)
    expect_gradients(
        impl.rnn_step, arguments, lambda x, state, w, b: (torch.tanh(x + state[0] @ w.T + b),), rng, "a simple cell"
    )


# 7.2 the long short-term memory


@task("7.2")
def test_lstm_by_hand(impl, rng):
    """Shut and open gates: keep, replace, add, hide."""
    shut, opened = -1e3, 1e3
    for name, gates, cell, expected in (
        ("keep everything, take nothing", (shut, opened, 7.0, opened), 0.6, 0.6),
        ("forget everything, take the candidate", (opened, shut, 0.5, opened), 0.6, math.tanh(0.5)),
        ("keep and add", (opened, opened, 0.5, opened), 0.6, 0.6 + math.tanh(0.5)),
        ("half of both", (0.0, 0.0, 0.5, opened), 0.6, 0.3 + math.tanh(0.5) / 2),
    ):
        got = impl.lstm_step(tensor(list(gates)), (tensor([0.0]), tensor([cell])), torch.zeros(4, 1).double())
        expect_close(got, (tensor([math.tanh(expected)]), tensor([expected])), what=f"{name}: hidden and cell")
    got = impl.lstm_step(
        tensor([shut, opened, 0.0, shut]), (tensor([0.3]), tensor([2.0])), torch.zeros(4, 1).double()
    )
    expect_close(got, (tensor([0.0]), tensor([2.0])), what="a cell that is kept but not shown")


@task("7.2", cases=4)
def test_lstm_is_torchs(impl, rng):
    expect_step(impl.lstm_step, torch.nn.LSTMCell, cell_inputs(rng, 4, 2), "an LSTM cell")


@task("7.2", cases=2)
def test_lstm_gradients_of_the_step(impl, rng):
    def formula(x, state, weight, bias):
        i, f, g, o = (x + state[0] @ weight.T + bias).split(state[0].shape[1], dim=1)
        cell = sigma(f) * state[1] + sigma(i) * torch.tanh(g)
        return sigma(o) * torch.tanh(cell), cell

    expect_gradients(impl.lstm_step, cell_inputs(rng, 4, 2), formula, rng, "an LSTM cell")


@task("7.2", cases=2)
def test_a_cell_may_grow_beyond_one(impl, rng):
    n_rows, width = sizes(rng)
    state = normal(rng, n_rows, width), 20 * normal(rng, n_rows, width)
    arguments = 5 + normal(rng, n_rows, 4 * width), state, normal(rng, 4 * width, width), normal(rng, 4 * width)
    expect_step(impl.lstm_step, torch.nn.LSTMCell, arguments, "an LSTM cell with large contents")


# 7.3 the gated recurrent unit


@task("7.3")
def test_gru_by_hand(impl, rng):
    shut, opened = -1e3, 1e3
    weight = tensor([0.0], [0.0], [2.0])
    for name, gates, expected in (
        ("update gate open: nothing changes", (opened, opened, 0.3), 0.25),
        ("update gate shut, reset gate shut: only the input", (shut, shut, 0.3), math.tanh(0.3)),
        ("update gate shut, reset gate open: input and state", (opened, shut, 0.3), math.tanh(0.3 + 0.5)),
        ("half and half", (opened, 0.0, 0.3), (math.tanh(0.8) + 0.25) / 2),
        ("half of the state's product", (0.0, shut, 0.3), math.tanh(0.3 + 0.25)),
    ):
        got = impl.gru_step(tensor(list(gates)), (tensor([0.25]),), weight)
        expect_close(got, (tensor([expected]),), what=f"{name}: hidden")
    bias = torch.tensor([0.0, 0.0, 5.0], dtype=torch.float64)
    got = impl.gru_step(tensor([shut, shut, 0.3]), (tensor([0.25]),), weight, bias)
    expect_close(got, (tensor([math.tanh(0.3)]),), what="the reset gate also silences the candidate's bias_hh")


@task("7.3", cases=5)
def test_gru_is_torchs(impl, rng):
    expect_step(impl.gru_step, torch.nn.GRUCell, cell_inputs(rng, 3, 1), "a gated recurrent unit")


@task("7.3", cases=2)
def test_gru_gradients_of_the_step(impl, rng):
    def formula(x, state, weight, bias):
        (a1, a2, a3), (b1, b2, b3) = x.chunk(3, 1), (state[0] @ weight.T + bias).chunk(3, 1)
        z = sigma(a2 + b2)
        return ((1 - z) * torch.tanh(a3 + sigma(a1 + b1) * b3) + z * state[0],)

    expect_gradients(impl.gru_step, cell_inputs(rng, 3, 1), formula, rng, "a gated recurrent unit")


# 7.4 which rows begin anew


@task("7.4")
def test_kept_by_hand(impl, rng):
    got = impl.keep_state((tensor([1.0, 2.0], [3.0, 4.0]),), torch.tensor([True, False]))
    expect_equal(got, (tensor([0.0, 0.0], [3.0, 4.0]),), what="the first of two rows begins anew")


@task("7.4", cases=4)
def test_kept_rows(impl, rng):
    n_rows = int(rng.integers(2, 6))
    starts = torch.from_numpy(rng.random(n_rows) < 0.5)
    for leading in ((), (n_rows,), (3,)):                          # as many layers as rows, too
        for n_states in (1, 2):
            state = tuple(normal(rng, *leading, n_rows, n_rows) for _ in range(n_states))
            expected = tuple(each.clone() for each in state)
            for each in expected:
                for row in range(n_rows):
                    if starts[row]:
                        each[..., row, :] = 0.0
            got, after = impl.keep_state.after(state, starts)
            expect_equal(got, expected, what=f"state of shape {tuple(state[0].shape)}, starts {starts.tolist()}")
            expect_equal(after[0], state, what="the state given, after the call")
            expect_equal(after[1], starts, what="starts after the call")


@task("7.4")
def test_nothing_survives_a_start(impl, rng):
    state = torch.full((2, 3, 4), math.nan), torch.full((2, 3, 4), math.inf), torch.full((2, 3, 4), -7.0)
    for each in impl.keep_state(state, torch.ones(3, dtype=torch.bool)):
        expect_equal(each, torch.zeros(2, 3, 4), what="a state of NaN, infinity or -7 in rows that all begin anew")


# 7.5 back-propagation through time


def scalar_states(from_input, hidden, weight):
    """Every state, number by number."""
    n_steps, n_rows, width = from_input.shape
    states = np.zeros((n_steps + 1, n_rows, width))
    states[0] = hidden
    for step in range(n_steps):
        for row in range(n_rows):
            for unit in range(width):
                total = from_input[step, row, unit]
                for other in range(width):
                    total += weight[unit, other] * states[step, row, other]
                states[step + 1, row, unit] = math.tanh(total)
    return states


def autograd_oracle(from_input, hidden, weight, from_above, window):
    x, first, matrix = (torch.from_numpy(each).clone().requires_grad_() for each in (from_input, hidden, weight))
    state, loss = first, 0.0
    for step in range(len(from_input)):
        if window is not None and step % window == 0:
            state = state.detach()
        state = torch.tanh(x[step] + state @ matrix.T)
        loss = loss + (state * torch.from_numpy(from_above[step])).sum()
    found = torch.autograd.grad(loss, (x, matrix, first), allow_unused=True)
    shapes = from_input.shape, weight.shape, hidden.shape
    return tuple(np.zeros(s) if each is None else each.numpy() for each, s in zip(found, shapes, strict=True))


def through_time(rng, n_steps):
    n_rows, width = sizes(rng)
    shapes = (n_steps, n_rows, width), (n_rows, width), (width, width), (n_steps, n_rows, width)
    return [rng.standard_normal(shape) for shape in shapes]


def expect_three(got, expected, what):
    expect(isinstance(got, tuple) and len(got) == 3, f"{what}: expected three arrays: by_input, by_weight, by_first")
    for name, ours, theirs in zip(("by_input", "by_weight", "by_first"), got, expected, strict=True):
        expect_close(ours, theirs, what=f"{what}: {name}")


@task("7.5")
def test_through_time_by_hand(impl, rng):
    states = np.array([[[0.0]], [[0.5]], [[0.0]]])
    got = impl.rnn_gradients(states, np.array([[2.0]]), np.array([[[0.0]], [[1.0]]]))
    expect_three(got, (np.array([[[1.5]], [[1.0]]]), np.array([[0.5]]), np.array([[3.0]])), "two steps, W = 2")
    got = impl.rnn_gradients(states, np.array([[2.0]]), np.array([[[0.0]], [[1.0]]]), 1)
    expect_three(got, (np.array([[[0.0]], [[1.0]]]), np.array([[0.5]]), np.array([[0.0]])), "the same, window 1")


@task("7.5", cases=4)
def test_through_time(impl, rng):
    n_steps = int(rng.integers(1, 9))
    from_input, hidden, weight, from_above = through_time(rng, n_steps)
    states = scalar_states(from_input, hidden, weight)
    arguments = states, weight, from_above
    got, after = impl.rnn_gradients.after(*arguments)
    expect_three(got, autograd_oracle(from_input, hidden, weight, from_above, None), f"{n_steps} steps")
    for name, given, left in zip(("states", "weight_hh", "from_above"), arguments, after, strict=True):
        expect_equal(left, given, what=f"{name} after the call")


@task("7.5", cases=3)
def test_through_time_truncated(impl, rng):
    n_steps = int(rng.integers(4, 10))
    from_input, hidden, weight, from_above = through_time(rng, n_steps)
    states = scalar_states(from_input, hidden, weight)
    for window in (1, 2, 3, n_steps - 1, n_steps, n_steps + 1):
        got = impl.rnn_gradients(states, weight, from_above, window)
        expected = autograd_oracle(from_input, hidden, weight, from_above, window)
        expect_three(got, expected, f"{n_steps} steps in windows of {window}")


@task("7.5")
def test_only_the_last_step_is_asked(impl, rng):
    """By finite differences: how does the last state change with the first input?"""
    from_input, hidden, weight, from_above = through_time(rng, 5)
    from_above[:-1] = 0.0
    by_input, _, by_first = impl.rnn_gradients(scalar_states(from_input, hidden, weight), weight, from_above)
    for given, got, what in ((from_input, by_input[0], "first input"), (hidden, by_first, "first state")):
        changed = given[0] if given is from_input else given
        slopes = np.zeros_like(changed)
        for place in np.ndindex(changed.shape):
            last = []
            for step in (1e-5, -1e-5):
                changed[place] += step
                last.append((scalar_states(from_input, hidden, weight)[-1] * from_above[-1]).sum())
                changed[place] -= step
            slopes[place] = (last[0] - last[1]) / 2e-5
        expect_close(got, slopes, tolerance=1e-7, what=f"last state by the {what}, by finite differences")


@task("7.5")
def test_a_window_needs_a_step(impl, rng):
    for window in (0, -1):
        with expect_error(ValueError):
            impl.rnn_gradients(np.zeros((2, 1, 1)), np.ones((1, 1)), np.ones((1, 1, 1)), window)


# 7.6 an LSTM step backwards


def lstm_numbers(s, cell_before):
    """One unit from its four sums: the gates, the cell and the hidden state."""
    i, f, o = (1 / (1 + math.exp(-s[k])) for k in (0, 1, 3))
    g = math.tanh(s[2])
    cell = f * cell_before + i * g
    return (i, f, g, o), cell, o * math.tanh(cell)


def lstm_forward(from_input, hidden, cell, weight):
    """One step of a batch by loops: gates, hidden and cell."""
    n_rows, width = hidden.shape
    sums = from_input.copy()
    for b, k in np.ndindex(sums.shape):
        sums[b, k] += sum(weight[k, d] * hidden[b, d] for d in range(width))
    gates, new_hidden, new_cell = np.zeros((n_rows, 4 * width)), np.zeros_like(hidden), np.zeros_like(cell)
    for b in range(n_rows):
        for d in range(width):
            four, new_cell[b, d], new_hidden[b, d] = lstm_numbers(sums[b, d::width], cell[b, d])
            gates[b, d::width] = four
    return gates, new_hidden, new_cell


def lstm_inputs(rng):
    n_rows, width = sizes(rng)
    shapes = (n_rows, 4 * width), (n_rows, width), (n_rows, width), (4 * width, width)
    return [rng.standard_normal(shape) for shape in shapes]


def autograd_lstm(inputs, hidden_back, cell_back):
    """Gradients by from_input, hidden, cell and weight, in the order of the task."""
    x, hidden, cell, weight = leaves = [torch.from_numpy(each).clone().requires_grad_() for each in inputs]
    i, f, g, o = (x + hidden @ weight.T).split(hidden.shape[1], dim=1)
    new_cell = sigma(f) * cell + sigma(i) * torch.tanh(g)
    new_hidden = sigma(o) * torch.tanh(new_cell)
    loss = (new_hidden * torch.from_numpy(hidden_back)).sum() + (new_cell * torch.from_numpy(cell_back)).sum()
    return tuple(each.numpy() for each in torch.autograd.grad(loss, leaves))


def expect_four(got, expected, what):
    expect(isinstance(got, tuple) and len(got) == 4, f"{what}: expected four arrays")
    names = "from_input", "hidden_before", "cell_before", "weight_hh"
    for name, ours, theirs in zip(names, got, expected, strict=True):
        expect_close(ours, theirs, what=f"{what}: gradient by {name}")


@task("7.6")
def test_backwards_by_hand(impl, rng):
    """Gates half open, candidate 0.5, old cell 2: each gate has what it multiplies, times its slope of 1/4 or 3/4."""
    memory = LSTMMemory(np.array([[0.5, 0.5, 0.5, 0.5]]), np.array([[1.0]]), np.array([[2.0]]), np.array([[0.0]]))
    weight = np.array([[1.0], [10.0], [100.0], [1000.0]])
    got = impl.lstm_backward_step(np.array([[4.0]]), np.array([[6.0]]), memory, weight)
    by_cell = 6 + 4 * 0.5                                          # tanh(0) is 0, its slope 1
    by_input = [by_cell * 0.5 / 4, by_cell * 2 / 4, by_cell * 0.5 * 0.75, 0.0]
    expected = [np.array([by_input]), np.array([[by_input[0] + 10 * by_input[1] + 100 * by_input[2]]]),
                np.array([[by_cell * 0.5]]), np.array(by_input)[:, None]]  # fmt: skip
    expect_four(got, expected, "a cell of 0")


@task("7.6", cases=4)
def test_backwards(impl, rng):
    inputs = from_input, hidden, cell, weight = lstm_inputs(rng)
    gates, _, new_cell = lstm_forward(*inputs)
    back = rng.standard_normal(hidden.shape), rng.standard_normal(hidden.shape)
    memory = LSTMMemory(gates, hidden, cell, new_cell)
    got, after = impl.lstm_backward_step.after(*back, memory, weight)
    expect_four(got, autograd_lstm(inputs, *back), "a step backwards")
    for name, given, left in zip(("hidden_back", "cell_back"), back, after[:2], strict=True):
        expect_equal(left, given, what=f"{name} after the call")
    expect_equal(after[3], weight, what="weight_hh after the call")


@task("7.6", cases=2)
def test_backwards_from_one_side_only(impl, rng):
    inputs = from_input, hidden, cell, weight = lstm_inputs(rng)
    gates, _, new_cell = lstm_forward(*inputs)
    memory = LSTMMemory(gates, hidden, cell, new_cell)
    some, none = rng.standard_normal(hidden.shape), np.zeros(hidden.shape)
    for name, back in (("the hidden state", (some, none)), ("the cell", (none, some))):
        expect_four(impl.lstm_backward_step(*back, memory, weight), autograd_lstm(inputs, *back), f"only from {name}")


@task("7.6")
def test_backwards_by_finite_differences(impl, rng):
    inputs = lstm_inputs(rng)
    back = rng.standard_normal(inputs[1].shape), rng.standard_normal(inputs[1].shape)
    gates, _, new_cell = lstm_forward(*inputs)
    got = impl.lstm_backward_step(*back, LSTMMemory(gates, inputs[1], inputs[2], new_cell), inputs[3])
    expect(isinstance(got, tuple) and len(got) == 4, "expected four arrays")
    names = "from_input", "hidden_before", "cell_before", "weight_hh"
    for name, given, ours in zip(names, inputs, got, strict=True):
        slopes = np.zeros_like(given)
        for place in np.ndindex(given.shape):
            losses = []
            for step in (1e-5, -1e-5):
                given[place] += step
                _, new_hidden, cell = lstm_forward(*inputs)
                losses.append((new_hidden * back[0]).sum() + (cell * back[1]).sum())
                given[place] -= step
            slopes[place] = (losses[0] - losses[1]) / 2e-5
        expect_close(ours, slopes, tolerance=1e-7, what=f"gradient by {name}, by finite differences")
