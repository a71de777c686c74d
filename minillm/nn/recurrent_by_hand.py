"""Back-propagation through time by hand, in NumPy: what autograd does to a recurrent network, written out.

Forward, a network hands its state from step to step. Backward, the same way in the other direction: each step receives
how the loss changes with its state, adds what its own output is blamed for, and hands the rest on to the step before.

Dimensions: T steps, B rows, D width of the state. Everything is float64.
"""

from dataclasses import dataclass

import numpy as np

from minillm.errors import ConfigError


def rnn_states(from_input: np.ndarray, hidden: np.ndarray, weight_hh: np.ndarray) -> np.ndarray:
    """The states of a simple recurrent network: hidden = tanh(from_input + W_hh hidden), step by step.

    Args:
        from_input: (T, B, D), the inputs' products, biases included.
        hidden: (B, D), the state before the first step.
        weight_hh: (D, D).

    Returns:
        (T + 1, B, D): the state before the first step, then that after each.
    """
    states = [hidden]
    for now in from_input:
        states.append(np.tanh(now + states[-1] @ weight_hh.T))
    return np.stack(states)


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
    if window is not None and window < 1:
        raise ConfigError(f"window is {window}, expected at least 1 step, or None for no truncation")
    by_input, by_weight = np.zeros_like(from_above), np.zeros_like(weight_hh)
    back = np.zeros_like(states[0])
    for step in reversed(range(len(from_above))):
        by_input[step] = (1 - states[step + 1] ** 2) * (from_above[step] + back)
        by_weight += by_input[step].T @ states[step]
        back = by_input[step] @ weight_hh
        if window is not None and step % window == 0:
            back = np.zeros_like(back)
    return by_input, by_weight, back


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), by way of tanh, which cannot overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


@dataclass(frozen=True)
class LSTMMemory:
    """What a step of an LSTM must remember for its way back.

    Attributes:
        gates: (B, 4 D): input gate, forget gate, candidate and output gate, after sigmoid or tanh.
        hidden_before: (B, D).
        cell_before: (B, D).
        cell: (B, D), the new cell.
    """

    gates: np.ndarray
    hidden_before: np.ndarray
    cell_before: np.ndarray
    cell: np.ndarray


def lstm_forward_step(
    from_input: np.ndarray, hidden: np.ndarray, cell: np.ndarray, weight_hh: np.ndarray
) -> tuple[np.ndarray, np.ndarray, LSTMMemory]:
    """One step of an LSTM and what its way back will need.

    Args:
        from_input: (B, 4 D), the input's product, biases included; input gate, forget gate, candidate, output gate.
        hidden: (B, D).
        cell: (B, D).
        weight_hh: (4 D, D).

    Returns:
        hidden (B, D), cell (B, D), and the memory of this step.
    """
    i, f, g, o = np.split(from_input + hidden @ weight_hh.T, 4, axis=-1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    new_cell = f * cell + i * g
    memory = LSTMMemory(np.concatenate([i, f, g, o], axis=-1), hidden, cell, new_cell)
    return o * np.tanh(new_cell), new_cell, memory


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
    i, f, g, o = np.split(memory.gates, 4, axis=-1)
    shown = np.tanh(memory.cell)
    cell_back = cell_back + hidden_back * o * (1 - shown**2)
    by_gate = cell_back * g, cell_back * memory.cell_before, cell_back * i, hidden_back * shown
    slopes = i * (1 - i), f * (1 - f), 1 - g**2, o * (1 - o)
    by_input = np.concatenate([gradient * slope for gradient, slope in zip(by_gate, slopes, strict=True)], axis=-1)
    return by_input, by_input @ weight_hh, cell_back * f, by_input.T @ memory.hidden_before


def lstm_gradients(
    from_input: np.ndarray, hidden: np.ndarray, cell: np.ndarray, weight_hh: np.ndarray, from_above: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All steps of an LSTM forward, then backward.

    Args:
        from_input: (T, B, 4 D).
        hidden: (B, D), before the first step.
        cell: (B, D), before the first step.
        weight_hh: (4 D, D).
        from_above: (T, B, D), gradient of the loss by each step's hidden state, apart from what runs through later
            steps.

    Returns:
        gradients by from_input (T, B, 4 D), by weight_hh (4 D, D), by the first hidden state and cell (B, D).
    """
    memories = []
    for now in from_input:
        hidden, cell, memory = lstm_forward_step(now, hidden, cell, weight_hh)
        memories.append(memory)
    by_input, by_weight = np.zeros_like(from_input), np.zeros_like(weight_hh)
    hidden_back, cell_back = np.zeros_like(hidden), np.zeros_like(cell)
    for step in reversed(range(len(memories))):
        by_input[step], hidden_back, cell_back, share = lstm_backward_step(
            hidden_back + from_above[step], cell_back, memories[step], weight_hh
        )
        by_weight += share
    return by_input, by_weight, hidden_back, cell_back
