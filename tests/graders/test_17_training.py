"""Chapter 17. Oracles: torch's optimizer and clipping, one pass over the whole batch, formulas written another way."""

import base64
import math

import numpy as np
import torch
from torch.nn import functional

from minillm.course.grader import Seeded, Wrong, expect, expect_close, expect_equal, expect_error, normal, task
from minillm.models.gpt import GPTConfig
from minillm.train.loss import SmoothedLoss


def uniform(rng, low, high):
    return float(rng.uniform(low, high))


# --- 17.1 AdamW


def random_settings(rng):
    return {
        "lr": uniform(rng, 0.01, 0.3),
        "betas": (uniform(rng, 0.3, 0.95), uniform(rng, 0.4, 0.9)),
        "eps": uniform(rng, 0.05, 0.5),
        "weight_decay": uniform(rng, 0.1, 2.0),
    }


@task("17.1", cases=3)
def test_adamw_several_steps(impl, rng):
    settings, start = random_settings(rng), normal(rng, 3, 2)
    theirs = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([theirs], **settings)
    ours, mean, square = start, torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, 6):
        theirs.grad = normal(rng, 3, 2) * 10.0 ** rng.integers(-3, 2)
        optimizer.step()
        ours, mean, square = impl.adamw_step(ours, theirs.grad, mean, square, step, **settings)
        state = optimizer.state[theirs]
        expect_close(mean, state["exp_avg"], what=f"the mean of the gradient m after step {step}")
        expect_close(square, state["exp_avg_sq"], what=f"the mean of the squared gradient v after step {step}")
        expect_close(ours, theirs.detach(), what=f"the parameter after step {step}")


@task("17.1", cases=2)
def test_adamw_one_step_by_the_formula(impl, rng):
    parameter, gradient, mean = (float(x) for x in rng.normal(size=3))
    square, step = uniform(rng, 0.0, 2.0), int(rng.integers(1, 50))
    new_mean, new_square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient * gradient
    m_hat, v_hat = new_mean / (1 - math.pow(0.9, step)), new_square / (1 - math.pow(0.999, step))
    new = parameter - 0.5 * 0.01 * parameter - 0.5 * m_hat / (math.sqrt(v_hat) + 1e-8)
    given = [torch.tensor(x, dtype=torch.float64) for x in (parameter, gradient, mean, square)]
    found = impl.adamw_step(*given, step, lr=0.5)
    expected = tuple(torch.tensor(x, dtype=torch.float64) for x in (new, new_mean, new_square))
    expect_close(found, expected, what=f"(parameter, m, v) after step {step} with the default settings")


@task("17.1")
def test_adamw_extremes(impl, rng):
    settings = random_settings(rng)
    zeros, weight = torch.zeros(2, dtype=torch.float64), normal(rng, 2)
    found, _, _ = impl.adamw_step(weight, zeros, zeros.clone(), zeros.clone(), 1, **settings)
    decayed = weight * (1 - settings["lr"] * settings["weight_decay"])
    expect_close(found, decayed, what="a parameter whose gradient is 0 (only weight decay moves it)")
    for size in (1e-6, 1.0, 1e6):
        gradient = torch.tensor([size, -size], dtype=torch.float64)
        start, mean, square = zeros.clone(), zeros.clone(), zeros.clone()
        found, _, _ = impl.adamw_step(start, gradient, mean, square, 1, lr=0.1, eps=0.0, weight_decay=0.0)
        first = torch.tensor([-0.1, 0.1], dtype=torch.float64)
        expect_close(found, first, what=f"the first step with a gradient of size {size:g}, which has length lr")
    empty = torch.zeros(0, 3)
    expect_equal(impl.adamw_step(empty, empty, empty, empty, 1, lr=0.1)[0], empty, what="an empty parameter")


@task("17.1")
def test_adamw_changes_nothing_and_keeps_the_dtype(impl, rng):
    given = [normal(rng, 2, 2, dtype=torch.float32) for _ in range(3)] + [torch.rand(2, 2)]
    before = [tensor.clone() for tensor in given]
    found, after = impl.adamw_step.after(*given, 2, 0.1)
    names = ("the parameter passed in", "the gradient passed in", "exp_avg passed in", "exp_avg_sq passed in")
    for name, old, new in zip(names, before, after, strict=False):
        expect_equal(new, old, what=f"{name} (it must not be changed)")
    expect([tensor.dtype for tensor in found] == [torch.float32] * 3, "float32 tensors must give float32 tensors")


# --- 17.2 schedule


def rate_by_hand(step, highest, lowest, n_warmup, n_steps):
    if n_warmup > step:
        return highest * float(step + 1) / n_warmup
    angle = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup)) * math.pi
    return lowest + (highest - lowest) * math.cos(angle / 2) ** 2 if step < n_steps else lowest


@task("17.2", cases=3)
def test_schedule_at_every_step(impl, rng):
    n_warmup = int(rng.integers(2, 6))
    n_steps = n_warmup + int(rng.integers(3, 9))
    highest = uniform(rng, 0.5, 2.0)
    lowest = highest * uniform(rng, 0.05, 0.5)
    for step in range(n_steps + 4):
        arguments = (step, highest, lowest, n_warmup, n_steps)
        expected = rate_by_hand(*arguments)
        where = "warm-up" if step < n_warmup else "cosine" if step < n_steps else "the end"
        what = f"the rate of step {step} ({where}; {n_warmup} warm-up steps of {n_steps})"
        expect_close(impl.warmup_cosine(*arguments), expected, what=what)


@task("17.2")
def test_schedule_extremes(impl):
    expect_close(impl.warmup_cosine(0, 1.0, 0.1, 0, 4), 1.0, what="the rate of step 0 without warm-up")
    expect_close(impl.warmup_cosine(2, 1.0, 0.0, 0, 4), 0.5, what="the rate half-way without warm-up")
    expect_close(impl.warmup_cosine(2, 1.0, 0.1, 3, 3), 1.0, what="the last step of a run that is all warm-up")
    expect_close(impl.warmup_cosine(3, 1.0, 0.1, 3, 3), 0.1, what="the step after a run that is all warm-up")
    expect_close(impl.warmup_cosine(0, 1.0, 0.1, 0, 0), 0.1, what="the rate of a run of no steps")
    expect_close(impl.warmup_cosine(1, 0.3, 0.3, 0, 4), 0.3, what="the rate where minimum and maximum are one")
    expect_close(impl.warmup_cosine(0, 0.0, 0.0, 1, 4), 0.0, what="the rate where the maximum is 0")
    expect_close(impl.warmup_cosine(10**6, 1.0, 0.2, 1, 4), 0.2, what="the rate long after the end")


@task("17.2")
def test_schedule_refuses(impl):
    bad_steps = [(-1, 1.0, 0.1, 1, 4), (0, 1.0, 0.1, -1, 4), (0, 1.0, 0.1, 5, 4)]
    for arguments in (*bad_steps, (0, 0.1, 1.0, 1, 4), (0, 1.0, -0.1, 1, 4)):
        with expect_error(ValueError):
            found = impl.warmup_cosine(*arguments)
            raise Wrong(f"warmup_cosine{arguments} must be refused; it gave {found}")


# --- 17.3 clipping


def with_gradients(rng, size=1.0, dtype=torch.float64):
    parameters = [torch.nn.Parameter(normal(rng, *shape, dtype=dtype)) for shape in ((3, 4), (5,), (), (2, 1, 2))]
    for parameter in parameters[:3]:
        parameter.grad = size * normal(rng, *parameter.shape, dtype=dtype)
    return parameters


def copied(parameters):
    """Parameters and their gradients (deepcopy leaves a parameter's gradient behind)."""
    copies = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    for new, old in zip(copies, parameters, strict=True):
        new.grad = None if old.grad is None else old.grad.clone()
    return copies


def expect_gradients(after, expected, what):
    for number, (found, right) in enumerate(zip(after, expected, strict=True)):
        if right.grad is None:
            expect(found.grad is None, f"tensor {number} of {what} had no gradient and must get none")
        else:
            expect(found.grad is not None, f"tensor {number} of {what} lost its gradient")
            expect_close(found.grad, right.grad, what=f"the gradient of tensor {number} of {what}")


@task("17.3", cases=2)
def test_clipping_equals_torch(impl, rng):
    for size, max_norm in ((3.0, 0.2), (1e4, 1.0), (1.0, math.inf), (1e-4, 1e-3)):
        parameters = with_gradients(rng, size)
        theirs = copied(parameters)
        norm = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        found, (after,) = impl.clip_gradients.after(parameters, max_norm=max_norm)
        what = f"gradients of size {size:g} with max_norm {max_norm:g} (all together have norm {float(norm):.4g})"
        expect_close(found, norm, what=f"the norm returned for {what}")
        expect_gradients(after, theirs, what)
        for new, old in zip(after, parameters, strict=True):
            expect_equal(new.detach(), old.detach(), what="a parameter (clipping changes gradients only)")


@task("17.3")
def test_clipping_leaves_short_gradients_alone(impl, rng):
    parameters = with_gradients(rng, 0.1, torch.float32)
    _, (after,) = impl.clip_gradients.after(parameters, max_norm=50.0)
    for new, old in zip(after[:3], parameters, strict=False):
        expect_equal(new.grad, old.grad, what="a gradient whose norm is below max_norm (every bit stays)")


@task("17.3")
def test_clipping_other_arguments(impl, rng):
    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    weight.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    norm, (after,) = impl.clip_gradients.after(weight, max_norm=1.0)
    expect_close(norm, torch.tensor(5.0, dtype=torch.float64), what="the norm of one tensor given without a list")
    expect_close(after.grad, weight.grad / (5 + 1e-6), what="its gradient")
    layer = impl.Linear(2, 2, bias=True).double()
    gradients = {"weight": normal(rng, 2, 2), "bias": normal(rng, 2)}
    for name, gradient in gradients.items():
        layer.set(f"{name}.grad", gradient)
    length = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
    norm = impl.clip_gradients(layer.parameters(), max_norm=length / 2)
    expect_close(norm, torch.tensor(length, dtype=torch.float64), what="the norm of a generator of parameters")
    for name, gradient in gradients.items():
        shortened = gradient * (length / 2) / (length + 1e-6)
        expect_close(layer.get(name).grad, shortened, what=f"the gradient of {name}, given through a generator")
    for nothing in ([], [torch.nn.Parameter(torch.zeros(3))]):
        norm = impl.clip_gradients(nothing, max_norm=1.0)
        expect(isinstance(norm, torch.Tensor), "the norm must be a scalar tensor, also where there is no gradient")
        expect_close(float(norm), 0.0, what="the norm where there is no gradient")


@task("17.3")
def test_clipping_what_is_not_finite(impl):
    for poison in (math.inf, math.nan):
        layer = impl.Linear(1, 2, bias=True)
        bias = torch.tensor([1.0, poison])
        layer.set("weight.grad", torch.tensor([[8.0], [9.0]]))
        layer.set("bias.grad", bias)
        with expect_error(ValueError, match="finite"):
            impl.clip_gradients(layer.parameters(), max_norm=1.0, error_if_nonfinite=True)
        left = layer.get("weight").grad
        expect_equal(left, torch.tensor([[8.0], [9.0]]), what="a gradient after the error (none may be changed)")
        norm = impl.clip_gradients(layer.parameters(), max_norm=1.0)
        expect(not math.isfinite(float(norm)), f"the norm must show a gradient of {poison}, got {norm}")
    finite = torch.nn.Parameter(torch.zeros(1))
    finite.grad = torch.ones(1)
    expect_close(float(impl.clip_gradients([finite], 2.0, error_if_nonfinite=True)), 1.0, what="a finite norm")
    for max_norm in (0.0, -1.0, math.nan):
        with expect_error(ValueError, match="max_norm"):
            impl.clip_gradients([finite], max_norm=max_norm)


# --- 17.4 accumulation

V = 6
UNEVEN = "5 rows with 1, 4, 4, 4 and 0 counted targets"


def uneven_batch(rng, n_rows=5):
    inputs, targets = (torch.from_numpy(rng.integers(0, V, (n_rows, 4))) for _ in range(2))
    targets[0, 1:] = -100
    targets[n_rows - 1] = -100
    return inputs, targets


def whole_batch(weight, inputs, targets, **settings):
    """Mean loss and its gradient for a table of logits, in one pass."""
    weight = weight.detach().clone().requires_grad_()
    loss = functional.cross_entropy(weight[inputs].flatten(0, 1), targets.flatten(), ignore_index=-100, **settings)
    loss.backward()
    return loss.detach(), weight.grad


@task("17.4", cases=2)
def test_accumulation_equals_the_whole_batch(impl, rng):
    inputs, targets = uneven_batch(rng)
    for n_parts in (1, 2, 3, 5):
        model = impl.Embedding(V, V, std=1.0, generator=Seeded(int(rng.integers(1000)))).double()
        expected, gradient = whole_batch(model.get("weight"), inputs, targets)
        loss = impl.accumulate_gradients(model, inputs, targets, n_parts)
        expect_close(loss, expected, what=f"the mean loss in {n_parts} parts ({UNEVEN})")
        expect_close(model.get("weight").grad, gradient, what=f"the gradient accumulated in {n_parts} parts ({UNEVEN})")


@task("17.4")
def test_accumulation_scale_and_addition(impl, rng):
    inputs, targets = uneven_batch(rng)
    model = impl.Embedding(V, V, std=1.0, generator=Seeded(int(rng.integers(1000)))).double()
    before = normal(rng, V, V)
    model.set("weight.grad", before)
    expected, gradient = whole_batch(model.get("weight"), inputs, targets)
    loss = impl.accumulate_gradients(model, inputs, targets, 2, scale=8.0)
    expect_close(loss, expected, what="the loss (scale is for the gradients only)")
    what = "the gradient with scale 8, on top of one that was there"
    expect_close(model.get("weight").grad, before + 8 * gradient, what=what)


@task("17.4")
def test_accumulation_with_another_loss(impl, rng):
    inputs, targets = uneven_batch(rng)
    model = impl.Embedding(V, V, std=1.0, generator=Seeded(int(rng.integers(1000)))).double()
    expected, gradient = whole_batch(model.get("weight"), inputs, targets, label_smoothing=0.25)
    loss = impl.accumulate_gradients(model, inputs, targets, 3, SmoothedLoss(0.25))
    expect_close(loss, expected, what="the mean of the loss_sum that was passed in")
    expect_close(model.get("weight").grad, gradient, what="the gradient of the loss_sum that was passed in")


@task("17.4", cases=2)
def test_accumulation_sends_one_part_at_a_time(impl, rng):
    """Dropout draws its random numbers for what passes: the parts, in order, and nothing else."""
    config = GPTConfig(vocab_size=V, max_seq_len=4, n_layers=1, n_heads=1, d_model=4, dropout=0.5)
    inputs, targets = uneven_batch(rng, 7)
    seed, generator = int(rng.integers(1000)), impl.default_generators()["torch"]
    in_parts, one_by_one = (impl.GPT(config, Seeded(1)).double() for _ in range(2))
    generator.manual_seed(seed)
    impl.accumulate_gradients(in_parts, inputs, targets, 3)
    generator.manual_seed(seed)
    for rows in (slice(0, 3), slice(3, 5), slice(5, 7)):
        share = float((targets[rows] >= 0).sum() / (targets >= 0).sum().double())
        impl.accumulate_gradients(one_by_one, inputs[rows], targets[rows], 1, scale=share)
    found, expected = (model.get("token_embedding.weight").grad for model in (in_parts, one_by_one))
    what = "the gradient of a model with dropout, 7 rows as parts of 3, 2 and 2, each once and in order"
    expect_close(found, expected, what=what)


@task("17.4")
def test_accumulation_refuses(impl, rng):
    inputs, targets = uneven_batch(rng)
    model = impl.Embedding(V, V).double()
    for n_parts in (0, -1, 6):
        with expect_error(ValueError):
            impl.accumulate_gradients(model, inputs, targets, n_parts)
            raise Wrong(f"5 rows in {n_parts} parts must be refused")
    with expect_error(ValueError):
        impl.accumulate_gradients(model, inputs, targets[:, :3], 1)
    with expect_error(ValueError):
        impl.accumulate_gradients(model, inputs[:4], targets, 3)
    expect(model.get("weight").grad is None, "a refused batch must leave the gradients alone")


# --- 17.5 and 17.6 the loss scaler


@task("17.5", cases=2)
def test_unscale_divides_in_place(impl, rng):
    scale = uniform(rng, 2.0, 100.0)
    parameters = with_gradients(rng, 5.0)
    _, (after,) = impl.LossScaler(scale).unscale.after(parameters)
    theirs = copied(parameters)
    for parameter in theirs[:3]:
        parameter.grad = parameter.grad / scale
    expect_gradients(after, theirs, f"gradients divided by {scale:.3g}")
    for new, old in zip(after, parameters, strict=True):
        expect_equal(new.detach(), old.detach(), what="a parameter (only gradients are unscaled)")


@task("17.5")
def test_unscale_other_arguments(impl, rng):
    scaler = impl.LossScaler(4.0)
    _, (after,) = scaler.unscale.after([torch.nn.Parameter(torch.ones(3))])
    expect(after[0].grad is None, "a parameter without gradient must stay without")
    scaler.unscale([])
    layer = impl.Linear(1, 2, bias=True)
    layer.set("weight.grad", torch.tensor([[math.inf], [8.0]]))
    layer.set("bias.grad", torch.tensor([-4.0, math.nan]))
    scaler.unscale(layer.parameters())
    for name, right in (("weight", torch.tensor([[math.inf], [2.0]])), ("bias", torch.tensor([-1.0, math.nan]))):
        expect_equal(layer.get(name).grad, right, what=f"the gradient of {name} (an overflow must stay visible)")
    expect_equal(scaler.get("scale"), 4.0, what="the factor after unscaling")


@task("17.6", cases=3)
def test_update_over_many_steps(impl, rng):
    growth, backoff, interval = uniform(rng, 1.5, 3.0), uniform(rng, 0.2, 0.8), int(rng.integers(2, 5))
    scaler = impl.LossScaler(100.0, growth, backoff, interval)
    overflows = rng.random(40) < 0.2
    overflows[10 : 10 + 3 * interval] = False
    factor, since_change = 100.0, 0
    for number, overflow in enumerate(overflows.tolist()):
        scaler.update(overflow)
        since_change = 0 if overflow else since_change + 1
        if overflow or since_change == interval:
            factor, since_change = factor * (backoff if overflow else growth), 0
        past = "".join("x" if seen else "." for seen in overflows[: number + 1])
        told = f"after {past} (x overflow, . good) with growth every {interval} good steps"
        expect_close(scaler.get("scale"), factor, what=f"the factor {told}")
        expect_equal(scaler.state_dict()["n_good_steps"], since_change, what=f"the count of good steps {told}")


@task("17.6")
def test_update_by_the_defaults(impl):
    scaler = impl.LossScaler()
    scaler.update(True)
    scaler.update(found_overflow=False)
    expect_equal(scaler.state_dict(), {"scale": 32768.0, "n_good_steps": 1}, what="the state after x. from 65536")
    scaler.load_state_dict({"scale": 2.0, "n_good_steps": 1999})
    scaler.update(False)
    expect_equal(scaler.state_dict(), {"scale": 4.0, "n_good_steps": 0}, what="the state after good step number 2000")
    scaler = impl.LossScaler(1.0, growth_interval=1)
    for _ in range(3):
        scaler.update(False)
    expect_equal(scaler.state_dict(), {"scale": 8.0, "n_good_steps": 0}, what="three good steps that each double")


# --- 17.7 and 17.8 the state of a run


def run_in_progress(impl, rng, n_steps=2, bias=True):
    """A small model over there with its optimizer and a generator, after some steps."""
    model = impl.Linear(3, 2, bias=bias, std=1.0, generator=Seeded(int(rng.integers(1000)))).double()
    optimizer = impl.AdamW(model.parameters(), lr=uniform(rng, 0.01, 0.1), weight_decay=0.1)
    noise = impl.generator(int(rng.integers(1000)))
    for _ in range(n_steps):
        one_step(model, optimizer, rng)
    return model, optimizer, noise


def one_step(model, optimizer, rng):
    for name, tensor in model.state_dict().items():
        model.set(f"{name}.grad", normal(rng, *tensor.shape))
    optimizer.step()


def saved_generator(noise):
    return {"kind": "torch", "state": base64.b64encode(noise.get_state().numpy().tobytes()).decode()}


@task("17.7", cases=2)
def test_capture_holds_everything(impl, rng):
    model, optimizer, noise = run_in_progress(impl, rng)
    step = int(rng.integers(3, 1000))
    state = impl.capture_state(model, optimizer, step, {"noise": noise})
    expect(not isinstance(state, dict | list | tuple), f"expected a RunState, got a {type(state).__name__}")
    expect_equal(state.get("step"), step, what="the captured step")
    expect_equal(state.get("model"), model.state_dict(), what="the captured model")
    expect_equal(state.get("optimizer"), optimizer.state_dict(), what="the captured optimizer")
    expect_equal(state.get("generators"), {"noise": saved_generator(noise)}, what="the captured generators")
    without = impl.capture_state(model, optimizer, 0)
    expect_equal(without.get("step"), 0, what="the captured step")
    expect_equal(without.get("generators"), {}, what="the generators where none were given")


@task("17.7")
def test_capture_is_a_copy(impl, rng):
    model, optimizer, noise = run_in_progress(impl, rng)
    state = impl.capture_state(model, optimizer, 5, {"noise": noise})
    names = ("model", "optimizer", "generators")
    before = {name: state.get(name) for name in names}
    for _ in range(2):
        one_step(model, optimizer, rng)
    noise.manual_seed(10_000)
    for name in names:
        what = f"the captured {name}, which must stay as it was, after two more steps of the run"
        expect_equal(state.get(name), before[name], what=what)


@task("17.7")
def test_capture_leaves_the_run_alone(impl, rng):
    model, optimizer, noise = run_in_progress(impl, rng)
    before = model.state_dict(), optimizer.state_dict(), saved_generator(noise)
    impl.capture_state(model, optimizer, 5, {"noise": noise})
    after = model.state_dict(), optimizer.state_dict(), saved_generator(noise)
    expect_equal(after, before, what="model, optimizer and generator after being captured")


def state_by_value(impl, model, optimizer, step, noise):
    return impl.RunState(model.state_dict(), optimizer.state_dict(), step, {"noise": saved_generator(noise)})


@task("17.8", cases=2)
def test_restored_run_goes_on_as_the_first(impl, rng):
    first = run_in_progress(impl, rng)
    second = run_in_progress(impl, np.random.default_rng(int(rng.integers(1000))), n_steps=3)
    step = int(rng.integers(3, 1000))
    state = state_by_value(impl, *first[:2], step, first[2])
    found = impl.restore_state(state, *second[:2], {"noise": second[2]})
    expect_equal(found, step, what="the step returned")
    expect_equal(second[0].state_dict(), first[0].state_dict(), what="the restored model")
    expect_equal(second[1].state_dict(), first[1].state_dict(), what="the restored optimizer")
    expect_equal(second[2].get_state(), first[2].get_state(), what="the restored generator")
    seed = int(rng.integers(1000))
    for model, optimizer, _ in (first, second):
        one_step(model, optimizer, np.random.default_rng(seed))
    expect_equal(second[0].state_dict(), first[0].state_dict(), what="the restored model after one more step")


@task("17.8")
def test_a_state_can_be_restored_twice(impl, rng):
    model, optimizer, noise = run_in_progress(impl, rng)
    state = state_by_value(impl, model, optimizer, 5, noise)
    before = {name: state.get(name) for name in ("model", "optimizer", "generators")}
    for attempt in ("first", "second"):
        impl.restore_state(state, model, optimizer, {"noise": noise})
        expect_equal(model.state_dict(), before["model"], what=f"the model after the {attempt} restore")
        expect_equal(optimizer.state_dict(), before["optimizer"], what=f"the optimizer after the {attempt} restore")
        for _ in range(2):
            one_step(model, optimizer, rng)
        noise.manual_seed(10_000)
        for name, right in before.items():
            what = f"the state's {name}, which must stay as it was, after two steps of the restored run"
            expect_equal(state.get(name), right, what=what)
    expect_equal(impl.restore_state(state, model, optimizer), 5, what="the step, without generators")


@task("17.8")
def test_restore_refuses_what_does_not_fit(impl, rng):
    model, optimizer, noise = run_in_progress(impl, rng)
    state = state_by_value(impl, model, optimizer, 5, noise)
    narrow = run_in_progress(impl, rng, bias=False)
    before = narrow[0].state_dict(), narrow[1].state_dict(), narrow[2].get_state()
    with expect_error(ValueError):
        impl.restore_state(state, *narrow[:2], {"noise": narrow[2]})
    after = narrow[0].state_dict(), narrow[1].state_dict(), narrow[2].get_state()
    expect_equal(after, before, what="model, optimizer and generator after the state of another model was refused")
    twin = run_in_progress(impl, rng)
    before = twin[0].state_dict(), twin[1].state_dict(), twin[2].get_state()
    fewer = impl.AdamW([twin[0].get("weight")])
    with expect_error(ValueError):
        impl.restore_state(state, twin[0], fewer, {"noise": twin[2]})
    with expect_error(ValueError):
        impl.restore_state(state, *twin[:2], {"noise": twin[2], "shuffle": impl.generator(1)})
    after = twin[0].state_dict(), twin[1].state_dict(), twin[2].get_state()
    expect_equal(after, before, what="model, optimizer and generator after a state without all generators was refused")
