"""The fast path of recurrent layers: the numbers and gradients of `recurrent_cells.run_steps` in fewer, larger steps.

Three ideas, the same for every kind. The product of the inputs with their weights is made for all steps at once. What
the state adds is one product per step into a buffer that is there already. And back-propagation through time is written
out: the slope of every gate is known once all steps are made, so it is computed for all steps together; what is left
for each step is to multiply it by what comes back from the future and to make one product; and the gradient of the
weights, a sum over all steps, is again one large product at the end.

Dimensions: T steps, B batch, C input width, D state width. `kept` is (T, B, 1), 0 where a row begins anew, else 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from minillm.nn.onednn_linear import onednn_linear, packed_product, product


def fused_rnn(
    below, before, weight_ih, weight_hh, bias_ih, bias_hh, starts=None, onednn: bool = False
) -> tuple[Tensor, ...]:
    """One layer of kind "rnn" over all steps.

    Args:
        below: (T, B, C), at least one step.
        before: (hidden,), (B, D).
        weight_ih: (D, C).
        weight_hh: (D, D).
        bias_ih: (D,).
        bias_hh: (D,).
        starts: (T, B) bool, True where a row begins anew, or None.
        onednn: multiply by oneDNN's product, for fp32 on a CPU; the values agree but for rounding.

    Returns:
        (hidden,) after every step, (T, B, D).
    """
    from_input = LINEAR[onednn](below, weight_ih, bias_ih + bias_hh)  # (T, B, D)
    return (RNNSteps.apply(from_input, *before, weight_hh, kept_rows(starts, below), onednn),)


def fused_lstm(
    below, before, weight_ih, weight_hh, bias_ih, bias_hh, starts=None, onednn: bool = False
) -> tuple[Tensor, ...]:
    """One layer of kind "lstm" over all steps; arguments as for `fused_rnn`, with 4 D rows and before (hidden, cell).

    Returns:
        (hidden, cell) after every step, (T, B, D) each.
    """
    from_input = LINEAR[onednn](below, weight_ih, bias_ih + bias_hh)  # (T, B, 4*D)
    return LSTMSteps.apply(from_input, *before, weight_hh, kept_rows(starts, below), onednn)


def fused_gru(
    below, before, weight_ih, weight_hh, bias_ih, bias_hh, starts=None, onednn: bool = False
) -> tuple[Tensor, ...]:
    """One layer of kind "gru" over all steps; arguments as for `fused_rnn`, with 3 D rows.

    Returns:
        (hidden,) after every step, (T, B, D).
    """
    from_input = LINEAR[onednn](below, weight_ih, bias_ih)         # (T, B, 3*D)
    return (GRUSteps.apply(from_input, *before, weight_hh, bias_hh, kept_rows(starts, below), onednn),)


LINEAR = {False: F.linear, True: onednn_linear}
FUSED = {"rnn": fused_rnn, "lstm": fused_lstm, "gru": fused_gru}


def kept_rows(starts: Tensor | None, like: Tensor) -> Tensor | None:
    """(T, B, 1) in the number format of `like`: 0 where a row begins anew, else 1; None if none does."""
    return None if starts is None else (~starts)[..., None].to(like.dtype)


def times(x: Tensor, kept: Tensor | None) -> Tensor:
    """x where it is kept."""
    return x if kept is None else x * kept


def adding_product(weight: Tensor, hidden: Tensor, n_steps: int, onednn: bool) -> Callable[..., Tensor]:
    """A function of (addend, state, out) that writes addend + W state, and is made for many calls.

    Args:
        weight: (N D, D).
        hidden: (B, D), as large as the states will be.
        n_steps: calls to come.
        onednn: by which product.
    """
    if onednn:
        times_weight = packed_product(weight, len(hidden))
        return lambda addend, state, out: torch.add(addend, times_weight(state), out=out)
    transposed = weight.T.contiguous() if n_steps > 8 else weight.T  # (D, N D); the copy pays for many steps
    return lambda addend, state, out: torch.addmm(addend, state, transposed, out=out)


def backward_product(weight: Tensor, n_rows: int, onednn: bool) -> Callable[[Tensor], Tensor]:
    """A function from the gradient by W state, (B, N D), to that by the state, (B, D)."""
    return packed_product(weight.T.contiguous(), n_rows) if onednn else lambda slopes: slopes @ weight


def steps_of(n_steps: int, *buffers: Tensor | None) -> list[tuple]:
    """The buffers' first T entries, step by step; None stays None at every step."""
    return list(zip(*([None] * n_steps if each is None else each[:n_steps].unbind() for each in buffers), strict=True))


def weight_gradient(gradients: Tensor, before: Tensor, onednn: bool) -> Tensor:
    """Sum over all steps and rows of gradient times state: one product of (N D, T B) with (T B, D)."""
    gradients, before = gradients.flatten(0, 1), before.flatten(0, 1)  # (T*B, N*D), (T*B, D)
    return product(gradients.T, before.T) if onednn else gradients.T @ before


class RNNSteps(Function):
    """hidden = tanh(from_input + W hidden), over all steps."""

    @staticmethod
    def forward(ctx, from_input, hidden, weight, kept, onednn):
        n_steps = len(from_input)
        add_product = adding_product(weight, hidden, n_steps, onednn)
        hiddens = from_input.new_empty(n_steps + 1, *hidden.shape)  # (T + 1, B, D)
        hiddens[0] = hidden
        for now, old, new, keep in steps_of(n_steps, from_input, hiddens, hiddens[1:], kept):
            add_product(now, times(old, keep), out=new).tanh_()
        ctx.save_for_backward(hiddens, weight, kept)
        ctx.onednn = onednn
        return hiddens[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx, from_above):
        hiddens, weight, kept = ctx.saved_tensors
        n_steps = len(from_above)
        gradients = 1 - hiddens[1:].square()                       # (T, B, D)
        back = torch.zeros_like(hiddens[0])                        # (B, D)
        by_state = backward_product(weight, len(back), ctx.onednn)
        for above, slopes, keep in reversed(steps_of(n_steps, from_above, gradients, kept)):
            back = times(by_state(slopes.mul_(back + above)), keep)
        return gradients, back, weight_gradient(gradients, times(hiddens[:-1], kept), ctx.onednn), None, None


class LSTMSteps(Function):
    """The cell of `recurrent_cells.lstm_step`, over all steps."""

    @staticmethod
    def forward(ctx, from_input, hidden, cell, weight, kept, onednn):
        n_steps, width = len(from_input), hidden.shape[-1]
        add_product = adding_product(weight, hidden, n_steps, onednn)
        gates = torch.empty_like(from_input)                       # (T, B, 4*D)
        hiddens, cells = (from_input.new_empty(n_steps + 1, *hidden.shape) for _ in range(2))  # (T + 1, B, D)
        shown = torch.empty_like(hiddens[1:])                      # (T, B, D), tanh of the cells
        hiddens[0], cells[0] = hidden, cell
        buffers = from_input, gates, hiddens, hiddens[1:], cells, cells[1:], shown, kept
        for now, gate, hidden, new_hidden, cell, new_cell, show, keep in steps_of(n_steps, *buffers):
            add_product(now, times(hidden, keep), out=gate)
            take, forget, candidate, output = gate.chunk(4, dim=-1)
            gate[:, : 2 * width].sigmoid_(), candidate.tanh_(), output.sigmoid_()
            torch.mul(forget, times(cell, keep), out=new_cell).addcmul_(take, candidate)
            torch.mul(output, torch.tanh(new_cell, out=show), out=new_hidden)
        ctx.save_for_backward(gates, hiddens, cells, shown, weight, kept)
        ctx.onednn = onednn
        ctx.set_materialize_grads(False)
        return hiddens[1:], cells[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx, hiddens_above, cells_above):
        gates, hiddens, cells, shown, weight, kept = ctx.saved_tensors
        n_steps, width = len(gates), hiddens.shape[-1]
        take, forget, candidate, output = gates.chunk(4, dim=-1)
        before = times(cells[:-1], kept)                           # (T, B, D)
        through = output * (1 - shown.square())                    # (T, B, D), slope of the hidden state by the cell
        gradients = torch.empty_like(gates)                        # (T, B, 4*D)
        parts = gradients.chunk(4, dim=-1)
        torch.mul(candidate, take * (1 - take), out=parts[0])
        torch.mul(before, forget * (1 - forget), out=parts[1])
        torch.mul(take, 1 - candidate.square(), out=parts[2])
        torch.mul(shown, output * (1 - output), out=parts[3])
        hidden_back, cell_back = (torch.zeros_like(hiddens[0]) for _ in range(2))  # (B, D)
        by_state = backward_product(weight, len(hidden_back), ctx.onednn)
        buffers = gradients, through, forget, hiddens_above, cells_above, kept
        for slopes, slope, keep_cell, hidden_above, cell_above, keep in reversed(steps_of(n_steps, *buffers)):
            hidden_back = hidden_back if hidden_above is None else hidden_back + hidden_above  # (B, D)
            cell_back = cell_back if cell_above is None else cell_back + cell_above  # (B, D)
            cell_back = cell_back.addcmul(hidden_back, slope)      # (B, D)
            slopes[:, : 3 * width].unflatten(-1, (3, width)).mul_(cell_back[:, None])
            slopes[:, 3 * width :].mul_(hidden_back)
            hidden_back, cell_back = times(by_state(slopes), keep), times(cell_back * keep_cell, keep)  # (B, D)
        by_weight = weight_gradient(gradients, times(hiddens[:-1], kept), ctx.onednn)
        return gradients, hidden_back, cell_back, by_weight, None, None


class GRUSteps(Function):
    """The unit of `recurrent_cells.gru_step`, over all steps."""

    @staticmethod
    def forward(ctx, from_input, hidden, weight, bias, kept, onednn):
        n_steps, width = len(from_input), hidden.shape[-1]
        add_product = adding_product(weight, hidden, n_steps, onednn)
        gates = from_input.clone()                                 # (T, B, 3*D)
        from_hidden = torch.empty_like(gates)                      # (T, B, 3*D)
        hiddens = from_input.new_empty(n_steps + 1, *hidden.shape)  # (T + 1, B, D)
        hiddens[0] = hidden
        for gate, added, old, new, keep in steps_of(n_steps, gates, from_hidden, hiddens, hiddens[1:], kept):
            old = times(old, keep)                                 # (B, D)
            add_product(bias, old, out=added)
            gate[:, : 2 * width].add_(added[:, : 2 * width]).sigmoid_()
            reset, update, candidate = gate.chunk(3, dim=-1)
            candidate.addcmul_(reset, added[:, 2 * width :]).tanh_()
            torch.lerp(candidate, old, update, out=new)
        ctx.save_for_backward(gates, from_hidden, hiddens, weight, kept)
        ctx.onednn = onednn
        return hiddens[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx, from_above):
        gates, from_hidden, hiddens, weight, kept = ctx.saved_tensors
        n_steps, width = len(gates), hiddens.shape[-1]
        reset, update, candidate = gates.chunk(3, dim=-1)
        before = times(hiddens[:-1], kept)                         # (T, B, D)
        by_candidate = (1 - update) * (1 - candidate.square())     # (T, B, D)
        by_reset = by_candidate * from_hidden[..., 2 * width :] * reset * (1 - reset)  # (T, B, D)
        by_update = (before - candidate) * update * (1 - update)   # (T, B, D)
        slopes = torch.cat((by_reset, by_update, by_candidate * reset), dim=-1)  # (T, B, 3*D)
        backs = torch.empty_like(before)                           # (T, B, D), gradient of every hidden state
        back = torch.zeros_like(hiddens[0])                        # (B, D)
        by_state = backward_product(weight, len(back), ctx.onednn)
        buffers = slopes, update, from_above, backs, kept
        for slope, keep_hidden, above, total, keep in reversed(steps_of(n_steps, *buffers)):
            torch.add(back, above, out=total)
            slope.unflatten(-1, (3, width)).mul_(total[:, None])
            back = times(torch.addcmul(by_state(slope), total, keep_hidden), keep)  # (B, D)
        by_input = torch.cat((slopes[..., : 2 * width], by_candidate * backs), dim=-1)  # (T, B, 3*D)
        by_weight = weight_gradient(slopes, before, ctx.onednn)
        return by_input, back, by_weight, slopes.sum(dim=(0, 1)), None, None
