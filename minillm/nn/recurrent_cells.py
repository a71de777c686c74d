"""Recurrent cells: one step of a small network that reads an input and its own last state.

A layer makes two products per step: of the input, which is known beforehand for all steps at once, and of the state,
which is not. The steps take the first one ready-made (`from_input`) and do the second.

Dimensions: T steps, B batch, D width of the state. A state is a tuple of tensors (B, D): (hidden,) for "rnn" and "gru",
(hidden, cell) for "lstm". The gates of a cell lie side by side, so that one product makes them all.
"""

import torch
from torch import Tensor

from minillm.nn.linear import linear

State = tuple[Tensor, ...]


def rnn_step(from_input: Tensor, state: State, weight_hh: Tensor, bias_hh: Tensor | None = None) -> State:
    """One step of the simplest recurrent network: tanh(from_input + W_hh hidden + b_hh).

    Args:
        from_input: (B, D), the input's product with its own weights and bias, W_ih x + b_ih.
        state: (hidden,) with hidden (B, D), what the last step left.
        weight_hh: (D, D).
        bias_hh: (D,) or None.

    Returns:
        (hidden,), (B, D): the new state, which is also the step's output.

    Source:
        Elman 1990, "Finding structure in time" (there with a logistic function).

    Example:
        >>> half = torch.tensor([[0.5]]).atanh()
        >>> rnn_step(half, (torch.tensor([[0.25]]),), torch.tensor([[0.0]]))
        (tensor([[0.5000]]),)
    """
    (hidden,) = state
    return (torch.tanh(from_input + linear(hidden, weight_hh, bias_hh)),)


def lstm_gates(from_input: Tensor, hidden: Tensor, weight_hh: Tensor, bias_hh: Tensor | None = None) -> State:
    """What the four parts of an LSTM cell say: three gates between 0 and 1 and a candidate between -1 and 1.

    Args:
        from_input: (B, 4 D), W_ih x + b_ih; input gate, forget gate, candidate and output gate side by side.
        hidden: (B, D).
        weight_hh: (4 D, D), its rows in the same order.
        bias_hh: (4 D,) or None.

    Returns:
        (input_gate, forget_gate, candidate, output_gate), each (B, D): sigmoids, but the candidate, which is a tanh.
    """
    total = from_input + linear(hidden, weight_hh, bias_hh)        # (B, 4*D)
    input_gate, forget_gate, candidate, output_gate = total.chunk(4, dim=-1)
    return input_gate.sigmoid(), forget_gate.sigmoid(), candidate.tanh(), output_gate.sigmoid()


def lstm_step(from_input: Tensor, state: State, weight_hh: Tensor, bias_hh: Tensor | None = None) -> State:
    """One step of a long short-term memory: the cell is kept, added to, and shown, each as far as a gate allows.

    The four parts are those of `lstm_gates`: with i, f, o the gates and g the candidate, the new cell is
    f * cell + i * g and the new hidden state o * tanh(new cell).

    Args:
        from_input: (B, 4 D), W_ih x + b_ih; input gate, forget gate, candidate, output gate side by side.
        state: (hidden, cell), each (B, D), what the last step left.
        weight_hh: (4 D, D), its rows in the same order.
        bias_hh: (4 D,) or None.

    Returns:
        (hidden, cell), each (B, D).

    Source:
        Hochreiter and Schmidhuber 1997, "Long short-term memory"; the forget gate: Gers, Schmidhuber and Cummins 2000,
        "Learning to forget". No peepholes; order of the gates as in cuDNN and torch.

    Example:
        >>> open_shut = torch.tensor([[100.0, -100.0, 0.5493, 100.0]])  # take, forget, tanh is 0.5, show
        >>> hidden, cell = lstm_step(open_shut, (torch.zeros(1, 1), torch.ones(1, 1)), torch.zeros(4, 1))
        >>> round(cell.item(), 4), round(hidden.item(), 4)
        (0.5, 0.4621)
    """
    hidden, cell = state
    input_gate, forget_gate, candidate, output_gate = lstm_gates(from_input, hidden, weight_hh, bias_hh)
    cell = forget_gate * cell + input_gate * candidate             # (B, D)
    return output_gate * torch.tanh(cell), cell


def gru_step(from_input: Tensor, state: State, weight_hh: Tensor, bias_hh: Tensor | None = None) -> State:
    """One step of a gated recurrent unit: the new state lies between the old one and a candidate.

    With a and b the thirds of from_input and of W_hh hidden + b_hh: reset r = sigmoid(a1 + b1), update
    z = sigmoid(a2 + b2), candidate n = tanh(a3 + r * b3), and the new state is (1 - z) * n + z * hidden.

    Args:
        from_input: (B, 3 D), W_ih x + b_ih; reset gate, update gate, candidate side by side.
        state: (hidden,) with hidden (B, D), what the last step left.
        weight_hh: (3 D, D), its rows in the same order.
        bias_hh: (3 D,) or None; its last third is inside the brackets with r, and does not merge with b_ih.

    Returns:
        (hidden,), (B, D).

    Source:
        Cho et al. 2014, arXiv:1406.1078, eq. (5) to (8), where r multiplies the state before the product, W (r * h). We
        multiply after the product, r * (W h + b), as cuDNN and torch do. Cho's z and ours are the same.

    Example:
        >>> between = torch.tensor([[-100.0, 0.0, 0.5493]])  # the state unseen, half and half, 0.5
        >>> gru_step(between, (torch.tensor([[0.25]]),), torch.zeros(3, 1))
        (tensor([[0.3750]]),)
    """
    (hidden,) = state
    from_hidden = linear(hidden, weight_hh, bias_hh)               # (B, 3*D)
    (reset, update, candidate), (r, z, n) = from_input.chunk(3, dim=-1), from_hidden.chunk(3, dim=-1)
    update = torch.sigmoid(update + z)                             # (B, D)
    candidate = torch.tanh(candidate + torch.sigmoid(reset + r) * n)  # (B, D)
    return ((1 - update) * candidate + update * hidden,)


STEPS = {"rnn": rnn_step, "lstm": lstm_step, "gru": gru_step}


def keep_state(state: State, starts: Tensor) -> State:
    """The state for the next step: as it is, but zero in the rows that begin anew.

    Args:
        state: tensors of shape (..., B, D), the batch next to last.
        starts: (B,) bool, True where a row begins anew.

    Returns:
        The same number of tensors of the same shapes. Rows that go on keep their values and their gradient; a row that
        begins anew is exactly 0 even where it held NaN, and sends no gradient back.

    Example:
        >>> keep_state((torch.tensor([[1.0], [2.0]]),), torch.tensor([False, True]))
        (tensor([[1.],
                [0.]]),)
    """
    return tuple(each.masked_fill(starts[:, None], 0.0) for each in state)


def detached(state: State | None) -> State | None:
    """The same numbers without their history: gradients end here. This is all that truncation is."""
    return None if state is None else tuple(each.detach() for each in state)


def run_steps(
    kind: str, from_input: Tensor, state: State, weight_hh: Tensor, bias_hh: Tensor | None, starts: Tensor | None = None
) -> State:
    """One layer over all steps, step by step: the definition of what the fused path computes.

    Args:
        kind: "rnn", "lstm" or "gru".
        from_input: (T, B, gates * D), at least one step.
        state: tensors (B, D).
        weight_hh: (gates * D, D).
        bias_hh: (gates * D,) or None.
        starts: (T, B) bool, True where a row begins anew at that step, or None.

    Returns:
        The state after every step, tensors (T, B, D); the first of them is the output.
    """
    after = []
    for step, now in enumerate(from_input):
        if starts is not None:
            state = keep_state(state, starts[step])
        state = STEPS[kind](now, state, weight_hh, bias_hh)
        after.append(state)
    return tuple(torch.stack(each) for each in zip(*after, strict=True))
