"""BERT and its relatives: kernels agree, masks hide, layers are shared, heads; the peers are in test_bert_oracle.py."""

import itertools

import pytest
import torch
from helpers.parity import assert_near, random_ids, randomized

from minillm.data.corruption import prefix_mask
from minillm.errors import ConfigError, DataError, ShapeError
from minillm.models.bert import Bert, bert_config, encoder_parameters_by_part
from minillm.models.bert_heads import SpanReader, TextClassifier, TokenClassifier, best_spans

SHAPE = {"vocab_size": 23, "max_seq_len": 12, "n_layers": 3, "n_heads": 2, "d_model": 8, "d_ff": 20}
KINDS = {"bert": {}, "roberta": {}, "albert": {"d_embedding": 6}}


def small(kind="bert", seed=0, **settings):
    config = bert_config(kind, **SHAPE | KINDS[kind] | settings)
    return randomized(Bert(config, torch.Generator().manual_seed(seed)).double(), seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"d_embedding": 3}, {"pair_head": False}, {"n_layers": 1}, {"d_ff": 7}])
def test_parameters_are_counted_before_they_are_made(kind, changes):
    model = small(kind, **changes)
    parts = encoder_parameters_by_part(model.config)
    assert sum(parts.values()) == model.n_parameters()
    assert parts["layers"] == sum(parameter.numel() for parameter in model.layers.parameters())


def test_parameters_of_the_published_models():
    shape = {"max_seq_len": 512, "n_layers": 12, "n_heads": 12, "d_model": 768}
    bert = encoder_parameters_by_part(bert_config("bert", vocab_size=30522, **shape))
    albert = encoder_parameters_by_part(bert_config("albert", vocab_size=30000, **shape, d_embedding=128))
    # `BertModel` and `AlbertModel` of bert-base-uncased and albert-base-v2: embeddings, layers and the pooler
    assert bert["embeddings"] + bert["layers"] + 768 * 768 + 768 == 109_482_240
    assert albert["embeddings"] + albert["layers"] + 768 * 768 + 768 == 11_683_584


@pytest.mark.parametrize("fast", ["torch", "tiled"])
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_agree_in_value_and_gradient(kind, fast):
    models = [small(kind, kernels=kernels) for kernels in (fast, "naive")]
    ids, mask = random_ids(23, (3, 10)), torch.arange(10) < torch.tensor([10, 3, 7])[:, None]
    for model in models:
        model(ids, mask=mask)[mask].square().mean().backward()
    assert_near(*(model(ids, mask=mask)[mask] for model in models), 1e-12)
    for (name, ours), (_, theirs) in zip(*(model.named_parameters() for model in models), strict=True):
        if ours.grad is not None:
            assert (ours.grad - theirs.grad).abs().max() < 1e-10, name


@pytest.mark.parametrize("kind", KINDS)
def test_every_position_sees_both_ways_but_no_padding(kind):
    model, ids = small(kind), random_ids(23, (1, 8))
    changed = ids.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 23
    assert (model(changed) - model(ids)).abs().amax(dim=-1).min() > 1e-9
    mask = torch.arange(8)[None] < 5
    assert_near(model(changed, mask=mask)[:, :5], model(ids[:, :5]), 1e-12)


def test_a_text_of_nothing_but_padding_harms_no_other():
    model, ids = small(), random_ids(23, (2, 8))
    mask = torch.tensor([[True] * 8, [False] * 8])
    logits = model(ids, mask=mask)
    assert logits.isfinite().all()
    assert_near(logits[:1], model(ids[:1]), 1e-12)
    logits.square().mean().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


def test_masks_between_positions_make_a_decoder():
    model, ids = small(), random_ids(23, (2, 8))
    causal = torch.ones(8, 8, dtype=torch.bool).tril().expand(2, 8, 8)
    assert_near(model(ids, mask=causal)[:, :5], model(ids[:, :5], mask=causal[:, :5, :5]), 1e-12)
    prefix = torch.from_numpy(prefix_mask([3, 6], 8))
    whole = model(ids, mask=prefix)
    assert_near(whole[1, :6], model(ids[1:, :6])[0], 1e-12)        # a prefix reads itself both ways
    assert_near(whole[0, :5], model(ids[:1, :5], mask=prefix[:1, :5, :5])[0], 1e-12)


def test_what_the_relatives_share():
    bert, albert = small("bert", d_embedding=6), small("albert")
    assert len(bert.layers) == 3 and len(albert.layers) == 1
    layer = sum(parameter.numel() for parameter in albert.layers[0].parameters())
    assert bert.n_parameters() - albert.n_parameters() == 2 * layer
    assert albert.token_embedding.weight.shape == (23, 6) and albert.embedding_map.weight.shape == (8, 6)
    assert small("roberta").position_embedding.weight.shape == (14, 8)


def test_segments_and_pairs():
    model, ids = small(), random_ids(23, (2, 6))
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)
    assert (model(ids, segments) - model(ids)).abs().max() > 1e-3
    hidden = model.hidden(ids, segments)
    by_hand = torch.tanh(hidden[:, 0] @ model.pooler.weight.T + model.pooler.bias)
    assert_near(model.pair_logits(hidden), by_hand @ model.pair_head.weight.T + model.pair_head.bias, 1e-12)
    with pytest.raises(ConfigError, match="pair_head=False"):
        small("roberta").pair_logits(hidden)


def test_heads():
    generator = torch.Generator().manual_seed(1)
    body, ids = small().eval(), random_ids(23, (2, 6))
    text, token = TextClassifier(body, 3, generator=generator), TokenClassifier(body, 4, generator=generator)
    reader = SpanReader(body, generator)
    hidden = body.hidden(ids)
    for head in (text, token, reader):
        head.double().eval()
    assert_near(text(ids), body.pooled(hidden) @ text.head.weight.T, 1e-12)
    assert_near(token(ids), hidden @ token.head.weight.T, 1e-12)
    assert_near(torch.stack(reader(ids), dim=-1), hidden @ reader.head.weight.T, 1e-12)
    without = TextClassifier(small("roberta"), 2)
    assert {name.split(".")[0] for name, _ in without.named_parameters()} == {"body", "pooler", "head"}
    with pytest.raises(ConfigError, match="at least 2"):
        TokenClassifier(body, 1)


@pytest.mark.parametrize("max_length", [0, 1, 3])
def test_best_spans_against_all_of_them(max_length):
    generator = torch.Generator().manual_seed(max_length)
    first, last = torch.randn(2, 20, 7, generator=generator)
    allowed = torch.rand(20, 7, generator=generator) < 0.7
    allowed[:, 2] = True
    for row, (start, end) in enumerate(best_spans(first, last, allowed, max_length).tolist()):
        spans = [
            (a, b)
            for a, b in itertools.product(range(7), repeat=2)
            if a <= b and allowed[row, a] and allowed[row, b] and (not max_length or b - a < max_length)
        ]
        assert (start, end) == max(spans, key=lambda span: (first[row, span[0]] + last[row, span[1]]).item())
    with pytest.raises(ShapeError, match="scores"):
        best_spans(first[0], last[0])


def test_dropout_and_seeds():
    model, ids = small(dropout=0.5), random_ids(23, (1, 4))
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids)) and torch.equal(small(seed=3).head_bias, small(seed=3).head_bias)


@pytest.mark.parametrize("settings", [
    {"n_heads": 3}, {"vocab_size": 0}, {"n_segments": 0}, {"feed_forward": "swiglu"}, {"kernels": "fast"},
    {"dropout": -0.1}, {"norm_epsilon": 0.0}, {"position_offset": -1}, {"d_embedding": 2.0}, {"n_head": 2},
    {"std": 0.0},
])  # fmt: skip
def test_bad_settings(settings):
    with pytest.raises(ConfigError, match="expected|multiple|unknown"):
        bert_config("bert", **SHAPE | settings)


def test_bad_input():
    with pytest.raises(ConfigError, match="kind"):
        bert_config("electra", **SHAPE)
    model, ids = small(), random_ids(23, (2, 4))
    for arguments, error in [
        ((ids[0],), ShapeError),
        ((random_ids(23, (2, 13)),), ShapeError),
        ((ids + 23,), DataError),
        ((-ids - 1,), DataError),
        ((ids, ids[:, :3] * 0), ShapeError),
        ((ids, ids * 0 + 2), DataError),
        ((ids, None, torch.ones(2, 4)), ShapeError),
        ((ids, None, torch.ones(2, 3, dtype=torch.bool)), ShapeError),
        ((ids, None, torch.ones(2, 4, 4)), ShapeError),
        ((ids, None, torch.ones(2, 3, 4, dtype=torch.bool)), ShapeError),
    ]:
        with pytest.raises(error):
            model(*arguments)
