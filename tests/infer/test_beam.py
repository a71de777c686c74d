"""Beam search against the best of all sentences, against greedy search, and against a loop over sorted lists."""

import itertools
import math

import pytest
import torch

from minillm.errors import SamplingError, ShapeError
from minillm.infer.beam import BeamConfig, beam_search, beam_step, length_norm

END = 0


def random_model(seed, vocab_size, flat=1.0):
    """Log-probabilities that depend on the whole sentence so far."""
    weights = torch.randn(7, vocab_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def step(ids, parents):
        numbers = (ids * torch.arange(1, ids.shape[1] + 1)).sum(dim=1) * 31 + ids[:, -1] * 7 + ids.shape[1]
        return (weights[numbers % 7] * flat).roll(1, 1).log_softmax(-1)  # (N, V)

    return step


def log_probability_of(step, prefix, ids):
    total, text = 0.0, list(prefix)
    for token_id in ids:
        total += step(torch.tensor([text]), None)[0, token_id].item()
        text.append(token_id)
    return total


def all_sentences(step, prefix, vocab_size, config):
    """(score, ids, finished) of everything that can be written."""
    for n_ids in range(config.max_new_tokens + 1):
        for ids in itertools.product([i for i in range(vocab_size) if i != END], repeat=n_ids):
            finished = n_ids < config.max_new_tokens
            written = [*ids, END] if finished else list(ids)
            log_probability = log_probability_of(step, prefix, written)
            yield log_probability / length_norm(len(written), config.length_penalty), ids, finished


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_with_enough_beams_it_is_exhaustive(seed, length_penalty):
    step = random_model(seed, 3)
    config = BeamConfig(end_id=END, max_new_tokens=4, n_beams=40, length_penalty=length_penalty)
    (found,) = beam_search(step, torch.tensor([[2]]), config)
    expected = sorted(all_sentences(step, [2], 3, config), key=lambda entry: -entry[0])
    assert len(found) == 31 == len(expected)                       # 1 + 2 + 4 + 8 finished, 16 of full length
    for hypothesis, (score, ids, finished) in zip(found, expected, strict=True):
        assert hypothesis.score == pytest.approx(score, rel=1e-12)
        assert (hypothesis.ids, hypothesis.is_finished) == (ids, finished)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.5])
def test_stopping_early_loses_nothing(length_penalty):
    """8 beams are enough to keep every beginning of up to three ids of two; the ends decide how long it must look."""
    for seed in range(10):
        step = random_model(seed, 3, flat=2.0)
        config = BeamConfig(end_id=END, max_new_tokens=3, n_beams=8, length_penalty=length_penalty)
        best = max(all_sentences(step, [1], 3, config))
        (found,) = beam_search(step, torch.tensor([[1]]), config)
        assert found[0].score == pytest.approx(best[0], rel=1e-12)


def greedy(step, prefix, max_new_tokens):
    text = list(prefix)
    for _ in range(max_new_tokens):
        token_id = int(step(torch.tensor([text]), None)[0].argmax())
        if token_id == END:
            return tuple(text[len(prefix) :]), True
        text.append(token_id)
    return tuple(text[len(prefix) :]), False


def test_one_beam_is_greedy():
    ends = set()
    for seed in range(20):
        step = random_model(seed, 5)
        config = BeamConfig(end_id=END, max_new_tokens=6, n_beams=1, length_penalty=0.0)
        ((found,),) = beam_search(step, torch.tensor([[3, 4]]), config)
        assert (found.ids, found.is_finished) == greedy(step, [3, 4], 6)
        written = [*found.ids, END] if found.is_finished else found.ids
        assert found.log_probability == pytest.approx(log_probability_of(step, [3, 4], written), rel=1e-12)
        ends.add(found.is_finished)
    assert ends == {True, False}


def by_lists(step, prefix, vocab_size, config):
    """The search as its docstring tells it, over sorted lists; no early stop."""
    alive, finished = [(0.0, list(prefix))], []
    for n_new in range(1, config.max_new_tokens + 1):
        candidates = []
        for total, ids in alive:
            log_probabilities = step(torch.tensor([ids]), None)[0].tolist()
            candidates += [(total + log_probabilities[i], ids, i) for i in range(vocab_size)]
        candidates.sort(key=lambda candidate: -candidate[0])
        for total, ids, i in candidates[: config.n_beams]:
            if i == END:
                finished.append((total / length_norm(n_new, config.length_penalty), ids[len(prefix) :]))
        alive = [(total, [*ids, i]) for total, ids, i in candidates if i != END][: config.n_beams]
    norm = length_norm(config.max_new_tokens, config.length_penalty)
    finished += [(total / norm, ids[len(prefix) :]) for total, ids in alive]
    return sorted(finished, key=lambda entry: -entry[0])[: config.n_beams]


@pytest.mark.parametrize("n_beams", [1, 2, 4])
@pytest.mark.parametrize("length_penalty", [0.0, 0.6])
def test_several_sentences_at_once_against_lists(n_beams, length_penalty):
    for seed in range(6):
        step = random_model(seed, 6)
        config = BeamConfig(end_id=END, max_new_tokens=5, n_beams=n_beams, length_penalty=length_penalty)
        prefixes = torch.tensor([[1, 2], [5, 5], [3, 1]])
        for prefix, found in zip(prefixes.tolist(), beam_search(step, prefixes, config), strict=True):
            expected = by_lists(step, prefix, 6, config)
            assert [hypothesis.ids for hypothesis in found] == [tuple(ids) for _, ids in expected]
            assert [hypothesis.score for hypothesis in found] == pytest.approx([score for score, _ in expected])


def test_parents_put_a_cache_in_order():
    """A step that remembers each row's ids by the parents alone sees the very ids it is given."""
    step, memory = random_model(3, 5), []

    def remembering(ids, parents):
        if memory:
            memory[0] = torch.cat((memory[0][parents], ids[:, -1:]), dim=1)
        else:
            memory.append(ids.clone())
        assert torch.equal(memory[0], ids)
        return step(ids, parents)

    beam_search(remembering, torch.tensor([[1], [4]]), BeamConfig(end_id=END, max_new_tokens=6, n_beams=3))
    assert memory[0].shape[1] > 3


def test_more_beams_never_beat_the_best_and_find_what_greedy_misses():
    """The classic trap: the best first word leads nowhere."""
    tables = {(1,): [0.0, 0.0, 0.6, 0.4], (1, 2): [0.3, 0.4, 0.3, 0.0], (1, 3): [1.0, 0.0, 0.0, 0.0]}

    def step(ids, parents):
        rows = [tables.get(tuple(row), [0.25] * 4) for row in ids.tolist()]
        return torch.tensor(rows, dtype=torch.float64).log()       # (N, V)

    def best(n_beams):
        config = BeamConfig(end_id=END, max_new_tokens=3, n_beams=n_beams, length_penalty=0.0)
        return beam_search(step, torch.tensor([[1]]), config)[0][0]

    assert best(1).ids[:1] == (2,) and best(2).ids == (3,)
    assert best(2).log_probability == pytest.approx(math.log(0.4))


def test_an_end_must_be_among_the_best_and_never_goes_on():
    totals = torch.tensor([[0.5, 0.4]], dtype=torch.float64).log()
    shares = torch.tensor([[[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]]], dtype=torch.float64).log()
    ended, kept, beams, ids = beam_step(totals, shares, END)
    assert ended[0, 0] == -math.inf and ended[0, 1].exp().item() == pytest.approx(0.2)  # 0.05 is not among the 2 best
    assert kept.exp().tolist() == [pytest.approx([0.3, 0.15])]
    assert (beams.tolist(), ids.tolist()) == ([[0, 0]], [[1, 2]])


def test_nothing_to_add():
    config = BeamConfig(end_id=END, max_new_tokens=0)
    assert beam_search(random_model(0, 3), torch.tensor([[1]]), config)[0][0].ids == ()


def test_bad_input():
    good = BeamConfig(end_id=END, max_new_tokens=3)
    for settings in [{"n_beams": 0}, {"max_new_tokens": -1}, {"end_id": -1}, {"length_penalty": -0.1}]:
        with pytest.raises(SamplingError, match="expected"):
            BeamConfig(**{"end_id": END, "max_new_tokens": 3} | settings)
    for prefixes in (torch.tensor([1]), torch.zeros(2, 0, dtype=torch.long)):
        with pytest.raises(ShapeError, match="prefixes"):
            beam_search(random_model(0, 3), prefixes, good)
    with pytest.raises(ShapeError, match="the step gave"):
        beam_search(lambda ids, parents: torch.zeros(1, 3), torch.tensor([[1]]), good)
    for vocab_size in (1, 4):
        with pytest.raises(SamplingError, match="vocabulary"):
            config = BeamConfig(end_id=0 if vocab_size == 1 else 9, max_new_tokens=3)
            beam_search(lambda ids, parents, v=vocab_size: torch.zeros(len(ids), v), torch.tensor([[1]]), config)
