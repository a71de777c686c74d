"""Chapter 32. Oracles: torch's fake quantization and divergence, formulas entry by entry, brute force, numpy."""

import itertools
import math

import numpy as np
import torch

from minillm.compress.grid import QuantSpec, find_grid, round_to_grid, stored
from minillm.course.grader import Seeded, Wrong, expect, expect_close, expect_equal, expect_error, normal, task
from minillm.models.gpt import GPTConfig


def whole(rng, low, high, *shape):
    """Whole numbers from low to high, as torch's int64."""
    return torch.from_numpy(np.asarray(rng.integers(low, high + 1, shape)))


# --- 32.1 straight through


@task("32.1", cases=2)
def test_straight_through_numbers_and_gradients(impl, rng):
    values, gradient = 5 * normal(rng, 3, 7), normal(rng, 3, 7)
    for name, rounded in (("the nearest whole numbers", values.round()), ("other numbers", normal(rng, 3, 7))):
        out, by = impl.straight_through.gradients(values, rounded, output_gradient=gradient)
        expect_equal(out, rounded, what=f"the result ({name})")
        expect_equal(by[0], gradient, what=f"the gradient by the values ({name})")
        if by[1] is not None:
            expect_equal(by[1], torch.zeros_like(rounded), what="the gradient by the rounded numbers (there is none)")


@task("32.1")
def test_straight_through_is_exact_in_fp32(impl, rng):
    values = normal(rng, 2000, dtype=torch.float32) * 10 ** normal(rng, 2000, dtype=torch.float32)
    rounded = (values / 0.37).round() * 0.37
    out = impl.straight_through(values, rounded)
    expect_equal(out, rounded, what="the result, which must be `rounded` to the last bit")


# --- 32.2 fake quantization


def fake_by_hand(value, scale, zero, n_levels):
    """The number and its slope by the value and by the scale."""
    steps = value / scale
    code = float(np.rint(steps)) + zero
    end = min(max(code, 0.0), n_levels - 1.0)
    inside = end == code
    return scale * (end - zero), float(inside), code - zero - steps if inside else end - zero


def entries(make, *tensors):
    """`make` of every entry, as tensors."""
    rows = [make(*map(float, each)) for each in zip(*(tensor.flatten() for tensor in tensors), strict=True)]
    return [torch.tensor(column, dtype=torch.float64).view(tensors[0].shape) for column in zip(*rows, strict=True)]


@task("32.2", cases=3)
def test_fake_quantization_entry_by_entry(impl, rng):
    bits = int(rng.integers(2, 6))
    n_levels = 2**bits if rng.random() < 0.7 else 2**bits - 1
    values, gradient = n_levels / 3 * normal(rng, 4, 9), normal(rng, 4, 9)
    scale = torch.from_numpy(rng.uniform(0.3, 1.2, (4, 1)))
    zero = whole(rng, 0, n_levels - 1, 4, 1).double()
    spread = [tensor.expand(4, 9) for tensor in (scale, zero)]
    right, by_value, by_scale = entries(lambda v, s, z: fake_by_hand(v, s, z, n_levels), values, *spread)
    out, by = impl.fake_quantize.gradients(values, scale, zero, n_levels, output_gradient=gradient)
    told = f"({n_levels} levels, a scale and a zero for each row)"
    expect_close(out, right, what=f"the result {told}")
    expect_close(by[0], gradient * by_value, what=f"the gradient by the values {told}")
    expect_close(by[1], (gradient * by_scale).sum(1, keepdim=True), what=f"the gradient by the scales {told}")


@task("32.2", cases=2)
def test_fake_quantization_is_torchs(impl, rng):
    bits = int(rng.integers(2, 9))
    low = -int(rng.integers(0, 2**bits))
    high, zero = low + 2**bits - 1, int(rng.integers(-3, 4))
    values, gradient = (2**bits / 3 * normal(rng, 50)).requires_grad_(), normal(rng, 50)
    theirs = torch.fake_quantize_per_tensor_affine(values, 0.25, min(max(zero, low), high), low, high)
    (expected,) = torch.autograd.grad(theirs, values, gradient)
    given = (values.detach(), torch.tensor(0.25).double(), torch.tensor(min(max(zero, low), high) - low).double())
    out, by = impl.fake_quantize.gradients(*given, 2**bits, output_gradient=gradient)
    expect_close(out, theirs.detach(), what=f"the result with {bits} bits, against torch's")
    expect_close(by[0], expected, what=f"the gradient by the values with {bits} bits, against torch's")


@task("32.2")
def test_fake_quantization_halves_and_ends(impl):
    values = torch.tensor([-0.75, -0.25, 0.25, 0.75, 1.25, 1.74, 1.76, -1.24, -1.26], dtype=torch.float64)
    given = (values, torch.tensor(0.5).double(), torch.tensor(2.0).double(), 6)
    out, by = impl.fake_quantize.gradients(*given, output_gradient=torch.ones(9).double())
    right = torch.tensor([-1.0, 0.0, 0.0, 1.0, 1.0, 1.5, 1.5, -1.0, -1.0], dtype=torch.float64)
    expect_equal(out, right, what="the result at halves (to the even step) and beyond the ends")
    inside = torch.tensor([1, 1, 1, 1, 1, 1, 0, 1, 0], dtype=torch.float64)
    expect_equal(by[0], inside, what="the gradient by the values at halves and about half a step beyond the ends")


@task("32.2")
def test_a_layer_learns_through_its_rounded_weights(impl, rng):
    spec = QuantSpec(bits=2, group_size=5)
    layer = impl.Linear(11, 3, std=1.0, generator=Seeded(int(rng.integers(1000)))).double()
    fake = impl.FakeQuantLinear(layer, impl.RangeRounding(spec))
    x, gradient, weight = normal(rng, 6, 11), normal(rng, 6, 3), layer.get("weight").detach()
    rounded = round_to_grid(weight, stored(find_grid(weight, spec)))
    out, by, by_name = fake.gradients(x, output_gradient=gradient)
    expect_close(out, x @ rounded.T, what="the product by weights of two bits in groups of five")
    expect_close(by[0], gradient @ rounded, what="the gradient by the layer's input")
    expect_close(by_name["base.weight"], gradient.T @ x, what="the gradient by the full weights")


# --- 32.3 learned steps


def lsq_by_hand(value, step, n_below, n_above):
    ratio = value / step
    if not -n_below < ratio < n_above:
        end = -n_below if ratio <= -n_below else n_above
        return end * step, 0.0, end
    return float(np.rint(ratio)) * step, 1.0, float(np.rint(ratio)) - ratio


@task("32.3", cases=3)
def test_learned_step_entry_by_entry(impl, rng):
    n_below, n_above = int(rng.integers(1, 9)), int(rng.integers(1, 8))
    n_sharing = int(rng.integers(2, 50))
    values, gradient = (n_below + n_above) / 3 * normal(rng, 3, 13), normal(rng, 3, 13)
    step = torch.from_numpy(rng.uniform(0.3, 1.5, (3, 1)))
    by_hand = entries(lambda v, s: lsq_by_hand(v, s, n_below, n_above), values, step.expand(3, 13))
    right, by_value, by_step = by_hand
    out, by = impl.lsq_quantize.gradients(values, step, n_below, n_above, n_sharing, output_gradient=gradient)
    told = f"(codes from {-n_below} to {n_above}, a step for each row)"
    expect_close(out, right, what=f"the result {told}")
    expect_close(by[0], gradient * by_value, what=f"the gradient by the values {told}")
    summed = (gradient * by_step).sum(1, keepdim=True) / math.sqrt(n_sharing * n_above)
    expect_close(by[1], summed, what=f"the gradient by the steps {told}, {n_sharing} values sharing one")


@task("32.3")
def test_learned_step_between_the_last_level_and_half_a_step_beyond(impl):
    values = torch.tensor([0.55, 0.7, -1.05, -1.2, 0.45, -0.95, 0.25, -0.25, 0.75], dtype=torch.float64)
    given = (values, torch.tensor(0.5).double(), 2, 1, 9)
    out, by = impl.lsq_quantize.gradients(*given, output_gradient=torch.ones(9).double())
    right = torch.tensor([0.5, 0.5, -1.0, -1.0, 0.5, -1.0, 0.0, 0.0, 0.5], dtype=torch.float64)
    expect_close(out, right, what="the result near the ends and at halves (to the even code)")
    inside = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 0], dtype=torch.float64)
    expect_close(by[0], inside, what="the gradient by the values (it ends at the last level)")


@task("32.3")
def test_learned_steps_of_a_layer(impl, rng):
    weight, gradient = normal(rng, 4, 14), normal(rng, 4, 14)
    rounding = impl.LearnedStep(weight, QuantSpec(bits=3, group_size=5, symmetric=True)).double()
    step = torch.from_numpy(rng.uniform(0.2, 0.6, (4, 3))).half().double()
    rounding.set("step", torch.nn.Parameter(step))
    spread = step.repeat_interleave(5, 1)[:, :14]
    right, by_value, by_step = entries(lambda v, s: lsq_by_hand(v, s, 4, 3), weight, spread)
    out, by, by_name = rounding.gradients(weight, output_gradient=gradient)
    expect_close(out, right, what="weights of three bits in groups of 5, 5 and 4 with learned steps")
    expect_close(by[0], gradient * by_value, what="the gradient by the weights")
    each = torch.stack([part.sum(1) for part in (gradient * by_step).split([5, 5, 4], 1)], 1) / math.sqrt(5 * 3)
    expect_close(by_name["step"], each, what="the gradient by the learned steps")


# --- 32.4 soft targets


@task("32.4", cases=3)
def test_soft_targets_against_torch(impl, rng):
    temperature = float(rng.uniform(0.4, 5.0))
    shape = ((5,), (4, 7), (2, 3, 5))[int(rng.integers(3))]
    logits, teacher, gradient = 2 * normal(rng, *shape), 2 * normal(rng, *shape), normal(rng, *shape[:-1])
    log_shares = torch.log_softmax(logits / temperature, -1)
    target = torch.softmax(teacher / temperature, -1)
    right = temperature**2 * torch.nn.functional.kl_div(log_shares, target, reduction="none").sum(-1)
    out, by = impl.soft_target_loss.gradients(logits, teacher, temperature, output_gradient=gradient)
    told = f"at temperature {temperature:.2f} for logits of shape {shape}"
    expect_close(out, right, what=f"the loss {told}")
    expected = temperature * (torch.softmax(logits / temperature, -1) - target) * gradient[..., None]
    expect_close(by[0], expected, what=f"the gradient by the student's logits {told}")
    if by[1] is not None:
        expect_equal(by[1], torch.zeros_like(teacher), what="the gradient by the teacher's logits (there is none)")


@task("32.4")
def test_soft_targets_extremes(impl, rng):
    logits, teacher = normal(rng, 3, 6), normal(rng, 3, 6)
    log_shares, target = torch.log_softmax(logits, -1), torch.softmax(teacher, -1)
    right = (target * (target.log() - log_shares)).sum(-1)
    expect_close(impl.soft_target_loss(logits, teacher), right, what="the loss at the default temperature, 1")
    same = impl.soft_target_loss(60 * logits, 60 * logits + 5.0, 2.0)
    expect_close(same, torch.zeros(3).double(), what="the loss where teacher and student agree (but for a constant)")
    apart = impl.soft_target_loss(torch.tensor([2e3, 0.0]), torch.tensor([0.0, 2e3]), 1.0)
    expect_close(apart, torch.tensor(2e3), 1e-5, what="the loss for logits of 2000, whose exponentials overflow")
    narrow = impl.soft_target_loss(logits.bfloat16(), teacher.bfloat16(), 2.0)
    wide = impl.soft_target_loss(logits.bfloat16().float(), teacher.bfloat16().float(), 2.0)
    expect_close(narrow, wide, 1e-5, what="the loss of logits in 16 bits, in fp32")


@task("32.4")
def test_soft_targets_refuse(impl):
    for temperature in (0.0, -2.0, math.nan):
        with expect_error(ValueError, match="temperature"):
            impl.soft_target_loss(torch.zeros(3), torch.zeros(3), temperature)
            raise Wrong(f"temperature {temperature} must be refused")
    for shape in ((2, 4), (3,), (1, 3)):
        with expect_error(ValueError):
            impl.soft_target_loss(torch.zeros(2, 3), torch.zeros(shape))
            raise Wrong(f"a student of shape (2, 3) and a teacher of shape {shape} must be refused")


# --- 32.5 binary weights


@task("32.5", cases=2)
def test_binary_weights_are_the_best(impl, rng):
    weight = normal(rng, 2, 3, 6)
    signs, alpha = impl.binarize(weight)
    expect_close(alpha, torch.from_numpy(np.abs(weight.numpy()).sum(-1, keepdims=True) / 6), what="alpha of each row")
    expect_equal(signs, torch.from_numpy(np.where(weight.numpy() < 0, -1.0, 1.0)), what="the signs")
    error = (weight - alpha * signs).square().sum(-1)
    choices = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6))).double()  # each with its best alpha
    least = weight.square().sum(-1) - ((weight @ choices.T).square() / 6).amax(-1)
    expect_close(error, least, what="the squared error of each row, against all signs with the best alpha of each")


@task("32.5")
def test_binary_weights_of_other_kinds(impl, rng):
    weight = torch.tensor([[0.0, -2.0, 4.0], [0.0, 0.0, 0.0]])
    signs, alpha = impl.binarize(weight)
    expect_equal(signs, torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0]]), what="the signs, 0 being positive")
    expect_close(alpha, torch.tensor([[2.0], [0.0]]), 1e-6, what="alpha of each row")
    row = normal(rng, 5, dtype=torch.float32)
    signs, alpha = impl.binarize(row)
    expect_close(alpha, row.abs().sum()[None] / 5, 1e-6, what="alpha of a single row, of shape (1,)")
    expect_equal(signs, torch.where(row < 0, -1.0, 1.0), what="the signs of a single row in fp32")


# --- 32.6 the best ternary weights


def best_by_trying(row):
    """The least squared error over all ternary signs, each with its best alpha; the signs that have it."""
    choices = np.array([each for each in itertools.product((-1, 0, 1), repeat=len(row)) if any(each)], dtype=float)
    explained = np.maximum(choices @ row, 0.0) ** 2 / np.abs(choices).sum(1)
    best = choices[explained.argmax()]
    return row @ row - explained.max(), best, best @ row / np.abs(best).sum()


@task("32.6", cases=3)
def test_best_ternary_weights_against_all(impl, rng):
    weight = normal(rng, 2, 2, 6) * torch.from_numpy(rng.choice([0.3, 1.0, 3.0], (2, 2, 6)))
    signs, alpha = impl.best_ternary(weight)
    rows = [best_by_trying(row) for row in weight.numpy().reshape(4, 6)]
    expected = torch.from_numpy(np.stack([best for _, best, _ in rows]).reshape(2, 2, 6))
    expect_close(signs, expected, what="the ternary signs, against trying all of them")
    right = torch.tensor([found for _, _, found in rows], dtype=torch.float64).view(2, 2, 1)
    expect_close(alpha, right, what="alpha of each row")
    error = (weight - alpha * signs).square().sum(-1)
    least = torch.tensor([least for least, _, _ in rows], dtype=torch.float64).view(2, 2)
    expect_close(error, least, what="the squared error of each row")


@task("32.6")
def test_best_ternary_weights_of_long_rows(impl, rng):
    weight = normal(rng, 3, 501)
    signs, alpha = impl.best_ternary(weight)
    sizes = np.sort(np.abs(weight.numpy()), 1)[:, ::-1]
    explained = np.cumsum(sizes, 1) ** 2 / np.arange(1, 502)
    error = (weight - alpha * signs).square().sum(-1)
    least = weight.square().sum(-1) - torch.from_numpy(explained.max(1))
    expect_close(error, least, what="the squared error of rows of 501 weights")
    share = float((signs == 0).double().mean())
    expect(0.35 < share < 0.6, f"about 46 percent of normal weights become 0, here {100 * share:.0f}")


@task("32.6")
def test_best_ternary_weights_of_other_kinds(impl, rng):
    row = torch.tensor([4.0, -4.0, 1.0, 1.0, -1.0])
    found = impl.best_ternary(row)
    right = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0]), torch.tensor([4.0])
    expect_close(found, right, 1e-6, what="(signs, alpha) of 4, -4, 1, 1, -1")
    found = impl.best_ternary(torch.tensor([[1.0, 1.0, -1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    right = torch.tensor([[1.0, 1.0, -1.0, 0.0], [0.0] * 4]), torch.tensor([[1.0], [0.0]])
    expect_close(found, right, 1e-6, what="(signs, alpha) of a row with alike sizes, and of a row of zeros")


# --- 32.7 splitting


def ternary_by_hand(weight):
    size = np.abs(weight)
    kept = size > 0.7 * size.mean(-1, keepdims=True)
    alpha = (size * kept).sum(-1, keepdims=True) / np.maximum(kept.sum(-1, keepdims=True), 1)
    return torch.from_numpy(np.sign(weight) * kept * alpha)


def sum_of_binary(halves):
    return sum(torch.where(half < 0, -1.0, 1.0) * half.abs().mean(-1, keepdim=True) for half in halves)


def check_split(found, weight, what):
    expect(isinstance(found, tuple) and len(found) == 2, f"expected two tensors, got {type(found).__name__}")
    expect_close(found[0] + found[1], weight, what=f"the sum of the halves of {what}")
    expect_close(sum_of_binary(found), ternary_by_hand(weight.numpy()), what=f"the sum of the binary forms of {what}")


@task("32.7", cases=3)
def test_the_identity_of_splitting(impl, rng):
    shape = ((17,), (5, 40), (2, 3, 23))[int(rng.integers(3))]
    weight = normal(rng, *shape) + float(rng.uniform(0.05, 0.2))   # more positive weights than negative ones
    check_split(impl.split_ternary(weight), weight, f"normal weights of shape {shape} with a mean above 0")


@task("32.7")
def test_splitting_rows_of_other_kinds(impl, rng):
    weight = normal(rng, 4, 8)
    weight[0] = torch.tensor([1.0, -1.0, 1.1, 0.9, -1.2, 1.0, -0.9, 1.0])  # nothing becomes 0
    weight[1] = 0.0
    weight[2, 3:5] = 0.0
    weight[3] = torch.tensor([1.0, -1.0, 1.1, 0.9, -1.2, 0.2, -0.9, 1.0])  # one weight becomes 0
    found = impl.split_ternary(weight)
    for half in found:
        expect(bool(half.isfinite().all()), "a half is not finite, for rows in which nothing or everything becomes 0")
    check_split(found, weight, "rows without small weights, of zeros, with two zeros, with one small weight")


@task("32.7")
def test_splitting_refuses_what_has_no_split(impl, rng):
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    one_sided = torch.tensor([1.0] + [0.15] * 9, dtype=torch.float64)
    check_split(impl.split_ternary(one_sided * signs), one_sided * signs, "small weights of both signs")
    level = torch.tensor([2.0, -0.5, -0.5, -0.5, -0.5], dtype=torch.float64)  # a is 1, and a second half has nothing
    for weight in (one_sided, -one_sided, torch.stack([normal(rng, 10), one_sided]), level, -level):
        with expect_error(ValueError):
            impl.split_ternary(weight)
            raise Wrong("small weights that outweigh the large ones, all of one sign, must be refused: no a is right")


# --- 32.8 packing


@task("32.8", cases=3)
def test_packed_bytes(impl, rng):
    n_weights = int(rng.integers(1, 60))
    signs = whole(rng, -1, 1, n_weights)
    padded = np.concatenate([signs.numpy(), np.zeros(-n_weights % 5, dtype=int)])
    right = [sum((int(sign) + 1) * 3**place for place, sign in enumerate(five)) for five in padded.reshape(-1, 5)]
    for dtype in (torch.int64, torch.float32, torch.int8):
        found = impl.pack_trits(signs.to(dtype))
        expect_equal(found, torch.tensor(right, dtype=torch.uint8), what=f"the bytes of {n_weights} {dtype} signs")


@task("32.8")
def test_packed_bytes_of_all_fives(impl):
    fives = torch.tensor(list(itertools.product((-1, 0, 1), repeat=5)))
    found = impl.pack_trits(fives.flip(1).flatten())
    expect_equal(found, torch.arange(243, dtype=torch.uint8), what="the bytes of all 243 fives, in order")
    empty = impl.pack_trits(torch.zeros(0, dtype=torch.int64))
    expect_equal(empty, torch.zeros(0, dtype=torch.uint8), what="the bytes of no weights")


# --- in place: a small model trains with the functions


@task("32.2")
def test_a_small_model_trains_in_two_bits(impl):
    config = GPTConfig(vocab_size=7, max_seq_len=12, n_layers=1, n_heads=2, d_model=16)
    model = impl.GPT(config, Seeded(0))
    impl.prepare_qat(model, QuantSpec(bits=2))
    optimizer = impl.AdamW(model.parameters(), lr=0.02)
    ids = torch.arange(26).view(2, 13) * torch.tensor([[1], [2]]) % 7
    losses = []
    for _ in range(25):
        model.zero_grad()
        losses.append(float(impl.accumulate_gradients(model, ids[:, :-1], ids[:, 1:], 1)))
        optimizer.step()
    expect(losses[-1] < 0.5 * losses[0], f"25 steps in two bits took the loss from {losses[0]:.2f} to {losses[-1]:.2f} "
           "only; 2 sequences that repeat are learned by then")  # fmt: skip
