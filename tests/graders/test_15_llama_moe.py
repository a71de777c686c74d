"""Graders of chapter 15: each test names the task it belongs to; `impl` is the library or a learner's file.

The oracles are loops over single numbers, queues that are really filled, and derivatives on paper.
"""

import math

import torch

from minillm.course.grader import expect, expect_close, expect_equal, expect_error, normal, task


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# 15.1 root mean square


def oracle_rms(x, weight, epsilon):
    """Vector by vector, number by number."""
    rows = []
    for vector in x.reshape(-1, x.shape[-1]).tolist():
        size = math.sqrt(sum(number * number for number in vector) / len(vector) + epsilon)
        scales = [1.0] * len(vector) if weight is None else weight.tolist()
        rows.append([scale * number / size for scale, number in zip(scales, vector, strict=True)])
    return tensor(rows).view(x.shape)


@task("15.1")
def test_norm_by_hand(impl, rng):
    x = tensor([[1, 7], [-3, 4]])
    expected = tensor([[1 / 5, 7 / 5], [-3 / math.sqrt(12.5), 4 / math.sqrt(12.5)]])
    expect_close(impl.rms_norm(x, epsilon=0.0), expected, what="(1, 7) and (-3, 4) divided by 5 and the root of 12.5")
    got = impl.rms_norm(x, tensor([10, -1]), 0.0)
    expect_close(got, expected * tensor([10, -1]), what="the same with the scales 10 and -1")


@task("15.1", cases=3)
def test_norm_of_any_shape(impl, rng):
    for shape in ((3,), (2, 5), (2, 3, 4), (4, 1)):
        x, weight = normal(rng, *shape) * 3 + 1, normal(rng, shape[-1])
        epsilon = float(rng.uniform(0.1, 2))
        for scale, words in ((weight, "a scale"), (None, "no scale")):
            got = impl.rms_norm(x, scale, epsilon)
            expect_close(got, oracle_rms(x, scale, epsilon), what=f"shape {shape}, {words}, epsilon {epsilon:.3f}")


@task("15.1")
def test_zeros_stay_zero_and_epsilon_has_its_default(impl, rng):
    expect_close(impl.rms_norm(torch.zeros(2, 3, dtype=torch.float64)), tensor([[0.0] * 3] * 2), what="zero vectors")
    tiny = tensor([[1e-3, -2e-3]])
    expect_close(impl.rms_norm(tiny), oracle_rms(tiny, None, 1e-5), what="a tiny vector with the default epsilon 1e-5")
    expect_close(impl.rms_norm(torch.zeros(0, 3)), torch.zeros(0, 3), what="no vector at all")


@task("15.1", cases=2)
def test_norm_gradients(impl, rng):
    """d(x_i / r) = g_i / r - x_i (g . x) / (C r^3) on paper; the scale's gradient is g times the normed vector."""
    x, weight, gradient = normal(rng, 4, 5), normal(rng, 5), normal(rng, 4, 5)
    size = (x.pow(2).sum(-1, keepdim=True) / 5 + 0.3).sqrt()
    scaled = gradient * weight
    by_x = scaled / size - x * (scaled * x).sum(-1, keepdim=True) / (5 * size**3)
    _, got = impl.rms_norm.gradients(x, weight, 0.3, output_gradient=gradient)
    expect_close(got[0], by_x, what="gradient of x")
    expect_close(got[1], (gradient * x / size).sum(0), what="gradient of the scale")


@task("15.1")
def test_norm_keeps_dtype_and_input(impl, rng):
    x, weight = normal(rng, 3, 4, dtype=torch.float32), normal(rng, 4, dtype=torch.float32)
    got, after = impl.rms_norm.after(x, weight)
    expect_close(got, oracle_rms(x.double(), weight.double(), 1e-5).float(), tolerance=1e-5, what="float32 vectors")
    expect_equal(after[0], x, what="x after the call")
    expect_equal(after[1], weight, what="weight after the call")


# 15.2 SwiGLU


def oracle_swiglu(x, gate, up, down):
    """One vector after another; silu(z) = z / (1 + e^-z)."""
    rows = []
    for vector in x.reshape(-1, x.shape[-1]):
        opened = [z / (1 + math.exp(-z)) for z in (gate @ vector).tolist()]
        hidden = tensor(opened) * (up @ vector)
        rows.append(down @ hidden)
    return torch.stack(rows).view(*x.shape[:-1], len(down))


def maps(rng, d_model, d_ff, d_out=0):
    return normal(rng, d_ff, d_model), normal(rng, d_ff, d_model), normal(rng, d_out or d_model, d_ff)


@task("15.2")
def test_swiglu_by_hand(impl, rng):
    one = tensor([[1.0]])
    silu_2 = 2 / (1 + math.exp(-2))
    got = impl.swiglu_feed_forward(tensor([2.0]), one, 3 * one, 5 * one)
    expect_close(got, tensor([5 * 6 * silu_2]), what="x = 2 with gate 1, up 3, down 5: 5 * silu(2) * 6")
    got = impl.swiglu_feed_forward(tensor([2.0]), -one, 3 * one, 5 * one)
    expect_close(got, tensor([5 * 6 * (silu_2 - 2)]), what="the same with gate -1: silu(-2) = silu(2) - 2")
    got = impl.swiglu_feed_forward(tensor([2.0]), 0 * one, 3 * one, 5 * one)
    expect_close(got, tensor([0.0]), what="a gate of 0 lets nothing pass")


@task("15.2", cases=3)
def test_swiglu_of_any_shape(impl, rng):
    for leading in ((), (3,), (2, 3)):
        for d_model, d_ff, d_out in ((4, 6, 4), (3, 2, 5), (1, 4, 1)):
            x, weights = normal(rng, *leading, d_model), maps(rng, d_model, d_ff, d_out)
            got = impl.swiglu_feed_forward(x, *weights)
            expect_close(got, oracle_swiglu(x, *weights), what=f"x of shape {tuple(x.shape)}, d_ff {d_ff}")


@task("15.2", cases=2)
def test_swiglu_gradients(impl, rng):
    x, (gate, up, down), gradient = normal(rng, 3, 4), maps(rng, 4, 5), normal(rng, 3, 4)
    before, passed = x @ gate.T, x @ up.T
    share = 1 / (1 + torch.exp(-before))
    opened, slope = before * share, share * (1 + before * (1 - share))
    hidden = gradient @ down
    by_gate, by_up = hidden * passed * slope, hidden * opened
    expected = {
        "x": by_gate @ gate + by_up @ up,
        "gate": by_gate.T @ x,
        "up": by_up.T @ x,
        "down": gradient.T @ (opened * passed),
    }
    _, got = impl.swiglu_feed_forward.gradients(x, gate, up, down, output_gradient=gradient)
    for (name, right), found in zip(expected.items(), got, strict=True):
        expect_close(found, right, what=f"gradient of {name}")


@task("15.2")
def test_swiglu_keeps_dtype_and_input(impl, rng):
    x, weights = normal(rng, 2, 4), maps(rng, 4, 6)
    single = [part.float() for part in (x, *weights)]
    got, after = impl.swiglu_feed_forward.after(*single)
    expect_close(got, oracle_swiglu(x, *weights).float(), tolerance=2e-5, what="float32 vectors")
    for name, given, left in zip(("x", "gate", "up", "down"), single, after, strict=True):
        expect_equal(left, given, what=f"{name} after the call")
    got = impl.swiglu_feed_forward(x[:0], *weights)
    expect_close(got, torch.zeros(0, 4, dtype=torch.float64), what="no vector at all")


# 15.3 choosing experts


def oracle_choice(scores, n_active):
    """One token: sorted by score; its probability, or its share of the chosen ones' probabilities."""
    powers = [math.exp(score) for score in scores]
    best = sorted(range(len(scores)), key=lambda expert: -scores[expert])[:n_active]
    total = sum(powers) if n_active == 1 else sum(powers[expert] for expert in best)
    return best, [powers[expert] / total for expert in best]


def expect_choices(got, logits, n_active):
    choices, weights = zip(*(oracle_choice(row, n_active) for row in logits.tolist()), strict=True)
    what = f"{n_active} of {logits.shape[-1]} experts"
    expect(isinstance(got, tuple) and len(got) == 2, f"{what}: expected a pair (experts, weights), got {got!r}")
    expect_equal(got[0], torch.tensor(choices), what=f"{what}: who was chosen")
    expect_close(got[1], tensor(weights), what=f"{what}: weights")


@task("15.3")
def test_choices_by_hand(impl, rng):
    logits = tensor([[0.6, 0.1, 0.3], [0.2, 0.7, 0.1]]).log()
    for n_active, chosen, weights in (
        (1, [[0], [1]], [[0.6], [0.7]]),
        (2, [[0, 2], [1, 0]], [[2 / 3, 1 / 3], [7 / 9, 2 / 9]]),
        (3, [[0, 2, 1], [1, 0, 2]], [[0.6, 0.3, 0.1], [0.7, 0.2, 0.1]]),
    ):
        got = impl.choose_experts(logits, n_active)
        what = f"probabilities 0.6 0.1 0.3 and 0.2 0.7 0.1, K = {n_active}"
        expect(isinstance(got, tuple) and len(got) == 2, f"{what}: expected a pair (experts, weights)")
        expect_equal(got[0], torch.tensor(chosen), what=f"{what}: who was chosen")
        expect_close(got[1], tensor(weights), what=f"{what}: weights")


@task("15.3", cases=3)
def test_choices_of_many_tokens(impl, rng):
    for n_experts in (1, 4, 7):
        logits = 2 * normal(rng, 9, n_experts)
        for n_active in range(1, n_experts + 1):
            expect_choices(impl.choose_experts(logits, n_active), logits, n_active)


@task("15.3", cases=2)
def test_the_router_gets_a_gradient(impl, rng):
    """Of a softmax over the scores that count: all of them for one expert, those of the chosen ones for several."""
    logits, gradient = normal(rng, 5, 4), normal(rng, 5, 3)
    for n_active in (1, 2, 3):
        expected = torch.zeros_like(logits)
        for token, scores in enumerate(logits.tolist()):
            best, _ = oracle_choice(scores, n_active)
            group = list(range(4)) if n_active == 1 else best
            total = sum(math.exp(scores[expert]) for expert in group)
            shares = {expert: math.exp(scores[expert]) / total for expert in group}
            mean = sum(gradient[token, place].item() * shares[expert] for place, expert in enumerate(best))
            for expert in group:
                own = gradient[token, best.index(expert)].item() if expert in best else 0.0
                expected[token, expert] = shares[expert] * (own - mean)
        outputs = [gradient[:, :n_active], gradient[:, :n_active]]
        _, got = impl.choose_experts.gradients(logits, n_active, output_gradient=outputs)
        expect(got[0] is not None, f"K = {n_active}: no gradient reaches the router's scores")
        expect_close(got[0], expected, what=f"K = {n_active}: gradient of the scores by the weights")


@task("15.3")
def test_choices_keep_dtype_and_input(impl, rng):
    logits = normal(rng, 6, 5, dtype=torch.float32)
    got, after = impl.choose_experts.after(logits, 2)
    expect_equal(after[0], logits, what="the scores after the call")
    expect(got[1].dtype == torch.float32, f"float32 scores gave weights of dtype {got[1].dtype}")
    expect(got[0].dtype == torch.int64, f"the experts have dtype {got[0].dtype}, expected int64")
    chosen, weights = impl.choose_experts(torch.zeros(0, 5), 2)
    expect_equal(tuple(chosen.shape), (0, 2), what="the shape of the choices of no token")
    expect_equal(tuple(weights.shape), (0, 2), what="the shape of the weights of no token")
    far = tensor([[1000.0, 999.0, -1000.0]])
    expect_close(impl.choose_experts(far, 2)[1], tensor([[1, math.exp(-1)]]) / (1 + math.exp(-1)), what="huge scores")


@task("15.3")
def test_more_experts_than_there_are_are_refused(impl, rng):
    for n_active in (0, 4, -1):
        with expect_error(ValueError):
            impl.choose_experts(normal(rng, 2, 3), n_active)


# 15.4 capacity


def oracle_kept(chosen, n_experts, capacity):
    """Everybody queues: all first choices, then all second choices; each expert lets in so many."""
    room, kept = [capacity] * n_experts, torch.zeros(chosen.shape, dtype=torch.bool)
    for choice in range(chosen.shape[1]):
        for token, expert in enumerate(chosen[:, choice].tolist()):
            if room[expert] > 0:
                room[expert] -= 1
                kept[token, choice] = True
    return kept


@task("15.4")
def test_queues_by_hand(impl, rng):
    chosen = torch.tensor([[0], [1], [0], [0], [1]])
    got = impl.within_capacity(chosen, 2, 2)
    expect_equal(got.flatten().tolist(), [True, True, True, False, True], what="experts 0 1 0 0 1 with two places each")
    chosen = torch.tensor([[0, 1], [1, 0], [0, 1]])
    got = impl.within_capacity(chosen, n_experts=2, capacity=2)
    expected = torch.tensor([[True, True], [True, False], [True, False]])
    expect_equal(got, expected, what="three tokens with two choices each: first choices go first")


@task("15.4", cases=4)
def test_queues_of_many_tokens(impl, rng):
    for n_experts, n_active in ((1, 1), (3, 1), (4, 2), (5, 3), (3, 3)):
        order = normal(rng, 11, n_experts).argsort(dim=1)
        chosen = order[:, :n_active]
        for capacity in (0, 1, 3, 4, 99):
            got = impl.within_capacity(chosen, n_experts, capacity)
            what = f"11 tokens, {n_active} of {n_experts} experts, room for {capacity}"
            expect_equal(got, oracle_kept(chosen, n_experts, capacity), what=what)


@task("15.4")
def test_queues_leave_their_input_and_take_none(impl, rng):
    chosen = torch.tensor([[2, 0], [2, 1]])
    got, after = impl.within_capacity.after(chosen, 5, 1)
    expect_equal(after[0], chosen, what="the choices after the call")
    expect_equal(got, torch.tensor([[True, True], [False, True]]), what="two tokens that both want expert 2 of 5")
    got = impl.within_capacity(torch.zeros(0, 2, dtype=torch.int64), 3, 1)
    expect_equal(got, torch.zeros(0, 2, dtype=torch.bool), what="no token at all")


# 15.5 balance


def probabilities_of(logits):
    powers = logits.exp()
    return powers / powers.sum(dim=-1, keepdim=True)


def oracle_balance(logits, chosen):
    n_tokens, n_experts = logits.shape
    visits, total = chosen.flatten().tolist(), 0.0
    for expert in range(n_experts):
        mean = sum(row[expert] for row in probabilities_of(logits).tolist()) / n_tokens
        total += visits.count(expert) / len(visits) * mean
    return tensor(n_experts * total)


@task("15.5")
def test_even_and_uneven_routers_by_hand(impl, rng):
    even = torch.tensor([[0], [1], [2], [0], [1], [2]])
    flat = torch.zeros(6, 3, dtype=torch.float64)
    expect_close(impl.load_balancing_loss(flat, even), tensor(1.0), what="even choices, even probabilities")
    certain = tensor([[60.0, 0, 0]] * 6)
    got = impl.load_balancing_loss(certain, torch.zeros(6, 1, dtype=torch.int64))
    expect_close(got, tensor(3.0), what="three experts, of which one takes everything")
    shares = tensor([[0.6, 0.1, 0.3], [0.2, 0.7, 0.1]]).log()
    got = impl.load_balancing_loss(shares, torch.tensor([[0], [1]]))
    expect_close(got, tensor(3 * (0.5 * 0.4 + 0.5 * 0.4)), what="probabilities 0.6 0.1 0.3 and 0.2 0.7 0.1, K = 1")
    got = impl.load_balancing_loss(shares, torch.tensor([[0, 2], [1, 0]]))
    expected = tensor(3 * (0.5 * 0.4 + 0.25 * 0.4 + 0.25 * 0.2))
    expect_close(got, expected, what="the same with K = 2: visits 2, 1, 1 of 4")


@task("15.5", cases=3)
def test_balance_of_many_tokens(impl, rng):
    for n_tokens, n_experts, n_active in ((7, 3, 1), (10, 6, 2), (5, 4, 3), (3, 9, 1), (1, 2, 1)):
        logits = 2 * normal(rng, n_tokens, n_experts)
        chosen = normal(rng, n_tokens, n_experts).argsort(dim=1)[:, :n_active]
        got = impl.load_balancing_loss(logits, chosen)
        what = f"{n_tokens} tokens, {n_active} of {n_experts} experts"
        expect_close(got, oracle_balance(logits, chosen), what=what)


@task("15.5", cases=2)
def test_balance_gradient(impl, rng):
    """E / N sum_e share_e p_te (1[e = j] - p_tj): by the probabilities only."""
    logits, chosen = normal(rng, 7, 4), torch.from_numpy(rng.integers(0, 3, (7, 2)))
    shares = tensor([chosen.flatten().tolist().count(expert) / 14 for expert in range(4)])
    p = probabilities_of(logits)
    expected = 4 / 7 * p * (shares - (p * shares).sum(dim=1, keepdim=True))
    _, got = impl.load_balancing_loss.gradients(logits, chosen, output_gradient=tensor(1.0))
    expect(got[0] is not None, "no gradient reaches the router's scores")
    expect_close(got[0], expected, what="gradient of the scores")


@task("15.5")
def test_balance_keeps_dtype_and_input(impl, rng):
    logits, chosen = normal(rng, 7, 3, dtype=torch.float32), torch.tensor([[0], [1], [1], [0], [1], [1], [0]])
    got, after = impl.load_balancing_loss.after(logits, chosen)
    expected = oracle_balance(logits.double(), chosen).float()
    expect_close(got, expected, tolerance=1e-5, what="float32 scores, an expert that nobody chose")
    expect_equal(after[0], logits, what="the scores after the call")
    expect_equal(after[1], chosen, what="the choices after the call")


# 15.6 size of the scores


@task("15.6")
def test_z_loss_by_hand(impl, rng):
    got = impl.router_z_loss(torch.zeros(3, 2, dtype=torch.float64))
    expect_close(got, tensor(math.log(2) ** 2), what="three tokens, two scores of 0: log(2)^2")
    got = impl.router_z_loss(tensor([[1, 1, 1], [0, 0, 0]]))
    expected = ((1 + math.log(3)) ** 2 + math.log(3) ** 2) / 2
    expect_close(got, tensor(expected), what="scores 1 1 1 and 0 0 0: the mean of (1 + log 3)^2 and (log 3)^2")
    got = impl.router_z_loss(tensor([[-math.log(4), -math.log(4)], [math.log(2), math.log(2)]]))
    expected = (math.log(2) ** 2 + math.log(4) ** 2) / 2
    expect_close(got, tensor(expected), what="sums of 1/2 and 4: both sides of 1 cost")


@task("15.6", cases=3)
def test_z_loss_of_many_tokens(impl, rng):
    for n_tokens, n_experts in ((7, 3), (1, 5), (4, 1), (3, 8)):
        logits = 2 * normal(rng, n_tokens, n_experts)
        sums = [math.log(sum(math.exp(score) for score in row)) for row in logits.tolist()]
        expected = tensor(sum(value * value for value in sums) / n_tokens)
        expect_close(impl.router_z_loss(logits), expected, what=f"{n_tokens} tokens, {n_experts} experts")


@task("15.6")
def test_z_loss_gradient_dtype_and_input(impl, rng):
    logits = normal(rng, 5, 4)
    expected = 2 / 5 * logits.exp().sum(dim=1, keepdim=True).log() * probabilities_of(logits)
    _, got = impl.router_z_loss.gradients(logits, output_gradient=tensor(1.0))
    expect(got[0] is not None, "no gradient reaches the router's scores")
    expect_close(got[0], expected, what="gradient of the scores: 2 / N times log-sum times probability")
    single = logits.float()
    value, after = impl.router_z_loss.after(single)
    expect_equal(after[0], single, what="the scores after the call")
    expected = (torch.log(torch.exp(logits).sum(1)) ** 2).mean().float()
    expect_close(value, expected, tolerance=1e-5, what="float32 scores")


@task("15.6")
def test_z_loss_does_not_overflow(impl, rng):
    got = impl.router_z_loss(tensor([[1000.0, 1000.0], [-1000.0, -1000.0]]))
    expected = ((1000 + math.log(2)) ** 2 + (1000 - math.log(2)) ** 2) / 2
    expect_close(got, tensor(expected), what="scores of 1000 and -1000")
