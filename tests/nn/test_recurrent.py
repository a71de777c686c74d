"""Recurrent layers against torch's own in float64; both paths against each other; lengths, states and restarts."""

import itertools
import math

import pytest
import torch
from torch import nn

from minillm.errors import ConfigError, ShapeError
from minillm.nn.recurrent import KERNELS, Recurrent, input_influence
from minillm.nn.recurrent_cells import detached, keep_state, lstm_gates, rnn_step

KINDS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
EXACT = {"rtol": 1e-10, "atol": 1e-10}
B, T, C, D = 4, 7, 3, 5


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_state(kind, n_layers, batch_size=B, seed=1):
    return tuple(normal(n_layers, batch_size, D, seed=seed + each) for each in range(2 if kind == "lstm" else 1))


def pair(kind, n_layers=2, kernels="fused"):
    """torch's layers with large weights, and ours with the same."""
    theirs = KINDS[kind](C, D, n_layers, batch_first=True).double()
    with torch.no_grad():
        for number, parameter in enumerate(theirs.parameters()):
            parameter.copy_(0.7 * normal(*parameter.shape, seed=100 + number))
    ours = Recurrent(kind, C, D, n_layers, kernels=kernels).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


def value_and_gradients(outputs, state, leaves):
    """What came out, and the gradients of a random mixture of all of it."""
    total = sum((each * normal(*each.shape, seed=50 + n)).sum() for n, each in enumerate((outputs, *state)))
    return (outputs, *state), torch.autograd.grad(total, leaves)


@pytest.mark.parametrize(("kind", "kernels", "n_layers"), list(itertools.product(KINDS, KERNELS, (1, 3))))
def test_equal_to_torch_with_copied_weights(kind, kernels, n_layers):
    ours, theirs = pair(kind, n_layers, kernels)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x, state = normal(B, T, C).requires_grad_(), tuple(s.requires_grad_() for s in some_state(kind, n_layers))
    got = value_and_gradients(*ours(x, state), [x, *state, *ours.parameters()])
    outputs, last = theirs(x, state if kind == "lstm" else state[0])
    expected = value_and_gradients(outputs, as_tuple(last), [x, *state, *theirs.parameters()])
    torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.parametrize(("kind", "kernels"), list(itertools.product(KINDS, KERNELS)))
def test_unequal_lengths_are_those_of_packed_sequences(kind, kernels):
    ours, theirs = pair(kind, 2, kernels)
    lengths = torch.tensor([3, 7, 1, 5])
    x, state = normal(B, T, C).requires_grad_(), tuple(s.requires_grad_() for s in some_state(kind, 2))
    got = value_and_gradients(*ours(x, state, lengths), [x, *state, *ours.parameters()])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    outputs, last = theirs(packed, state if kind == "lstm" else state[0])
    outputs, _ = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=T)
    expected = value_and_gradients(outputs, as_tuple(last), [x, *state, *theirs.parameters()])
    torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.parametrize(("kind", "kernels"), list(itertools.product(KINDS, KERNELS)))
def test_a_row_of_no_steps_keeps_its_state(kind, kernels):
    ours, _ = pair(kind, 2, kernels)
    state = some_state(kind, 2)
    outputs, last = ours(normal(B, T, C), state, torch.tensor([0, T, 0, 2]))
    for before, after in zip(state, last, strict=True):
        assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    assert not outputs[[0, 2]].any() and not outputs[3, 2:].any() and outputs[3, :2].all()
    nothing, last = ours(normal(B, 0, C), state)
    assert nothing.shape == (B, 0, D)
    torch.testing.assert_close(last, state)


@pytest.mark.parametrize("kind", KINDS)
def test_both_paths_agree_where_rows_begin_anew(kind):
    starts = torch.rand(B, T, generator=torch.Generator().manual_seed(3)) < 0.3
    starts[0, 0], starts[1] = True, True
    results = []
    for kernels in KERNELS:
        ours, _ = pair(kind, 2, kernels)
        x, state = normal(B, T, C).requires_grad_(), tuple(s.requires_grad_() for s in some_state(kind, 2))
        outputs = ours(x, state, torch.tensor([7, 5, 0, 3]), starts)
        results.append(value_and_gradients(*outputs, [x, *state, *ours.parameters()]))
    torch.testing.assert_close(*results, **EXACT)


@pytest.mark.parametrize(("kind", "kernels"), list(itertools.product(KINDS, KERNELS)))
def test_beginning_anew_is_being_alone(kind, kernels):
    ours, _ = pair(kind, 2, kernels)
    x, starts = normal(1, T, C), torch.zeros(1, T, dtype=torch.bool)
    starts[0, 4] = True
    outputs, last = ours(x, some_state(kind, 2, 1), starts=starts)
    first, _ = ours(x[:, :4], some_state(kind, 2, 1))
    second, expected = ours(x[:, 4:])
    torch.testing.assert_close(outputs, torch.cat((first, second), dim=1), **EXACT)
    torch.testing.assert_close(last, expected, **EXACT)


@pytest.mark.parametrize(("kind", "kernels"), list(itertools.product(KINDS, KERNELS)))
def test_pieces_with_the_state_handed_on_are_the_whole(kind, kernels):
    ours, _ = pair(kind, 2, kernels)
    x, state, pieces = normal(B, T, C), None, []
    for part in x.split([3, 1, 3], dim=1):
        outputs, state = ours(part, state)
        pieces.append(outputs)
    whole, last = ours(x)
    torch.testing.assert_close((torch.cat(pieces, dim=1), *state), (whole, *last), **EXACT)


def test_detached_states_stop_gradients_and_keep_numbers():
    ours, _ = pair("lstm")
    x = normal(B, T, C).requires_grad_()
    _, state = ours(x)
    outputs, _ = ours(normal(B, T, C, seed=5), detached(state))
    torch.testing.assert_close(detached(state), tuple(each.detach() for each in state), rtol=0, atol=0)
    outputs.sum().backward()
    assert x.grad is None and detached(None) is None


def test_kept_states_forget_even_what_is_not_a_number():
    state = (torch.full((2, 3, D), math.nan), torch.ones(2, 3, D))
    hidden, cell = keep_state(state, torch.tensor([True, False, True]))
    assert not hidden[:, [0, 2]].any() and hidden[:, 1].isnan().all() and cell.sum() == 2 * D


@pytest.mark.parametrize("kernels", KERNELS)
def test_dropout_falls_between_layers_only_while_training(kernels):
    layers = Recurrent("gru", C, D, 2, dropout=0.5, kernels=kernels).double()
    x = normal(B, T, C)
    torch.manual_seed(0)
    below = Recurrent("gru", C, D, 1).double()
    below.load_state_dict({name: layers.state_dict()[name] for name in below.state_dict()})
    above = Recurrent("gru", D, D, 1).double()
    above.load_state_dict({name: layers.state_dict()[name.replace("l0", "l1")] for name in above.state_dict()})
    torch.manual_seed(7)
    got, _ = layers(x)
    torch.manual_seed(7)
    expected, _ = above(nn.functional.dropout(below(x)[0].transpose(0, 1), 0.5).transpose(0, 1))
    torch.testing.assert_close(got, expected, **EXACT)
    layers.eval()
    torch.testing.assert_close(layers(x)[0], above(below(x)[0])[0], **EXACT)


@pytest.mark.parametrize("forget_bias", [0.0, 1.0, 2.5])
def test_forget_gates_stand_where_they_were_put(forget_bias):
    layers = Recurrent("lstm", C, D, 2, forget_bias=forget_bias)
    for layer in range(2):
        _, weight_hh, bias_ih, bias_hh = layers.weights(layer)
        gates = lstm_gates(bias_ih[None], torch.zeros(1, D), weight_hh, bias_hh)
        torch.testing.assert_close(gates[1], torch.full((1, D), 1 / (1 + math.exp(-forget_bias))))
        assert bias_ih[:D].abs().min() > 0


def test_weights_start_small_and_come_from_the_generator():
    first, second = (Recurrent("lstm", 8, 100, 2, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    for ours, same in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, same) and ours.abs().max() <= 0.1
    weight = first.weight_hh_l1
    assert abs(weight.mean().item()) < 0.001 and abs(weight.std().item() - 0.1 / math.sqrt(3)) < 0.001


def test_influence_of_a_linear_network_is_a_power():
    """Near 0 tanh is the identity: each step further back multiplies the gradient by the matrix once more."""
    layers = Recurrent("rnn", 1, 1).double()
    with torch.no_grad():
        layers.weight_ih_l0.fill_(3.0), layers.weight_hh_l0.fill_(0.5)
        layers.bias_ih_l0.zero_(), layers.bias_hh_l0.zero_()
    x = torch.zeros(2, 4, 1, dtype=torch.float64)
    got = input_influence(layers, x, torch.tensor([[1.0], [-2.0]], dtype=torch.float64))
    torch.testing.assert_close(got, 4.5 * torch.tensor([0.125, 0.25, 0.5, 1.0], dtype=torch.float64))


def test_autocast_leaves_the_recurrence_in_full_precision():
    layers, x = Recurrent("lstm", C, D), normal(B, T, C).float()
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = layers(x)
    assert torch.equal(outputs, layers(x)[0])


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="expected one of .*'gru'"):
        Recurrent("elman", C, D)
    with pytest.raises(ConfigError, match="kernels"):
        Recurrent("lstm", C, D, kernels="torch")
    with pytest.raises(ConfigError, match="d_hidden is 0"):
        Recurrent("lstm", C, 0)
    with pytest.raises(ConfigError, match="n_layers is 1.5"):
        Recurrent("lstm", C, D, 1.5)
    with pytest.raises(ConfigError, match="dropout is 1.0"):
        Recurrent("lstm", C, D, dropout=1.0)
    with pytest.raises(ConfigError, match="no forget gate"):
        Recurrent("gru", C, D, forget_bias=1.0)


def test_bad_shapes_are_refused():
    layers = Recurrent("lstm", C, D)
    x = torch.zeros(B, T, C)
    with pytest.raises(ShapeError, match="x has shape"):
        layers(x[0])
    with pytest.raises(ShapeError, match="x has shape"):
        layers(torch.zeros(B, T, C + 1))
    with pytest.raises(ShapeError, match="has 1 tensors, kind 'lstm' has 2"):
        layers(x, (torch.zeros(1, B, D),))
    with pytest.raises(ShapeError, match="state has shape"):
        layers(x, (torch.zeros(1, B, D), torch.zeros(1, B + 1, D)))
    with pytest.raises(ShapeError, match="lengths are"):
        layers(x, lengths=torch.tensor([1, 2, 3, 8]))
    with pytest.raises(ShapeError, match="lengths are"):
        layers(x, lengths=torch.tensor([1, 2, 3, -1]))
    with pytest.raises(ShapeError, match="lengths has shape"):
        layers(x, lengths=torch.tensor([1]))
    with pytest.raises(ShapeError, match="starts has shape"):
        layers(x, starts=torch.zeros(B, T + 1, dtype=torch.bool))
    with pytest.raises(ShapeError, match="input has width"):
        rnn_step(torch.zeros(1, 2), (torch.zeros(1, 3),), torch.zeros(2, 2))
