"""Hidden Markov models: against every sequence of states, batches against one sequence, and what never decreases."""

import itertools
import math

import numpy as np
import pytest
from nltk.probability import DictionaryProbDist
from nltk.tag.hmm import HiddenMarkovModelTagger, HiddenMarkovModelTrainer

from minillm.errors import CheckpointError, ConfigError, DataError, ShapeError
from minillm.statistical import hmm_training
from minillm.statistical.hmm import (
    HiddenMarkovModel,
    expected_transitions,
    log_backward,
    log_forward,
    viterbi,
)
from minillm.statistical.hmm_batches import (
    expected_counts,
    scaled_backward,
    scaled_forward,
    sequence_lengths,
    sums_by_id,
    time_major,
)
from minillm.statistical.hmm_training import (
    HMMConfig,
    batches_of,
    baum_welch,
    count_states,
    fit_hmm,
    maximised,
    normalised,
    random_model,
    smoothed_likelihood,
)
from minillm.statistical.storage import save_arrays

END = 0


def a_model(n_states=3, vocab_size=5, seed=0, boundary=END):
    rng = np.random.default_rng(seed)
    ones = np.ones(n_states)
    initial, transitions = rng.dirichlet(ones), rng.dirichlet(ones, size=n_states)
    return HiddenMarkovModel(initial, transitions, rng.dirichlet(np.ones(vocab_size), size=n_states), boundary)


def a_text(lengths=(4, 1, 6, 3, 3), vocab_size=5, seed=1, ended=True):
    """Sequences of these lengths, the end mark counted, of ids that are no end marks."""
    rng = np.random.default_rng(seed)
    ids = np.concatenate([np.append(rng.integers(1, vocab_size, size=n - 1), END) for n in lengths])
    return ids if ended else ids[:-1]


def ways(model, ids):
    """(states, probability of states and ids) for every sequence of states."""
    for states in itertools.product(range(model.n_states), repeat=len(ids)):
        p = model.initial[states[0]] * model.emissions[states[0], ids[0]]
        for t in range(1, len(ids)):
            p *= model.transitions[states[t - 1], states[t]] * model.emissions[states[t], ids[t]]
        yield states, float(p)


def probability(model, ids):
    return sum(p for _, p in ways(model, ids)) if len(ids) else 1.0


def test_forward_backward_and_posteriors_are_those_of_every_way():
    model, ids = a_model(), [2, 4, 1, 1, 3]
    initial, transitions, scores = model.log_tables(ids)
    forward, backward = log_forward(initial, transitions, scores), log_backward(transitions, scores)
    total = probability(model, ids)
    np.testing.assert_allclose(np.logaddexp.reduce(forward + backward, axis=1), math.log(total), rtol=1e-12)
    expected = np.zeros((5, 3))
    for states, p in ways(model, ids):
        expected[np.arange(5), states] += p / total
    np.testing.assert_allclose(model.posteriors(ids), expected, rtol=1e-10)
    for t in range(5):
        for state in range(3):
            rest = HiddenMarkovModel(model.transitions[state], model.transitions, model.emissions)
            assert backward[t, state] == pytest.approx(math.log(probability(rest, ids[t + 1 :])), rel=1e-11, abs=1e-12)


def test_best_states_of_every_sequence():
    model, ids = a_model(seed=3), a_text((4, 1, 5, 3), ended=False)
    expected = []
    for sequence in np.split(ids, np.flatnonzero(ids == END) + 1):
        expected.extend(max(ways(model, sequence), key=lambda way: way[1])[0])
    assert model.best_states(ids).tolist() == expected
    path, score = viterbi(*model.log_tables(ids[:4]))
    assert score == pytest.approx(math.log(max(p for _, p in ways(model, ids[:4]))), rel=1e-12)
    assert path.dtype == np.int64


@pytest.mark.parametrize("ended", [True, False])
def test_log_probabilities_are_quotients_of_whole_sequences(ended):
    model, ids = a_model(), a_text(ended=ended)
    expected = []
    for sequence in np.split(ids, np.flatnonzero(ids == END) + 1):
        for t in range(len(sequence)):
            expected.append(math.log(probability(model, sequence[: t + 1]) / probability(model, sequence[:t])))
    np.testing.assert_allclose(model.log_probabilities(ids), expected, rtol=1e-11)


def test_distributions_sum_to_one_and_agree_with_the_scores():
    model, ids = a_model(), a_text()
    scores = model.log_probabilities(ids)
    for place in range(len(ids)):
        distribution = model.distribution(ids[:place])
        assert distribution.sum() == pytest.approx(1, abs=1e-12)
        assert math.log(distribution[ids[place]]) == pytest.approx(scores[place], rel=1e-11)


def test_filtered_states_are_the_forward_probabilities_of_each_sequence():
    model, ids = a_model(), a_text(ended=False)
    expected = []
    for sequence in np.split(ids, np.flatnonzero(ids == END) + 1):
        forward = np.exp(log_forward(*model.log_tables(sequence)))
        expected.extend(forward / forward.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(model.filtered_states(ids), expected, rtol=1e-11)
    np.testing.assert_allclose(model.next_states(ids), expected[-1] @ model.transitions, rtol=1e-11)
    np.testing.assert_array_equal(model.next_states(ids[:4]), model.initial)


def test_all_texts_of_one_length_sum_to_one():
    model = a_model(2, 3)
    texts = itertools.product(range(3), repeat=5)
    assert sum(math.exp(model.log_probabilities(text).sum()) for text in texts) == pytest.approx(1, abs=1e-12)


def test_a_model_of_one_state_is_a_unigram():
    model = HiddenMarkovModel([1.0], [[1.0]], [[0.5, 0.25, 0.25]])
    np.testing.assert_allclose(model.log_probabilities([0, 1, 2]), np.log([0.5, 0.25, 0.25]))
    assert model.n_entries == 5 and model.n_bytes == 40


def test_nothing_underflows():
    model = a_model(4, 50, boundary=None)
    ids = np.random.default_rng(0).integers(50, size=3000)
    long = model.log_probabilities(ids).sum()
    readable = np.logaddexp.reduce(log_forward(*model.log_tables(ids))[-1])
    assert long < -10_000 and long == pytest.approx(readable, rel=1e-11)


def test_the_impossible():
    model = HiddenMarkovModel([1, 0], [[0, 1], [1, 0]], [[1, 0], [0, 1]], None)
    found = model.log_probabilities([0, 1, 1, 0, 1])
    assert found.tolist() == [0.0, 0.0, -math.inf, -math.inf, -math.inf]
    for attempt in (model.posteriors, model.distribution):
        with pytest.raises(DataError, match="impossible"):
            attempt([0, 0])
    with pytest.raises(DataError, match="position 1 impossible"):
        baum_welch(model, [0, 0], 1)


# batches


def test_layout_and_lengths():
    ids = a_text((4, 1, 6, 3, 3))
    lengths = sequence_lengths(ids, END)
    assert lengths.tolist() == [4, 1, 6, 3, 3]
    assert sequence_lengths(ids[:-2], END).tolist() == [4, 1, 6, 3, 1]
    assert sequence_lengths(ids, None).tolist() == [17] and sequence_lengths(ids[:0], END).tolist() == []
    layout = time_major(ids, lengths)
    assert layout.n_active == (5, 4, 4, 2, 1, 1) and layout.n_sequences == 5
    assert sorted(layout.places.tolist()) == list(range(17))
    np.testing.assert_array_equal(ids[layout.places], layout.ids)
    np.testing.assert_array_equal(layout.places[layout.previous], layout.places[5:] - 1)
    empty = time_major(ids[:0], lengths[:0])
    assert empty.n_active == () and empty.n_sequences == 0 and a_model().log_probabilities([]).shape == (0,)


def test_scaled_probabilities_are_the_logarithms_readable_path():
    model, ids = a_model(4, 6, seed=5), a_text((9, 2, 30, 1, 7), vocab_size=6)
    lengths = sequence_lengths(ids, END)
    layout = time_major(ids, lengths)
    scores = model.emissions.T[layout.ids]
    filtered, totals = scaled_forward(model.initial, model.transitions, scores, layout)
    posteriors = filtered * scaled_backward(model.transitions, scores, totals, layout)
    in_order = np.empty_like(posteriors)
    in_order[layout.places] = posteriors
    for start, stop in itertools.pairwise([0, *np.cumsum(lengths)]):
        np.testing.assert_allclose(in_order[start:stop], model.posteriors(ids[start:stop]), rtol=1e-9)


def test_expected_counts_are_those_of_every_way():
    model, ids = a_model(), a_text((4, 1, 5, 2))
    layout = time_major(ids, sequence_lengths(ids, END))
    found = expected_counts(model.initial, model.transitions, model.emissions, layout)
    initial, steps, emitted, likelihood = np.zeros(3), np.zeros((3, 3)), np.zeros((3, 5)), 0.0
    for sequence in np.split(ids, np.flatnonzero(ids == END)[:-1] + 1):
        total = probability(model, sequence)
        likelihood += math.log(total)
        for states, p in ways(model, sequence):
            initial[states[0]] += p / total
            for one, other in itertools.pairwise(states):
                steps[one, other] += p / total
            for state, token_id in zip(states, sequence, strict=True):
                emitted[state, token_id] += p / total
    np.testing.assert_allclose(found.initial, initial, rtol=1e-10)
    np.testing.assert_allclose(found.transitions, steps, rtol=1e-10)
    np.testing.assert_allclose(found.emissions, emitted, rtol=1e-10, atol=1e-14)
    assert found.log_likelihood == pytest.approx(likelihood, rel=1e-12)


def test_batched_counts_of_steps_are_the_readable_ones():
    model, ids = a_model(4, 6, seed=2), a_text((12, 3, 40), vocab_size=6)
    layout = time_major(ids, sequence_lengths(ids, END))
    expected = np.zeros((4, 4))
    for sequence in np.split(ids, np.flatnonzero(ids == END)[:-1] + 1):
        initial, transitions, scores = model.log_tables(sequence)
        forward, backward = log_forward(initial, transitions, scores), log_backward(transitions, scores)
        expected += expected_transitions(forward, backward, transitions, scores)
    found = expected_counts(model.initial, model.transitions, model.emissions, layout)
    np.testing.assert_allclose(found.transitions, expected, rtol=1e-9)


def test_batches_change_nothing(monkeypatch):
    model, ids = a_model(), a_text(tuple(range(1, 12)), ended=False)
    whole = expected_counts(
        model.initial, model.transitions, model.emissions, time_major(ids, sequence_lengths(ids, END))
    )
    monkeypatch.setattr(hmm_training, "BATCH_IDS", 10)
    monkeypatch.setattr(hmm_training, "BATCH_SEQUENCES", 2)
    batches = list(batches_of(ids, END))
    assert len(batches) > 3 and sum(len(batch.ids) for batch in batches) == len(ids)
    counts = [expected_counts(model.initial, model.transitions, model.emissions, batch) for batch in batches]
    total = sum(counts[1:], counts[0])
    np.testing.assert_allclose(total.emissions, whole.emissions, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(total.transitions, whole.transitions, rtol=1e-10)
    assert total.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-12)


def test_sums_by_id():
    rng = np.random.default_rng(0)
    ids, rows = rng.integers(7, size=40), rng.random((40, 3))
    expected = np.array([rows[ids == token_id].sum(axis=0) for token_id in range(9)])
    np.testing.assert_allclose(sums_by_id(ids, rows, 9), expected, rtol=1e-12)


# training


@pytest.mark.parametrize("seed", range(5))
def test_likelihood_never_decreases(seed):
    ids = a_text(tuple(np.random.default_rng(seed).integers(1, 20, size=15)), seed=seed)
    model, likelihoods = baum_welch(a_model(4, 5, seed), ids, 40)
    assert np.diff(likelihoods).min() > -1e-9 and likelihoods[-1] > likelihoods[0] + 1
    assert likelihoods[-1] == pytest.approx(model.log_probabilities(ids).sum(), rel=1e-12)


def test_the_smoothed_likelihood_never_decreases_even_where_the_plain_one_does():
    ids, smoothing = a_text((9, 4, 12, 3, 8)), (0.7, 0.4)
    model = a_model(4, 5, seed=1)
    values, plain = [], []
    for _ in range(30):
        likelihood = model.log_probabilities(ids).sum()
        values.append(smoothed_likelihood(model, likelihood, *smoothing))
        plain.append(likelihood)
        model, _ = baum_welch(model, ids, 1, *smoothing)
    assert np.diff(values).min() > -1e-9 and values[-1] > values[0] + 1
    assert np.diff(plain).min() < -1e-3


def test_one_step_is_expectation_then_maximisation():
    model, ids = a_model(), a_text()
    layout = time_major(ids, sequence_lengths(ids, END))
    counts = expected_counts(model.initial, model.transitions, model.emissions, layout)
    expected = maximised(counts, 0.5, 0.25, END)
    found, _ = baum_welch(model, ids, 1, 0.5, 0.25)
    for name in ("initial", "transitions", "emissions"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12)
    np.testing.assert_allclose(found.emissions[0], (counts.emissions[0] + 0.5) / (counts.emissions[0].sum() + 2.5))
    np.testing.assert_allclose(found.initial, (counts.initial + 0.25) / (5 + 0.75))
    assert found.boundary == END


def test_a_round_agrees_with_nltk(capsys):
    model, ids = a_model(seed=4), a_text((4, 6, 9, 2))
    tables = [
        {state: DictionaryProbDist(dict(enumerate(row))) for state, row in enumerate(rows.tolist())}
        for rows in (model.transitions, model.emissions)
    ]
    priors = DictionaryProbDist(dict(enumerate(model.initial.tolist())))
    tagger = HiddenMarkovModelTagger(list(range(5)), list(range(3)), *tables, priors)
    trainer = HiddenMarkovModelTrainer(list(range(3)), list(range(5)))
    labelled = [[(int(i), None) for i in sequence] for sequence in np.split(ids, np.flatnonzero(ids == END)[:-1] + 1)]
    theirs = trainer.train_unsupervised(labelled, model=tagger, max_iterations=1, update_outputs=True)
    ours, likelihoods = baum_welch(model, ids, 1)
    for state in range(3):
        np.testing.assert_allclose(ours.transitions[state], [theirs._transitions[state].prob(j) for j in range(3)])
        np.testing.assert_allclose(ours.emissions[state], [theirs._outputs[state].prob(i) for i in range(5)])
    printed = float(capsys.readouterr().out.split("logprob")[1])
    assert printed == pytest.approx(likelihoods[0] / math.log(2), rel=1e-9)


def test_a_known_chain_is_found_again_by_the_best_of_several_starts():
    emissions = [[0.05, 0.65, 0.2, 0.1, 0.0], [0.05, 0.0, 0.1, 0.25, 0.6]]
    truth = HiddenMarkovModel([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], emissions, END)
    ids, states = truth.sample(4000, np.random.default_rng(0))
    starts = [random_model(2, np.bincount(ids), np.random.default_rng(seed), END) for seed in range(4)]
    model, likelihoods = max((baum_welch(start, ids, 40) for start in starts), key=lambda found: found[1][-1])
    order = np.argsort(model.emissions[:, 4])
    np.testing.assert_allclose(model.transitions[np.ix_(order, order)], truth.transitions, atol=0.05)
    np.testing.assert_allclose(model.emissions[order], truth.emissions, atol=0.05)
    assert likelihoods[-1] > truth.log_probabilities(ids).sum()           # the best fit is better than the truth
    assert (np.argsort(order)[model.best_states(ids)] == states).mean() > 0.85


def test_samples_have_the_frequencies_of_the_model():
    model = a_model(3, 4)
    ids, states = model.sample(20_000, np.random.default_rng(0))
    first = np.append(True, ids[:-1] == END)
    np.testing.assert_allclose(np.bincount(states[first]) / first.sum(), model.initial, atol=0.03)
    for state in range(3):
        emitted = np.bincount(ids[states == state], minlength=4) / (states == state).sum()
        np.testing.assert_allclose(emitted, model.emissions[state], atol=0.03)
        after = states[1:][(states[:-1] == state) & ~first[1:]]
        np.testing.assert_allclose(np.bincount(after, minlength=3) / len(after), model.transitions[state], atol=0.03)
    ids, _ = model.sample(50, np.random.default_rng(3), stop=END)
    assert ids[-1] == END and END not in ids[:-1].tolist()


def test_counting_known_states():
    ids, states = [1, 2, 0, 2, 0, 1], [0, 1, 1, 1, 0, 0]
    model = count_states(ids, states, 2, 3, END, emission_smoothing=0, transition_smoothing=0)
    np.testing.assert_allclose(model.initial, [2 / 3, 1 / 3])             # sequences begin at places 0, 3 and 5
    np.testing.assert_allclose(model.transitions, [[0, 1], [1 / 2, 1 / 2]])
    np.testing.assert_allclose(model.emissions, [[1 / 3, 2 / 3, 0], [1 / 3, 0, 2 / 3]])
    smoothed = count_states(ids, states, 2, 3, END, emission_smoothing=1, transition_smoothing=0.5)
    np.testing.assert_allclose(smoothed.emissions[0], [2 / 6, 3 / 6, 1 / 6])
    np.testing.assert_allclose(smoothed.transitions[1], [1.5 / 3, 1.5 / 3])
    assert count_states(ids, states, 2, 3, None).initial.argmax() == 0


def test_training_from_a_config_is_repeatable_and_leaves_nothing_impossible(capsys):
    ids = a_text(tuple(range(2, 20)), vocab_size=8)
    config = HMMConfig(n_states=5, n_iterations=8, seed=3)
    models = [fit_hmm(ids, 9, config, END, progress=show) for show in (False, True)]
    np.testing.assert_array_equal(models[0].emissions, models[1].emissions)
    assert np.isfinite(models[0].log_probabilities(np.arange(9))).all()
    assert "nats per id" in capsys.readouterr().err
    other = fit_hmm(ids, 9, HMMConfig(n_states=5, n_iterations=8, seed=4), END)
    assert np.abs(other.emissions - models[0].emissions).max() > 1e-3


def test_rows_of_nothing_become_uniform():
    np.testing.assert_allclose(normalised(np.zeros((2, 4))), 0.25)
    np.testing.assert_allclose(normalised(np.array([1, 3])), [0.25, 0.75])


def test_saved_and_loaded(tmp_path):
    model = a_model()
    model.save(tmp_path / "model.npz")
    loaded = HiddenMarkovModel.load(tmp_path / "model.npz")
    assert loaded.boundary == END
    np.testing.assert_array_equal(loaded.log_probabilities(a_text()), model.log_probabilities(a_text()))


def test_files_that_are_no_model(tmp_path):
    path = tmp_path / "model.npz"
    with pytest.raises(CheckpointError, match="no file"):
        HiddenMarkovModel.load(path)
    path.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="damaged"):
        HiddenMarkovModel.load(path)
    header = {"format": "minillm hidden Markov model 1", "boundary": None}
    half = np.full((2, 2), 0.5)
    for arrays in (
        {"initial": half[0], "transitions": half},
        {"initial": half[0], "transitions": half, "emissions": half[:1]},
        {"initial": half[0], "transitions": half * 3, "emissions": half},
    ):
        save_arrays(path, header, arrays)
        with pytest.raises(CheckpointError, match="save the model again"):
            HiddenMarkovModel.load(path)


def test_bad_input():
    half = np.full((2, 2), 0.5)
    with pytest.raises(ShapeError, match="emissions"):
        HiddenMarkovModel(half[0], half, np.full((3, 2), 0.5))
    for broken in (half * 2, half * [3, -1], half * np.nan):
        with pytest.raises(ConfigError, match="sum to 1"):
            HiddenMarkovModel(half[0], broken, half)
    with pytest.raises(ConfigError, match="boundary"):
        HiddenMarkovModel(half[0], half, half, boundary=2)
    model = a_model()
    for attempt in (model.log_probabilities, model.best_states, model.distribution, model.posteriors):
        with pytest.raises(DataError, match="outside"):
            attempt([5])
    for attempt in (model.best_states, model.posteriors, lambda ids: baum_welch(model, ids, 1)):
        with pytest.raises(DataError, match="empty"):
            attempt([])
    with pytest.raises(ConfigError, match="n_ids"):
        model.sample(0, np.random.default_rng(0))
    for settings in (
        {"n_states": 0},
        {"n_iterations": -1},
        {"seed": -1},
        {"emission_smoothing": -0.1},
        {"transition_smoothing": math.inf},
    ):
        with pytest.raises(ConfigError):
            HMMConfig(**settings)
    with pytest.raises(ConfigError, match="smoothing"):
        baum_welch(model, [1], 1, emission_smoothing=math.nan)
    with pytest.raises(DataError, match="one state for each"):
        count_states([1, 2], [0], 2, 3)
    with pytest.raises(DataError, match="outside"):
        count_states([1, 2], [0, 2], 2, 3)
