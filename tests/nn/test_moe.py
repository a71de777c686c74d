"""Mixture of experts: choices against loops, capacity against a queue, losses against formulas, both paths equal."""

import math

import pytest
import torch
from torch import nn

from minillm.errors import ConfigError, ShapeError
from minillm.nn.feedforward import FeedForward
from minillm.nn.moe import (
    MixtureOfExperts,
    Routing,
    choose_experts,
    expert_capacity,
    load_balancing_loss,
    mix_grouped,
    mix_one_by_one,
    recorded_routing,
    router_z_loss,
    within_capacity,
)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(n_experts=4, n_active=2, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    return MixtureOfExperts(6, 10, n_experts, n_active, std=0.7, generator=generator, **settings).double()


@pytest.mark.parametrize("n_active", [1, 2, 4])
def test_choices_are_the_likeliest_with_their_probabilities(n_active):
    logits = rand(9, 4)
    chosen, weights = choose_experts(logits, n_active)
    for row in range(9):
        scores = [math.exp(score) for score in logits[row].tolist()]
        best = sorted(range(4), key=lambda expert: -scores[expert])[:n_active]
        total = sum(scores) if n_active == 1 else sum(scores[expert] for expert in best)
        assert chosen[row].tolist() == best
        assert weights[row].tolist() == pytest.approx([scores[expert] / total for expert in best], rel=1e-12)


@pytest.mark.parametrize("n_active", [0, 5])
def test_more_choices_than_experts_are_refused(n_active):
    with pytest.raises(ShapeError, match=f"{n_active} experts per token, expected 1 to 4"):
        choose_experts(rand(2, 4), n_active)


@pytest.mark.parametrize("n_active, capacity", [(1, 3), (2, 4), (3, 1), (2, 0), (2, 99)])
def test_capacity_is_a_queue_per_expert(n_active, capacity):
    chosen = rand(11, 5).topk(n_active).indices
    room, expected = [capacity] * 5, torch.zeros(11, n_active, dtype=torch.bool)
    for choice in range(n_active):
        for token in range(11):
            expert = chosen[token, choice]
            if room[expert] > 0:
                room[expert] -= 1
                expected[token, choice] = True
    assert torch.equal(within_capacity(chosen, 5, capacity), expected)


def test_capacity_is_the_even_share_times_the_factor_rounded_up():
    assert expert_capacity(64, 8, 1, 1.0) == 8 and expert_capacity(64, 8, 2, 1.25) == 20
    assert expert_capacity(5, 4, 1, 1.0) == 2


@pytest.mark.parametrize("n_active", [1, 3])
def test_load_balancing_is_the_papers_sum(n_active):
    logits = rand(12, 5)
    chosen = logits.topk(n_active).indices
    probabilities = [[math.exp(s) / sum(map(math.exp, row)) for s in row] for row in logits.tolist()]
    visits = [expert for row in chosen.tolist() for expert in row]
    expected = 5 * sum(
        visits.count(expert) / len(visits) * sum(row[expert] for row in probabilities) / 12 for expert in range(5)
    )
    assert load_balancing_loss(logits, chosen).item() == pytest.approx(expected, rel=1e-12)


def test_load_balancing_runs_from_one_to_the_number_of_experts():
    even, one = torch.arange(8)[:, None] % 4, torch.zeros(8, 1, dtype=torch.long)
    assert load_balancing_loss(torch.zeros(8, 4), even).item() == pytest.approx(1.0)
    assert load_balancing_loss(torch.tensor([[50.0, 0.0, 0.0, 0.0]] * 8), one).item() == pytest.approx(4.0)


def test_descending_the_balancing_loss_evens_the_experts():
    tokens, weight = rand(200, 6) + 1.0, nn.Parameter(rand(4, 6, seed=1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    largest = []
    for _ in range(200):
        logits = tokens @ weight.T
        chosen, _ = choose_experts(logits, 1)
        largest.append(torch.bincount(chosen.flatten(), minlength=4).max().item() / 200)
        optimizer.zero_grad()
        load_balancing_loss(logits, chosen).backward()
        optimizer.step()
    assert largest[0] > 0.5 and largest[-1] < 0.3


def test_z_loss_is_the_mean_square_of_the_log_sum():
    logits = rand(7, 3)
    expected = sum(math.log(sum(map(math.exp, row))) ** 2 for row in logits.tolist()) / 7
    assert router_z_loss(logits).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n_experts, n_active", [(1, 1), (4, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("capacity_factor", [0.0, 0.6, 1.0])
def test_the_grouped_path_equals_the_loop_in_value_and_gradient(n_experts, n_active, capacity_factor):
    settings = {"n_experts": n_experts, "n_active": n_active, "capacity_factor": capacity_factor, "bias": True}
    fast, plain = mixture(**settings), mixture(kernels="naive", **settings)
    plain.load_state_dict(fast.state_dict())
    results = []
    for layer in (fast, plain):
        x = rand(3, 5, 6).requires_grad_()
        value = layer(x)
        results.append((value, torch.autograd.grad(value, [x, *layer.parameters()], rand(3, 5, 6, seed=2))))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_each_token_is_the_weighted_sum_of_its_experts():
    layer, x = mixture(n_active=2), rand(4, 6)
    logits = x @ layer.router.weight.T
    for token in range(4):
        best = logits[token].topk(2)
        weights = best.values.softmax(0)
        expected = sum(w * layer.experts[expert](x[token]) for w, expert in zip(weights, best.indices, strict=True))
        torch.testing.assert_close(layer(x)[token], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mix", [mix_one_by_one, mix_grouped])
def test_dropped_tokens_get_nothing_and_are_counted(mix):
    experts = [FeedForward(6, 10, "relu").double() for _ in range(2)]
    x, chosen = rand(3, 6), torch.tensor([[0], [0], [1]])
    kept = torch.tensor([[True], [False], [True]])
    routing = Routing(rand(3, 2), chosen, torch.ones(3, 1, dtype=torch.float64), kept)
    mixed = mix(x, routing, experts)
    assert routing.n_dropped == 1 and mixed[1].abs().max() == 0
    torch.testing.assert_close(mixed[2], experts[1](x[2]))


def test_capacity_holds_while_training_only():
    layer, x = mixture(n_experts=4, n_active=1, capacity_factor=0.5), rand(8, 6)
    with recorded_routing(layer) as routings:
        layer(x)
        layer.eval()(x)
    assert routings[0].n_dropped >= 4 and routings[1].n_dropped == 0
    assert torch.bincount(routings[0].destinations().flatten(), minlength=4)[:4].max() == 1


def test_experts_without_visitors_get_gradients_of_zero():
    layer = mixture(n_experts=4, n_active=1)
    layer(rand(1, 6)).sum().backward()
    gradients = [expert.up.weight.grad for expert in layer.experts]
    assert sum(gradient.abs().max() > 0 for gradient in gradients) == 1


def test_the_router_learns_even_when_one_expert_is_chosen():
    layer = mixture(n_active=1)
    layer(rand(5, 6)).sum().backward()
    assert layer.router.weight.grad.abs().max() > 0


def test_the_router_decides_in_32_bits():
    layer = MixtureOfExperts(6, 10, 4, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    with recorded_routing(layer) as routings, torch.autocast("cpu", torch.bfloat16):
        assert layer(rand(3, 6).bfloat16()).dtype == torch.bfloat16
    assert routings[0].logits.dtype == torch.float32


def test_recording_leaves_nothing_behind():
    layer = mixture()
    with pytest.raises(RuntimeError, match="on purpose"), recorded_routing(layer):
        raise RuntimeError("on purpose")
    with recorded_routing(layer) as routings:
        layer(rand(2, 6))
    layer(rand(2, 6))
    assert len(routings) == 1 and not layer.router._forward_hooks


@pytest.mark.parametrize(
    "numbers, message",
    [
        ({"n_experts": 0, "n_active": 0}, "0 of 0 experts"),
        ({"n_experts": 2, "n_active": 3}, "3 of 2 experts"),
        ({"capacity_factor": -1.0}, "capacity_factor is -1.0"),
        ({"capacity_factor": math.inf}, "capacity_factor is inf"),
        ({"kind": "tanh"}, "feed-forward kind is 'tanh'"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, message):
    with pytest.raises(ConfigError, match=message):
        mixture(**numbers)
