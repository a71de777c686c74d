"""The encoder-decoder of 2017 against torch's own, its caches against no caches, and what it refuses."""

import math

import pytest
import torch
from helpers.parity import assert_near, random_ids, randomized
from helpers.reversal import PADDING, START, reversal_batches, share_reversed
from torch import nn

from minillm.errors import ConfigError, DataError, SamplingError, ShapeError
from minillm.infer.beam import BeamConfig
from minillm.infer.text_to_text import write_by_beams, write_greedily
from minillm.models.transformer import Transformer, TransformerConfig
from minillm.nn.position import sinusoidal_positions
from minillm.train.loop import LoopConfig, train
from minillm.train.schedule import warmup_inverse_square_root
from minillm.train.text_to_text import TextToTextLoss, shift_right

SHAPE = {"vocab_size": 23, "max_seq_len": 16, "n_layers": 2, "n_decoder_layers": 3, "n_heads": 2, "d_model": 12}


def small(seed=0, **settings):
    config = TransformerConfig(**SHAPE | settings)
    return randomized(Transformer(config, torch.Generator().manual_seed(seed)).double(), seed)


def torch_peer(model):
    """nn.Transformer with our weights, and the pairs (our parameter, its parameter or rows of it)."""
    config, first = model.config, model.config.norm_place == "pre"
    width = config.d_model
    peer = nn.Transformer(
        width, config.n_heads, config.n_layers, config.n_decoder_layers, config.d_ff, 0.0, batch_first=True,
        norm_first=first, dtype=torch.float64,
    )  # fmt: skip
    peer.encoder.enable_nested_tensor = False
    if not first:
        peer.encoder.norm = peer.decoder.norm = None
    pairs = {}
    for ours, theirs in [(model.encoder, peer.encoder), (model.decoder, peer.decoder)]:
        for mine, other in zip(ours, theirs.layers, strict=True):
            parts = [
                (mine.attention.output, other.self_attn.out_proj), (mine.attention_norm, other.norm1),
                (mine.feed_forward.up, other.linear1), (mine.feed_forward.down, other.linear2),
                (mine.feed_forward_norm, other.norm2 if ours is model.encoder else other.norm3),
            ]  # fmt: skip
            if ours is model.decoder:
                parts.append((mine.source_attention.output, other.multihead_attn.out_proj))
                parts.append((mine.source_norm, other.norm2))
            for kind in ("weight", "bias"):
                pairs |= {getattr(a, kind): (getattr(b, kind), slice(None)) for a, b in parts}
                pairs[getattr(mine.attention.qkv, kind)] = (getattr(other.self_attn, f"in_proj_{kind}"), slice(None))
                if ours is model.decoder:
                    stacked = getattr(other.multihead_attn, f"in_proj_{kind}")
                    pairs[getattr(mine.source_attention.query, kind)] = (stacked, slice(0, width))
                    pairs[getattr(mine.source_attention.key_value, kind)] = (stacked, slice(width, None))
    if first:
        for ours, theirs in [(model.encoder_norm, peer.encoder.norm), (model.decoder_norm, peer.decoder.norm)]:
            pairs |= {getattr(ours, kind): (getattr(theirs, kind), slice(None)) for kind in ("weight", "bias")}
    with torch.no_grad():
        for parameter, (whole, rows) in pairs.items():
            whole[rows] = parameter
    return peer, pairs


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("kernels", ["torch", "naive", "tiled"])
@pytest.mark.parametrize("norm_place", ["post", "pre"])
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_and_all_gradients_equal_torch(seed, norm_place, kernels):
    model = small(seed, norm_place=norm_place, kernels=kernels, tie_embeddings=seed == 0)
    peer, pairs = torch_peer(model)
    table = model.token_embedding.weight.detach().clone().requires_grad_()
    head = table if model.head is None else model.head.weight.detach().clone().requires_grad_()
    source, target = random_ids(23, (3, 7), seed), random_ids(23, (3, 5), seed + 9)
    real = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]

    def vectors(ids):
        places = torch.stack([sinusoidal_positions(torch.tensor(p), 12) for p in range(ids.shape[1])])
        return table[ids] * 12**0.5 + places

    hidden = peer(
        vectors(source), vectors(target), tgt_mask=nn.Transformer.generate_square_subsequent_mask(5).double(),
        src_key_padding_mask=torch.zeros(3, 7, dtype=torch.float64).masked_fill(~real, -torch.inf),
        memory_key_padding_mask=torch.zeros(3, 7, dtype=torch.float64).masked_fill(~real, -torch.inf),
        tgt_is_causal=True,
    )  # fmt: skip
    expected, ours = hidden @ head.T, model(source, target, real)
    assert_near(ours, expected, 1e-12)
    ours.square().mean().backward()
    expected.square().mean().backward()
    largest = max(parameter.grad.abs().max() for parameter in peer.parameters())
    expected = {ours: whole.grad[rows] for ours, (whole, rows) in pairs.items()}
    expected[model.token_embedding.weight] = table.grad
    if model.head is not None:
        expected[model.head.weight] = head.grad
    assert set(expected) == set(model.parameters())
    for parameter, gradient in expected.items():
        assert (parameter.grad - gradient).abs().max() < 1e-11 * largest


def test_sinusoids_as_in_the_paper():
    x = sinusoidal_positions(torch.tensor([3]), 6)[0].tolist()
    for i in range(3):
        assert x[2 * i] == pytest.approx(math.sin(3 / 10000 ** (2 * i / 6)), rel=1e-12)
        assert x[2 * i + 1] == pytest.approx(math.cos(3 / 10000 ** (2 * i / 6)), rel=1e-12)


def test_later_targets_and_padding_of_the_source_change_nothing():
    model = small()
    source, target = random_ids(23, (1, 6), 1), random_ids(23, (1, 8), 2)
    whole = model(source, target)
    assert_near(model(source, target[:, :3]), whole[:, :3], 1e-12)
    padded = torch.cat((source, torch.tensor([[7, 7, 7]])), dim=1)
    mask = torch.arange(9)[None] < 6
    assert_near(model(padded, target, mask), whole, 1e-12)
    assert (model(padded, target) - whole).abs().max() > 1e-3


@pytest.mark.parametrize("norm_place", ["post", "pre"])
def test_cached_steps_give_the_same_logits(norm_place):
    model = small(norm_place=norm_place)
    source, target = random_ids(23, (3, 6), 1), random_ids(23, (3, 9), 2)
    mask = torch.arange(6) < torch.tensor([6, 2, 5])[:, None]
    whole = model(source, target, mask)
    cache = model.make_cache(model.encode(source, mask), mask, 9)
    for start, end in ((0, 4), (4, 5), (5, 9)):
        assert_near(model.decode(target[:, start:end], cache=cache), whole[:, start:end], 1e-12)
    with pytest.raises(ShapeError, match="do not fit"):
        model.decode(target[:, :1], cache=cache)


def test_selected_rows_of_a_cache_go_on_as_those_rows():
    model = small()
    source, target = random_ids(23, (3, 6), 1), random_ids(23, (3, 5), 2)
    mask = torch.arange(6) < torch.tensor([6, 2, 5])[:, None]
    cache, rows = model.make_cache(model.encode(source, mask), mask, 5), torch.tensor([2, 0, 0, 1])
    model.decode(target[:, :4], cache=cache)
    cache.select(rows)
    assert_near(model.decode(target[rows, 4:], cache=cache), model(source, target, mask)[rows, 4:], 1e-12)


def test_greedy_and_beams_with_and_without_cache():
    model = small(5)
    source = random_ids(23, (4, 6), 3)
    mask = torch.arange(6) < torch.tensor([6, 2, 5, 3])[:, None]
    arguments = {"start_id": 1, "end_id": 2, "max_new_tokens": 10}
    cached = write_greedily(model, source, mask, **arguments)
    assert cached == write_greedily(model, source, mask, **arguments, use_cache=False)
    for row, ids in enumerate(cached):                             # by hand
        text = [1]
        while len(text) <= 10 and text[-1] != 2:
            text.append(model(source[row : row + 1], torch.tensor([text]), mask[row : row + 1])[0, -1].argmax().item())
        assert ids == [i for i in text[1:] if i != 2]
    greedy = BeamConfig(end_id=2, max_new_tokens=10, n_beams=1, length_penalty=0.0)
    assert [list(found[0].ids) for found in write_by_beams(model, source, mask, start_id=1, config=greedy)] == cached
    wide = BeamConfig(end_id=2, max_new_tokens=8, n_beams=3)
    found = write_by_beams(model, source, mask, start_id=1, config=wide)
    without = write_by_beams(model, source, mask, start_id=1, config=wide, use_cache=False)
    for row in range(4):
        assert [h.ids for h in found[row]] == [h.ids for h in without[row]]
        best = found[row][0]
        ids = torch.tensor([[1, *best.ids, *([2] if best.is_finished else [])]])
        scores = model(source[row : row + 1], ids[:, :-1], mask[row : row + 1]).log_softmax(-1)
        assert scores[0].gather(1, ids[0, 1:, None]).sum().item() == pytest.approx(best.log_probability, rel=1e-9)
        assert found[row][0].score >= found[row][-1].score


def test_generation_leaves_the_mode_and_stops_early():
    model = small(5).train()
    write_greedily(model, random_ids(23, (1, 3)), start_id=1, end_id=2, max_new_tokens=2)
    assert model.training
    assert write_greedily(model, random_ids(23, (2, 3)), start_id=1, end_id=2, max_new_tokens=0) == [[], []]
    with pytest.raises(SamplingError, match="at least 0"):
        write_greedily(model, random_ids(23, (2, 3)), start_id=1, end_id=2, max_new_tokens=-1)


def test_dropout_and_seeds():
    model = small(dropout=0.5)
    ids = random_ids(23, (1, 4))
    assert not torch.equal(model(ids, ids), model(ids, ids))
    model.eval()
    assert torch.equal(model(ids, ids), model(ids, ids))
    assert torch.equal(small(3).token_embedding.weight, small(3).token_embedding.weight)


def test_loss_reads_the_shifted_targets_and_hides_padding():
    model = small()
    inputs, targets = torch.tensor([[5, 6, 0], [7, 8, 9]]), torch.tensor([[4, 2, -100], [3, 3, 2]])
    total = 0.0
    for row, n_source, n_target in ((0, 2, 2), (1, 3, 3)):
        read = torch.tensor([[1, *targets[row, : n_target - 1].tolist()]])
        scores = model(inputs[row : row + 1, :n_source], read).log_softmax(-1)
        total -= scores[0].gather(1, targets[row, :n_target, None]).sum().item()
    assert TextToTextLoss(start_id=1, pad_id=0)(model, inputs, targets).item() == pytest.approx(total, rel=1e-6)
    logits = model(inputs, shift_right(targets, 1), inputs != 0)
    smoothed = nn.functional.cross_entropy(logits.transpose(1, 2), targets, label_smoothing=0.1, reduction="sum")
    ours = TextToTextLoss(start_id=1, pad_id=0, smoothing=0.1)(model, inputs, targets)
    assert ours.item() == pytest.approx(smoothed.item(), rel=1e-9)
    with pytest.raises(ShapeError, match="targets"):
        shift_right(torch.tensor([1]), 0)


@pytest.mark.parametrize("settings", [
    {"n_heads": 5}, {"d_model": 0}, {"n_layers": True}, {"norm_place": "none"}, {"kernels": "fast"}, {"dropout": 1.0},
    {"norm_epsilon": 0.0}, {"n_decoder_layers": -1}, {"d_model": 3, "n_heads": 3},
])  # fmt: skip
def test_bad_settings(settings):
    with pytest.raises(ConfigError, match="expected|multiple"):
        TransformerConfig(**SHAPE | settings)


def test_bad_input():
    model, ids = small(), random_ids(23, (2, 4))
    for source, target, mask, error in [
        (ids[0], ids, None, ShapeError),
        (ids, ids[0], None, ShapeError),
        (random_ids(23, (2, 17)), ids, None, ShapeError),
        (ids, random_ids(23, (2, 17)), None, ShapeError),
        (ids, ids[:1], None, ShapeError),
        (ids + 23, ids, None, DataError),
        (ids, ids - 23, None, DataError),
        (ids, ids, torch.ones(2, 4), ShapeError),
        (ids, ids, torch.ones(2, 3, dtype=torch.bool), ShapeError),
    ]:
        with pytest.raises(error):
            model(source, target, mask)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_learns_to_reverse_strings_it_never_saw():
    shape = {"vocab_size": 13, "max_seq_len": 9, "n_layers": 2, "n_heads": 2, "d_model": 64}
    model = Transformer(TransformerConfig(**shape), torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-9)
    loss = TextToTextLoss(start_id=START, pad_id=PADDING, smoothing=0.1)
    schedule = lambda step: 0.5 * warmup_inverse_square_root(step, 64, 200)  # noqa: E731
    train(model, optimizer, reversal_batches, LoopConfig(n_steps=500), schedule=schedule, loss_sum=loss)
    assert share_reversed(model) > 0.7
