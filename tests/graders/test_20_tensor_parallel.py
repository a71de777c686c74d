"""Graders of chapter 20: each test names the task it belongs to; `impl` is the library or a learner's file.

The oracles work on the whole: one tensor, one softmax, one layer, one attention, and torch's own derivatives.
"""

import math

import torch
from torch.nn import functional as F

from minillm.course.grader import expect, expect_close, expect_equal, expect_error, normal, task
from minillm.errors import ShapeError


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# 20.1 this rank's slice


def oracle_slice(full, dim, sections, index, size):
    """Place by place: which coordinates along `dim` are whose."""
    mine, start = [], 0
    for section in sections or (full.shape[dim],):
        share = section // size
        mine += range(start + index * share, start + (index + 1) * share)
        start += section
    return full.index_select(dim, torch.tensor(mine, dtype=torch.int64))


@task("20.1")
def test_rows_of_queries_keys_and_values_by_hand(impl, rng):
    rows = torch.arange(8)
    for index, expected in ((0, [0, 1, 4, 6]), (1, [2, 3, 5, 7])):
        got = impl.slice_of(rows, impl.Split(0, (4, 2, 2)), index, 2)
        expect_equal(got, torch.tensor(expected), what=f"part {index} of 2 of rows 0 to 7 in sections (4, 2, 2)")


@task("20.1", cases=3)
def test_any_dimension_and_any_sections(impl, rng):
    for size in (1, 2, 3):
        shares = rng.integers(1, 4, 3).tolist()
        sections = tuple(size * share for share in shares)
        full = normal(rng, sum(sections), 2 * size, sum(sections))
        for dim in (0, 2):
            for index in range(size):
                got = impl.slice_of(full, impl.Split(dim, sections), index, size)
                what = f"part {index} of {size} along dimension {dim} in sections {sections}"
                expect_equal(got, oracle_slice(full, dim, sections, index, size), what=what)


@task("20.1")
def test_without_sections_and_without_a_cut(impl, rng):
    full = normal(rng, 6, 12)
    expect_equal(impl.slice_of(full, None, 1, 3), full, what="what all ranks hold whole")
    for dim in (0, 1):
        for index in range(3):
            got = impl.slice_of(full, impl.Split(dim), index, 3)
            expect_equal(got, oracle_slice(full, dim, (), index, 3), what=f"part {index} of 3 along dimension {dim}")
    got = impl.slice_of(torch.arange(4), impl.Split(0), 3, 4)
    expect_equal(got, torch.tensor([3]), what="part 3 of 4 of four whole numbers")


@task("20.1")
def test_what_cannot_be_cut_is_refused(impl, rng):
    for size, sections in ((3, ()), (2, (5, 3)), (2, (4, 2)), (2, (4, 6))):
        with expect_error(ShapeError):
            impl.slice_of(torch.zeros(8), impl.Split(0, sections), 0, size)
    got = impl.slice_of(torch.arange(9), impl.Split(0, (3, 6)), 2, 3)
    expect_equal(got, torch.tensor([2, 7, 8]), what="part 2 of 3 of sections (3, 6)")


# 20.2 and 20.3 f and g


@task("20.2")
def test_f_by_hand(impl, rng):
    ones = [tensor([1.0]) for _ in range(3)]
    found = impl.rehearse_region("copy", ones, [tensor([1.0]), tensor([10.0]), tensor([100.0])])
    for rank, (value, gradient, _, _) in enumerate(found):
        expect_equal(value, tensor([1.0]), what=f"what rank {rank} goes on with")
        expect_equal(gradient, tensor([111.0]), what=f"the gradient on rank {rank} when the ranks found 1, 10 and 100")


@task("20.2", cases=2)
def test_f_adds_what_all_ranks_found(impl, rng):
    for size in (1, 2, 4):
        x = normal(rng, 2, 3)
        gradients = [normal(rng, 2, 3) for _ in range(size)]
        for rank, (_, gradient, _, _) in enumerate(impl.rehearse_region("copy", [x] * size, gradients)):
            expect_close(gradient, sum(gradients), what=f"the gradient of x on rank {rank} of {size}")


@task("20.2")
def test_f_leaves_the_gradient_of_another_branch_alone(impl, rng):
    gradients = [normal(rng, 4) for _ in range(2)]
    for rank, (_, _, other, said) in enumerate(impl.rehearse_region("copy", [normal(rng, 4)] * 2, gradients)):
        expect_equal(other, gradients[rank], what=f"the same gradient as another branch of rank {rank} finds it")
        expect_equal(said, ["all_reduce"], what="the collectives of f, forward and backward")
    half = [gradient.float() for gradient in gradients]
    for _, gradient, _, _ in impl.rehearse_region("copy", [half[0]] * 2, half):
        expect_close(gradient, half[0] + half[1], tolerance=1e-6, what="the gradient in float32")


@task("20.3")
def test_g_by_hand(impl, rng):
    terms = [tensor([1.0]), tensor([10.0]), tensor([100.0])]
    for rank, (value, gradient, _, _) in enumerate(impl.rehearse_region("reduce", terms, [tensor([5.0])] * 3)):
        expect_equal(value, tensor([111.0]), what=f"the sum on rank {rank}")
        expect_equal(gradient, tensor([5.0]), what=f"the gradient of rank {rank}'s term when that of the sum is 5")


@task("20.3", cases=2)
def test_g_hands_on_the_gradient_of_the_sum(impl, rng):
    for size in (1, 2, 4):
        terms, gradient = [normal(rng, 2, 3) for _ in range(size)], normal(rng, 2, 3)
        for rank, (_, found, _, said) in enumerate(impl.rehearse_region("reduce", terms, [gradient] * size)):
            expect_close(found, gradient, what=f"the gradient of the term of rank {rank} of {size}")
            expect_equal(said, ["all_reduce"], what="the collectives of g, forward and backward")


@task("20.3")
def test_g_leaves_the_gradient_as_it_is(impl, rng):
    terms, gradient = [normal(rng, 3).float() for _ in range(2)], normal(rng, 3).float()
    for _, found, other, _ in impl.rehearse_region("reduce", terms, [gradient] * 2):
        expect_equal(found, gradient, what="the gradient in float32")
        expect_equal(other, gradient, what="the same gradient as another branch finds it")


# 20.4 a layer cut by its inputs


def oracle_linear(x, weight, bias, output_gradient):
    """Value and gradients of the whole layer."""
    leaves = [leaf.clone().requires_grad_() for leaf in (x, weight) if leaf is not None]
    added = None if bias is None else bias.clone().requires_grad_()
    y = F.linear(*leaves, added)
    y.backward(output_gradient)
    return y.detach(), leaves[0].grad, leaves[1].grad, None if bias is None else added.grad


@task("20.4")
def test_four_inputs_on_two_ranks_by_hand(impl, rng):
    inputs = [tensor([[[1, 2]]]), tensor([[[3, 4]]])]
    weight, bias, one = tensor([[1, 10, 100, 1000]]), tensor([0.5]), tensor([[[1]]])
    for rank, (y, by_x, by_weight, by_bias) in enumerate(impl.rehearse_row_parallel(inputs, weight, bias, [one] * 2)):
        expect_equal(y, tensor([[[4321.5]]]), what=f"1 + 20 + 300 + 4000 and a bias of 0.5, on rank {rank}")
        own = weight[:, 2 * rank : 2 * rank + 2]
        expect_equal(by_x, own.unsqueeze(0), what=f"the gradient of rank {rank}'s inputs")
        expect_equal(by_weight, inputs[rank][0], what=f"the gradient of rank {rank}'s weights")
        expect_equal(by_bias, tensor([1]), what=f"the gradient of the bias on rank {rank}")


@task("20.4", cases=2)
def test_parts_of_the_inputs_give_the_whole_layer(impl, rng):
    for size in (1, 2, 3):
        for bias in (None, normal(rng, 5)):
            x, weight, upstream = normal(rng, 2, 3, 2 * size), normal(rng, 5, 2 * size), normal(rng, 2, 3, 5)
            y, by_x, by_weight, by_bias = oracle_linear(x, weight, bias, upstream)
            parts = list(x.chunk(size, -1))
            for rank, found in enumerate(impl.rehearse_row_parallel(parts, weight, bias, [upstream] * size)):
                words = f"on rank {rank} of {size}, {'without' if bias is None else 'with'} a bias"
                expect_close(found[0], y, what=f"the output {words}")
                expect_close(found[1], by_x.chunk(size, -1)[rank], what=f"the gradient of the inputs {words}")
                expect_close(found[2], by_weight.chunk(size, -1)[rank], what=f"the gradient of the weights {words}")
                expect_equal(found[3] is None, bias is None, what=f"whether there is no gradient of a bias {words}")
                if bias is not None:
                    expect_close(found[3], by_bias, what=f"the gradient of the bias {words}")


@task("20.4")
def test_inputs_that_come_whole_are_cut(impl, rng):
    x, weight, bias, upstream = normal(rng, 2, 3, 6), normal(rng, 4, 6), normal(rng, 4), normal(rng, 2, 3, 4)
    y, by_x, _, _ = oracle_linear(x, weight, bias, upstream)
    for rank, found in enumerate(
        impl.rehearse_row_parallel([x] * 3, weight, bias, [upstream] * 3, input_is_parallel=False)
    ):
        expect_close(found[0], y, what=f"the output on rank {rank} of 3 that all have the whole input")
        expect_close(found[1], by_x, what=f"the gradient of the whole input on rank {rank}")


@task("20.4")
def test_each_rank_may_leave_with_its_positions(impl, rng):
    x, weight, bias, upstream = normal(rng, 2, 4, 6), normal(rng, 3, 6), normal(rng, 3), normal(rng, 2, 4, 3)
    y, by_x, by_weight, by_bias = oracle_linear(x, weight, bias, upstream)
    gradients = list(upstream.chunk(2, 1))
    found = impl.rehearse_row_parallel(list(x.chunk(2, -1)), weight, bias, gradients, sequence_parallel=True)
    for rank, (out, inputs, weights, _) in enumerate(found):
        expect_close(out, y.chunk(2, 1)[rank], what=f"rank {rank}'s positions of the output, sequence parallel")
        expect_close(inputs, by_x.chunk(2, -1)[rank], what=f"the gradient of rank {rank}'s inputs, sequence parallel")
        expect_close(weights, by_weight.chunk(2, -1)[rank], what=f"of rank {rank}'s weights, sequence parallel")
    expect_close(found[0][3] + found[1][3], by_bias, what="the two ranks' gradients of the bias, added")


# 20.5 the loss from parts of the scores


def expect_losses(impl, logits, targets, size, what, tolerance=1e-10):
    """Compare with torch's cross-entropy and softmax of the whole."""
    expected = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)
    weights, parts = logits.softmax(dim=-1).chunk(size, -1), logits.chunk(size, -1)
    for rank, (losses, own, after, said) in enumerate(impl.rehearse_losses(list(parts), targets)):
        words = f"{what}, rank {rank} of {size}"
        expect_close(losses, expected, tolerance, what=f"the losses of {words}")
        expect_close(own, weights[rank].contiguous(), tolerance, what=f"the softmax of {words}")
        expect_equal(after, parts[rank].contiguous(), what=f"the scores afterwards of {words}")
        numbers, allowed = sum(said), 3 * targets.numel()
        expect(numbers <= allowed, f"{words}: {numbers} numbers were exchanged, {allowed} are enough (3 a position)")


@task("20.5")
def test_two_scores_by_hand(impl, rng):
    parts = [tensor([[2.0]]), tensor([[0.0]])]
    for target, loss in ((0, math.log1p(math.exp(-2))), (1, math.log1p(math.exp(2)))):
        for rank, (losses, _, _, _) in enumerate(impl.rehearse_losses(parts, torch.tensor([target]))):
            expect_close(losses, tensor([loss]), what=f"the loss of target {target} with scores 2 and 0 on rank {rank}")


@task("20.5", cases=3)
def test_any_scores_on_any_number_of_ranks(impl, rng):
    for size in (1, 2, 3):
        logits = 3 * normal(rng, 2, 4, 4 * size)
        targets = torch.from_numpy(rng.integers(0, 4 * size, (2, 4)))
        expect_losses(impl, logits, targets, size, "random scores")


@task("20.5")
def test_every_id_as_the_target(impl, rng):
    logits = normal(rng, 6, 6)
    expect_losses(impl, logits, torch.arange(6), 3, "each of six ids once")
    expect_losses(impl, logits[:, None], torch.arange(6).flip(0)[:, None], 2, "each of six ids once, two ranks")


@task("20.5")
def test_scores_of_any_size(impl, rng):
    for size in (1e3, 1e5):
        logits = size * torch.linspace(-1, 1, 8, dtype=torch.float64).repeat(4, 1)
        logits[1], logits[2] = logits[1].flip(0), -size
        logits[3] = 3 * size
        expect_losses(impl, logits, torch.tensor([7, 1, 0, 4]), 2, f"scores up to {3 * size:g}")
    expect_losses(impl, 5 * normal(rng, 3, 8).float(), torch.tensor([1, 6, 3]), 4, "float32", tolerance=2e-6)


# 20.6 whose gradients come in parts

WHOLE_ALWAYS = (
    *("position_embedding.weight", "share_of_previous", "embedding_norm.weight", "embedding_norm.bias"),
)
BY_POSITION = (
    *("blocks.0.attention_norm.weight", "blocks.0.attention_norm.bias", "blocks.3.feed_forward_norm.weight"),
    *("blocks.12.feed_forward_norm.bias", "blocks.0.attention.output.bias", "blocks.7.feed_forward.down.bias"),
    *("final_norm.weight", "final_norm.bias"),
)
BY_HEAD = ("blocks.0.attention.qk_norm.weight", "blocks.11.attention.qk_norm.weight")
CUT = (
    *(("token_embedding.weight", 0), ("head.weight", 0), ("blocks.0.attention.qkv.weight", 0)),
    *(("blocks.0.attention.qkv.bias", 0), ("blocks.2.attention.output.weight", 1)),
    *(("blocks.2.feed_forward.up.bias", 0), ("blocks.5.feed_forward.down.weight", 1)),
)


@task("20.6")
def test_what_all_ranks_see_alike(impl, rng):
    for name in WHOLE_ALWAYS:
        for sequence_parallel in (False, True):
            got = impl.is_partial(name, None, sequence_parallel)
            expect_equal(got, False, what=f"{name}, which acts before the first block ({sequence_parallel=})")


@task("20.6")
def test_what_acts_on_a_ranks_own_positions(impl, rng):
    for name in BY_POSITION:
        for sequence_parallel in (False, True):
            got = impl.is_partial(name, None, sequence_parallel)
            expect_equal(got, sequence_parallel, what=f"whether {name} is partial with {sequence_parallel=}")


@task("20.6")
def test_what_acts_on_a_ranks_own_heads(impl, rng):
    for name in BY_HEAD:
        for sequence_parallel in (False, True):
            expect_equal(impl.is_partial(name, None, sequence_parallel), True, what=f"{name} ({sequence_parallel=})")


@task("20.6")
def test_what_is_cut_has_its_own_gradient(impl, rng):
    for name, dim in CUT:
        for sequence_parallel in (False, True):
            got = impl.is_partial(name, impl.Split(dim), sequence_parallel)
            expect_equal(got, False, what=f"{name}, cut along dimension {dim} ({sequence_parallel=})")
    got = impl.is_partial("blocks.0.attention.qkv.bias", impl.Split(0, (4, 2, 2)), True)
    expect_equal(got, False, what="a bias cut in three sections")
    for name in ("blocks.0.attention.qk_norm.weight", "blocks.0.attention.output.bias", "final_norm.weight"):
        got = impl.is_partial(name, impl.Split(0), True)
        expect_equal(got, False, what=f"{name}, if a plan cut it along dimension 0")


# 20.7 two parts of an attention


@task("20.7")
def test_one_key_and_three_keys_by_hand(impl, rng):
    got = impl.merge_parts(tensor([8.0]), tensor([0.0]), tensor([4.0]), tensor([math.log2(3)]))
    expect_close(got, (tensor([5.0]), tensor([2.0])), what="8 with a sum of 1, and 4 with a sum of 3")


def oracle_part(scores, value):
    """Mixed values and base-2 logarithms of sums; scores over ln 2."""
    log_sums = torch.logsumexp(scores * math.log(2.0), dim=-1, keepdim=True) / math.log(2.0)
    return (scores * math.log(2.0)).softmax(dim=-1) @ value, log_sums


@task("20.7", cases=3)
def test_two_sets_of_keys_are_all_keys(impl, rng):
    n, m = rng.integers(1, 6, 2).tolist()
    for size in (1.0, 30.0):
        scores, value = size * normal(rng, 2, 3, n + m), normal(rng, 2, n + m, 4)
        got = impl.merge_parts(
            *oracle_part(scores[..., :n], value[:, :n]), *oracle_part(scores[..., n:], value[:, n:])
        )
        expect_close(got, oracle_part(scores, value), what=f"{n} and {m} keys with scores of size {size:g}")


@task("20.7")
def test_no_keys_on_one_side_change_nothing(impl, rng):
    output, log_sum, nothing = normal(rng, 2, 3), normal(rng, 2, 1), torch.full((2, 1), -math.inf, dtype=torch.float64)
    zeros = torch.zeros_like(output)
    expect_close(impl.merge_parts(output, log_sum, zeros, nothing), (output, log_sum), what="no other keys")
    expect_close(impl.merge_parts(zeros, nothing, output, log_sum), (output, log_sum), what="no keys so far")


@task("20.7")
def test_sums_of_any_size_and_what_must_stay(impl, rng):
    for size in (2e3, -2e3, 1e6):
        first, second = normal(rng, 2, 4, 3), normal(rng, 2, 4, 3)
        near = size + normal(rng, 2, 4, 1)
        share = torch.sigmoid((near - size) * math.log(2.0))
        given = [first.clone(), near.clone(), second.clone(), torch.full_like(near, size)]
        got, after = impl.merge_parts.after(*given)
        expected = first * share + second * (1 - share)
        expect_close(got[0], expected, tolerance=1e-8, what=f"the mixture for sums of 2^{size:g}")
        expect_close(got[1], size + torch.log2(1 + (near - size).exp2()), what=f"the logarithm for 2^{size:g}")
        for name, ours, before in zip(("output", "log_sum", "other", "other_log_sum"), after, given, strict=True):
            expect_equal(ours, before, what=f"{name} after the call")
    single = [x.float() for x in (normal(rng, 2, 3), normal(rng, 2, 1), normal(rng, 2, 3), normal(rng, 2, 1))]
    got = impl.merge_parts(*single)
    shares = torch.cat((single[1], single[3]), -1).mul(math.log(2.0)).softmax(-1)
    expect_close(got[0], single[0] * shares[:, :1] + single[2] * shares[:, 1:], tolerance=1e-5, what="float32")


# 20.8 which pieces see which


def oracle_pairs(queries, keys, causal):
    """By looking at two positions of each piece."""
    found = []
    for i, query in enumerate(queries):
        for j, key in enumerate(keys):
            seen = [not causal or s <= t for t in (2 * query, 2 * query + 1) for s in (2 * key, 2 * key + 1)]
            if any(seen):
                found.append((i, j, not all(seen)))
    return found


@task("20.8")
def test_pieces_of_two_ranks_by_hand(impl, rng):
    expect_equal(impl.visible_pairs([1, 2], [0, 3]), [(0, 0, False), (1, 0, False)], what="pieces 1, 2 and keys 0, 3")
    expected = [(0, 0, True), (1, 0, False), (1, 1, True)]
    expect_equal(impl.visible_pairs([1, 2], [1, 2]), expected, what="pieces 1, 2 and their own keys")


@task("20.8", cases=2)
def test_all_pairs_of_ranks(impl, rng):
    for size in (1, 2, 3, 4):
        for zigzag in (False, True):
            pieces = [[rank, 2 * size - 1 - rank] if zigzag else [rank] for rank in range(size)]
            for mine in pieces:
                for theirs in pieces:
                    words = f"queries {mine}, keys {theirs}"
                    expect_equal(impl.visible_pairs(mine, theirs), oracle_pairs(mine, theirs, True), what=words)
                    got = impl.visible_pairs(mine, theirs, False)
                    expect_equal(got, oracle_pairs(mine, theirs, False), what=f"{words}, not causal")


@task("20.8")
def test_any_pieces_in_any_order(impl, rng):
    for _ in range(6):
        queries, keys = rng.permutation(9)[:3].tolist(), rng.permutation(9)[:4].tolist()
        got = impl.visible_pairs(queries, keys)
        expect_equal(got, oracle_pairs(queries, keys, True), what=f"queries {queries}, keys {keys}")
    expect_equal(impl.visible_pairs([0], [5], True), [], what="piece 0 and keys of piece 5")
    expect_equal(impl.visible_pairs([0], [5], False), [(0, 0, False)], what="piece 0 and keys of piece 5, not causal")
