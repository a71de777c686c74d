"""Prefix tuning: equal to reading real tokens, to attention written out, and to itself with and without a cache."""

import copy
import math

import pytest
import torch
from helpers.adapt_models import (
    CONTEXT,
    GPTS,
    VOCAB,
    ids_of,
    padded_left,
    padded_right,
    small_bert,
    small_gpt,
    small_t5,
)
from torch.nn import functional as F

from minillm import surgery
from minillm.adapt import prefix as prefix_module
from minillm.adapt.adapted import adapt, load_delta
from minillm.adapt.prefix import PlacesAfterPrefix, PrefixConfig
from minillm.errors import CheckpointError, ConfigError, ShapeError
from minillm.infer.beam import BeamConfig
from minillm.infer.generate import generate
from minillm.infer.sampling import GREEDY
from minillm.infer.text_to_text import write_by_beams, write_greedily
from minillm.models.bert_heads import TextClassifier

FIRST = (5, 1, 17)  # real tokens whose keys and values a prefix can start as
ROWS = [[3, 9, 2, 11, 7], [8, 4], [6, 1, 1, 20]]
P = len(FIRST)
EXACT = {"rtol": 0.0, "atol": 1e-12}


def real_prefix(model):
    return adapt(model, PrefixConfig(n_virtual=P, initial_ids=FIRST))


def shaken(adapted, scale=0.5, seed=5):
    """The same with large random rows, so that mistakes show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.trainable_parameters().values():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return adapted


@pytest.mark.parametrize("kind", GPTS)
def test_a_prefix_of_real_tokens_is_reading_them(kind):
    model, ids = small_gpt(**GPTS[kind] | {"token_shift": False}), ids_of((2, 6))
    expected = model(torch.cat((torch.tensor(FIRST).expand(2, -1), ids), dim=1))[:, P:]
    real_prefix(model)
    torch.testing.assert_close(model(ids), expected, **EXACT)


@pytest.mark.parametrize("kind", GPTS)
def test_padding_on_the_left_changes_nothing(kind):
    model = small_gpt(**GPTS[kind])
    shaken(adapt(model, PrefixConfig(n_virtual=P)))
    ids, mask, positions = padded_left(ROWS)
    together = model(ids, None, mask, positions)
    for number, row in enumerate(ROWS):
        alone = model(torch.tensor([row]))[0]
        torch.testing.assert_close(together[number, -len(row) :], alone, **EXACT)


@pytest.mark.parametrize("kind", GPTS)
def test_generation_with_a_cache_and_unequal_lengths(kind):
    model = small_gpt(**GPTS[kind])
    shaken(adapt(model, PrefixConfig(n_virtual=P)))
    expected = generate(model, ROWS, 9, GREEDY, use_cache=False)
    assert generate(model, ROWS, 9, GREEDY) == expected
    assert [generate(model, [row], 9, GREEDY)[0] for row in ROWS] == expected


@pytest.mark.parametrize("kind", ["learned", "rotary", "alibi"])
def test_logits_from_a_cache_are_those_without(kind):
    model, ids = small_gpt(**GPTS[kind]), ids_of((2, 9))
    shaken(adapt(model, PrefixConfig(n_virtual=P)))
    expected, cache = model(ids), model.make_cache(2)
    found = torch.cat([model(part, cache) for part in ids.split((4, 1, 3, 1), dim=1)], dim=1)
    torch.testing.assert_close(found, expected, **EXACT)
    assert cache.length == 9 and cache.max_seq_len == CONTEXT - P


def test_texts_that_outgrow_the_shorter_context():
    model = small_gpt()
    shaken(adapt(model, PrefixConfig(n_virtual=P)))
    assert model.config.max_seq_len == CONTEXT - P
    long = generate(model, ROWS, CONTEXT, GREEDY)
    assert long == generate(model, ROWS, CONTEXT, GREEDY, use_cache=False) and len(long[0]) == CONTEXT
    with pytest.raises(ShapeError, match=f"22 positions do not fit into max_seq_len {CONTEXT - P}"):
        model(ids_of((1, CONTEXT - P + 1)))


def test_places_must_count_from_behind_the_prefix():
    for kind in ("learned", "rotary", "sinusoidal"):
        model, ids = small_gpt(**GPTS[kind]), ids_of((1, 6))
        expected = model(torch.cat((torch.tensor([FIRST]), ids), dim=1))[:, P:]
        delta = real_prefix(model).delta
        delta.overlays.pop().remove()                              # the mutation: places count from 0
        assert not isinstance(model, PlacesAfterPrefix)
        assert (model(ids) - expected).abs().max() > 1e-3


def test_mutations_would_be_noticed(monkeypatch):
    model, ids = small_gpt(**GPTS["alibi"]), ids_of((2, 6))
    expected = model(torch.cat((torch.tensor(FIRST).expand(2, -1), ids), dim=1))[:, P:]
    real_prefix(model)
    padded, mask, positions = padded_left(ROWS)
    right = model(padded, None, mask, positions)
    with monkeypatch.context() as patch:                           # every position sees all of the text
        patch.setattr(prefix_module, "causal_mask", lambda t, s, d: torch.ones(t, s, dtype=torch.bool))
        assert (model(ids) - expected).abs().max() > 1e-3
    with monkeypatch.context() as patch:                           # padding counts as distance
        patch.setattr(prefix_module, "padding_undone", lambda *_: None)
        assert (model(padded, None, mask, positions) - right)[1, -2:].abs().max() > 1e-3
    with monkeypatch.context() as patch:                           # the prefix stands behind the text
        patch.setattr(prefix_module, "before", lambda rows, x: torch.cat((x, rows.expand(len(x), *rows.shape)), 2))
        assert (model(ids) - expected).abs().max() > 1e-3


def attend(attention, x, source, rows, bias=None):
    """Softmax attention written out, with prefix rows (P, 2, H, D) before the keys and values of the source."""
    heads = attention.n_heads
    if hasattr(attention, "qkv"):
        query, key, value = attention.qkv(x).chunk(3, dim=-1)
    else:
        query, (key, value) = attention.query(x), attention.key_value(source).chunk(2, dim=-1)
    query, key, value = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (query, key, value))
    query = query * (attention.stretch if hasattr(attention, "stretch") else 1.0)
    key = torch.cat((rows[:, 0].transpose(0, 1).expand(len(key), -1, -1, -1), key), dim=2)
    value = torch.cat((rows[:, 1].transpose(0, 1).expand(len(value), -1, -1, -1), value), dim=2)
    scores = torch.einsum("bhtd,bhsd->bhts", query, key) / math.sqrt(query.shape[-1])
    scores = scores if bias is None else scores + bias
    mixed = torch.einsum("bhts,bhsd->bthd", scores.softmax(-1), value)
    return attention.output(mixed.flatten(2))


def test_bert_against_attention_written_out():
    model, ids = small_bert(), ids_of((3, 7))
    adapted = shaken(adapt(model, PrefixConfig(n_virtual=P)))
    rows = adapted.trainable_parameters()["prefix.table"].view(P, 2, 2, 2, 8)  # (P, L, 2, H, D)
    x = model.token_embedding(ids) + model.segment_embedding.weight[0] + model.position_embedding.weight[P : P + 7]
    x = model.embedding_norm(x)
    for layer, prefix_rows in zip(model.layers, rows.unbind(1), strict=True):
        x = layer.attention_norm(x + attend(layer.attention, x, x, prefix_rows))
        x = layer.feed_forward_norm(x + layer.feed_forward(x))
    torch.testing.assert_close(model(ids), model.logits(x), **EXACT)
    texts, mask = padded_right(ROWS)
    together = model.hidden(texts, mask=mask)
    for number, row in enumerate(ROWS):
        torch.testing.assert_close(together[number, : len(row)], model.hidden(torch.tensor([row]))[0], **EXACT)
    with pytest.raises(ShapeError, match=f"22 positions, more than max_seq_len {CONTEXT - P}"):
        model(ids_of((1, CONTEXT - P + 1)))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_t5_against_attention_written_out(version):
    model, source, target = small_t5(version=version), ids_of((2, 7)), ids_of((2, 5), seed=1)
    adapted = shaken(adapt(model, PrefixConfig(n_virtual=P)))
    rows = adapted.trainable_parameters()["prefix.table"].view(P, 6, 2, 2, 4).unbind(1)
    before = torch.arange(-P, 0)
    with adapted.disable():                                        # distances to the rows as to tokens before the text
        to_source = model.encoder_distances(torch.arange(7), torch.cat((before, torch.arange(7))))
        to_target = model.decoder_distances(torch.arange(5), torch.cat((before, torch.arange(5))))
        later = torch.arange(-P, 5) > torch.arange(5)[:, None]
        x = model.token_embedding(source)
        for layer, own in zip(model.encoder, rows[:2], strict=True):
            normed = layer.attention_norm(x)
            x = x + attend(layer.attention, normed, normed, own, to_source)
            x = x + layer.feed_forward(layer.feed_forward_norm(x))
        memory, x = model.encoder_norm(x), model.token_embedding(target)
        for layer, own, across in zip(model.decoder, rows[2:4], rows[4:], strict=True):
            normed = layer.attention_norm(x)
            x = x + attend(layer.attention, normed, normed, own, to_target.masked_fill(later, -torch.inf))
            stretched = layer.source_norm(x)
            x = x + attend(layer.source_attention, stretched, memory, across)
            x = x + layer.feed_forward(layer.feed_forward_norm(x))
        expected = model.logits(model.decoder_norm(x))
    torch.testing.assert_close(model(source, target), expected, **EXACT)


@pytest.mark.parametrize("places", [("encoder",), ("decoder",), ("source",), ("encoder", "decoder", "source")])
def test_t5_writes_the_same_with_and_without_a_cache(places):
    model = small_t5()
    with torch.no_grad():
        base = model(ids_of((1, 4)), ids_of((1, 3)))
    adapted = shaken(adapt(model, PrefixConfig(n_virtual=P, places=places)))
    assert adapted.count().trainable == 2 * P * 2 * 8 * len(places)
    assert (model(ids_of((1, 4)), ids_of((1, 3))) - base).abs().max() > 1e-3
    source, mask = padded_right(ROWS)
    written = {"start_id": 0, "end_id": 22, "max_new_tokens": 8}
    expected = write_greedily(model, source, mask, **written, use_cache=False)
    assert write_greedily(model, source, mask, **written) == expected
    alone = [write_greedily(model, torch.tensor([row]), **written)[0] for row in ROWS]
    assert [row[: len(other)] for row, other in zip(expected, alone, strict=True)] == alone
    beams = BeamConfig(end_id=22, max_new_tokens=5, n_beams=3)
    slow, fast = (write_by_beams(model, source, mask, start_id=0, config=beams, use_cache=c) for c in (False, True))
    assert [[h.ids for h in row] for row in slow] == [[h.ids for h in row] for row in fast]


@torch.no_grad()
def numbers(model, logits):
    """Without gradients: torch has other kernels for models that are trained, which round differently."""
    return logits(model)


def models():
    return {
        "gpt": (small_gpt(), lambda model: model(ids_of((2, 6)))),
        "llama": (small_gpt(**GPTS["rotary"]), lambda model: model(ids_of((2, 6)))),
        "bert": (small_bert(), lambda model: model(ids_of((2, 6)))),
        "albert": (small_bert(kind="albert", d_embedding=8), lambda model: model(ids_of((2, 6)))),
        "t5": (small_t5(), lambda model: model(ids_of((2, 6)), ids_of((2, 4), seed=3))),
        "head": (TextClassifier(small_bert(), 3, 0.0).double(), lambda model: model(ids_of((2, 6)))),
    }


@pytest.mark.parametrize("reparametrised", [False, True])
@pytest.mark.parametrize("kind", models())
def test_training_changes_the_prefix_alone(kind, reparametrised, tmp_path):
    model, logits = models()[kind]
    before, frozen, names = numbers(model, logits), copy.deepcopy(model.state_dict()), list(model.state_dict())
    config = PrefixConfig(n_virtual=P, reparametrised=reparametrised, d_hidden=6)
    adapted = adapt(model, config, generator=torch.Generator().manual_seed(1))
    parameters = adapted.trainable_parameters()
    optimizer = torch.optim.SGD(parameters.values(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(logits(model).flatten(0, -2), logits(model).flatten(0, -2).argmin(-1)).backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in parameters.values())
        optimizer.step()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(surgery.trainable(model))
    assert len(surgery.trainable(model)) == len(parameters)
    after = numbers(model, logits)
    assert (after - before).abs().max() > 1e-4
    with adapted.disable():
        torch.testing.assert_close(numbers(model, logits), before, rtol=0, atol=0)
    adapted.delta.fold()
    assert list(adapted.trainable_parameters()) == ["prefix.table"]
    torch.testing.assert_close(numbers(model, logits), after, **EXACT)
    adapted.save(tmp_path)
    adapted.remove()
    assert list(model.state_dict()) == names
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(numbers(model, logits), before, rtol=0, atol=0)
    loaded = load_delta(model, tmp_path)
    torch.testing.assert_close(numbers(model, logits), after, **EXACT)
    assert loaded.config == config and list(loaded.trainable_parameters()) == ["prefix.table"]
    if kind == "head":
        return
    other = models()[kind][0]
    with torch.no_grad():
        other.token_embedding.weight.add_(1.0)
    with pytest.raises(CheckpointError, match="another base"):
        load_delta(other, tmp_path)
    assert not any("prefix" in name for name in other.state_dict())


def test_gradients_are_slopes():
    model, ids = small_gpt(**GPTS["rotary"]), ids_of((2, 6))
    for reparametrised in (False, True):
        adapted = adapt(model, PrefixConfig(n_virtual=2, reparametrised=reparametrised, d_hidden=3, std=0.5))
        for parameter in adapted.trainable_parameters().values():
            model.zero_grad()
            model(ids).square().mean().backward()
            with torch.no_grad():
                flat, at, step = parameter.view(-1), parameter.numel() // 2, 1e-5
                flat[at] += step
                above = model(ids).square().mean()
                flat[at] -= 2 * step
                below = model(ids).square().mean()
                flat[at] += step
            assert parameter.grad.view(-1)[at].item() == pytest.approx((above - below).item() / (2 * step), rel=1e-6)
        adapted.remove()


def test_numbers_of_parameters():
    for kind, n_kv_heads in (("learned", 4), ("rotary", 2), ("alibi", 1)):
        width = n_kv_heads * 4
        adapted = adapt(small_gpt(**GPTS[kind]), PrefixConfig(n_virtual=5))
        assert adapted.count().trainable == 5 * 2 * 2 * width
        adapted = adapt(small_gpt(**GPTS[kind]), PrefixConfig(n_virtual=5, reparametrised=True, d_hidden=7))
        network = 5 * width + (width * 7 + 7) + (7 * 4 * width + 4 * width)
        assert adapted.count().trainable == network
        adapted.delta.fold()
        assert adapted.count().trainable == 5 * 2 * 2 * width
    bert = adapt(small_bert(kind="albert", d_embedding=8), PrefixConfig(n_virtual=5))
    assert bert.count().trainable == 5 * 2 * 16                    # one layer, applied twice, has one prefix


def test_a_copy_has_a_prefix_of_its_own():
    model, ids = small_gpt(), ids_of((1, 6))
    adapted = shaken(adapt(model, PrefixConfig(n_virtual=P)))
    before, copied = model(ids), copy.deepcopy(model)
    shaken(adapted, seed=6)
    assert (model(ids) - before).abs().max() > 1e-3
    torch.testing.assert_close(copied(ids), before, rtol=0, atol=0)


def test_half_precision_and_training_mode_are_kept():
    model = small_gpt(dtype=torch.bfloat16, **GPTS["rotary"]).train()
    adapted = adapt(model, PrefixConfig(n_virtual=P, initial_ids=FIRST))
    assert model.training and {p.dtype for p in adapted.trainable_parameters().values()} == {torch.bfloat16}
    assert model(ids_of((1, 5))).dtype == torch.bfloat16


def test_what_is_refused():
    with pytest.raises(ConfigError, match="24 vectors in front leave no room for text in a context of 24"):
        adapt(small_gpt(), PrefixConfig(n_virtual=24))
    with pytest.raises(ConfigError, match="window"):
        adapt(small_gpt(window=5), PrefixConfig())
    with pytest.raises(ConfigError, match=r"GPT has attention in \['decoder'\]"):
        adapt(small_gpt(), PrefixConfig(places=("encoder",)))
    with pytest.raises(ConfigError, match="holds no GPT, Bert or T5"):
        adapt(torch.nn.Linear(2, 2), PrefixConfig())
    with pytest.raises(ConfigError, match="Bert keys depend"):
        adapt(small_bert(), PrefixConfig(initial_ids=(1,)))
    for wrong in ({"n_virtual": 0}, {"places": ("middle",)}, {"places": ()}, {"std": 0.0}, {"d_hidden": 0},
                  {"initial_ids": (1,), "reparametrised": True}):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            PrefixConfig(**wrong)
    model = small_gpt()
    adapted = adapt(model, PrefixConfig(n_virtual=P))
    with pytest.raises(ConfigError, match="adapted already"):
        adapt(model, PrefixConfig(n_virtual=P))
    with pytest.raises(ConfigError, match="has a prefix already"):
        PrefixConfig(n_virtual=P).inject(model, "second", None)
    with pytest.raises(ConfigError, match="cannot be merged"):
        adapted.merge()
    assert VOCAB == model.config.vocab_size
