"""Graders of chapter 10: each test names the task it belongs to; `impl` is the library or a learner's file.

The oracles are torch's own layers and losses, sums over single numbers, sorted lists, and words crossed out one by one.
"""

import math
from collections import Counter

import torch
from torch import nn
from torch.nn import functional as F

from minillm.course.grader import Seeded, expect, expect_close, expect_equal, expect_error, normal, task
from minillm.nn.transformer_layers import LayerConfig

IGNORED = -100


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# 10.1 layer normalisation


def oracle_norm(x, weight=None, bias=None, epsilon=1e-5):
    """Vector by vector, number by number."""
    rows = []
    for vector in x.reshape(-1, x.shape[-1]).tolist():
        mean = math.fsum(vector) / len(vector)
        variance = math.fsum((number - mean) ** 2 for number in vector) / len(vector)
        rows.append([(number - mean) / math.sqrt(variance + epsilon) for number in vector])
    normed = tensor(rows).view(x.shape)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


@task("10.1")
def test_norms_by_hand(impl, rng):
    for vector, expected in (([1, 3], [-1, 1]), ([6, 2, 4, 4], [2**0.5, -(2**0.5), 0, 0]), ([5, 5, 5], [0, 0, 0])):
        got = impl.layer_norm(tensor(vector), epsilon=1e-30)
        expect_close(got, tensor(expected), what=f"{vector} normalised")
    got = impl.layer_norm(tensor([1, 3]), tensor([10, 20]), tensor([0.5, 0.25]), 1e-30)
    expect_close(got, tensor([-9.5, 20.25]), what="[1, 3] normalised, scaled by [10, 20], shifted by [0.5, 0.25]")


@task("10.1", cases=2)
def test_each_vector_has_its_own_mean_and_variance(impl, rng):
    for leading in ((), (4,), (2, 3)):
        for width in (2, 5, 16):
            x = 3 * normal(rng, *leading, width) + normal(rng, *leading, 1)
            what = f"vectors of shape {tuple(x.shape)}"
            expect_close(impl.layer_norm(x), oracle_norm(x), what=what)
            weight, bias = normal(rng, width), normal(rng, width)
            expect_close(impl.layer_norm(x, weight), oracle_norm(x, weight), what=f"{what} with a scale")
            expect_close(impl.layer_norm(x, bias=bias), oracle_norm(x, None, bias), what=f"{what} with a shift")
            got = impl.layer_norm(x, weight=weight, bias=bias)
            expect_close(got, oracle_norm(x, weight, bias), what=f"{what} with both")


@task("10.1", cases=2)
def test_epsilon_stands_under_the_root(impl, rng):
    x = normal(rng, 3, 4) * 2e-3
    expect_close(impl.layer_norm(x), oracle_norm(x), what="small numbers, epsilon not given")
    for epsilon in (1e-12, 1e-6, 0.5):
        got = impl.layer_norm(x, epsilon=epsilon)
        expect_close(got, oracle_norm(x, epsilon=epsilon), what=f"small numbers, epsilon {epsilon}")
    expect_close(impl.layer_norm(tensor([[2, 2], [0, 0]])), torch.zeros(2, 2).double(), what="constant vectors")


@task("10.1")
def test_far_from_zero_the_digits_stay(impl, rng):
    x = normal(rng, 3, 8)
    got = impl.layer_norm(x + 1e7)
    expect_close(got, oracle_norm(x + 1e7), 1e-6, what="numbers near 10,000,000 (take the mean away, then square)")


@task("10.1")
def test_norm_keeps_dtype_and_input_and_has_gradients(impl, rng):
    x, weight, bias = normal(rng, 3, 6, dtype=torch.float32), normal(rng, 6).float(), normal(rng, 6).float()
    got, after = impl.layer_norm.after(x, weight, bias)
    expect_close(got, oracle_norm(x.double(), weight, bias).float(), 1e-5, what="float32 vectors")
    expect_equal(after[0], x, what="x after the call")
    x, weight, bias, gradient = normal(rng, 2, 3, 6), normal(rng, 6), normal(rng, 6), normal(rng, 2, 3, 6)
    leaves = [value.clone().requires_grad_() for value in (x, weight, bias)]
    value = F.layer_norm(leaves[0], (6,), leaves[1], leaves[2], 1e-5)
    expected = torch.autograd.grad(value, leaves, gradient)
    _, got = impl.layer_norm.gradients(x, weight, bias, output_gradient=gradient)
    for name, ours, theirs in zip(("x", "weight", "bias"), got[:3], expected, strict=True):
        expect_close(ours, theirs, what=f"gradient of {name}")


# 10.2 what a layer does with its parts

PLACES = ("post", "pre")


def make_layer(impl, place, dropout=0.0, trains=False):
    layer = impl.Layer(LayerConfig(d_model=4, n_heads=2, d_ff=8, norm_place=place, dropout=dropout), Seeded(0))
    layer.double()
    layer.train(trains)
    return layer


def make_map(impl, weight):
    """A linear map in the place of a part or a norm: every order of the two gives another matrix."""
    module = impl.Linear(len(weight), len(weight), False, 0.02, Seeded(0)).double()
    module.load_state_dict({"weight": weight})
    return module


def well_behaved(rng):
    """A random matrix that can be inverted without loss."""
    return torch.eye(4).double() + 0.2 * normal(rng, 4, 4)


@task("10.2", cases=2)
def test_order_of_part_norm_and_sum(impl, rng):
    part, norm = normal(rng, 4, 4), normal(rng, 4, 4)
    for place in PLACES:
        layer = make_layer(impl, place)
        for leading in ((), (3,), (2, 3)):
            x = normal(rng, *leading, 4)
            expected = x + x @ norm.T @ part.T if place == "pre" else (x + x @ part.T) @ norm.T
            got, after = layer.add.after(x, make_map(impl, part), make_map(impl, norm))
            formula = "x + part(norm(x))" if place == "pre" else "norm(x + part(x))"
            expect_close(got, expected, what=f"{formula} with matrices for part and norm, x of shape {tuple(x.shape)}")
            expect_equal(after[0], x, what="x after the call")


@task("10.2", cases=2)
def test_dropout_touches_what_the_part_gives_and_nothing_else(impl, rng):
    part, norm = well_behaved(rng), well_behaved(rng)
    x = normal(rng, 300, 4)
    for place in PLACES:
        for chance in (0.2, 0.5):
            got = make_layer(impl, place, chance, True).add(x, make_map(impl, part), make_map(impl, norm))
            expect(isinstance(got, torch.Tensor) and got.shape == x.shape, f"{place}: expected a tensor (300, 4)")
            written = got - x if place == "pre" else got @ norm.inverse().T - x
            whole = (x @ norm.T if place == "pre" else x) @ part.T
            dropped = written.abs() < 1e-9
            what = f"{place}, dropout {chance}, training: what was added to x"
            share = dropped.double().mean().item()
            expect(abs(share - chance) < 0.1, f"{what} is zero in {share:.0%} of the places, not in about {chance:.0%}")
            expected = torch.where(dropped, 0.0, whole / (1 - chance))
            expect_close(written, expected, 1e-8, what=f"{what} (0, or part / {1 - chance})")


@task("10.2")
def test_nothing_is_dropped_in_evaluation(impl, rng):
    part, norm, x = normal(rng, 4, 4), normal(rng, 4, 4), normal(rng, 5, 4)
    for place in PLACES:
        got = make_layer(impl, place, 0.5, False).add(x, make_map(impl, part), make_map(impl, norm))
        expected = x + x @ norm.T @ part.T if place == "pre" else (x + x @ part.T) @ norm.T
        expect_close(got, expected, what=f"{place}, dropout 0.5, evaluation")


def torch_peer(state, place):
    """torch's own encoder layer with our weights."""
    peer = nn.TransformerEncoderLayer(
        4, 2, 8, 0.0, F.relu, batch_first=True, norm_first=place == "pre", dtype=torch.float64
    )
    names = {
        "attention.qkv": "self_attn.in_proj_", "attention.output": "self_attn.out_proj.", "attention_norm": "norm1.",
        "feed_forward.up": "linear1.", "feed_forward.down": "linear2.", "feed_forward_norm": "norm2.",
    }  # fmt: skip
    kinds = ("weight", "bias")
    peer.load_state_dict({names[ours] + kind: state[f"{ours}.{kind}"] for ours in names for kind in kinds})
    return peer


@task("10.2", cases=2)
def test_a_whole_layer_with_its_gradients_equals_torch(impl, rng):
    for place in PLACES:
        layer = impl.EncoderLayer(LayerConfig(d_model=4, n_heads=2, d_ff=8, norm_place=place), Seeded(0)).double()
        shapes = {name: value.shape for name, value in layer.state_dict().items()}
        state = {name: 0.4 * normal(rng, *shape) + ("norm.weight" in name) for name, shape in shapes.items()}
        layer.load_state_dict(state)
        x, gradient = 2 * normal(rng, 2, 5, 4), normal(rng, 2, 5, 4)
        leaf = x.clone().requires_grad_()
        value = torch_peer(state, place)(leaf)
        got, by_input, _ = layer.gradients(x, output_gradient=gradient)
        expect_close(got, value.detach(), what=f"the vectors after an encoder layer, norm_place {place!r}")
        expected = torch.autograd.grad(value, leaf, gradient)[0]
        expect_close(by_input[0], expected, what=f"gradient of the vectors before it, norm_place {place!r}")


# 10.3 what the decoder reads while it is taught


def oracle_shift(targets, start_id):
    rows = [[start_id if read == IGNORED else read for read in [start_id, *row[:-1]]] for row in targets.tolist()]
    return torch.tensor(rows, dtype=targets.dtype)


@task("10.3")
def test_shift_by_hand(impl, rng):
    got = impl.shift_right(torch.tensor([[7, 8, 1], [7, 1, IGNORED]]), start_id=0)
    expect_equal(got, torch.tensor([[0, 7, 8], [0, 7, 1]]), what="targets (7, 8, 1) and (7, 1, -100) after a start 0")
    got = impl.shift_right(torch.tensor([[5, 1, IGNORED, IGNORED]]), 9)
    expect_equal(got, torch.tensor([[9, 5, 1, 9]]), what="targets (5, 1, -100, -100) after a start 9")
    expect_equal(impl.shift_right(torch.tensor([[4], [6]]), 3), torch.tensor([[3], [3]]), what="rows of one target")


@task("10.3", cases=3)
def test_shift_of_padded_rows(impl, rng):
    targets = torch.from_numpy(rng.integers(0, 30, (5, 8)))
    for row, length in enumerate(rng.integers(1, 9, 5).tolist()):
        targets[row, length:] = IGNORED
    targets[0, 3] = IGNORED
    start_id = int(rng.integers(1, 30))
    got, after = impl.shift_right.after(targets, start_id)
    expect_equal(got, oracle_shift(targets, start_id), what=f"padded rows after a start {start_id}")
    expect_equal(after[0], targets, what="targets after the call")
    small = targets.to(torch.int32)
    expect_equal(impl.shift_right(small, start_id), oracle_shift(small, start_id), what="int32 targets")


@task("10.3")
def test_other_shapes_are_refused(impl, rng):
    for shape in ((4,), (2, 3, 4)):
        with expect_error(ValueError):
            impl.shift_right(torch.ones(shape, dtype=torch.int64), 0)


# 10.4 label smoothing


def oracle_loss(logits, targets, smoothing, ignore_index=IGNORED):
    """torch's own loss over the targets that count."""
    logits, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    logits, targets = logits[targets != ignore_index], targets[targets != ignore_index]
    return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)


@task("10.4")
def test_smoothing_by_hand(impl, rng):
    logits = tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    costs = [math.log(2), math.log(4), math.log(8), math.log(8)]
    for target in range(4):
        expected = 0.8 * costs[target] + 0.2 * sum(costs) / 4
        got = impl.smoothed_cross_entropy(logits, torch.tensor([target]), 0.2)
        expect_close(got, tensor(expected), what=f"shares 1/2, 1/4, 1/8, 1/8, target {target}, smoothing 0.2")


@task("10.4", cases=3)
def test_loss_equals_torch(impl, rng):
    for shape in ((), (5,), (3, 4)):
        for smoothing in (0.0, 0.1, float(rng.uniform()), 1.0):
            logits, targets = 3 * normal(rng, *shape, 7), torch.from_numpy(rng.integers(0, 7, (1, *shape)))[0]
            if shape:
                targets.flatten()[0] = IGNORED
            got, after = impl.smoothed_cross_entropy.after(logits, targets, smoothing)
            what = f"logits {tuple(logits.shape)}, smoothing {smoothing:.2f}"
            expect_close(got, oracle_loss(logits, targets, smoothing), what=what)
            expect_equal(after[0], logits, what="logits after the call")
            expect_equal(after[1], targets, what="targets after the call")


@task("10.4", cases=2)
def test_ignored_targets_cost_nothing(impl, rng):
    logits, targets = normal(rng, 4, 6, 5), torch.from_numpy(rng.integers(0, 5, (4, 6)))
    targets[rng.integers(0, 2, (4, 6)).astype(bool)] = IGNORED
    got = impl.smoothed_cross_entropy(logits, targets, 0.3)
    expect_close(got, oracle_loss(logits, targets, 0.3), what="half of the targets ignored")
    for ignored in (0, 3):
        got = impl.smoothed_cross_entropy(logits, targets.clamp(min=0), 0.3, ignore_index=ignored)
        expect_close(got, oracle_loss(logits, targets.clamp(min=0), 0.3, ignored), what=f"id {ignored} ignored")
    nothing = torch.full((4, 6), IGNORED)
    expect_close(impl.smoothed_cross_entropy(logits, nothing, 0.3), tensor(0.0), what="no target counts")
    got = impl.smoothed_cross_entropy(normal(rng, 2, 1), torch.tensor([IGNORED, 0]), 0.3)
    expect_close(got, tensor(0.0), what="a vocabulary of one id")


@task("10.4")
def test_large_scores_and_float32(impl, rng):
    logits, targets = 1e4 * normal(rng, 3, 6), torch.from_numpy(rng.integers(0, 6, 3))
    got = impl.smoothed_cross_entropy(logits, targets, 0.1)
    expect_close(got, oracle_loss(logits, targets, 0.1), what="scores of 1e4")
    logits = normal(rng, 3, 6).float()
    got = impl.smoothed_cross_entropy(logits, targets, 0.1)
    expect_close(got, oracle_loss(logits.double(), targets, 0.1).float(), 1e-5, what="float32 logits")


@task("10.4")
def test_gradient_is_share_minus_smoothed_target(impl, rng):
    logits, targets = normal(rng, 2, 3, 5), torch.tensor([[0, 4, IGNORED], [2, IGNORED, 2]])
    wanted = torch.full((2, 3, 5), 0.2 / 5, dtype=torch.float64)
    wanted += 0.8 * F.one_hot(targets.clamp(min=0), 5).double()
    expected = (logits.softmax(-1) - wanted) * (targets >= 0)[..., None]
    _, got = impl.smoothed_cross_entropy.gradients(logits, targets, 0.2, output_gradient=tensor(1.0))
    expect_close(got[0], expected, what="gradient of logits (share - smoothed target, 0 where ignored)")


# 10.5 one round of beam search


def oracle_step(totals, log_probabilities, end_id):
    """Row by row, with sorted lists: ends by beam, and (total, beam, id) of the new beams."""
    ended, going = [], []
    for row_totals, row in zip(totals.tolist(), log_probabilities.tolist(), strict=True):
        extensions = [
            (row_totals[beam] + score, beam, token_id)
            for beam, scores in enumerate(row)
            for token_id, score in enumerate(scores)
        ]
        extensions.sort(key=lambda extension: -extension[0])
        first = [extension for extension in extensions[: len(row)] if extension[2] == end_id]
        ends = {beam: total for total, beam, _ in first}
        ended.append([ends.get(beam, -math.inf) for beam in range(len(row))])
        others = [extension for extension in extensions if extension[2] != end_id][: len(row)]
        going.append([extension if extension[0] > -math.inf else (-math.inf, None, None) for extension in others])
    return ended, going


def expect_step(impl, totals, log_probabilities, end_id, what):
    """The four results against the lists; where no beam is, its beam and id do not matter."""
    answer, after = impl.beam_step.after(totals, log_probabilities, end_id)
    expect(isinstance(answer, list | tuple) and len(answer) == 4, f"{what}: expected four tensors")
    ended, kept, beams, ids = answer
    ends, going = oracle_step(totals, log_probabilities, end_id)
    tolerance = 1e-10 if totals.dtype == torch.float64 else 1e-5
    expect_close(ended, torch.tensor(ends, dtype=totals.dtype), tolerance, what=f"{what}: what ends here, by beam")
    right = torch.tensor([[total for total, _, _ in row] for row in going], dtype=totals.dtype)
    expect_close(kept, right, tolerance, what=f"{what}: totals of the new beams")
    for name, got, place in (("the beam that each new one extends", beams, 1), ("ids of the new beams", ids, 2)):
        fits = isinstance(got, torch.Tensor) and got.shape == totals.shape
        expect(fits, f"{what}: {name}: expected a tensor of shape {tuple(totals.shape)}")
        numbers = [
            [ours if theirs[place] is None else theirs[place] for ours, theirs in zip(mine, row, strict=True)]
            for mine, row in zip(got.tolist(), going, strict=True)
        ]
        expect_equal(got, torch.tensor(numbers), what=f"{what}: {name}")
    for name, given, left in zip(("totals", "log_probabilities"), (totals, log_probabilities), after, strict=False):
        expect_equal(left, given, what=f"{what}: {name} after the call")


def scores_of(rng, *shape):
    return (2 * normal(rng, *shape)).log_softmax(dim=-1)


@task("10.5")
def test_beams_by_hand(impl, rng):
    shares = tensor([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]])
    totals = tensor([[0.4, 0.6]])
    expect_step(impl, totals.log(), shares.log(), 0, "beams of 0.4 and 0.6, end 0, shares 5 3 2 and 1 1 8 tenths")
    expect_step(impl, totals.log(), shares.log(), 2, "the same with end 2, which the better beam likes")
    expect_step(impl, tensor([[0.9, 0.1]]).log(), shares.log(), 1, "beams of 0.9 and 0.1: one beam takes both places")


@task("10.5", cases=3)
def test_beams_of_several_sentences(impl, rng):
    for n_rows, n_beams, vocab_size in ((1, 1, 5), (3, 2, 4), (2, 4, 9), (4, 5, 3), (2, 3, 40)):
        totals = normal(rng, n_rows, n_beams) - 3
        log_probabilities = scores_of(rng, n_rows, n_beams, vocab_size)
        end_id = int(rng.integers(vocab_size))
        what = f"{n_rows} sentences, {n_beams} beams, {vocab_size} ids, end {end_id}"
        expect_step(impl, totals, log_probabilities, end_id, what)


@task("10.5", cases=2)
def test_an_end_counts_down_to_the_last_place_and_no_further(impl, rng):
    n_beams, vocab_size = 3, 6
    for rank in range(5):
        scores = -tensor(rng.permutation(n_beams * vocab_size).tolist()).view(1, n_beams, vocab_size) / 10 - 5
        beam = int(rng.integers(n_beams))
        scores[0, :, 0] -= 50
        scores[0, beam, 0] = scores.flatten().sort(descending=True).values[rank] + 0.05 if rank else 0.0
        what = f"one end, better than all but {rank} extensions, 3 beams"
        expect_step(impl, torch.zeros(1, n_beams).double(), scores, 0, what)


@task("10.5")
def test_beams_that_are_not_there_stay_away(impl, rng):
    for n_beams, vocab_size in ((3, 6), (3, 2), (5, 3)):
        totals = torch.full((2, n_beams), -math.inf).double()
        totals[:, 0] = 0.0
        what = f"the first round: one of {n_beams} beams, {vocab_size} ids"
        expect_step(impl, totals, scores_of(rng, 2, n_beams, vocab_size), 1, what)


@task("10.5")
def test_long_and_unlikely_sentences(impl, rng):
    totals = -4e10 - 10 * torch.from_numpy(rng.permutation(6)).double().view(2, 3)
    expect_step(impl, totals, scores_of(rng, 2, 3, 4) * 8, 2, "totals of -4e10")
    totals = (normal(rng, 2, 3) - 2).float()
    expect_step(impl, totals, scores_of(rng, 2, 3, 5).float(), 2, "float32 scores")


# 10.6 what a translation shares with its references


def oracle_matches(words, references, order):
    """Each run of the translation crosses one like it out, in the reference that has most of them."""
    runs = [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]
    matches = 0
    for run in dict.fromkeys(runs):
        most = []
        for reference in references:
            left = [tuple(reference[start : start + order]) for start in range(len(reference) - order + 1)]
            crossed_out = 0
            for other in runs:
                if other == run and run in left:
                    left.remove(run)
                    crossed_out += 1
            most.append(crossed_out)
        matches += max(most)
    return matches


@task("10.6")
def test_matches_by_hand(impl, rng):
    for text, references, expected in (
        ("the the the", ["the cat and the dog"], (2, 0)),
        ("the cat the cat", ["the cat sat here now"], (2, 1)),
        ("a b a b a", ["a b", "b a b a"], (4, 3)),
        ("a b c", ["a x x x", "b x"], (2, 0)),
        ("red kite", ["kite red"], (2, 0)),
    ):
        for order, count in enumerate(expected, 1):
            got = impl.matching_runs(text.split(), [reference.split() for reference in references], order)
            expect_equal(got, count, what=f"runs of {order} of {text!r} in {references}")


@task("10.6", cases=3)
def test_matches_of_random_texts(impl, rng):
    vocabulary = "the a red kite is".split()
    for n_references in (1, 2, 4):
        words = rng.choice(vocabulary, 12).tolist()
        references = [rng.choice(vocabulary, int(rng.integers(1, 14))).tolist() for _ in range(n_references)]
        for order in (1, 2, 3, 4):
            got, after = impl.matching_runs.after(words, references, order)
            what = f"runs of {order} of {' '.join(words)!r} in {n_references} references"
            expect_equal(got, oracle_matches(words, references, order), what=what)
            expect_equal(after[:2], [words, references], what="words and references after the call")


@task("10.6")
def test_short_texts_have_no_long_runs(impl, rng):
    for text, reference in (("a", "a"), ("", "a b"), ("a b a", ""), ("a b", "b a")):
        words, references = text.split(), [reference.split()]
        for order in (1, 2, 3):
            got = impl.matching_runs(words, references, order)
            what = f"runs of {order} of {text!r} in {reference!r}"
            expect_equal(got, oracle_matches(words, references, order), what=what)
    counts = Counter(["x"] * 3)
    got = impl.matching_runs(tuple(counts.elements()), (("x", "y"), ("x", "x")), 1)
    expect_equal(got, 2, what="words and references as tuples")
