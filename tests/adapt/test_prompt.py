"""Prompt tuning and P-Tuning: equal to reading real words, alone and in batches, with and without a cache."""

import copy

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
from torch import nn
from torch.nn import functional as F

from minillm import surgery
from minillm.adapt import prompted
from minillm.adapt.adapted import adapt, load_delta
from minillm.adapt.prompt import PromptConfig, PromptEncoder, PTuningConfig, first_vectors
from minillm.errors import CheckpointError, ConfigError, DataError, ShapeError
from minillm.infer.beam import BeamConfig
from minillm.infer.generate import generate
from minillm.infer.sampling import GREEDY
from minillm.infer.text_to_text import write_by_beams, write_greedily
from minillm.models.bert_heads import TextClassifier

FIRST = (5, 1, 17)  # real words whose vectors a prompt can start as
ROWS = [[3, 9, 2, 11, 7], [8, 4], [6, 1, 1, 20]]
P = len(FIRST)
EXACT = {"rtol": 0.0, "atol": 1e-12}
REAL = PromptConfig(n_virtual=P, initial="text", initial_ids=FIRST)
WINDOWS = {"window": {"window": 5}, "window_rotary": {"window": 7, "position": "rotary", "kernels": "naive"}}


def behind_first(ids):
    return torch.cat((torch.tensor(FIRST).expand(len(ids), -1), ids), dim=1)


@pytest.mark.parametrize("kind", GPTS | WINDOWS)
def test_a_prompt_of_real_words_is_reading_them(kind):
    model, ids = small_gpt(**(GPTS | WINDOWS)[kind]), ids_of((2, 6))
    expected = model(behind_first(ids))[:, P:]
    adapt(model, REAL)
    torch.testing.assert_close(model(ids), expected, **EXACT)
    texts, mask, positions = padded_left(ROWS)
    together = model(texts, None, mask, positions)
    for number, row in enumerate(ROWS):
        alone = model(torch.tensor([row]))[0]
        torch.testing.assert_close(together[number, -len(row) :], alone, **EXACT)
    texts, mask = padded_right(ROWS)
    together = model(texts, mask=mask)
    for number, row in enumerate(ROWS):
        torch.testing.assert_close(together[number, : len(row)], model(torch.tensor([row]))[0], **EXACT)


@pytest.mark.parametrize("kind", GPTS | WINDOWS)
def test_generation_with_a_cache_and_unequal_lengths(kind):
    model = small_gpt(**(GPTS | WINDOWS)[kind])
    slow = generate(model, [[*FIRST, *row] for row in ROWS], 9, GREEDY, use_cache=False)
    adapt(model, REAL)
    assert generate(model, ROWS, 9, GREEDY, use_cache=False) == slow
    assert generate(model, ROWS, 9, GREEDY) == slow
    assert [generate(model, [row], 9, GREEDY)[0] for row in ROWS] == slow


@pytest.mark.parametrize("kind", ["learned", "rotary", "alibi", "token_shift", "window"])
def test_logits_from_a_cache_are_those_without(kind):
    model, ids = small_gpt(**(GPTS | WINDOWS)[kind]), ids_of((2, 9))
    adapt(model, REAL)
    expected, cache = model(ids), model.make_cache(2)
    for _ in range(2):
        found = torch.cat([model(part, cache) for part in ids.split((4, 1, 3, 1), dim=1)], dim=1)
        torch.testing.assert_close(found, expected, **EXACT)
        assert cache.length == 9 and cache.max_seq_len == CONTEXT - P and cache.n_bytes == cache.inner.n_bytes
        cache.reset()
    if kind not in ("window", "token_shift"):                      # these have forgotten what came before
        model(ids, cache)
        cache.length = 4
        torch.testing.assert_close(model(ids[:, 4:], cache), expected[:, 4:], **EXACT)
    with pytest.raises(ShapeError, match="make one for each batch"):
        model(ids[:1], cache)


def test_texts_that_outgrow_the_shorter_context():
    model = small_gpt()
    adapted = adapt(model, REAL)
    assert model.config.max_seq_len == CONTEXT - P
    long = generate(model, ROWS, CONTEXT, GREEDY)
    assert long == generate(model, ROWS, CONTEXT, GREEDY, use_cache=False) and len(long[0]) == CONTEXT
    model(ids_of((1, CONTEXT - P)))
    with pytest.raises(ShapeError, match=f"22 positions do not fit into max_seq_len {CONTEXT - P}"):
        model(ids_of((1, CONTEXT - P + 1)))
    with_prompt = model.make_cache(1)
    with adapted.disable():
        assert model.config.max_seq_len == CONTEXT
        model(ids_of((1, CONTEXT)))
        without = model.make_cache(1)
        with pytest.raises(ShapeError, match="no words in front"):
            model(ids_of((1, 3)), with_prompt)
    with pytest.raises(ShapeError, match="make it by the model's make_cache"):
        model(ids_of((1, 3)), without)


def test_bert_reads_the_words_first():
    model, ids = small_bert(), ids_of((3, 7))
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1]]).expand(3, -1)
    expected = model(behind_first(ids), F.pad(segments, (P, 0)))[:, P:]
    plain = model(behind_first(ids))[:, P:]
    texts, mask = padded_right(ROWS)
    masked = model.hidden(behind_first(texts), mask=F.pad(mask, (P, 0), value=True))[:, P:]
    causal = torch.ones(7, 7, dtype=torch.bool).tril().expand(3, -1, -1)
    adapt(model, REAL)
    torch.testing.assert_close(model(ids, segments), expected, **EXACT)
    torch.testing.assert_close(model(ids), plain, **EXACT)
    found = model.hidden(texts, mask=mask)
    torch.testing.assert_close(found[mask], masked[mask], **EXACT)
    for number, row in enumerate(ROWS):
        torch.testing.assert_close(found[number, : len(row)], model.hidden(torch.tensor([row]))[0], **EXACT)
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % VOCAB
    seen, same = (model(each, mask=causal) for each in (changed, ids))
    torch.testing.assert_close(seen[:, :4], same[:, :4], **EXACT)  # nothing leaks through the prompt
    with pytest.raises(ShapeError, match="22 tokens behind 3 learned words do not fit into max_seq_len 24"):
        model(ids_of((1, CONTEXT - P + 1)))


def test_t5_reads_the_words_first_and_its_decoder_sees_them():
    model, source, target = small_t5(), ids_of((2, 7)), ids_of((2, 5), seed=1)
    expected = model(behind_first(source), target)
    written = {"start_id": 0, "end_id": 22, "max_new_tokens": 8}
    slow = [write_greedily(model, torch.tensor([[*FIRST, *row]]), **written)[0] for row in ROWS]
    adapt(model, REAL)
    torch.testing.assert_close(model(source, target), expected, **EXACT)
    for texts, mask in (padded_right(ROWS), padded_left(ROWS)[:2]):
        for use_cache in (False, True):
            found = write_greedily(model, texts, mask, **written, use_cache=use_cache)
            assert [row[: len(other)] for row, other in zip(found, slow, strict=True)] == slow
    texts, mask = padded_right(ROWS)
    beams = BeamConfig(end_id=22, max_new_tokens=5, n_beams=3)
    each = [write_by_beams(model, texts, mask, start_id=0, config=beams, use_cache=c) for c in (False, True)]
    assert [[h.ids for h in row] for row in each[0]] == [[h.ids for h in row] for row in each[1]]
    with pytest.raises(ShapeError, match="22 tokens behind 3"):
        model(ids_of((1, CONTEXT - P + 1)), target[:1])


def test_mutations_would_be_noticed(monkeypatch):
    model, ids = small_gpt(**GPTS["alibi"]), ids_of((2, 6))
    expected = model(behind_first(ids))[:, P:]
    adapt(model, REAL)
    texts, mask, positions = padded_left(ROWS)
    right = model(texts, None, mask, positions)
    insert = prompted.insert
    with monkeypatch.context() as patch:                           # behind the text instead of before it
        patch.setattr(prompted, "insert", lambda row, x, n=None: torch.cat((x, row.expand(len(x), -1)), dim=1))
        assert (model(ids) - expected).abs().max() > 1e-3
    with monkeypatch.context() as patch:                           # before the padding instead of behind it
        patch.setattr(prompted, "insert", lambda row, x, n=None: insert(row, x))
        assert (model(texts, None, mask, positions) - right)[1, -2:].abs().max() > 1e-3
    with monkeypatch.context() as patch:                           # padding is seen
        patch.setattr(prompted, "with_room", lambda mask, n, p: torch.ones(3, 5 + n, dtype=torch.bool))
        assert (model(texts, None, mask, positions) - right)[1, -2:].abs().max() > 1e-3


def test_ids_behind_the_vocabulary_stay_wrong():
    for model in (small_gpt(), small_bert()):
        adapt(model, REAL)
        for wrong in (VOCAB, VOCAB + P, -1):
            with pytest.raises(DataError):
                model(torch.tensor([[1, 2, 3, wrong]]))
    model = small_t5()
    adapt(model, REAL)
    for ids in ((torch.tensor([[VOCAB, 1, 1]]), ids_of((1, 4))), (ids_of((1, 4)), torch.tensor([[VOCAB, 1, 1]]))):
        with pytest.raises(DataError):
            model(*ids)


def models():
    return {
        "gpt": (small_gpt(), lambda model: model(ids_of((2, 6)))),
        "llama": (small_gpt(**GPTS["rotary"]), lambda model: model(ids_of((2, 6)))),
        "bert": (small_bert(), lambda model: model(ids_of((2, 6)))),
        "albert": (small_bert(kind="albert", d_embedding=8), lambda model: model(ids_of((2, 6)))),
        "t5": (small_t5(), lambda model: model(ids_of((2, 6)), ids_of((2, 4), seed=3))),
        "head": (TextClassifier(small_bert(), 3, 0.0).double(), lambda model: model(ids_of((2, 6)))),
    }


CONFIGS = {
    "prompt": PromptConfig(n_virtual=P),
    "mlp": PTuningConfig(n_virtual=P, d_hidden=6),
    "lstm": PTuningConfig(n_virtual=P, encoder="lstm", d_hidden=6),
}


@torch.no_grad()
def numbers(model, logits):
    """Without gradients: torch has other kernels for models that are trained, which round differently."""
    return logits(model)


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("kind", models())
def test_training_changes_the_prompt_alone(kind, method, tmp_path):
    model, logits = models()[kind]
    before, frozen, names = numbers(model, logits), copy.deepcopy(model.state_dict()), list(model.state_dict())
    adapted = adapt(model, CONFIGS[method], generator=torch.Generator().manual_seed(1))
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
    assert list(adapted.trainable_parameters()) == ["prompt.table"]
    torch.testing.assert_close(numbers(model, logits), after, **EXACT)
    adapted.save(tmp_path)
    adapted.remove()
    assert list(model.state_dict()) == names
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(numbers(model, logits), before, rtol=0, atol=0)
    loaded = load_delta(model, tmp_path)
    torch.testing.assert_close(numbers(model, logits), after, **EXACT)
    assert loaded.config == CONFIGS[method]
    if kind == "head":
        return
    other = models()[kind][0]
    with torch.no_grad():
        other.token_embedding.weight.add_(1.0)
    with pytest.raises(CheckpointError, match="another base"):
        load_delta(other, tmp_path)
    assert not any("prompt" in name for name in other.state_dict())


def test_heads_are_trained_and_saved_beside_the_prompt(tmp_path):
    model = TextClassifier(small_bert(), 3, 0.0).double()
    adapted = adapt(model, PromptConfig(n_virtual=P, heads=("head",)))
    assert sorted(adapted.trainable_parameters()) == ["head.bias", "head.weight", "prompt.table"]
    with torch.no_grad():
        model.head.weight.add_(1.0)
    expected = numbers(model, lambda m: m(ids_of((2, 6))))
    adapted.save(tmp_path)
    adapted.remove()
    load_delta(model, tmp_path)
    torch.testing.assert_close(numbers(model, lambda m: m(ids_of((2, 6)))), expected, rtol=0, atol=0)


def test_gradients_are_slopes():
    model, ids = small_gpt(**GPTS["rotary"]), ids_of((2, 6))
    for config in CONFIGS.values():
        adapted = adapt(model, config, generator=torch.Generator().manual_seed(0))
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
            slope = (above - below).item() / (2 * step)
            assert parameter.grad.view(-1)[at].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)
        adapted.remove()


def test_encoders_against_torch():
    config = PTuningConfig(n_virtual=4, encoder="lstm", d_hidden=5, n_layers=2)
    ours = PromptEncoder(6, config, torch.Generator().manual_seed(0)).double()
    lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True).double()
    head = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 6)).double()
    with torch.no_grad():
        for layer, pair in enumerate(ours.readers):
            for reader, suffix in zip(pair, ("", "_reverse"), strict=True):
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    getattr(lstm, f"{name}_l{layer}{suffix}").copy_(getattr(reader, f"{name}_l0"))
        for linear, theirs in zip(ours.maps, (head[0], head[2]), strict=True):
            theirs.weight.copy_(linear.weight)
            theirs.bias.copy_(linear.bias)
    torch.testing.assert_close(ours.rows(), head(lstm(ours.start[None])[0])[0], **EXACT)
    n_theirs = sum(p.numel() for p in [*lstm.parameters(), *head.parameters()]) + 4 * 6
    assert sum(p.numel() for p in ours.parameters()) == n_theirs
    mlp = PromptEncoder(6, PTuningConfig(n_virtual=4, d_hidden=5), torch.Generator().manual_seed(0)).double()
    first, second, last = mlp.maps
    torch.testing.assert_close(mlp.rows(), last(F.relu(second(F.relu(first(mlp.start))))), **EXACT)
    assert sum(p.numel() for p in mlp.parameters()) == 4 * 6 + (6 * 5 + 5) + (5 * 5 + 5) + (5 * 6 + 6)
    dropped = PromptEncoder(6, PTuningConfig(encoder="lstm", d_hidden=5, dropout=0.5))
    assert not torch.equal(dropped.rows(), dropped.rows()) and torch.equal(dropped.eval().rows(), dropped.rows())


def test_what_a_prompt_starts_from():
    words = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)) * 0.3
    seeded = torch.Generator().manual_seed(1)
    drawn = first_vectors(PromptConfig(n_virtual=8, initial="vocabulary"), words, seeded)
    assert all((words == row).all(1).any() for row in drawn) and len({tuple(row.tolist()) for row in drawn}) > 4
    among = first_vectors(PromptConfig(n_virtual=8, initial="vocabulary", initial_ids=(3, 4)), words, seeded)
    assert all((words[3:5] == row).all(1).any() for row in among)
    assert first_vectors(PromptConfig(n_virtual=100), words, seeded).std().item() == pytest.approx(0.3, rel=0.05)
    assert first_vectors(PromptConfig(n_virtual=100, std=2.0), words, seeded).std().item() == pytest.approx(2, rel=0.05)
    adapted = adapt(small_bert(kind="albert", d_embedding=8), PromptConfig(n_virtual=5))
    assert adapted.count().trainable == 5 * 8


def test_half_precision_and_copies():
    model = small_gpt(dtype=torch.bfloat16, **GPTS["rotary"])
    adapted = adapt(model, REAL)
    assert {p.dtype for p in adapted.trainable_parameters().values()} == {torch.bfloat16}
    before, copied = model(ids_of((1, 5))), copy.deepcopy(model)
    with torch.no_grad():
        adapted.trainable_parameters()["prompt.table"].add_(1.0)
    assert not torch.equal(model(ids_of((1, 5))), before)
    torch.testing.assert_close(copied(ids_of((1, 5))), before, rtol=0, atol=0)


def test_what_is_refused():
    with pytest.raises(ConfigError, match="24 vectors in front leave no room for text in a context of 24"):
        adapt(small_gpt(), PromptConfig(n_virtual=24))
    with pytest.raises(ConfigError, match="holds no GPT, Bert or T5"):
        adapt(nn.Linear(2, 2), PTuningConfig())
    with pytest.raises(ConfigError, match="initial_ids has 23, the vocabulary has ids 0 to 22"):
        adapt(small_gpt(), PromptConfig(initial="text", initial_ids=(1, 23)))
    for kind, wrong in (
        (PromptConfig, {"n_virtual": 0}),
        (PromptConfig, {"initial": "zeros"}),
        (PromptConfig, {"initial": "text"}),
        (PromptConfig, {"initial_ids": (1,)}),
        (PromptConfig, {"std": -1.0}),
        (PTuningConfig, {"encoder": "gru"}),
        (PTuningConfig, {"d_hidden": 0}),
        (PTuningConfig, {"dropout": 0.1}),
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            kind(**wrong)
    model = small_gpt()
    adapted = adapt(model, REAL)
    with pytest.raises(ConfigError, match="has a prompt already"):
        PTuningConfig().inject(model, "second", None)
    with pytest.raises(ConfigError, match="cannot be merged"):
        adapted.merge()
