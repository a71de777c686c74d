"""One round of Baum and Welch on many sequences: ours against nltk's, and the fast path against the readable one.

`python benchmarks/hmm.py [--quick]`. All sides start from the same random tables and do the same round, expectation and
maximisation, on the same sequences of the made world's words, one thread each. nltk works in logarithms to the base 2,
in NumPy too, sequence by sequence and step by step; its tables after the round must be ours.
"""

import argparse
import contextlib
import io
import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

from itertools import islice  # noqa: E402

import numpy as np  # noqa: E402
from pairs import Claim, median_ratio, paired_seconds, print_claims  # noqa: E402

from minillm.data.tinyworld import World, WorldConfig  # noqa: E402
from minillm.evaluate.comparison import packed_ids  # noqa: E402
from minillm.statistical.hmm import HiddenMarkovModel, expected_transitions, log_backward, log_forward  # noqa: E402
from minillm.statistical.hmm_batches import ExpectedCounts, sums_by_id  # noqa: E402
from minillm.statistical.hmm_training import baum_welch, maximised, random_model  # noqa: E402
from minillm.tokenizers.words import WordTokenizer  # noqa: E402


def readable_round(model: HiddenMarkovModel, sequences: list[np.ndarray]) -> HiddenMarkovModel:
    """The same round by the functions that the chapter teaches, one sequence after another."""
    shape = model.initial, model.transitions, model.emissions
    initial, steps, emitted = (np.zeros(table.shape) for table in shape)
    for ids in sequences:
        log_initial, log_transitions, log_scores = model.log_tables(ids)
        forward = log_forward(log_initial, log_transitions, log_scores)
        backward = log_backward(log_transitions, log_scores)
        posteriors = np.exp(forward + backward - np.logaddexp.reduce(forward[-1]))
        initial += posteriors[0]
        steps += expected_transitions(forward, backward, log_transitions, log_scores)
        emitted += sums_by_id(ids, posteriors, model.vocab_size).T
    return maximised(ExpectedCounts(initial, steps, emitted, 0.0), 0.0, 0.0, model.boundary)


def nltk_round(model: HiddenMarkovModel, sequences: list[np.ndarray]):
    """nltk's trainer, given our tables."""
    from nltk.probability import DictionaryProbDist
    from nltk.tag.hmm import HiddenMarkovModelTagger, HiddenMarkovModelTrainer

    states, symbols = range(model.n_states), range(model.vocab_size)
    tables = [
        {state: DictionaryProbDist(dict(enumerate(row))) for state, row in enumerate(rows.tolist())}
        for rows in (model.transitions, model.emissions)
    ]
    priors = DictionaryProbDist(dict(enumerate(model.initial.tolist())))
    tagger = HiddenMarkovModelTagger(list(symbols), list(states), *tables, priors)
    trainer = HiddenMarkovModelTrainer(list(states), list(symbols))
    labelled = [[(token_id, None) for token_id in ids.tolist()] for ids in sequences]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the likelihood
        return trainer.train_unsupervised(labelled, model=tagger, max_iterations=1, update_outputs=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--threads", type=int, default=1, help="accepted and not used: all sides have one thread")
    parser.add_argument("--quick", action="store_true", help="few stories, one pair")
    parser.add_argument("--states", type=int, default=32, help="hidden states K")
    options = parser.parse_args()
    n_stories, n_peer = (200, 2) if options.quick else (2000, 20)
    world = World(WorldConfig(n_people=2, n_names=24, n_items=20, n_colours=8, n_places=12, n_events=1, n_questions=2))
    texts = [story.english.text for story in islice(world.stories(1), n_stories)]
    tokenizer = WordTokenizer.train(texts)
    end = tokenizer.special_tokens["<|endoftext|>"]
    ids, few = packed_ids(texts, tokenizer), packed_ids(texts[:n_peer], tokenizer)
    sequences = np.split(few, np.flatnonzero(few == end)[:-1] + 1)
    start = random_model(
        options.states, np.bincount(ids, minlength=tokenizer.vocab_size), np.random.default_rng(0), end
    )
    ours, readable = baum_welch(start, few, 1)[0], readable_round(start, sequences)
    for name in ("initial", "transitions", "emissions"):
        np.testing.assert_allclose(getattr(ours, name), getattr(readable, name), rtol=1e-8, atol=1e-12)
    theirs = nltk_round(start, sequences)
    transitions = [[theirs._transitions[i].prob(j) for j in range(options.states)] for i in range(options.states)]
    np.testing.assert_allclose(ours.transitions, transitions, rtol=1e-6, atol=1e-12)

    n_pairs, n_warmup = (1, 0) if options.quick else (5, 1)
    factor = len(ids) / len(few)                            # the peers are given fewer stories; their time is per id
    print(f"{len(ids):,} ids in {n_stories} stories, {options.states} states, vocabulary {tokenizer.vocab_size}")
    claims = []
    for name, peer, at_least, aim in (
        ("nltk HiddenMarkovModelTrainer", nltk_round, 20, 100),
        ("our readable log-space path", readable_round, 5, 20),
    ):
        our_seconds, peer_seconds = paired_seconds(
            lambda: baum_welch(start, ids, 1), lambda peer=peer: peer(start, sequences), n_pairs, n_warmup
        )
        ratio = median_ratio(our_seconds, peer_seconds) * factor
        print(f"a round of ours {min(our_seconds):.2f} s, {name} on {len(few):,} ids {min(peer_seconds):.2f} s (best)")
        claims.append(Claim(f"a round of Baum-Welch, {options.states} states, time per id", name, ratio, at_least, aim))
    print_claims(claims)


if __name__ == "__main__":
    main()
