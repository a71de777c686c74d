"""Learning one task after another: forgetting is measured, replay and springs against it are what they say."""

import itertools

import numpy as np
import pytest
import torch
from helpers.adapt_models import ids_of, small_gpt
from torch import nn
from torch.nn import functional as F

from minillm.adapt.adapted import adapt
from minillm.adapt.continual import Anchor, ElasticLoss, anchor_at, elastic_penalty, fisher_diagonal
from minillm.adapt.lora import LoraConfig
from minillm.adapt.partial import FullConfig, LastLayersConfig
from minillm.adapt.replay import ReplayBatches, kept_rows, reservoir
from minillm.adapt.task_scores import TaskScores, learn_in_turn, score_table
from minillm.errors import ConfigError, DataError, ShapeError
from minillm.train.accumulation import accumulate_gradients
from minillm.train.loss import IGNORED


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


# --- the Fisher information


def softmax_regression(n_inputs=4, n_classes=3, seed=0):
    model = nn.Linear(n_inputs, n_classes).double()
    with torch.no_grad():
        model.weight.copy_(normal(n_classes, n_inputs, seed=seed))
        model.bias.copy_(normal(n_classes, seed=seed + 1))
    return model


def test_of_logistic_regression_it_is_the_mean_of_p_times_one_minus_p_times_x_squared():
    model, x = softmax_regression(), normal(20, 4, seed=5)
    p = model(x).softmax(-1).detach()
    expected = torch.einsum("nk,ni->ki", p * (1 - p), x.square()) / len(x)
    batches = [(x[:7], torch.zeros(7, dtype=torch.long)), (x[7:], torch.zeros(13, dtype=torch.long))]
    exact = fisher_diagonal(model, dict(model.named_parameters()), batches, "all")
    torch.testing.assert_close(exact["weight"], expected, atol=1e-14, rtol=1e-12)
    torch.testing.assert_close(exact["bias"], (p * (1 - p)).mean(0), atol=1e-14, rtol=1e-12)
    many = [(x.repeat(40, 1), torch.zeros(800, dtype=torch.long))]
    drawn = fisher_diagonal(model, dict(model.named_parameters()), many, "model", seeded(1))
    torch.testing.assert_close(drawn["weight"], expected, atol=0.02, rtol=0.15)


def test_what_it_is_not():
    """Each of the usual mistakes gives another matrix, by far."""
    model, x = softmax_regression(), normal(20, 4, seed=5)
    parameters, targets = dict(model.named_parameters()), torch.zeros(20, dtype=torch.long)
    exact = fisher_diagonal(model, parameters, [(x, targets)], "all")["weight"]
    p, truth = model(x).softmax(-1).detach(), F.one_hot(targets, 3)
    from_data = fisher_diagonal(model, parameters, [(x, targets)], "data")["weight"]
    expected = torch.einsum("nk,ni->ki", (truth - p).square(), x.square()) / len(x)
    torch.testing.assert_close(from_data, expected, atol=1e-14, rtol=1e-12)
    (of_batch,) = torch.autograd.grad(F.cross_entropy(model(x), targets), [model.weight])
    for wrong in (from_data, of_batch.square(), exact * len(x), exact.sqrt()):
        assert (wrong - exact).norm() > 0.3 * exact.norm()


def test_of_a_gpt_it_is_the_curvature_of_the_divergence_between_answers():
    """Independent: J^T (diag p - p p^T) J from the Jacobian of all logits."""
    model = small_gpt(n_layers=1, n_heads=1, d_model=4).eval()
    inputs, targets = ids_of((2, 5)), ids_of((2, 5), 1)
    targets[0, :2] = IGNORED
    adapted = adapt(model, LastLayersConfig())
    parameters = adapted.trainable_parameters()
    exact = fisher_diagonal(model, parameters, [(inputs, targets)], "all")
    values = {name: parameter.detach() for name, parameter in parameters.items()}

    def logits(*tensors):
        return torch.func.functional_call(model, dict(zip(values, tensors, strict=True)), (inputs,))

    jacobians = torch.autograd.functional.jacobian(logits, tuple(values.values()))
    p = model(inputs).softmax(-1).detach()
    middle = (torch.diag_embed(p) - p[..., None] * p[..., None, :]) * (targets != IGNORED)[..., None, None]
    for name, jacobian in zip(values, jacobians, strict=True):
        j = jacobian.flatten(3)
        expected = torch.einsum("btki,btkl,btli->i", j, middle, j) / 2
        torch.testing.assert_close(exact[name].flatten(), expected, atol=1e-12, rtol=1e-9)


def test_answers_drawn_from_the_model_give_the_same_on_average():
    model = small_gpt(n_layers=1, n_heads=1, d_model=4).eval()
    inputs, targets = ids_of((1, 4)), ids_of((1, 4), 1)
    parameters = dict(model.named_parameters())
    exact = fisher_diagonal(model, parameters, [(inputs, targets)], "all")
    many = (inputs.expand(900, -1), targets.expand(900, -1))
    drawn = fisher_diagonal(model, parameters, [many], "model", seeded())
    empirical = fisher_diagonal(model, parameters, [(inputs, targets)], "data")
    sums = [sum(float(value.sum()) for value in each.values()) for each in (exact, drawn, empirical)]
    assert sums[1] == pytest.approx(sums[0], rel=0.1) and abs(sums[2] - sums[0]) > 0.3 * sums[0]


def test_it_is_taken_of_what_an_adapter_trains():
    model = small_gpt()
    adapted = adapt(model, LoraConfig(rank=2), generator=seeded())
    fisher = fisher_diagonal(model, adapted.trainable_parameters(), [(ids_of((2, 4)), ids_of((2, 4), 1))], "data")
    assert fisher.keys() == adapted.trainable_parameters().keys()
    some = [value for name, value in fisher.items() if bool(value.any())]
    assert len(some) == len(fisher) // 2                           # B is 0 at the start, so A has no gradient yet
    assert all(parameter.grad is None for parameter in model.parameters())


def test_misuse_of_the_fisher_information_is_refused():
    model, example = softmax_regression(), (normal(1, 4), torch.tensor([0]))
    with pytest.raises(ConfigError, match="labels is 'true'"):
        fisher_diagonal(model, dict(model.named_parameters()), [example], "true")
    with pytest.raises(DataError, match="no example"):
        fisher_diagonal(model, dict(model.named_parameters()), [])
    model.bias.requires_grad_(False)
    with pytest.raises(ConfigError, match="bias is frozen"):
        fisher_diagonal(model, dict(model.named_parameters()), [example])


# --- the springs


def test_on_a_quadratic_the_optimum_is_the_closed_form():
    half = normal(5, 5, seed=3)
    curvature, goal, start = half @ half.T + torch.eye(5), normal(5, seed=4), normal(5, seed=6)
    importance = normal(5, seed=7).square()
    for strength in (0.0, 0.3, 20.0):
        theta = nn.Parameter(start.clone())
        anchor = Anchor({"theta": start}, {"theta": importance})
        optimizer = torch.optim.LBFGS(
                [theta], max_iter=200, tolerance_grad=0.0, tolerance_change=0.0, line_search_fn="strong_wolfe"
            )

        def closure(theta=theta, anchor=anchor, strength=strength, optimizer=optimizer):
            optimizer.zero_grad()
            away = theta - goal
            loss = away @ curvature @ away / 2 + elastic_penalty({"theta": theta}, [anchor], strength)
            loss.backward()
            return loss

        optimizer.step(closure)
        left = curvature + strength * torch.diag(importance)
        expected = torch.linalg.solve(left, curvature @ goal + strength * importance * start)
        torch.testing.assert_close(theta.detach(), expected, atol=1e-7, rtol=1e-7)


def test_where_the_fisher_is_diagonal_it_forgets_nothing_that_joint_training_would_keep():
    """Two regressions with unit noise: with strength = examples of A / examples of B the optimum is the joint one."""
    designs = [torch.linalg.qr(normal(n, 3, seed=n))[0] * normal(3, seed=n + 1) * 3 for n in (12, 7)]
    answers = [normal(len(x), seed=len(x) + 2) for x in designs]
    old, new = (torch.linalg.lstsq(x, y[:, None]).solution[:, 0] for x, y in zip(designs, answers, strict=True))
    joint = torch.linalg.lstsq(torch.cat(designs), torch.cat(answers)[:, None]).solution[:, 0]
    theta = old.clone().requires_grad_(True)
    anchor = Anchor({"theta": old}, {"theta": designs[0].square().mean(0)})
    loss = (designs[1] @ theta - answers[1]).square().mean() / 2 + elastic_penalty({"theta": theta}, [anchor], 12 / 7)
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
    hessian = torch.stack([torch.autograd.grad(g, theta, retain_graph=True)[0] for g in gradient])
    optimum = (theta - torch.linalg.solve(hessian, gradient)).detach()  # one Newton step is exact
    torch.testing.assert_close(optimum, joint, atol=1e-12, rtol=1e-12)
    assert (new - joint).norm() > 0.1 * joint.norm()


def test_the_gradient_is_strength_times_importance_times_the_way_from_each_anchor():
    parameters = {"a": nn.Parameter(normal(2, 3)), "b": nn.Parameter(normal(4, seed=1))}
    anchors = [
        Anchor({name: normal(*p.shape, seed=s) for name, p in parameters.items()},
               {name: normal(*p.shape, seed=s + 1).square() for name, p in parameters.items()})
        for s in (2, 4)
    ]  # fmt: skip
    elastic_penalty(parameters, anchors, 0.7).backward()
    for name, parameter in parameters.items():
        expected = 0.7 * sum(a.importance[name] * (parameter.detach() - a.values[name]) for a in anchors)
        torch.testing.assert_close(parameter.grad, expected, atol=1e-13, rtol=1e-12)


def test_in_the_loop_the_energy_counts_once_whatever_the_parts_of_the_batch():
    inputs, targets = ids_of((4, 6)), ids_of((4, 6), 1)
    targets[0, :5] = IGNORED
    gradients = []
    for n_parts in (1, 3, 4):
        model = small_gpt()
        adapted = adapt(model, FullConfig())
        parameters = adapted.trainable_parameters()
        anchor = anchor_at({name: p - 0.1 for name, p in parameters.items()})
        loss = ElasticLoss(parameters, [anchor], 0.4)
        accumulate_gradients(model, inputs, targets, n_parts, loss)
        gradients.append(torch.cat([p.grad.flatten() for p in parameters.values()]))
        plain = small_gpt()
        F.cross_entropy(plain(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED).backward()
        expected = torch.cat([p.grad.flatten() for p in plain.parameters()]) + 0.4 * 0.1
        torch.testing.assert_close(gradients[-1], expected, atol=1e-12, rtol=1e-9)


def test_an_anchor_is_a_copy_and_what_does_not_fit_is_refused():
    model = softmax_regression()
    parameters = dict(model.named_parameters())
    anchor = anchor_at(parameters)
    assert elastic_penalty(parameters, [anchor], 5.0).item() == 0.0
    with torch.no_grad():
        model.bias += 2.0
    assert elastic_penalty(parameters, [anchor], 5.0).item() == pytest.approx(5 / 2 * 3 * 4)
    for wrong in ([], [Anchor({"weight": model.weight}, {})]):
        with pytest.raises(ConfigError):
            elastic_penalty(parameters, wrong, 1.0)
    with pytest.raises(ConfigError, match="strength -1"):
        ElasticLoss(parameters, [anchor], -1.0)
    with pytest.raises(ConfigError, match="differ in bias"):
        anchor_at(parameters, {"weight": model.weight, "bias": torch.zeros(2)})


# --- replay


def test_a_memory_keeps_each_item_with_the_same_chance():
    counts, n_seeds = np.zeros(10), 3000
    for seed in range(n_seeds):
        kept = reservoir(10, 4, seed)
        assert len(set(kept)) == 4
        counts[kept] += 1
    share = counts / n_seeds
    assert np.abs(share - 0.4).max() < 4.5 * np.sqrt(0.4 * 0.6 / n_seeds)
    assert reservoir(3, 4, 0) == [0, 1, 2] and reservoir(0, 4, 0) == []
    first, longer = reservoir(10, 4, 7), reservoir(50, 4, 7)
    assert all(item >= 10 or item == first[place] for place, item in enumerate(longer))


def test_rows_are_kept_while_they_pass():
    def stream():
        for step in range(6):
            rows = np.arange(3) + 3 * step
            yield np.repeat(rows[:, None], 2, 1), np.repeat(rows[:, None], 2, 1) + 100

    inputs, targets = kept_rows(stream(), 5, seed=3)
    assert inputs[:, 0].tolist() == reservoir(18, 5, 3) and np.array_equal(targets, inputs + 100)
    assert kept_rows(stream(), 99, seed=3)[0].shape == (18, 2)
    with pytest.raises(DataError, match="no row"):
        kept_rows([], 3, 0)
    with pytest.raises(ConfigError, match="n_kept 0"):
        kept_rows(stream(), 0, 0)


def new_task(step):
    rows = np.full((3, 2), step)
    return rows, rows + 1


def test_every_batch_holds_all_new_rows_and_some_old_ones_and_depends_on_the_step_alone():
    memory = (np.arange(20).reshape(10, 2) + 1000, np.arange(20).reshape(10, 2) + 2000)
    replay = ReplayBatches(new_task, memory, 4, seed=5)
    seen = []
    for step in (7, 0, 7, 3):
        inputs, targets = replay(step)
        again = ReplayBatches(new_task, memory, 4, seed=5)(step)
        assert np.array_equal(inputs, again[0]) and np.array_equal(targets, again[1])
        assert np.array_equal(inputs[:3], new_task(step)[0]) and np.array_equal(targets[:3], new_task(step)[1])
        old = (inputs[3:, 0] - 1000) // 2
        assert len(set(old)) == 4 and np.array_equal(memory[0][old], inputs[3:])
        assert np.array_equal(memory[1][old], targets[3:])
        seen.append(tuple(old))
    assert seen[0] == seen[2] and len(set(seen)) == 3
    assert not np.array_equal(replay.drawn(0), ReplayBatches(new_task, memory, 4, seed=6).drawn(0))
    drawn = np.concatenate([replay.drawn(step) for step in range(400)])
    assert np.abs(np.bincount(drawn, minlength=10) / 400 - 0.4).max() < 0.1


def test_misuse_of_replay_is_refused():
    memory = (np.zeros((2, 2), int), np.zeros((2, 2), int))
    for n_replayed in (0, 3):
        with pytest.raises(ConfigError, match="expected 1 to 2"):
            ReplayBatches(new_task, memory, n_replayed, 0)
    with pytest.raises(ShapeError, match="expected \\(N, T\\)"):
        ReplayBatches(new_task, (memory[0], memory[1][:1]), 1, 0)
    with pytest.raises(ShapeError, match="one length"):
        ReplayBatches(new_task, (np.zeros((2, 5), int),) * 2, 1, 0)(0)
    with pytest.raises(DataError, match="at least 0"):
        ReplayBatches(new_task, memory, 1, 0)(-1)


# --- what is forgotten


def test_the_measures_of_a_worked_example():
    rows = ((0.2, 0.1, 0.3), (0.9, 0.2, 0.3), (0.6, 0.8, 0.5), (0.7, 0.5, 1.0))
    scores = TaskScores(("a", "b", "c"), rows)
    assert scores.forgotten() == pytest.approx({"a": 0.2, "b": 0.3})
    assert scores.forgetting() == pytest.approx(0.25)
    assert scores.average() == pytest.approx(2.2 / 3)
    assert scores.backward_transfer() == pytest.approx((-0.2 - 0.3) / 2)
    assert scores.forward_transfer() == pytest.approx((0.1 + 0.2) / 2)
    losses = TaskScores(("a", "b", "c"), tuple(tuple(-x for x in row) for row in rows), larger_is_better=False)
    for measure in ("forgetting", "backward_transfer", "forward_transfer"):
        assert getattr(losses, measure)() == pytest.approx(getattr(scores, measure)())
    alone = TaskScores(("a",), ((0.1,), (0.9,)))
    assert (alone.forgetting(), alone.backward_transfer(), alone.forward_transfer()) == (0, 0, 0)
    for wrong in (rows[:3], rows[:3] + ((1.0,),)):
        with pytest.raises(DataError, match="expected one row"):
            TaskScores(("a", "b", "c"), wrong)


def test_learning_in_turn_scores_before_the_first_task_and_after_each():
    state, calls = {"at": 0}, []

    def learn(number):
        calls.append(number)
        state["at"] = number

    train = {"x": lambda: learn(1), "y": lambda: learn(2)}
    scores = learn_in_turn(train, lambda task: state["at"] * 10 + ord(task) % 7)
    assert calls == [1, 2] and scores.rows == ((1, 2), (11, 12), (21, 22))
    assert score_table(scores, 0).splitlines()[2:] == ["| nothing | 1 | 2 |", "| x | 11 | 12 |", "| y | 21 | 22 |"]
    with pytest.raises(ConfigError, match="no task"):
        learn_in_turn({}, lambda task: 0.0)


def toy_tasks(seed):
    """Two tasks that need different weights: classes of random points by two random teachers, on different inputs."""
    tasks = {}
    for number, name in enumerate(("old", "new")):
        x = normal(200, 10, seed=100 * seed + number)
        x[:, 5:] *= 1.0 if number else 0.15
        x[:, :5] *= 0.3 if number else 1.0
        tasks[name] = (x, (x @ normal(10, 3, seed=100 * seed + 50 + number)).argmax(-1))
    return tasks


def learn_both(tasks, way):
    model = nn.Linear(10, 3).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    parameters, anchors = dict(model.named_parameters()), []

    def learn(name):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        memory = tuple(part[:20] for part in tasks["old"])
        for _ in range(200):
            optimizer.zero_grad()
            x, y = tasks[name]
            if way == "replay" and name == "new":
                x, y = torch.cat((x, memory[0].repeat(5, 1))), torch.cat((y, memory[1].repeat(5)))
            loss = F.cross_entropy(model(x), y)
            if anchors:
                loss = loss + elastic_penalty(parameters, anchors, 1.0)
            loss.backward()
            optimizer.step()
        if name == "old" and way == "elastic":
            anchors.append(anchor_at(parameters, fisher_diagonal(model, parameters, [tasks["old"]], "all")))

    @torch.no_grad()
    def accuracy(name):
        x, y = tasks[name]
        return (model(x).argmax(-1) == y).double().mean().item()

    return learn_in_turn({name: lambda name=name: learn(name) for name in tasks}, accuracy)


def test_plain_learning_forgets_and_replay_and_springs_keep_the_old_task():
    for seed in range(3):
        tasks = toy_tasks(seed)
        scores = {way: learn_both(tasks, way) for way in ("plain", "replay", "elastic")}
        forgotten = {way: each.forgetting() for way, each in scores.items()}
        assert forgotten["plain"] > 0.15, forgotten
        assert max(forgotten["replay"], forgotten["elastic"]) < 0.5 * forgotten["plain"], forgotten
        assert all(scores[way].average() > scores["plain"].average() + 0.05 for way in ("replay", "elastic")), scores


def test_pairs_of_anchors_add_up():
    parameters = {"w": nn.Parameter(normal(3))}
    anchors = [Anchor({"w": normal(3, seed=s)}, {"w": normal(3, seed=s + 9).square()}) for s in range(3)]
    for pair in itertools.combinations(anchors, 2):
        both = elastic_penalty(parameters, pair, 2.0)
        torch.testing.assert_close(both, sum(elastic_penalty(parameters, [one], 2.0) for one in pair))
