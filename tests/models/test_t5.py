"""T5: kernels agree, order is distance, caches change nothing; the peer is in test_t5_oracle.py."""

import pytest
import torch
from helpers.parity import assert_near, random_ids, randomized
from helpers.reversal import PADDING, START, reversal_batches, share_reversed
from torch.nn import functional as F

from minillm.errors import CheckpointError, ConfigError, DataError, ShapeError
from minillm.export.hugging_face import load_hugging_face, load_weights, save_hugging_face
from minillm.infer.beam import BeamConfig
from minillm.infer.text_to_text import write_by_beams, write_greedily
from minillm.models.t5 import T5, t5_config
from minillm.train.loop import LoopConfig, train
from minillm.train.optim import AdamW
from minillm.train.text_to_text import TextToTextLoss

SHAPE = {
    "vocab_size": 23, "max_seq_len": 40, "n_layers": 2, "n_decoder_layers": 3, "n_heads": 3, "d_model": 8, "d_head": 4,
    "d_ff": 12, "n_buckets": 8, "max_distance": 20,
}  # fmt: skip
VERSIONS = ["1.0", "1.1"]


def small(version="1.1", seed=0, **settings):
    config = t5_config(version, **SHAPE | settings)
    return randomized(T5(config, torch.Generator().manual_seed(seed)).double(), seed)


@pytest.mark.parametrize("fast", ["torch", "tiled"])
@pytest.mark.parametrize("version", VERSIONS)
def test_kernels_agree_in_value_and_gradient(version, fast):
    models = [small(version, kernels=kernels) for kernels in (fast, "naive")]
    source, target = random_ids(23, (3, 9)), random_ids(23, (3, 7), 1)
    mask = torch.arange(9) < torch.tensor([9, 3, 7])[:, None]
    for model in models:
        model(source, target, mask).square().mean().backward()
    assert_near(*(model(source, target, mask) for model in models), 1e-12)
    for (name, ours), (_, theirs) in zip(*(model.named_parameters() for model in models), strict=True):
        assert (ours.grad - theirs.grad).abs().max() < 1e-10, name


def test_one_encoder_layer_as_in_the_paper():
    """Loops over heads, queries and keys: unscaled scores plus a number for the distance."""
    model = small(n_layers=1, n_buckets=40, max_distance=30)       # every distance here has a bucket of its own
    ids, layer = random_ids(23, (1, 5)), model.encoder[0]

    def rms(x, norm):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight

    x = model.token_embedding.weight[ids[0]]
    query, key, value = (rms(x, layer.attention_norm) @ layer.attention.qkv.weight.T).split(12, dim=-1)
    mixed = torch.zeros(5, 12, dtype=torch.float64)
    for head in range(3):
        here = slice(4 * head, 4 * head + 4)
        for t in range(5):
            scores = [
                query[t, here] @ key[s, here] + model.encoder_distances.weight[abs(s - t) + 20 * (s > t), head]
                for s in range(5)
            ]
            mixed[t, here] = torch.stack(scores).softmax(0) @ value[:, here]
    x = x + mixed @ layer.attention.output.weight.T
    inner, weights = rms(x, layer.feed_forward_norm), layer.feed_forward
    gate = F.gelu(inner @ weights.gate.weight.T, approximate="tanh")
    x = x + (gate * (inner @ weights.up.weight.T)) @ weights.down.weight.T
    assert_near(model.encode(ids)[0], rms(x, model.encoder_norm), 1e-12)


def test_only_distances_matter():
    """A source moved to the right behind hidden padding says the same."""
    model, source, target = small(), random_ids(23, (1, 6), 1), random_ids(23, (1, 5), 2)
    moved = torch.cat((torch.tensor([[7, 7, 7]]), source), dim=1)
    assert_near(model(moved, target, torch.arange(9)[None] >= 3), model(source, target), 1e-12)
    assert (model(source.flip(1), target) - model(source, target)).abs().max() > 1e-4


def test_both_towers_have_one_table_of_distances_and_tied_heads_divide():
    tied, own = small("1.0"), small("1.1")
    names = [name for name, _ in own.named_parameters()]
    assert [name for name in names if "distances" in name] == ["encoder_distances.weight", "decoder_distances.weight"]
    assert not [name for name in names if "bias" in name]
    hidden = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_near(tied.logits(hidden), hidden / 8**0.5 @ tied.token_embedding.weight.T, 1e-12)
    assert_near(own.logits(hidden), hidden @ own.head.weight.T, 1e-12)


def test_scores_start_at_the_size_of_scaled_ones():
    model = T5(t5_config(**SHAPE | {"d_model": 64, "n_heads": 8, "d_head": 32}), torch.Generator().manual_seed(0))
    query, key, _ = model.encoder[0].attention.queries_keys_values(torch.randn(1, 50, 64, generator=torch.Generator()))
    scores = query @ key.transpose(-2, -1) / 32**0.5               # queries come stretched, for kernels that divide
    assert 0.7 < scores.std() < 1.4


@pytest.mark.parametrize("version", VERSIONS)
def test_cached_steps_give_the_same_logits_and_texts(version):
    model = small(version)
    source, target = random_ids(23, (3, 6), 1), random_ids(23, (3, 30), 2)
    mask = torch.arange(6) < torch.tensor([6, 2, 5])[:, None]
    whole = model(source, target, mask)
    cache = model.make_cache(model.encode(source, mask), mask, 30)
    for start, end in ((0, 4), (4, 5), (5, 30)):                    # beyond max_distance 20
        assert_near(model.decode(target[:, start:end], cache=cache), whole[:, start:end], 1e-12)
    arguments = {"start_id": 0, "end_id": 1, "max_new_tokens": 12}
    assert write_greedily(model, source, mask, **arguments) == write_greedily(
        model, source, mask, **arguments, use_cache=False
    )
    config = BeamConfig(end_id=1, max_new_tokens=8, n_beams=3)
    cached, without = (
        write_by_beams(model, source, mask, start_id=0, config=config, use_cache=use) for use in (True, False)
    )
    assert [[h.ids for h in row] for row in cached] == [[h.ids for h in row] for row in without]


@pytest.mark.parametrize("version", VERSIONS)
def test_there_and_back(version, tmp_path):
    model = small(version).float()
    loaded = load_hugging_face(save_hugging_face(model, tmp_path / "saved"))
    source, target = random_ids(23, (2, 9)), random_ids(23, (2, 7), 1)
    assert loaded.config == model.config and torch.equal(loaded(source, target), model(source, target))
    other = t5_config(version, **SHAPE | {"d_head": 2})
    with pytest.raises(CheckpointError, match="SelfAttention.q.weight expected"):
        load_weights(T5(other), tmp_path / "saved")


def test_a_source_of_nothing_but_padding_harms_no_other():
    model, source, target = small(), random_ids(23, (2, 6), 1), random_ids(23, (2, 5), 2)
    logits = model(source, target, torch.tensor([[True] * 6, [False] * 6]))
    assert logits.isfinite().all()
    assert_near(logits[:1], model(source[:1], target[:1]), 1e-12)
    logits.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_dropout():
    model, ids = small(dropout=0.5), random_ids(23, (1, 4))
    assert not torch.equal(model(ids, ids), model(ids, ids))
    model.eval()
    assert torch.equal(model(ids, ids), model(ids, ids))


@pytest.mark.parametrize("settings", [
    {"d_head": 0}, {"n_heads": 0}, {"n_buckets": 7}, {"n_buckets": 2}, {"max_distance": 4}, {"feed_forward": "gelu"},
    {"kernels": "fast"}, {"dropout": 1.0}, {"norm_epsilon": -1.0}, {"d_kv": 4},
])  # fmt: skip
def test_bad_settings(settings):
    with pytest.raises(ConfigError, match="expected|multiple|unknown"):
        t5_config(**SHAPE | settings)


def test_bad_input():
    with pytest.raises(ConfigError, match="version"):
        t5_config("2", **SHAPE)
    model, ids = small(), random_ids(23, (2, 4))
    for arguments, error in [
        ((ids[0], ids), ShapeError),
        ((random_ids(23, (2, 41)), ids), ShapeError),
        ((ids, ids + 23), DataError),
        ((ids, ids, torch.ones(2, 4)), ShapeError),
        ((ids[:1], ids), ShapeError),
    ]:
        with pytest.raises(error):
            model(*arguments)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_learns_to_reverse_strings_it_never_saw():
    shape = {"vocab_size": 13, "max_seq_len": 9, "n_layers": 2, "n_heads": 2, "d_model": 64, "d_ff": 128}
    model = T5(t5_config("1.1", **shape), torch.Generator().manual_seed(0))
    loss = TextToTextLoss(start_id=START, pad_id=PADDING)
    train(model, AdamW(model.parameters(), lr=3e-3), reversal_batches, LoopConfig(n_steps=400), loss_sum=loss)
    assert share_reversed(model) > 0.4
