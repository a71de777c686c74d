"""Graders of chapter 08: each test names the task it belongs to; `impl` is the library or a learner's file."""

import math

import torch

from minillm.course.grader import Seeded, expect, expect_close, expect_equal, expect_error, normal, task


def random_mask(rng, *shape):
    """Bool, about half True; with more than one row of keys, one row hides everything."""
    mask = torch.from_numpy(rng.random(shape) < 0.5)
    mask.view(-1, shape[-1])[int(rng.integers(mask[..., 0].numel()))] = False
    return mask


def oracle_weights(query, key, mask=None):
    """torch's own softmax; rows that see nothing, which it makes NaN, are set to zero."""
    scores = (query @ key.mT) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.where(mask, torch.tensor(-math.inf, dtype=scores.dtype))
    return torch.softmax(scores, dim=-1).nan_to_num(0.0)


def oracle_heads(x, n_heads):
    """Head h of position t, cut out by slices: (..., T, C) -> (..., H, T, D)."""
    d_head = x.shape[-1] // n_heads
    return torch.stack([x[..., head * d_head : (head + 1) * d_head] for head in range(n_heads)], dim=-3)


# 8.1 attention weights


def expect_shares(got, expected, what):
    """Compare weights; a wrong sum of a row is told first, since it says more than a wrong number."""
    if isinstance(got, torch.Tensor) and got.shape == expected.shape and got.dtype == expected.dtype:
        expect_close(got.sum(dim=-1), expected.sum(dim=-1), what=f"row sums of the {what}")
    expect_close(got, expected, what=what)


@task("8.1")
def test_by_hand(impl, rng):
    query = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    key = torch.tensor([[2.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 1.0], [2.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    weights = [math.exp(score) for score in (2.0, 0.0, 1.0)]  # 4, 0 and 2, each divided by 2
    expected = torch.tensor([weights], dtype=torch.float64) / sum(weights)
    expect_close(impl.attention_weights(query, key), expected, what="one query, three keys of width 4")


@task("8.1", cases=3)
def test_weights_are_a_softmax_over_the_keys(impl, rng):
    d_head = int(rng.choice([1, 3, 8, 13]))
    for leading in ((), (3,), (2, 3)):
        query, key = normal(rng, *leading, 5, d_head), normal(rng, *leading, 7, d_head)
        got = impl.attention_weights(query, key)
        expect_shares(got, oracle_weights(query, key), what=f"weights of width {d_head} without a mask")


@task("8.1", cases=3)
def test_hidden_keys_get_nothing_and_the_others_share_everything(impl, rng):
    query, key = normal(rng, 2, 3, 5, 4), normal(rng, 2, 3, 7, 4)
    for shape in ((5, 7), (2, 1, 1, 7), (1, 3, 5, 7), (2, 3, 5, 7)):
        mask = random_mask(rng, *shape)
        got = impl.attention_weights(query, key, mask)
        expect_shares(got, oracle_weights(query, key, mask), what=f"weights under a mask of shape {shape}")
    everything = torch.ones(5, 7, dtype=torch.bool)
    expect_close(impl.attention_weights(query, key, mask=everything), oracle_weights(query, key), what="nothing hidden")


@task("8.1")
def test_a_row_that_sees_nothing_is_zero(impl, rng):
    query, key = normal(rng, 2, 3, 4), normal(rng, 2, 5, 4)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    got = impl.attention_weights(query, key, mask)
    expect_equal(got[:, 1], torch.zeros(2, 5, dtype=torch.float64), what="the row in which every key is hidden")
    expect_close(got, oracle_weights(query, key, mask), what="the rows beside one that sees nothing")


@task("8.1")
def test_huge_scores_neither_overflow_nor_leak(impl, rng):
    query, key = normal(rng, 4, 3, 6), normal(rng, 4, 5, 6)
    mask = random_mask(rng, 4, 3, 5)
    for size in (1e4, 1e12):
        got = impl.attention_weights(query * size, key, mask)
        expect_close(got, oracle_weights(query * size, key, mask), what=f"weights of scores of size {size:.0e}")
    low = torch.tensor([[-1e12], [0.0]], dtype=torch.float64)
    got = impl.attention_weights(torch.ones(1, 1, dtype=torch.float64), low, torch.tensor([True, False]))
    expect_equal(got, torch.tensor([[1.0, 0.0]], dtype=torch.float64), what="a very low score beside a hidden key")


@task("8.1")
def test_sizes_dtypes_and_inputs_are_kept(impl, rng):
    for n_queries, n_keys in ((1, 1), (0, 3), (3, 0), (1, 6)):
        query, key = normal(rng, 2, n_queries, 4), normal(rng, 2, n_keys, 4)
        got = impl.attention_weights(query, key)
        expect_close(got, oracle_weights(query, key), what=f"weights of {n_queries} queries and {n_keys} keys")
    empty = normal(rng, 0, 3, 4)
    expect_close(impl.attention_weights(empty, empty), torch.zeros(0, 3, 3, dtype=torch.float64), what="an empty batch")
    query, key, mask = normal(rng, 3, 4).float(), normal(rng, 5, 4).float(), random_mask(rng, 3, 5)
    got, after = impl.attention_weights.after(query, key, mask)
    expect_close(got, oracle_weights(query, key, mask), tolerance=1e-6, what="float32 weights")
    for name, given, left in zip(("query", "key", "mask"), (query, key, mask), after, strict=True):
        expect_equal(left, given, what=f"{name} after the call")


@task("8.1", cases=2)
def test_gradients_of_the_weights(impl, rng):
    query, key, gradient = normal(rng, 2, 4, 3), normal(rng, 2, 5, 3), normal(rng, 2, 4, 5)
    mask = random_mask(rng, 2, 4, 5) | (torch.arange(5) == 0)
    leaves = query.clone().requires_grad_(), key.clone().requires_grad_()
    expected = torch.autograd.grad(oracle_weights(*leaves, mask), leaves, gradient)
    _, got = impl.attention_weights.gradients(query, key, mask, output_gradient=gradient)
    for name, ours, theirs in zip(("query", "key"), got[:2], expected, strict=True):
        expect_close(ours, theirs, what=f"gradient of {name}")


@task("8.1")
def test_a_row_that_sees_nothing_sends_no_gradient(impl, rng):
    query, key, gradient = normal(rng, 2, 3), normal(rng, 4, 3), normal(rng, 2, 4)
    mask = torch.tensor([[False], [True]]).expand(2, 4).clone()
    _, got = impl.attention_weights.gradients(query, key, mask, output_gradient=gradient)
    expect_equal(got[0][0], torch.zeros(3, dtype=torch.float64), what="gradient of a query that sees nothing")
    expect(bool(got[1].isfinite().all()), "the gradient of key is not finite when one query sees nothing")


# 8.2 and 8.3 masks


@task("8.2")
def test_nobody_sees_the_future(impl, rng):
    for n_queries, n_keys in ((1, 1), (2, 2), (5, 5), (2, 3), (1, 6), (3, 7), (0, 2), (0, 0)):
        past = n_keys - n_queries
        rows = [[key <= query + past for key in range(n_keys)] for query in range(n_queries)]
        expected = torch.tensor(rows, dtype=torch.bool).view(n_queries, n_keys)
        expect_equal(impl.causal_mask(n_queries, n_keys), expected, what=f"mask of {n_queries} queries, {n_keys} keys")


@task("8.2")
def test_the_device_is_an_argument(impl, rng):
    got = impl.causal_mask(2, 3, device=torch.device("cpu"))
    expect_equal(got, torch.tensor([[True, True, False], [True, True, True]]), what="mask with a device given")


@task("8.2")
def test_more_queries_than_keys_are_refused(impl, rng):
    for n_queries, n_keys in ((3, 2), (1, 0)):
        with expect_error(ValueError):
            impl.causal_mask(n_queries, n_keys)


@task("8.3", cases=3)
def test_only_real_keys_are_seen(impl, rng):
    n_keys = int(rng.integers(2, 9))
    lengths = [0, n_keys, *rng.integers(0, n_keys + 1, 4).tolist()]
    expected = torch.tensor([[[[key < length for key in range(n_keys)]]] for length in lengths])
    expect_equal(impl.padding_mask(torch.tensor(lengths), n_keys), expected, what=f"mask of lengths {lengths}")


@task("8.3")
def test_the_shortest_and_the_longest_padding_masks(impl, rng):
    got, after = impl.padding_mask.after(torch.tensor([2, 1]), 4)
    expect_equal(got[:, 0, 0], torch.tensor([[True, True, False, False], [True, False, False, False]]), what="padding")
    expect_equal(after[0], torch.tensor([2, 1]), what="lengths after the call")
    got = impl.padding_mask(torch.zeros(3, dtype=torch.int64), 0)
    expect_equal(got, torch.zeros(3, 1, 1, 0, dtype=torch.bool), what="mask of no keys at all")
    got = impl.padding_mask(torch.zeros(0, dtype=torch.int64), 5)
    expect_equal(got, torch.zeros(0, 1, 1, 5, dtype=torch.bool), what="mask of no sequences at all")


@task("8.3")
def test_impossible_lengths_are_refused(impl, rng):
    for lengths in ([1, 4], [-1, 2], [[1, 2]]):
        with expect_error(ValueError):
            impl.padding_mask(torch.tensor(lengths), 3)


# 8.4 and 8.5 heads


@task("8.4", cases=2)
def test_each_head_is_a_slice_of_every_vector(impl, rng):
    for leading in ((), (2,), (2, 3)):
        for n_heads in (1, 2, 3, 12):
            x = normal(rng, *leading, 5, 12)
            expect_close(impl.split_heads(x, n_heads), oracle_heads(x, n_heads), what=f"12 numbers in {n_heads} heads")


@task("8.4")
def test_splitting_keeps_dtype_input_and_empty_sizes(impl, rng):
    x = torch.arange(24).view(2, 3, 4)
    got, after = impl.split_heads.after(x, 2)
    expect_equal(got, oracle_heads(x, 2), what="whole numbers in two heads")
    expect_equal(after[0], x, what="x after the call")
    expect_equal(impl.split_heads(x[:0], 2), torch.zeros(0, 2, 3, 2, dtype=torch.int64), what="an empty batch")
    gradient = normal(rng, 2, 2, 3, 2)
    _, got = impl.split_heads.gradients(normal(rng, 2, 3, 4), 2, output_gradient=gradient)
    expect_close(got[0], torch.cat((gradient[:, 0], gradient[:, 1]), dim=-1), what="gradient of x")


@task("8.4")
def test_heads_that_do_not_divide_the_width_are_refused(impl, rng):
    for n_heads in (3, 5, 16):
        with expect_error(ValueError):
            impl.split_heads(normal(rng, 2, 3, 8), n_heads)


@task("8.5", cases=2)
def test_heads_stand_side_by_side_again(impl, rng):
    for leading in ((), (2,), (2, 3)):
        for n_heads, d_head in ((1, 4), (3, 2), (5, 1), (2, 7)):
            x = normal(rng, *leading, n_heads, 4, d_head)
            expected = torch.cat([x.select(-3, head) for head in range(n_heads)], dim=-1)
            expect_close(impl.merge_heads(x), expected, what=f"{n_heads} heads of width {d_head}")


@task("8.5")
def test_merging_keeps_dtype_input_and_empty_sizes(impl, rng):
    x = torch.arange(24).view(2, 2, 3, 2)
    got, after = impl.merge_heads.after(x)
    expect_equal(got, torch.cat((x[:, 0], x[:, 1]), dim=-1), what="whole numbers in two heads")
    expect_equal(after[0], x, what="x after the call")
    expect_equal(impl.merge_heads(x[:0]), torch.zeros(0, 3, 4, dtype=torch.int64), what="an empty batch")
    gradient = normal(rng, 2, 3, 4)
    _, got = impl.merge_heads.gradients(x.double(), output_gradient=gradient)
    expect_close(got[0], oracle_heads(gradient, 2), what="gradient of x")


# 8.6 cross-attention


def cross_attention(impl, rng, d_model, n_heads, n_kv_heads, d_source, bias, kernels="torch"):
    """The learner's module in float64 with weights drawn here, and those weights by name."""
    settings = {"d_source": d_source, "bias": bias, "kernels": kernels, "generator": Seeded(int(rng.integers(1000)))}
    layer = impl.CrossAttention(d_model, n_heads, n_kv_heads, **settings)
    layer.double()
    d_shared = 2 * n_kv_heads * d_model // n_heads
    shapes = {"query": (d_model, d_model), "key_value": (d_shared, d_source or d_model), "output": (d_model, d_model)}
    weights = {f"{name}.weight": normal(rng, *shape) * 0.4 for name, shape in shapes.items()}
    if bias:
        weights |= {f"{name}.bias": normal(rng, shape[0]) for name, shape in shapes.items()}
    layer.load_state_dict(weights)
    return layer, weights


def oracle_cross_attention(weights, n_heads, n_kv_heads, x, source, mask=None):
    """Linear maps, slices and torch's softmax, one head at a time."""

    def project(name, vectors):
        return torch.nn.functional.linear(vectors, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    query = oracle_heads(project("query", x), n_heads)
    offered = oracle_heads(project("key_value", source), 2 * n_kv_heads)
    mixed = []
    for head in range(n_heads):
        shared = head * n_kv_heads // n_heads
        visible = None if mask is None else mask.expand(len(x), n_heads, x.shape[1], source.shape[1])[:, head]
        shares = oracle_weights(query[:, head], offered[:, shared], visible)
        mixed.append(shares @ offered[:, n_kv_heads + shared])
    return project("output", torch.cat(mixed, dim=-1))


@task("8.6", cases=4)
def test_queries_of_one_sequence_look_at_another(impl, rng):
    n_heads, n_kv_heads = ((2, 2), (4, 2), (4, 1), (1, 1))[int(rng.integers(4))]
    d_source, bias, kernels = int(rng.choice([0, 5])), bool(rng.integers(2)), str(rng.choice(["torch", "naive"]))
    layer, weights = cross_attention(impl, rng, 8, n_heads, n_kv_heads, d_source, bias, kernels)
    x, source = normal(rng, 2, 3, 8), normal(rng, 2, 6, d_source or 8)
    what = f"with {n_heads} query heads, {n_kv_heads} key/value heads"
    expect_close(layer(x, source), oracle_cross_attention(weights, n_heads, n_kv_heads, x, source), what=what)
    lengths = torch.from_numpy(rng.integers(1, 7, 2))
    for mask in ((torch.arange(6) < lengths[:, None])[:, None, None], random_mask(rng, 2, n_heads, 3, 6)):
        expected = oracle_cross_attention(weights, n_heads, n_kv_heads, x, source, mask)
        expect_close(layer(x, source, mask), expected, what=f"{what} under a mask of shape {tuple(mask.shape)}")


@task("8.6")
def test_shared_heads_another_width_and_biases_together(impl, rng):
    layer, weights = cross_attention(impl, rng, 12, 6, 3, 7, True)
    x, source = normal(rng, 3, 4, 12), normal(rng, 3, 5, 7)
    expect_close(layer(x, source), oracle_cross_attention(weights, 6, 3, x, source), what="6 heads in 3 groups")
    mask = torch.tensor([True, False, True]).view(3, 1, 1, 1).expand(3, 1, 4, 5).clone()
    expected = oracle_cross_attention(weights, 6, 3, x, source, mask)
    expect_close(layer(x, source, mask=mask), expected, what="a source of which nothing may be seen")


@task("8.6")
def test_cross_attention_gradients(impl, rng):
    layer, weights = cross_attention(impl, rng, 8, 4, 2, 5, True)
    x, source, gradient = normal(rng, 2, 3, 8), normal(rng, 2, 6, 5), normal(rng, 2, 3, 8)
    leaves = {name: value.clone().requires_grad_() for name, value in {**weights, "x": x, "source": source}.items()}
    value = oracle_cross_attention(leaves, 4, 2, leaves["x"], leaves["source"])
    expected = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), gradient), strict=True))
    _, (for_x, for_source), for_weights = layer.gradients(x, source, output_gradient=gradient)
    for name, got in {**for_weights, "x": for_x, "source": for_source}.items():
        expect_close(got, expected[name], what=f"gradient of {name}")


@task("8.6")
def test_cross_attention_refuses_sequences_that_do_not_fit(impl, rng):
    layer, _ = cross_attention(impl, rng, 8, 2, 2, 0, False)
    pairs = ((2, 3, 8), (3, 3, 8)), ((2, 3, 8), (1, 4, 8)), ((3, 8), (1, 3, 8)), ((2, 3, 8), (2, 8))
    for x_shape, source_shape in pairs:
        with expect_error(ValueError):
            layer(normal(rng, *x_shape), normal(rng, *source_shape))


# 8.7 shared heads


@task("8.7", cases=2)
def test_neighbouring_query_heads_share(impl, rng):
    for leading in ((), (2,), (2, 3)):
        for n_kv_heads, n_heads in ((1, 1), (1, 4), (2, 6), (3, 6), (4, 4)):
            x = normal(rng, *leading, n_kv_heads, 4, 5)
            heads = [x.select(-3, head * n_kv_heads // n_heads) for head in range(n_heads)]
            got = impl.share_heads(x, n_heads)
            expect_equal(got, torch.stack(heads, dim=-3), what=f"{n_kv_heads} heads for {n_heads} query heads")


@task("8.7")
def test_sharing_adds_gradients_up_and_keeps_dtype_and_input(impl, rng):
    x, gradient = normal(rng, 2, 2, 3, 4), normal(rng, 2, 6, 3, 4)
    _, got = impl.share_heads.gradients(x, 6, output_gradient=gradient)
    expect_close(got[0], torch.stack((gradient[:, :3].sum(1), gradient[:, 3:].sum(1)), dim=1), what="gradient of x")
    single = x.float()
    got, after = impl.share_heads.after(single, 4)
    expect_equal(got, single[:, [0, 0, 1, 1]], what="float32 heads")
    expect_equal(after[0], single, what="x after the call")
    expect_equal(impl.share_heads(single[:0], 2), single[:0], what="an empty batch")


@task("8.7")
def test_uneven_sharing_is_refused(impl, rng):
    for n_kv_heads, n_heads in ((3, 4), (4, 2), (0, 2)):
        with expect_error(ValueError):
            impl.share_heads(normal(rng, 2, n_kv_heads, 3, 4), n_heads)
