"""Wrong answers of chapter 07: each must lose the points of exactly the task it names. Parsed, never run."""

from minillm.course.wrong_answers import wrong


@wrong("7.1", "no tanh")
def rnn_step(from_input, state, weight_hh, bias_hh=None):
    (hidden,) = state
    return (from_input + linear(hidden, weight_hh, bias_hh),)


@wrong("7.1", "the matrix from the other side")
def rnn_step(from_input, state, weight_hh, bias_hh=None):
    (hidden,) = state
    return (torch.tanh(from_input + linear(hidden, weight_hh.T, bias_hh)),)


@wrong("7.1", "the bias is forgotten")
def rnn_step(from_input, state, weight_hh, bias_hh=None):
    (hidden,) = state
    return (torch.tanh(from_input + linear(hidden, weight_hh)),)


@wrong("7.1", "a tensor instead of a tuple of one")
def rnn_step(from_input, state, weight_hh, bias_hh=None):
    (hidden,) = state
    return torch.tanh(from_input + linear(hidden, weight_hh, bias_hh))


@wrong("7.1", "the state's product beside the tanh")
def rnn_step(from_input, state, weight_hh, bias_hh=None):
    (hidden,) = state
    return (torch.tanh(from_input) + linear(hidden, weight_hh, bias_hh),)


@wrong("7.1", "writes into the input's product")
def rnn_step(from_input, state, weight_hh, bias_hh=None):
    (hidden,) = state
    return (from_input.add_(linear(hidden, weight_hh, bias_hh)).tanh_(),)


@wrong("7.2", "the output gate shows the cell itself, without tanh")
def lstm_step(from_input, state, weight_hh, bias_hh=None):
    hidden, cell = state
    input_gate, forget_gate, candidate, output_gate = lstm_gates(from_input, hidden, weight_hh, bias_hh)
    cell = forget_gate * cell + input_gate * candidate
    return output_gate * cell, cell


@wrong("7.2", "the hidden state is made from the old cell")
def lstm_step(from_input, state, weight_hh, bias_hh=None):
    hidden, cell = state
    input_gate, forget_gate, candidate, output_gate = lstm_gates(from_input, hidden, weight_hh, bias_hh)
    return output_gate * torch.tanh(cell), forget_gate * cell + input_gate * candidate


@wrong("7.2", "input and forget gate exchanged")
def lstm_step(from_input, state, weight_hh, bias_hh=None):
    hidden, cell = state
    forget_gate, input_gate, candidate, output_gate = lstm_gates(from_input, hidden, weight_hh, bias_hh)
    cell = forget_gate * cell + input_gate * candidate
    return output_gate * torch.tanh(cell), cell


@wrong("7.2", "no input gate: 1 minus the forget gate, as in a GRU")
def lstm_step(from_input, state, weight_hh, bias_hh=None):
    hidden, cell = state
    _, forget_gate, candidate, output_gate = lstm_gates(from_input, hidden, weight_hh, bias_hh)
    cell = forget_gate * cell + (1 - forget_gate) * candidate
    return output_gate * torch.tanh(cell), cell


@wrong("7.2", "the cell is handed on through tanh")
def lstm_step(from_input, state, weight_hh, bias_hh=None):
    hidden, cell = state
    input_gate, forget_gate, candidate, output_gate = lstm_gates(from_input, hidden, weight_hh, bias_hh)
    cell = torch.tanh(forget_gate * cell + input_gate * candidate)
    return output_gate * cell, cell


@wrong("7.2", "the state the wrong way round")
def lstm_step(from_input, state, weight_hh, bias_hh=None):
    hidden, cell = state
    input_gate, forget_gate, candidate, output_gate = lstm_gates(from_input, hidden, weight_hh, bias_hh)
    cell = forget_gate * cell + input_gate * candidate
    return cell, output_gate * torch.tanh(cell)


@wrong("7.2", "the bias is forgotten")
def lstm_step(from_input, state, weight_hh, bias_hh=None):
    hidden, cell = state
    input_gate, forget_gate, candidate, output_gate = lstm_gates(from_input, hidden, weight_hh)
    cell = forget_gate * cell + input_gate * candidate
    return output_gate * torch.tanh(cell), cell


@wrong("7.3", "reset before the product, as in the paper of 2014")
def gru_step(from_input, state, weight_hh, bias_hh=None):
    (hidden,) = state
    width = hidden.shape[-1]
    reset, update, candidate = from_input.chunk(3, dim=-1)
    r, z, _ = linear(hidden, weight_hh, bias_hh).chunk(3, dim=-1)
    update = torch.sigmoid(update + z)
    bias = None if bias_hh is None else bias_hh[2 * width :]
    candidate = torch.tanh(candidate + linear(torch.sigmoid(reset + r) * hidden, weight_hh[2 * width :], bias))
    return ((1 - update) * candidate + update * hidden,)


@wrong("7.3", "the update gate the other way round")
def gru_step(from_input, state, weight_hh, bias_hh=None):
    (hidden,) = state
    (reset, update, candidate) = from_input.chunk(3, dim=-1)
    (r, z, n) = linear(hidden, weight_hh, bias_hh).chunk(3, dim=-1)
    update = torch.sigmoid(update + z)
    candidate = torch.tanh(candidate + torch.sigmoid(reset + r) * n)
    return (update * candidate + (1 - update) * hidden,)


@wrong("7.3", "the reset gate scales the input as well")
def gru_step(from_input, state, weight_hh, bias_hh=None):
    (hidden,) = state
    (reset, update, candidate) = from_input.chunk(3, dim=-1)
    (r, z, n) = linear(hidden, weight_hh, bias_hh).chunk(3, dim=-1)
    update = torch.sigmoid(update + z)
    candidate = torch.tanh(torch.sigmoid(reset + r) * (candidate + n))
    return ((1 - update) * candidate + update * hidden,)


@wrong("7.3", "reset and update gate exchanged")
def gru_step(from_input, state, weight_hh, bias_hh=None):
    (hidden,) = state
    (update, reset, candidate) = from_input.chunk(3, dim=-1)
    (z, r, n) = linear(hidden, weight_hh, bias_hh).chunk(3, dim=-1)
    update = torch.sigmoid(update + z)
    candidate = torch.tanh(candidate + torch.sigmoid(reset + r) * n)
    return ((1 - update) * candidate + update * hidden,)


@wrong("7.3", "no reset gate")
def gru_step(from_input, state, weight_hh, bias_hh=None):
    (hidden,) = state
    (_, update, candidate) = from_input.chunk(3, dim=-1)
    (_, z, n) = linear(hidden, weight_hh, bias_hh).chunk(3, dim=-1)
    update = torch.sigmoid(update + z)
    return ((1 - update) * torch.tanh(candidate + n) + update * hidden,)


@wrong("7.3", "the candidate's bias stays outside the reset gate")
def gru_step(from_input, state, weight_hh, bias_hh=None):
    (hidden,) = state
    if bias_hh is not None:
        from_input = from_input + bias_hh
    (reset, update, candidate), (r, z, n) = from_input.chunk(3, dim=-1), linear(hidden, weight_hh).chunk(3, dim=-1)
    update = torch.sigmoid(update + z)
    candidate = torch.tanh(candidate + torch.sigmoid(reset + r) * n)
    return ((1 - update) * candidate + update * hidden,)


@wrong("7.4", "multiplies by zero: NaN stays")
def keep_state(state, starts):
    return tuple(each * ~starts[:, None] for each in state)


@wrong("7.4", "the mask the other way round")
def keep_state(state, starts):
    return tuple(each.masked_fill(~starts[:, None], 0.0) for each in state)


@wrong("7.4", "wipes everything as soon as one row begins anew")
def keep_state(state, starts):
    return tuple(torch.zeros_like(each) if starts.any() else each for each in state)


@wrong("7.4", "the rows of the last dimension instead of the batch")
def keep_state(state, starts):
    return tuple(each.masked_fill(starts, 0.0) for each in state)


@wrong("7.4", "only the hidden state is wiped")
def keep_state(state, starts):
    return (state[0].masked_fill(starts[:, None], 0.0), *state[1:])


@wrong("7.4", "writes into the state it was given")
def keep_state(state, starts):
    return tuple(each.masked_fill_(starts[:, None], 0.0) for each in state)


@wrong("7.5", "the future is forgotten: every step for itself")
def rnn_gradients(states, weight_hh, from_above, window=None):
    if window is not None and window < 1:
        raise ConfigError("window")
    by_input = (1 - states[1:] ** 2) * from_above
    by_weight = np.einsum("tbi,tbj->ij", by_input, states[:-1])
    first = by_input[0] @ weight_hh
    return by_input, by_weight, first if window is None else np.zeros_like(first)


@wrong("7.5", "the gradient goes back through the matrix from the wrong side")
def rnn_gradients(states, weight_hh, from_above, window=None):
    if window is not None and window < 1:
        raise ConfigError("window")
    by_input, by_weight = np.zeros_like(from_above), np.zeros_like(weight_hh)
    back = np.zeros_like(states[0])
    for step in reversed(range(len(from_above))):
        by_input[step] = (1 - states[step + 1] ** 2) * (from_above[step] + back)
        by_weight += by_input[step].T @ states[step]
        back = by_input[step] @ weight_hh.T
        if window is not None and step % window == 0:
            back = np.zeros_like(back)
    return by_input, by_weight, back


@wrong("7.5", "the weights' share is taken with the state after the step")
def rnn_gradients(states, weight_hh, from_above, window=None):
    if window is not None and window < 1:
        raise ConfigError("window")
    by_input, by_weight = np.zeros_like(from_above), np.zeros_like(weight_hh)
    back = np.zeros_like(states[0])
    for step in reversed(range(len(from_above))):
        by_input[step] = (1 - states[step + 1] ** 2) * (from_above[step] + back)
        by_weight += by_input[step].T @ states[step + 1]
        back = by_input[step] @ weight_hh
        if window is not None and step % window == 0:
            back = np.zeros_like(back)
    return by_input, by_weight, back


@wrong("7.5", "the slope of tanh at the state before the step")
def rnn_gradients(states, weight_hh, from_above, window=None):
    if window is not None and window < 1:
        raise ConfigError("window")
    by_input, by_weight = np.zeros_like(from_above), np.zeros_like(weight_hh)
    back = np.zeros_like(states[0])
    for step in reversed(range(len(from_above))):
        by_input[step] = (1 - states[step] ** 2) * (from_above[step] + back)
        by_weight += by_input[step].T @ states[step]
        back = by_input[step] @ weight_hh
        if window is not None and step % window == 0:
            back = np.zeros_like(back)
    return by_input, by_weight, back


@wrong("7.5", "no truncation")
def rnn_gradients(states, weight_hh, from_above, window=None):
    if window is not None and window < 1:
        raise ConfigError("window")
    by_input, by_weight = np.zeros_like(from_above), np.zeros_like(weight_hh)
    back = np.zeros_like(states[0])
    for step in reversed(range(len(from_above))):
        by_input[step] = (1 - states[step + 1] ** 2) * (from_above[step] + back)
        by_weight += by_input[step].T @ states[step]
        back = by_input[step] @ weight_hh
    return by_input, by_weight, back


@wrong("7.5", "windows are cut one step too late")
def rnn_gradients(states, weight_hh, from_above, window=None):
    if window is not None and window < 1:
        raise ConfigError("window")
    by_input, by_weight = np.zeros_like(from_above), np.zeros_like(weight_hh)
    back = np.zeros_like(states[0])
    for step in reversed(range(len(from_above))):
        by_input[step] = (1 - states[step + 1] ** 2) * (from_above[step] + back)
        by_weight += by_input[step].T @ states[step]
        back = by_input[step] @ weight_hh
        if window is not None and (step + 1) % window == 0:
            back = np.zeros_like(back)
    return by_input, by_weight, back


@wrong("7.5", "windows are counted from the end")
def rnn_gradients(states, weight_hh, from_above, window=None):
    if window is not None and window < 1:
        raise ConfigError("window")
    by_input, by_weight = np.zeros_like(from_above), np.zeros_like(weight_hh)
    back = np.zeros_like(states[0])
    for step in reversed(range(len(from_above))):
        by_input[step] = (1 - states[step + 1] ** 2) * (from_above[step] + back)
        by_weight += by_input[step].T @ states[step]
        back = by_input[step] @ weight_hh
        if window is not None and (len(from_above) - step) % window == 0:
            back = np.zeros_like(back)
    return by_input, by_weight, back


@wrong("7.5", "the mean over the rows instead of the sum")
def rnn_gradients(states, weight_hh, from_above, window=None):
    if window is not None and window < 1:
        raise ConfigError("window")
    by_input, by_weight = np.zeros_like(from_above), np.zeros_like(weight_hh)
    back = np.zeros_like(states[0])
    for step in reversed(range(len(from_above))):
        by_input[step] = (1 - states[step + 1] ** 2) * (from_above[step] + back)
        by_weight += by_input[step].T @ states[step] / len(back)
        back = by_input[step] @ weight_hh
        if window is not None and step % window == 0:
            back = np.zeros_like(back)
    return by_input, by_weight, back


@wrong("7.6", "the cell's gradient through the hidden state is forgotten")
def lstm_backward_step(hidden_back, cell_back, memory, weight_hh):
    i, f, g, o = np.split(memory.gates, 4, axis=-1)
    shown = np.tanh(memory.cell)
    by_gate = cell_back * g, cell_back * memory.cell_before, cell_back * i, hidden_back * shown
    slopes = i * (1 - i), f * (1 - f), 1 - g**2, o * (1 - o)
    by_input = np.concatenate([a * b for a, b in zip(by_gate, slopes, strict=True)], axis=-1)
    return by_input, by_input @ weight_hh, cell_back * f, by_input.T @ memory.hidden_before


@wrong("7.6", "the gradient of the cell is replaced, not added to")
def lstm_backward_step(hidden_back, cell_back, memory, weight_hh):
    i, f, g, o = np.split(memory.gates, 4, axis=-1)
    shown = np.tanh(memory.cell)
    cell_back = hidden_back * o * (1 - shown**2)
    by_gate = cell_back * g, cell_back * memory.cell_before, cell_back * i, hidden_back * shown
    slopes = i * (1 - i), f * (1 - f), 1 - g**2, o * (1 - o)
    by_input = np.concatenate([a * b for a, b in zip(by_gate, slopes, strict=True)], axis=-1)
    return by_input, by_input @ weight_hh, cell_back * f, by_input.T @ memory.hidden_before


@wrong("7.6", "the old cell receives all of the gradient, not what the forget gate let through")
def lstm_backward_step(hidden_back, cell_back, memory, weight_hh):
    i, f, g, o = np.split(memory.gates, 4, axis=-1)
    shown = np.tanh(memory.cell)
    cell_back = cell_back + hidden_back * o * (1 - shown**2)
    by_gate = cell_back * g, cell_back * memory.cell_before, cell_back * i, hidden_back * shown
    slopes = i * (1 - i), f * (1 - f), 1 - g**2, o * (1 - o)
    by_input = np.concatenate([a * b for a, b in zip(by_gate, slopes, strict=True)], axis=-1)
    return by_input, by_input @ weight_hh, cell_back, by_input.T @ memory.hidden_before


@wrong("7.6", "the forget gate's gradient with the new cell instead of the old one")
def lstm_backward_step(hidden_back, cell_back, memory, weight_hh):
    i, f, g, o = np.split(memory.gates, 4, axis=-1)
    shown = np.tanh(memory.cell)
    cell_back = cell_back + hidden_back * o * (1 - shown**2)
    by_gate = cell_back * g, cell_back * memory.cell, cell_back * i, hidden_back * shown
    slopes = i * (1 - i), f * (1 - f), 1 - g**2, o * (1 - o)
    by_input = np.concatenate([a * b for a, b in zip(by_gate, slopes, strict=True)], axis=-1)
    return by_input, by_input @ weight_hh, cell_back * f, by_input.T @ memory.hidden_before


@wrong("7.6", "the candidate is given a sigmoid's slope")
def lstm_backward_step(hidden_back, cell_back, memory, weight_hh):
    i, f, g, o = np.split(memory.gates, 4, axis=-1)
    shown = np.tanh(memory.cell)
    cell_back = cell_back + hidden_back * o * (1 - shown**2)
    by_gate = cell_back * g, cell_back * memory.cell_before, cell_back * i, hidden_back * shown
    slopes = i * (1 - i), f * (1 - f), g * (1 - g), o * (1 - o)
    by_input = np.concatenate([a * b for a, b in zip(by_gate, slopes, strict=True)], axis=-1)
    return by_input, by_input @ weight_hh, cell_back * f, by_input.T @ memory.hidden_before


@wrong("7.6", "tanh of the cell is taken as the cell itself")
def lstm_backward_step(hidden_back, cell_back, memory, weight_hh):
    i, f, g, o = np.split(memory.gates, 4, axis=-1)
    shown = memory.cell
    cell_back = cell_back + hidden_back * o * (1 - shown**2)
    by_gate = cell_back * g, cell_back * memory.cell_before, cell_back * i, hidden_back * shown
    slopes = i * (1 - i), f * (1 - f), 1 - g**2, o * (1 - o)
    by_input = np.concatenate([a * b for a, b in zip(by_gate, slopes, strict=True)], axis=-1)
    return by_input, by_input @ weight_hh, cell_back * f, by_input.T @ memory.hidden_before


@wrong("7.6", "adds into the gradient it was given")
def lstm_backward_step(hidden_back, cell_back, memory, weight_hh):
    i, f, g, o = np.split(memory.gates, 4, axis=-1)
    shown = np.tanh(memory.cell)
    cell_back += hidden_back * o * (1 - shown**2)
    by_gate = cell_back * g, cell_back * memory.cell_before, cell_back * i, hidden_back * shown
    slopes = i * (1 - i), f * (1 - f), 1 - g**2, o * (1 - o)
    by_input = np.concatenate([a * b for a, b in zip(by_gate, slopes, strict=True)], axis=-1)
    return by_input, by_input @ weight_hh, cell_back * f, by_input.T @ memory.hidden_before


@wrong("7.6", "the weights' share with gates and states exchanged")
def lstm_backward_step(hidden_back, cell_back, memory, weight_hh):
    i, f, g, o = np.split(memory.gates, 4, axis=-1)
    shown = np.tanh(memory.cell)
    cell_back = cell_back + hidden_back * o * (1 - shown**2)
    by_gate = cell_back * g, cell_back * memory.cell_before, cell_back * i, hidden_back * shown
    slopes = i * (1 - i), f * (1 - f), 1 - g**2, o * (1 - o)
    by_input = np.concatenate([a * b for a, b in zip(by_gate, slopes, strict=True)], axis=-1)
    return by_input, by_input @ weight_hh, cell_back * f, memory.hidden_before.T @ by_input
