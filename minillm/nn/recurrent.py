"""Recurrent networks: layers of cells that are applied to every step and hand on a state to themselves.

The weights have the names, shapes and order of `torch.nn.RNN`, `torch.nn.LSTM` and `torch.nn.GRU`, so that their state
dictionaries can be loaded as they are.

Dimensions: B batch, T steps, C input width, D width of the state, L layers. A state is a tuple of tensors: (hidden,)
for "rnn" and "gru", (hidden, cell) for "lstm"; (B, D) each inside a layer, (L, B, D) for the whole stack.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ConfigError, ShapeError
from minillm.nn.linear import linear
from minillm.nn.onednn_linear import fits_onednn, onednn_linear
from minillm.nn.recurrent_cells import STEPS, State, run_steps
from minillm.nn.recurrent_fused import FUSED
from minillm.shapes import check_shape

N_GATES = {"rnn": 1, "lstm": 4, "gru": 3}
N_STATES = {"rnn": 1, "lstm": 2, "gru": 1}
KERNELS = ("fused", "naive")


class Recurrent(nn.Module):
    """Layers of one recurrent kind, each reading the outputs of the one below.

    Args:
        kind: "rnn" (tanh), "lstm" or "gru".
        d_in: width C of the input.
        d_hidden: width D of the state of every layer.
        n_layers: number of layers L.
        dropout: chance of dropping a number between two layers while training.
        forget_bias: where the forget gates of an LSTM stand at first, before the sigmoid: 0 keeps half per step, 1
            keeps 73 %, 2 keeps 88 %. None draws them like all other biases, as torch does.
        kernels: "fused" for the fast path, "naive" for the readable steps; both compute the same.
        generator: where the initial weights come from; None is torch's own default generator.

    Raises:
        ConfigError: if a setting is unknown or out of range.

    Source:
        initial forget bias: Gers, Schmidhuber and Cummins 2000, "Learning to forget"; Jozefowicz, Zaremba and Sutskever
        2015, "An empirical exploration of recurrent network architectures". Dropout between layers only: Zaremba,
        Sutskever and Vinyals 2014, arXiv:1409.2329.

    Example:
        >>> layers = Recurrent("lstm", 3, 4, n_layers=2, generator=torch.Generator().manual_seed(0))
        >>> outputs, (hidden, cell) = layers(torch.ones(1, 5, 3))
        >>> outputs.shape, cell.shape, torch.equal(outputs[:, -1], hidden[-1])
        (torch.Size([1, 5, 4]), torch.Size([2, 1, 4]), True)
    """

    product = staticmethod(F.linear)  # as in `Linear`

    def __init__(
        self,
        kind: str,
        d_in: int,
        d_hidden: int,
        n_layers: int = 1,
        dropout: float = 0.0,
        forget_bias: float | None = None,
        kernels: str = "fused",
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check_recurrent(kind, d_in, d_hidden, n_layers, dropout, kernels)
        if forget_bias is not None and kind != "lstm":
            raise ConfigError(f"forget_bias is {forget_bias}, but kind {kind!r} has no forget gate; leave it out")
        self.kind, self.d_in, self.d_hidden, self.n_layers = kind, d_in, d_hidden, n_layers
        self.dropout, self.kernels = dropout, kernels
        n_rows = N_GATES[kind] * d_hidden
        for layer in range(n_layers):
            shapes = (n_rows, d_hidden if layer else d_in), (n_rows, d_hidden), (n_rows,), (n_rows,)
            for name, shape in zip(weight_names(layer), shapes, strict=True):
                self.register_parameter(name, nn.Parameter(small_uniform(shape, d_hidden, generator)))
            if forget_bias is not None:
                self.set_forget_bias(layer, forget_bias)

    @torch.no_grad()
    def set_forget_bias(self, layer: int, forget_bias: float) -> None:
        """Let the forget gates of a layer start at this number: the two biases of a gate are added."""
        forget = slice(self.d_hidden, 2 * self.d_hidden)
        _, _, bias_ih, bias_hh = self.weights(layer)
        bias_ih[forget], bias_hh[forget] = forget_bias, 0.0

    def weights(self, layer: int) -> list[Tensor]:
        """weight_ih (gates * D, C or D), weight_hh (gates * D, D), bias_ih and bias_hh (gates * D,) of a layer."""
        return [getattr(self, name) for name in weight_names(layer)]

    def zero_state(self, batch_size: int) -> State:
        """The state before anything was read: zeros, (L, B, D) each."""
        weight = self.weight_hh_l0
        zeros = weight.new_zeros(self.n_layers, batch_size, self.d_hidden)  # (L, B, D)
        return (zeros,) * N_STATES[self.kind]

    def forward(
        self, x: Tensor, state: State | None = None, lengths: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Read all steps.

        Args:
            x: (B, T, C).
            state: tensors (L, B, D) as a call before left them, or None for zeros.
            lengths: (B,) integers from 0 to T: steps of each row that are real; the rest is padding. None: all are.
            starts: (B, T) bool, True where a row begins anew: the state is set to zero before that step. None: nowhere.

        Returns:
            outputs (B, T, D) of the last layer, 0 behind the end of a shorter row; and the state after the last real
            step of each row, tensors (L, B, D).

        Raises:
            ShapeError: if shapes disagree, or a length is outside 0 .. T.
        """
        state = self.zero_state(len(x)) if state is None else state
        self.check_input(x, state, lengths, starts)
        below, last = x.transpose(0, 1).to(self.weight_hh_l0.dtype), []  # (T, B, C)
        for layer in range(self.n_layers):
            if layer and self.dropout:
                below = F.dropout(below, self.dropout, self.training)  # (T, B, D)
            before = tuple(each[layer] for each in state)
            after = self.run_layer(layer, below, before, None if starts is None else starts.T)
            below = after[0]                                       # (T, B, D)
            last.append(states_at(before, after, lengths))
        outputs = below.transpose(0, 1)                            # (B, T, D)
        if lengths is not None:
            outputs = outputs.masked_fill(behind_the_end(lengths, x.shape[1])[..., None], 0.0)  # (B, T, D)
        return outputs, tuple(torch.stack(each) for each in zip(*last, strict=True))

    def run_layer(self, layer: int, below: Tensor, before: State, starts: Tensor | None) -> State:
        """The states of one layer after each step, tensors (T, B, D), from its inputs below, (T, B, C or D)."""
        weight_ih, weight_hh, bias_ih, bias_hh = self.weights(layer)
        if len(below) == 0:
            return tuple(each.new_zeros(0, *each.shape) for each in before)
        with torch.autocast(below.device.type, enabled=False):     # 64 products in a row lose too much in 16 bits
            if self.kernels == "naive":
                return run_steps(self.kind, linear(below, weight_ih, bias_ih), before, weight_hh, bias_hh, starts)
            onednn = self.product is onednn_linear and fits_onednn(below, weight_hh)
            return FUSED[self.kind](below, before, weight_ih, weight_hh, bias_ih, bias_hh, starts, onednn)

    def check_input(self, x: Tensor, state: State, lengths: Tensor | None, starts: Tensor | None) -> None:
        """Check the arguments of `forward`.

        Raises:
            ShapeError: if they disagree with each other or with the module.
        """
        sizes = {"C": self.d_in, "D": self.d_hidden, "L": self.n_layers}
        check_shape("x", x, "B T C", sizes)
        if len(state) != N_STATES[self.kind]:
            raise ShapeError(f"the state has {len(state)} tensors, kind {self.kind!r} has {N_STATES[self.kind]}")
        for each in state:
            check_shape("state", each, "L B D", sizes)
        if starts is not None:
            check_shape("starts", starts, "B T", sizes)
        if lengths is not None:
            check_shape("lengths", lengths, "B", sizes)
            if len(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= sizes["T"]:
                raise ShapeError(f"lengths are {lengths.tolist()}, expected 0 to {sizes['T']}, the steps of a row")

    def extra_repr(self) -> str:
        return f"{self.kind}, d_in={self.d_in}, d_hidden={self.d_hidden}, n_layers={self.n_layers}"


def weight_names(layer: int) -> list[str]:
    """The names of a layer's weights in torch: input, state, and a bias for each."""
    return [f"{name}_l{layer}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def small_uniform(shape: Sequence[int], d_hidden: int, generator: torch.Generator | None) -> Tensor:
    """Numbers evenly spread between -1/sqrt(D) and 1/sqrt(D), as torch starts all its recurrent weights."""
    bound = 1 / math.sqrt(d_hidden)
    return torch.empty(*shape).uniform_(-bound, bound, generator=generator)


def behind_the_end(lengths: Tensor, n_steps: int) -> Tensor:
    """(B, T) bool, True for the steps at or behind the length of each row."""
    return torch.arange(n_steps, device=lengths.device) >= lengths[:, None]


def states_at(before: State, after: State, lengths: Tensor | None) -> State:
    """The state at the end of each row: that after its last real step, or that before the first if it has none.

    A state depends on nothing that comes later, so that padding may be computed and need only be ignored here.

    Args:
        before: tensors (B, D).
        after: tensors (T, B, D).
        lengths: (B,) integers from 0 to T, or None for T.

    Returns:
        Tensors (B, D).
    """
    n_steps, batch_size = after[0].shape[:2]
    if lengths is None:
        return tuple(each[-1] for each in after) if n_steps else before
    rows = torch.arange(batch_size, device=lengths.device)
    return tuple(torch.cat((first[None], each))[lengths, rows] for first, each in zip(before, after, strict=True))


def check_recurrent(kind: str, d_in: int, d_hidden: int, n_layers: int, dropout: float, kernels: str) -> None:
    """Check what `Recurrent` is made of.

    Raises:
        ConfigError: naming the first setting that is unknown or out of range.
    """
    for name, value, known in (("kind", kind, tuple(STEPS)), ("kernels", kernels, KERNELS)):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}, expected one of {known}")
    for name, value in (("d_in", d_in), ("d_hidden", d_hidden), ("n_layers", n_layers)):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}, expected a whole number of at least 1")
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout is {dropout}, expected 0 <= dropout < 1")


def input_influence(layers: Recurrent, x: Tensor, direction: Tensor) -> Tensor:
    """How strongly the last output still depends on the input of each step: a gradient's norm against distance.

    Args:
        layers: the network.
        x: (B, T, C).
        direction: (B, D), what is asked of the last output: its product with this is differentiated.

    Returns:
        (T,): the mean over the batch of the length of the gradient by each step's input, the last step at the end.

    Source:
        Bengio, Simard and Frasconi 1994, "Learning long-term dependencies with gradient descent is difficult".
    """
    x = x.detach().requires_grad_()                                # (B, T, C)
    outputs, _ = layers(x)
    (gradient,) = torch.autograd.grad((outputs[:, -1] * direction).sum(), x)
    return gradient.norm(dim=-1).mean(dim=0)                       # (T,)
