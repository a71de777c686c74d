"""Chapter 07, RNN, LSTM, GRU: fill in the holes (16 points).

`minillm course test 07` tests this file, `minillm course test 07 7.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import numpy as np
import torch
from torch import Tensor

from minillm.errors import ConfigError
from minillm.nn.linear import linear
from minillm.nn.recurrent_by_hand import LSTMMemory
from minillm.nn.recurrent_cells import State, lstm_gates


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
    # TASK 7.1 (1 point)
    # `linear` makes the product of the state with its weights and adds the bias where there is one. The input's
    # part is there already; add the two, then the tanh. Give back a tuple of one tensor: every kind of network
    # hands on a tuple.
    raise NotImplementedError("task 7.1")


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
    # TASK 7.2 (3 points)
    # `lstm_gates` gives the four parts in the order in which they lie. First the new cell, from the old one and
    # the candidate; then the hidden state, from the new cell. Both leave the function, the hidden state first.
    raise NotImplementedError("task 7.2")


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
    # TASK 7.3 (3 points)
    # Make the state's product once, bias included, and cut both products into thirds. The reset gate belongs
    # between the two last thirds: it multiplies the state's, not the input's. Where the update gate is 1 nothing
    # changes.
    raise NotImplementedError("task 7.3")


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
    # TASK 7.4 (1 point)
    # A mask of rows (B,) must be told that it speaks of rows and not of numbers within one. And zero times NaN is
    # NaN: do not multiply, write.
    raise NotImplementedError("task 7.4")


def rnn_gradients(
    states: np.ndarray, weight_hh: np.ndarray, from_above: np.ndarray, window: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Back-propagation through time of `rnn_states`, truncated to windows if asked for.

    The loss changes with a state in two ways: directly, which `from_above` says, and through the next step, whose sum
    contains W_hh times this state. The slope of tanh is 1 - tanh^2.

    Args:
        states: (T + 1, B, D), as `rnn_states` gives them; T is at least 1.
        weight_hh: (D, D).
        from_above: (T, B, D), gradient of the loss by the state after each step, apart from what runs through later
            steps.
        window: steps 0, window, 2 window, ... take the state before them as given: they send nothing back to it.
            None: gradients run back through all steps.

    Returns:
        by_input (T, B, D), gradient by `from_input`; by_weight (D, D), summed over steps and rows; by_first (B, D),
        gradient by the state before the first step (0 with a window). No argument is changed.

    Raises:
        ConfigError: if the window is below 1.

    Source:
        Rumelhart, Hinton and Williams 1986, "Learning internal representations by error propagation"; Werbos 1990,
        "Backpropagation through time: what it does and how to do it"; truncation: Williams and Peng 1990.

    Example:
        >>> states = np.array([[[0.0]], [[0.5]], [[0.0]]])
        >>> by_input, by_weight, by_first = rnn_gradients(states, np.array([[2.0]]), np.array([[[0.0]], [[1.0]]]))
        >>> by_input.ravel().tolist(), by_weight.item(), by_first.item()  # 1.5 = 0.75 * 2 * 1
        ([1.5, 1.0], 0.5, 3.0)
    """
    # TASK 7.5 (4 points)
    # Walk from the last step to the first with one array in hand: what the later steps send back to the state
    # after this one. Add what comes from above, take it through the tanh, and you have the gradient by the sum
    # inside. From that follow the weights' share (which state was multiplied?) and what is sent on to the step
    # before (through which side of the matrix?). A border of a window empties the hand.
    raise NotImplementedError("task 7.5")


def lstm_backward_step(
    hidden_back: np.ndarray, cell_back: np.ndarray, memory: LSTMMemory, weight_hh: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One step of an LSTM backwards, by the chain rule.

    Forward, with s the four quarters of from_input + hidden_before W_hh^T: i = sigmoid(s1), f = sigmoid(s2),
    g = tanh(s3), o = sigmoid(s4), cell = f cell_before + i g, hidden = o tanh(cell). The slope of a sigmoid with
    value y is y (1 - y), that of tanh 1 - y^2.

    Args:
        hidden_back: (B, D), gradient of the loss by this step's new hidden state, from everywhere.
        cell_back: (B, D), gradient by its new cell as far as it comes from the next step's cell; what comes through
            this step's own hidden state is still to be added.
        memory: what the forward step left: `gates` (B, 4 D) holds i, f, g, o; `hidden_before`, `cell_before` and
            the new `cell` are (B, D).
        weight_hh: (4 D, D).

    Returns:
        gradients by from_input (B, 4 D), by hidden_before (B, D), by cell_before (B, D), and by weight_hh (4 D, D),
        this step's share of it, summed over the rows. No argument is changed.

    Source:
        Gers, Schmidhuber and Cummins 2000, "Learning to forget", with the full gradient of Graves and Schmidhuber 2005,
        "Framewise phoneme classification with bidirectional LSTM", appendix A.

    Example:
        >>> gates = np.array([[0.5, 1.0, 0.0, 1.0]])  # take half, forget nothing, candidate 0, show all
        >>> memory = LSTMMemory(gates, np.array([[0.0]]), np.array([[0.0]]), np.array([[0.0]]))
        >>> by_input, by_hidden, by_cell, by_weight = lstm_backward_step(
        ...     np.array([[1.0]]), np.array([[2.0]]), memory, np.ones((4, 1)))
        >>> by_input.tolist(), by_hidden.item(), by_cell.item()  # the cell's gradient is 2 + 1 = 3
        ([[0.0, 0.0, 1.5, 0.0]], 1.5, 3.0)
    """
    # TASK 7.6 (4 points)
    # First everything that reaches the new cell: from the next step, and through tanh and output gate from this
    # step's hidden state. Each of i, f, g is multiplied by something to make the cell; its gradient is the cell's
    # times that something. Only then the slopes of the sigmoids and the tanh. What goes back to the old cell went
    # through one gate only.
    raise NotImplementedError("task 7.6")
