"""Graders of chapter 12: each test names the task it belongs to; `impl` is the library or a learner's file."""

import math

import torch
from torch.nn import functional as F

from minillm.course.grader import Seeded, expect, expect_close, expect_equal, expect_error, normal, task
from minillm.infer.sampling import SamplingConfig
from minillm.models.gpt import GPT, GPTConfig
from minillm.models.registry import model_config

# 12.1 decoder block


BLOCKS = (
    {"bias": True, "feed_forward": "gelu", "norm": "layer"},
    {"bias": False, "feed_forward": "swiglu", "norm": "rms", "n_kv_heads": 2},
    {"bias": True, "feed_forward": "relu2", "norm": "layer", "n_kv_heads": 1, "kernels": "naive"},
    {"bias": False, "feed_forward": "relu2", "norm": "rms", "norm_weight": False, "qk_norm": True, "max_score": 6.0},
)


def block_config(**settings):
    return GPTConfig(**{"vocab_size": 5, "max_seq_len": 9, "n_layers": 2, "n_heads": 4, "d_model": 16} | settings)


def make_block(impl, rng, config):
    """A block in float64 with large random weights, so that every part of it matters; and a copy of its weights."""
    block = impl.Block(config, Seeded(0)).double()
    state = {}
    for name, old in block.state_dict().items():
        noise = normal(rng, *old.shape)
        state[name] = 1.0 + 0.5 * noise if "norm.weight" in name else noise * (0.5 if old.dim() == 1 else 0.3)
    block.load_state_dict(state)
    return block, state


def oracle_norm(x, state, name, config):
    weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
    if config.norm == "layer":
        return F.layer_norm(x, (config.d_model,), weight, bias, 1e-5)
    return F.rms_norm(x, (config.d_model,), weight, 1e-5)


def oracle_attention(x, state, config, mask=None, causal=False, angles=None):
    """Head by head, with torch's kernel; a pair of numbers turns as one complex number."""
    n_heads, n_kv, d_head = config.n_heads, config.n_kv_heads, config.d_head
    mixed = F.linear(x, state["attention.qkv.weight"], state.get("attention.qkv.bias"))
    heads = list(mixed.split(d_head, dim=-1))
    for place in range(n_heads + n_kv):
        if config.qk_norm:
            heads[place] = F.rms_norm(heads[place], (d_head,), eps=1e-5)
        if angles is not None:
            pairs = torch.complex(heads[place][..., : d_head // 2], heads[place][..., d_head // 2 :])
            pairs = pairs * torch.polar(torch.ones_like(angles), angles)
            heads[place] = torch.cat((pairs.real, pairs.imag), dim=-1)
    scale = config.max_score / d_head if config.max_score else 1.0 / math.sqrt(d_head)
    outputs = []
    for head in range(n_heads):
        shared = head * n_kv // n_heads
        key, value = heads[n_heads + shared], heads[n_heads + n_kv + shared]
        allowed = mask[:, head % mask.shape[1]] if mask is not None and mask.dim() == 4 else mask
        outputs.append(F.scaled_dot_product_attention(heads[head], key, value, allowed, is_causal=causal, scale=scale))
    return F.linear(torch.cat(outputs, -1), state["attention.output.weight"], state.get("attention.output.bias"))


def oracle_feed_forward(x, state, config):
    def linear(name, inputs):
        return F.linear(inputs, state[f"feed_forward.{name}.weight"], state.get(f"feed_forward.{name}.bias"))

    hidden = linear("up", x)
    if config.feed_forward == "gelu":
        return linear("down", F.gelu(hidden, approximate="tanh"))
    if config.feed_forward == "swiglu":
        return linear("down", F.silu(linear("gate", x)) * hidden)
    return linear("down", hidden.clamp(min=0) ** 2)


def oracle_block(x, state, config, **attention):
    x = x + oracle_attention(oracle_norm(x, state, "attention_norm", config), state, config, **attention)
    return x + oracle_feed_forward(oracle_norm(x, state, "feed_forward_norm", config), state, config)


@task("12.1", cases=2)
def test_block_part_by_part(impl, rng):
    config = block_config(bias=True)
    block, state = make_block(impl, rng, config)
    x = normal(rng, 2, 5, 16) * 2.0
    silent = {
        part: {name: torch.zeros_like(value) for name, value in state.items() if name.startswith(part)}
        for part in ("attention.output", "feed_forward.down")
    }
    without_both = state | silent["attention.output"] | silent["feed_forward.down"]
    block.load_state_dict(without_both)
    expect_close(block(x), x, what="the vectors after a block whose parts both write zeros (they must pass unchanged)")
    for part, name in (("feed_forward.down", "attention"), ("attention.output", "the feed-forward layer")):
        weights = state | silent[part]
        block.load_state_dict(weights)
        what = f"what {name} adds when the other part writes zeros (part(norm(x)), each part with a norm of its own)"
        expect_close(block(x) - x, oracle_block(x, weights, config) - x, 1e-9, what=what)


@task("12.1", cases=2)
def test_block_adds_attention_then_feed_forward(impl, rng):
    for settings in BLOCKS:
        config = block_config(**settings)
        block, state = make_block(impl, rng, config)
        x = normal(rng, 2, 5, 16) * 2.0
        expect_close(block(x), oracle_block(x, state, config), what=f"the vectors after a block with {settings}")


@task("12.1", cases=2)
def test_block_hands_mask_and_causal_to_attention(impl, rng):
    config = block_config(n_kv_heads=2)
    block, state = make_block(impl, rng, config)
    x = normal(rng, 2, 5, 16)
    expect_close(block(x, causal=True), oracle_block(x, state, config, causal=True), what="a causal block")
    for shape in ((5, 5), (2, 4, 5, 5)):
        mask = torch.from_numpy(rng.random(shape) < 0.5) | torch.eye(5, dtype=torch.bool)
        expect_close(block(x, mask), oracle_block(x, state, config, mask=mask), what=f"a mask of shape {shape}")


@task("12.1", cases=2)
def test_block_hands_the_rotation_to_attention(impl, rng):
    config = block_config(position="rotary", n_kv_heads=2)
    block, state = make_block(impl, rng, config)
    x, angles = normal(rng, 2, 5, 16), normal(rng, 5, 2)
    got = block(x, causal=True, rotation=(angles.cos(), angles.sin()))
    expect_close(got, oracle_block(x, state, config, causal=True, angles=angles), what="rotated queries and keys")


@task("12.1", cases=2)
def test_block_reads_and_fills_its_own_layer_of_the_cache(impl, rng):
    config = block_config(n_kv_heads=2)
    block, state = make_block(impl, rng, config)
    x, layer = normal(rng, 2, 5, 16), int(rng.integers(1, 3))
    cache = impl.KVCache(3, 2, 2, 6, 4, torch.float64)
    first = block(x[:, :3], None, True, None, cache, layer)
    cache.advance(3)
    mask = torch.ones(2, 5, dtype=torch.bool).tril(3)
    second = block(x[:, 3:], mask, False, None, cache, layer)
    whole = oracle_block(x, state, config, causal=True)
    expect_close(first, whole[:, :3], what="the first three positions, put into an empty cache")
    expect_close(second, whole[:, 3:], what="two more positions after three in the cache")
    others = [other for other in range(3) if other != layer]
    expect(not cache.get("keys")[others].any(), f"layer {layer} of the cache was given, other layers were written")
    expect(bool(cache.get("values")[layer, :, :, :5].any()), f"layer {layer} of the cache holds nothing")


@task("12.1")
def test_block_takes_layer_0_of_the_cache_unless_told(impl, rng):
    config = block_config()
    block, _ = make_block(impl, rng, config)
    cache = impl.KVCache(2, 1, 4, 3, 4, torch.float64)
    block(normal(rng, 1, 3, 16), causal=True, cache=cache)
    written = cache.get("keys").flatten(1).any(dim=1)
    expect_equal(written.tolist(), [True, False], what="which layers of the cache were written, without `layer`")


@task("12.1", cases=2)
def test_block_gradients(impl, rng):
    config = block_config(bias=True)
    block, state = make_block(impl, rng, config)
    x, output_gradient = normal(rng, 2, 4, 16), normal(rng, 2, 4, 16)
    _, (got, *_), by_name = block.gradients(x, causal=True, output_gradient=output_gradient)
    leaves = {name: value.clone().requires_grad_() for name, value in state.items()}
    x.requires_grad_()
    expected = oracle_block(x, leaves, config, causal=True)
    x_gradient, *rest = torch.autograd.grad(expected, [x, *leaves.values()], output_gradient)
    expect_close(got, x_gradient, 1e-9, what="the gradient by x")
    for name, gradient in zip(leaves, rest, strict=True):
        expect(by_name[name] is not None, f"the parameter {name} gets no gradient")
        expect_close(by_name[name], gradient, 1e-9, what=f"the gradient by {name}")


@task("12.1")
def test_block_drops_each_part_while_training_only(impl, rng):
    config = block_config(dropout=0.25)
    block, state = make_block(impl, rng, config)
    x = normal(rng, 4, 9, 16)
    for silent, part in (("feed_forward.down", "attention"), ("attention.output", "feed-forward layer")):
        block.load_state_dict(state | {f"{silent}.weight": torch.zeros_like(state[f"{silent}.weight"])})
        block.eval()
        added = block(x) - x
        block.train()
        ratio = ((block(x) - x) / added).reshape(-1)               # 0 where dropped, 1 / 0.75 where kept
        dropped, kept = ratio.abs() < 1e-6, (ratio - 1 / 0.75).abs() < 1e-6
        expect(bool((dropped | kept).all()), f"while training, each number the {part} adds must be dropped or kept")
        share = float(dropped.double().mean())
        expect(0.1 < share < 0.4, f"with dropout 0.25, {share:.0%} of what the {part} adds was dropped")
    block.load_state_dict(state)
    block.eval()
    expect_close(block(x), oracle_block(x, state, config), what="the vectors outside training, with dropout 0.25")


@task("12.1")
def test_block_leaves_its_input_alone_and_keeps_its_kind(impl, rng):
    config = block_config()
    block, _ = make_block(impl, rng, config)
    x = normal(rng, 2, 3, 16)
    _, after = block.after(x)
    expect_equal(after[0], x, what="the input after the call (it must not be changed in place)")
    expect_equal(tuple(block(x[:0]).shape), (0, 3, 16), what="the shape for an empty batch")
    single = impl.Block(config, Seeded(1))(x.float())
    expect(single.dtype == torch.float32, f"float32 vectors became {single.dtype}")


# 12.2 the loss shift


def oracle_targets(token_ids, counted, ignore_index):
    """Token by token."""
    rows = []
    for row, ids in enumerate(token_ids.tolist()):
        follows = [
            ids[place + 1] if counted is None or bool(counted[row, place + 1]) else ignore_index
            for place in range(len(ids) - 1)
        ]
        rows.append([*follows, ignore_index][: len(ids)])
    return torch.tensor(rows, dtype=token_ids.dtype).reshape(token_ids.shape)


@task("12.2")
def test_targets_by_hand(impl, rng):
    ids = torch.tensor([[5, 6, 7, 8]])
    expect_equal(impl.next_token_targets(ids), torch.tensor([[6, 7, 8, -100]]), what="the targets of 5 6 7 8")
    counted = torch.tensor([[False, False, True, True]])
    expected = torch.tensor([[-100, 7, 8, -100]])
    expect_equal(impl.next_token_targets(ids, counted), expected, what="the targets if only 7 and 8 are to be learned")


@task("12.2", cases=3)
def test_targets_of_any_shape(impl, rng):
    for n_rows, n_tokens in ((3, 7), (1, 1), (2, 2), (4, 0), (0, 3)):
        ids = torch.from_numpy(rng.integers(0, 50, (n_rows, n_tokens)))
        counted = torch.from_numpy(rng.random((n_rows, n_tokens)) < 0.6)
        ignored = -int(rng.integers(1, 1000))
        what = f"the targets of ids of shape {(n_rows, n_tokens)}"
        expect_equal(impl.next_token_targets(ids), oracle_targets(ids, None, -100), what=what)
        got = impl.next_token_targets(ids, counted, ignored)
        expect_equal(got, oracle_targets(ids, counted, ignored), what=f"{what}, some not counted")
        got = impl.next_token_targets(ids, counted=counted)
        expect_equal(got, oracle_targets(ids, counted, -100), what=f"{what}, some not counted")
    flat = torch.from_numpy(rng.integers(0, 50, 6))
    expected = oracle_targets(flat[None], None, -100)[0]
    expect_equal(impl.next_token_targets(flat), expected, what="the targets of ids of shape (6,)")
    deep = torch.from_numpy(rng.integers(0, 50, (2, 3, 4)))
    expected = oracle_targets(deep.reshape(6, 4), None, -100).reshape(2, 3, 4)
    expect_equal(impl.next_token_targets(deep), expected, what="the targets of ids of shape (2, 3, 4)")


@task("12.2")
def test_targets_keep_the_dtype_and_the_input(impl, rng):
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int32)
    counted = torch.tensor([[True, True, False], [True, False, True]])
    got, after = impl.next_token_targets.after(ids, counted)
    expect_equal(got, oracle_targets(ids, counted, -100), what="int32 targets")
    expect_equal(after[0], ids, what="the ids after the call (they must not be changed in place)")
    expect_equal(after[1], counted, what="`counted` after the call (it must not be changed in place)")


@task("12.2")
def test_targets_refuse_a_mask_that_does_not_fit(impl, rng):
    ids = torch.tensor([[1, 2, 3]])
    with expect_error(ValueError):
        impl.next_token_targets(ids, torch.tensor([True, True, False]))
    with expect_error(ValueError):
        impl.next_token_targets(ids, torch.tensor([[1, 1, 0]]))


# 12.3 parameter count


PARTS = ("token embedding", "position embedding", "token shift", "attention", "feed-forward", "norms", "head")


def part_of(name):
    """To which part of the model a parameter of this name belongs."""
    first = name.split(".")[0]
    known = dict(zip(("token_embedding", "position_embedding", "share_of_previous"), PARTS, strict=False), head="head")
    if first in known:
        return known[first]
    if "norm" in name:
        return "norms"
    return "attention" if ".attention." in name else "feed-forward"


def oracle_parts(config):
    """Make the model and look."""
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in GPT(config).named_parameters():
        counts[part_of(name)] += parameter.numel()
    return counts


@task("12.3")
def test_parts_of_gpt2_small_by_hand(impl, rng):
    config = model_config("gpt2", "base", vocab_size=50257, max_seq_len=1024)
    attention = 12 * (768 * 2304 + 2304 + 768 * 768 + 768)
    feed_forward = 12 * (768 * 3072 + 3072 + 3072 * 768 + 768)
    expected = dict(zip(PARTS, (50257 * 768, 1024 * 768, 0, attention, feed_forward, 25 * 2 * 768, 0), strict=True))
    got = impl.parameters_by_part(config)
    expect_equal(got, expected, what="the parts of GPT-2 small")
    expect_equal(sum(got.values()), 124_439_808, what="all numbers of GPT-2 small")


@task("12.3")
def test_each_setting_changes_its_own_part(impl, rng):
    base = {"vocab_size": 11, "max_seq_len": 7, "n_layers": 3, "n_heads": 4, "d_model": 8}
    changes = (
        {}, {"bias": True}, {"norm": "rms"}, {"norm": "rms", "bias": True}, {"norm_weight": False},
        {"norm_weight": False, "bias": True}, {"n_kv_heads": 1}, {"n_kv_heads": 2, "bias": True}, {"d_ff": 13},
        {"feed_forward": "swiglu"}, {"feed_forward": "swiglu", "bias": True}, {"feed_forward": "relu2"},
        {"feed_forward": "geglu"}, {"feed_forward": "gelu_exact"}, {"feed_forward": "relu", "bias": True},
        {"position": "rotary"}, {"position": "alibi"}, {"position": "sinusoidal"}, {"position": "none", "window": 3},
        {"embedding_norm": True}, {"embedding_norm": True, "bias": True}, {"embedding_norm": True, "norm": "rms"},
        {"token_shift": True}, {"tie_embeddings": False}, {"qk_norm": True, "max_score": 5.0},
        {"dropout": 0.5, "logit_cap": 3.0, "kernels": "naive", "zero_outputs": True},
    )  # fmt: skip
    for change in changes:
        config = GPTConfig(**base | change)
        expect_equal(impl.parameters_by_part(config), oracle_parts(config), what=f"the parts with {change}")


@task("12.3", cases=3)
def test_parts_of_any_model(impl, rng):
    for _ in range(12):
        n_heads = int(rng.choice([2, 4]))
        config = GPTConfig(
            vocab_size=int(rng.integers(3, 40)),
            max_seq_len=int(rng.integers(2, 30)),
            n_layers=int(rng.integers(1, 4)),
            n_heads=n_heads,
            n_kv_heads=int(rng.choice([1, 2, n_heads])),
            d_model=n_heads * int(rng.choice([2, 4, 6])),
            d_ff=int(rng.choice([0, 5, 24])),
            norm=str(rng.choice(["layer", "rms"])),
            norm_weight=bool(rng.random() < 0.7),
            position=str(rng.choice(["learned", "rotary", "alibi"])),
            feed_forward=str(rng.choice(["gelu", "swiglu", "relu2", "geglu"])),
            bias=bool(rng.random() < 0.5),
            qk_norm=bool(rng.random() < 0.5),
            token_shift=bool(rng.random() < 0.5),
            embedding_norm=bool(rng.random() < 0.5),
            tie_embeddings=bool(rng.random() < 0.5),
        )
        expect_equal(impl.parameters_by_part(config), oracle_parts(config), what=f"the parts of {config}")


@task("12.3")
def test_parts_of_llama_7b(impl, rng):
    config = GPTConfig(
        vocab_size=32000, max_seq_len=2048, n_layers=32, n_heads=32, d_model=4096, d_ff=11008, norm="rms",
        position="rotary", feed_forward="swiglu", tie_embeddings=False,
    )  # fmt: skip
    expect_equal(sum(impl.parameters_by_part(config).values()), 6_738_415_616, what="all numbers of LLaMA 7B")


# 12.4 and 12.5 sampling filters


def oracle_top_p(row, p):
    """Take tokens from the likeliest down, of equals the smaller id first, until their probabilities reach p."""
    top = max(row)
    weights = [math.exp(score - top) for score in row]
    kept, reached = set(), 0.0
    for place in sorted(range(len(row)), key=lambda place: (-row[place], place)):
        if reached >= p:
            break
        kept.add(place)
        reached += weights[place] / math.fsum(weights)
    return [score if place in kept else -math.inf for place, score in enumerate(row)]


def oracle_filters(row, config, seen=None):
    """One row of scores, filter by filter."""
    if config.repetition_penalty != 1.0:
        penalty = config.repetition_penalty
        row = [(x / penalty if x > 0 else x * penalty) if was else x for x, was in zip(row, seen, strict=True)]
    if config.temperature != 0.0:
        row = [score / config.temperature for score in row]
    if config.top_k:
        smallest = sorted(row, reverse=True)[config.top_k - 1]
        row = [score if score >= smallest else -math.inf for score in row]
    if config.top_p < 1.0:
        row = oracle_top_p(row, config.top_p)
    if config.min_p:
        bound = max(row) + math.log(config.min_p)
        row = [score if score >= bound else -math.inf for score in row]
    return row


def between(rng, low, high):
    """A random setting with few digits, so that a message can be read."""
    return round(float(rng.uniform(low, high)), 2)


def scores_of(rng, n_rows, vocab_size):
    return normal(rng, n_rows, vocab_size) * 2.0


def in_rows(function, logits, *arguments):
    rows = [function(row, *arguments) for row in logits.tolist()]
    return torch.tensor(rows, dtype=logits.dtype).reshape(logits.shape)


@task("12.4")
def test_top_p_by_hand(impl, rng):
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]], dtype=torch.float64).log()
    everything = [0, 1, 2, 3]
    for p, kept in ((0.4, [1]), (0.6, [1, 3]), (0.74, [1, 3]), (0.8, [1, 2, 3]), (0.95, everything), (1.0, everything)):
        mask = torch.zeros(1, 4, dtype=torch.bool)
        mask[0, kept] = True
        expected = logits.masked_fill(~mask, -math.inf)
        expect_equal(impl.keep_top_p(logits, p), expected, what=f"probabilities 0.1, 0.5, 0.15, 0.25 with p = {p}")


@task("12.4", cases=3)
def test_top_p_is_the_fewest_tokens_that_reach_p(impl, rng):
    logits = scores_of(rng, 4, 23)
    for p in (1e-9, 0.1, between(rng, 0.2, 0.9), 0.9, 0.99, 0.99999):
        got = impl.keep_top_p(logits, p)
        expect_equal(got, in_rows(oracle_top_p, logits, p), what=f"random scores with p = {p:.5g}")


@task("12.4")
def test_top_p_at_the_border_and_among_equals(impl, rng):
    logits = torch.zeros(1, 8, dtype=torch.float64)                # each probability is exactly 1/8
    for p, n_kept in ((0.125, 1), (0.5, 4), (0.51, 5), (1.0, 8)):
        got = impl.keep_top_p(logits, p)
        expect_equal(int(got.isfinite().sum()), n_kept, what=f"how many of 8 equally likely tokens reach {p}")
        expected = logits.masked_fill(torch.arange(8) >= n_kept, -math.inf)
        expect_equal(got, expected, what="the smaller ids of equally likely tokens, kept")
    many = torch.zeros(1, 100, dtype=torch.float64)                # long enough for an unstable sort to show
    expect_equal(impl.keep_top_p(many, 0.295).isfinite().nonzero()[:, 1].tolist(), list(range(30)), what="the kept ids")


@task("12.4")
def test_top_p_with_extreme_scores(impl, rng):
    logits = torch.tensor([[1e4, -1e4, 0.0, 1e4], [-math.inf, 3.0, -math.inf, 2.0]], dtype=torch.float64)
    for p in (0.4, 0.7, 0.9):
        got = impl.keep_top_p(logits, p)
        expect_equal(got, in_rows(oracle_top_p, logits, p), what=f"scores of 1e4 and -inf with p = {p}")


@task("12.4")
def test_top_p_keeps_kind_and_input(impl, rng):
    logits = scores_of(rng, 2, 9)
    got, after = impl.keep_top_p.after(logits, 0.5)
    expect_equal(after[0], logits, what="the scores after the call (they must not be changed in place)")
    expect(got.dtype == torch.float64, f"float64 scores became {got.dtype}")
    single = logits.float()
    got = impl.keep_top_p(single, 0.5)
    expect_equal(got, single.masked_fill(got == -math.inf, -math.inf), what="float32 scores, kept ones unchanged")
    expect_equal(tuple(impl.keep_top_p(logits[:0], 0.5).shape), (0, 9), what="the shape for an empty batch")
    for shape in ((9,), (2, 3, 9)):
        logits = normal(rng, *shape)
        expected = in_rows(oracle_top_p, logits.reshape(-1, 9), 0.6).reshape(shape)
        expect_equal(impl.keep_top_p(logits, 0.6), expected, what=f"scores of shape {shape}")


@task("12.5", cases=3)
def test_each_filter_alone(impl, rng):
    logits = scores_of(rng, 3, 17)
    seen = torch.from_numpy(rng.random((3, 17)) < 0.5)
    settings = (
        {"temperature": between(rng, 0.3, 0.9)}, {"temperature": between(rng, 1.1, 4.0)},
        {"temperature": 2.0}, {"temperature": 0.5},
        {"top_k": int(rng.integers(2, 16))}, {"top_k": 1}, {"top_k": 17}, {"top_p": between(rng, 0.2, 0.9)},
        {"min_p": between(rng, 0.01, 0.4)}, {"min_p": 1.0},
        {"repetition_penalty": between(rng, 1.2, 3.0)}, {"repetition_penalty": 0.5},
    )  # fmt: skip
    for setting in settings:
        config = SamplingConfig(**setting)
        got = impl.filter_logits(logits, config, seen)
        rows = [oracle_filters(row, config, was) for row, was in zip(logits.tolist(), seen.tolist(), strict=True)]
        expect_close(got, torch.tensor(rows, dtype=torch.float64), what=f"the scores with {setting}")


@task("12.5", cases=5)
def test_filters_in_their_order(impl, rng):
    logits = scores_of(rng, 6, 29)
    seen = torch.from_numpy(rng.random((6, 29)) < 0.5)
    for _ in range(6):
        config = SamplingConfig(
            repetition_penalty=float(rng.choice([1.0, between(rng, 1.1, 3.0)])),
            temperature=float(rng.choice([between(rng, 0.3, 0.8), between(rng, 1.5, 4.0)])),
            top_k=int(rng.choice([0, rng.integers(4, 20)])),
            top_p=between(rng, 0.5, 0.95),
            min_p=float(rng.choice([0.0, between(rng, 0.02, 0.3)])),
        )
        got = impl.filter_logits(logits, config, seen)
        rows = [oracle_filters(row, config, was) for row, was in zip(logits.tolist(), seen.tolist(), strict=True)]
        expect_close(got, torch.tensor(rows, dtype=torch.float64), what=f"the scores with {config}")


@task("12.5")
def test_settings_that_are_off_change_nothing(impl, rng):
    logits = torch.cat((scores_of(rng, 2, 6), torch.tensor([[0.0, -1e4, -2e4, 5.0, -math.inf, 1e4]]).double()))
    for config in (SamplingConfig(), SamplingConfig(temperature=0.0)):
        expect_equal(impl.filter_logits(logits, config), logits, what=f"the scores with {config}")
    greedy = SamplingConfig(temperature=0.0, top_k=2)
    got = impl.filter_logits(logits, greedy)
    expect_close(got, in_rows(oracle_filters, logits, greedy), what="the scores with temperature 0 and top_k 2")


@task("12.5")
def test_filters_leave_their_input_alone_and_refuse(impl, rng):
    logits, seen = scores_of(rng, 2, 9), torch.ones(2, 9, dtype=torch.bool)
    config = SamplingConfig(repetition_penalty=2.0, temperature=0.5, top_k=5, top_p=0.9, min_p=0.1)
    _, after = impl.filter_logits.after(logits, config, seen)
    expect_equal(after[0], logits, what="the scores after the call (they must not be changed in place)")
    with expect_error(ValueError):
        impl.filter_logits(logits, SamplingConfig(repetition_penalty=2.0))
    with expect_error(ValueError):
        impl.filter_logits(logits, SamplingConfig(top_k=10))
    single = impl.filter_logits(logits.float(), config, seen)
    expect(single.dtype == torch.float32, f"float32 scores became {single.dtype}")


# 12.6 cached step


FAMILIES = {
    "gpt2": {"bias": True},
    "modern": {
        "norm": "rms", "position": "rotary", "feed_forward": "relu2", "qk_norm": True, "max_score": 8.0,
        "token_shift": True, "tie_embeddings": False, "n_kv_heads": 1,
    },
}  # fmt: skip


def make_gpt(impl, rng, family):
    """The same model, with large weights in float64, on both sides."""
    config = GPTConfig(vocab_size=13, max_seq_len=12, n_layers=2, n_heads=2, d_model=8, **FAMILIES[family])
    theirs, ours = impl.GPT(config, Seeded(0)).double().eval(), GPT(config).double().eval()
    state = {name: normal(rng, *old.shape) * 0.6 for name, old in ours.state_dict().items()}
    theirs.load_state_dict(state)
    ours.load_state_dict(state)
    return theirs, ours


def random_rows(rng, lengths):
    return [rng.integers(0, 13, n).tolist() for n in lengths]


@torch.no_grad()
def each_alone(model, rows):
    return torch.cat([model(torch.tensor([row]))[:, -1] for row in rows])


@task("12.6", cases=2, needs=("12.1",))
def test_scores_without_a_cache(impl, rng):
    for family in FAMILIES:
        theirs, ours = make_gpt(impl, rng, family)
        for lengths in ((4, 4), (1,), (3, 7, 1), (12, 2)):
            rows = random_rows(rng, lengths)
            got, after = impl.logits_after.after(theirs, rows)
            expect_close(got, each_alone(ours, rows), 1e-9, what=f"{family}: the scores of rows of lengths {lengths}")
            expect_equal(after[1], rows, what="the rows after the call (they must not be changed)")


@task("12.6", cases=2, needs=("12.1",))
def test_scores_with_a_cache_are_those_without(impl, rng):
    for family in FAMILIES:
        theirs, ours = make_gpt(impl, rng, family)
        for lengths in ((3, 3), (2, 5, 1)):
            rows, cache = random_rows(rng, lengths), theirs.make_cache(len(lengths))
            for n_new in (0, 1, 3, 1):
                rows = [row + more for row, more in zip(rows, random_rows(rng, [n_new] * len(rows)), strict=True)]
                got = impl.logits_after(theirs, rows, cache)
                what = f"{family}: the scores {n_new} tokens later" if n_new else f"{family}: the first scores"
                expect_close(got, each_alone(ours, rows), 1e-9, what=f"{what}, rows of lengths {[*map(len, rows)]}")
                longest = max(map(len, rows))
                expect_equal(cache.get("length"), longest, what="how many places the cache holds afterwards")


@task("12.6", needs=("12.1",))
@torch.no_grad()
def test_what_the_cache_holds_is_used_and_not_computed_again(impl, rng):
    theirs, ours = make_gpt(impl, rng, "gpt2")
    rows = random_rows(rng, (4, 4))
    cache, own = theirs.make_cache(2), ours.make_cache(2)
    impl.logits_after(theirs, rows, cache)
    ours(torch.tensor(rows), own)
    own.values[:, :, :, :4] = 7.0                                  # a memory of something that never was
    cache.set("values", own.values)
    longer = [row + [5, 6] for row in rows]
    expected = ours(torch.tensor([[5, 6], [5, 6]]), own)[:, -1]
    got = impl.logits_after(theirs, longer, cache)
    expect_close(got, expected, 1e-9, what="the scores from a cache whose values were all set to 7")
