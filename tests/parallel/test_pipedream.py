"""Asynchronous pipelines. Oracles: counting in the schedule, delayed gradients written out, roots of polynomials."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from minillm.errors import ConfigError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.pipedream import (
    AsynchronousStage,
    largest_stable_rate,
    staleness,
    stashed_versions,
    train_asynchronously,
    weights_seen,
)
from minillm.parallel.schedules import make_schedule
from minillm.parallel.stages import PipelineStage
from minillm.train.loss import next_token_loss


def test_versions_counted_in_the_schedule():
    for n_ranks, n_microbatches in itertools.product((1, 2, 3, 4, 8), (1, 5, 20)):
        for rank, actions in enumerate(make_schedule("1f1b", n_ranks, n_microbatches).actions):
            n_updates, seen, at_return = 0, {}, {}
            for action in actions:
                if action.kind == "F":
                    seen[action.microbatch] = n_updates
                else:
                    at_return[action.microbatch] = n_updates
                    n_updates += 1
            assert seen == {t: weights_seen(t, rank, n_ranks) for t in range(n_microbatches)}
            delays = [at_return[t] - seen[t] for t in range(n_microbatches)]
            if n_microbatches > n_ranks:
                assert max(delays) == delays[-1] == staleness(rank, n_ranks) == n_ranks - 1 - rank
                assert stashed_versions(rank, n_ranks) == n_ranks - rank
    assert [staleness(rank, 4, "vertical") for rank in range(4)] == [3, 3, 3, 3]
    assert [staleness(rank, 4, "flushed") for rank in range(4)] == [0, 0, 0, 0]


def parts(n_ranks, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double() for _ in range(n_ranks)]
    for parameter in nn.ModuleList(layers).parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2
    return layers


def stream(n_batches, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)) for _ in range(n_batches)]


def square(output, target):
    return ((output - target) ** 2).mean()


def train(mode, n_ranks=3, n_batches=12, rate=0.3, **options):
    modules = parts(n_ranks)
    optimizers = [torch.optim.SGD(module.parameters(), lr=rate, **options) for module in modules]
    losses = train_asynchronously(modules, optimizers, stream(n_batches), square, mode)
    return losses, [parameter.detach() for module in modules for parameter in module.parameters()]


def delayed(delays, n_batches=12, rate=0.3):
    """Gradient descent in which stage s of batch t uses its weights of t - delays[s] updates; all versions kept."""
    modules = parts(len(delays))
    history, losses = [[copy.deepcopy(module) for module in modules]], []
    for t, (x, target) in enumerate(stream(n_batches)):
        used = [copy.deepcopy(history[max(0, t - delay)][s]) for s, delay in enumerate(delays)]
        for module in used:
            x = module(x)
        loss = square(x, target)
        loss.backward()
        losses.append(loss.item())
        new = [copy.deepcopy(module) for module in history[-1]]
        for module, stale in zip(new, used, strict=True):
            for parameter, other in zip(module.parameters(), stale.parameters(), strict=True):
                parameter.data -= rate * other.grad
        history.append(new)
    return losses, [parameter.detach() for module in history[-1] for parameter in module.parameters()]


@pytest.mark.parametrize(
    ("mode", "delays"), [("stashed", (2, 1, 0)), ("vertical", (2, 2, 2)), ("flushed", (0, 0, 0))]
)
def test_training_is_descent_with_delayed_gradients(mode, delays):
    losses, parameters = train(mode)
    right_losses, right = delayed(delays)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(right_losses), rtol=0, atol=1e-12)
    for ours, theirs in zip(parameters, right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_other_delays_would_be_noticed():
    losses, _ = train("stashed")
    for delays in ((2, 2, 2), (0, 0, 0), (1, 0, 0), (3, 2, 1), (0, 1, 2)):
        assert max(abs(a - b) for a, b in zip(losses, delayed(delays)[0], strict=True)) > 1e-4


def test_without_a_stash_the_way_back_uses_newer_weights():
    """By hand: y = v w x, P = 2. Rank 0's input gradient would be g v; v is what rank 1 has when it goes back."""
    modules = [nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()]
    rate, xs = 0.1, [1.0, 2.0, -1.5, 0.5]
    w, v = [0.7], [0.4]
    for t, x in enumerate(xs):
        w_old, w_now = w[max(0, t - 1)], w[-1]
        g = v[-1] * w_old * x - 1.0
        v.append(v[-1] - rate * g * w_old * x)
        w.append(w_now - rate * g * v[-2] * x)
    for module, value in zip(modules, (0.7, 0.4), strict=True):
        module.weight.data.fill_(value)
    batches = [(torch.tensor([[x]]).double(), torch.ones(1, 1).double()) for x in xs]
    optimizers = [torch.optim.SGD(module.parameters(), lr=rate) for module in modules]
    train_asynchronously(modules, optimizers, batches, lambda y, target: (y - target).square().sum() / 2, "unstashed")
    assert [module.weight.item() for module in modules] == pytest.approx([w[-1], v[-1]], abs=1e-14)
    assert max(abs(a - b) for a, b in zip(train("unstashed")[0], train("stashed")[0], strict=True)) > 1e-4


def test_a_stage_that_goes_back_with_newer_weights():
    """One stage of two layers: forward with both old, then an update, then back: only the inner product is new."""
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    module[0].weight.data.fill_(2.0)
    module[1].weight.data.fill_(3.0)
    for mode, inner in (("stashed", 3.0), ("unstashed", 5.0)):
        trial = copy.deepcopy(module)
        stage = AsynchronousStage(trial, torch.optim.SGD(trial.parameters(), lr=0.0), mode)
        stage.forward(0, torch.full((1, 1), 7.0, dtype=torch.float64), 0)
        trial[1].weight.data.fill_(5.0)  # an update while the micro-batch is away
        gradient = stage.backward(0, torch.ones(1, 1, dtype=torch.float64))
        assert gradient.item() == (2.0 if mode == "stashed" else trial[0].weight.item()) * inner
        assert trial[0].weight.grad.item() == inner * 7.0 and trial[1].weight.grad.item() == 14.0


@pytest.mark.parametrize(("mode", "most"), [("stashed", [4, 3, 2, 1]), ("vertical", [4, 4, 4, 4])])
def test_versions_kept_are_those_in_flight(mode, most):
    modules = parts(4)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in modules]
    counts = []
    original = AsynchronousStage.backward

    def counting(stage, *arguments):
        counts.append((optimizers.index(stage.optimizer), len(stage.versions)))
        return original(stage, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AsynchronousStage, "backward", counting)
        train_asynchronously(modules, optimizers, stream(10), square, mode)
    for rank in range(4):
        assert max(n for other, n in counts if other == rank) == stashed_versions(rank, 4, mode) == most[rank]


@pytest.mark.parametrize("delay", [0, 1, 2, 3, 7])
def test_the_largest_stable_rate_is_where_a_root_reaches_the_circle(delay):
    for curvature in (1.0, 2.5):
        limit = largest_stable_rate(curvature, delay)
        for factor, stable in ((0.99, True), (1.01, False)):
            polynomial = np.zeros(delay + 2)
            polynomial[0] += 1.0
            polynomial[1] -= 1.0
            polynomial[-1] += factor * limit * curvature
            assert bool(np.abs(np.roots(polynomial)).max() < 1) == stable
    with pytest.raises(ConfigError, match="curvature"):
        largest_stable_rate(0.0, 1)


def test_a_decoder_in_parts_and_one_machine_agree_when_flushed():
    config = GPTConfig(vocab_size=11, max_seq_len=8, n_layers=2, n_heads=2, d_model=8, tie_embeddings=False)
    whole = GPT(config, torch.Generator().manual_seed(0)).double()
    single = copy.deepcopy(whole)
    modules = [PipelineStage(whole, rank, 2) for rank in range(2)]
    generator = torch.Generator().manual_seed(1)
    batches = [tuple(torch.randint(11, (2, 3, 8), generator=generator)) for _ in range(4)]

    def loss(logits, targets):
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    optimizers = [torch.optim.AdamW(module.parameters(), lr=0.01) for module in modules]
    losses = train_asynchronously(modules, optimizers, batches, loss, "flushed")
    optimizer = torch.optim.AdamW(single.parameters(), lr=0.01)
    expected = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        value = next_token_loss(single, inputs, targets) / targets.numel()
        value.backward()
        optimizer.step()
        expected.append(value.item())
    assert losses == pytest.approx(expected, abs=1e-12)


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="known are stashed, unstashed, vertical, flushed"):
        weights_seen(0, 0, 2, "later")
    modules = parts(2)
    with pytest.raises(ConfigError, match="one optimizer for each part"):
        train_asynchronously(modules, [], stream(1), square)
    with pytest.raises(ConfigError, match="expected one of stashed"):
        train_asynchronously([], [], stream(1), square, "later")
