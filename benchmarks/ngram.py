"""N-gram training against nltk.lm and scoring against KenLM: `python benchmarks/ngram.py [--quick]`.

Both peers get the same sentences, words parted at white space. Training: nltk.lm's fit (vocabulary and counts; it
leaves the smoothing to each later question) against ours from words to finished modified Kneser-Ney. Scoring: KenLM
reads the ARPA file that we write, and each side turns the same strings into log-probabilities; KenLM's per-word scores
must be ours. Memory: 100 MB of words, made by our own counts, counted in chunks in a process of its own.

Peers: `pip install kenlm nltk` (kenlm builds from source: a C++ compiler and cmake).
"""

import argparse
import gc
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import count
from pathlib import Path

import numpy as np
from bpe import corpus
from pairs import Claim, median_ratio, paired_seconds, print_claims

from minillm.statistical.arpa import read_arpa, write_arpa
from minillm.statistical.backoff import BackoffModel
from minillm.statistical.counts import count_chunks, count_ngrams
from minillm.statistical.smoothing import modified_kneser_ney

ORDER = 3
END = "</s>"
UNKNOWN = "<unk>"
MEMORY_BYTES = 100_000_000
CHUNK_WORDS = 1 << 20


def sentences_of(text: str) -> list[list[str]]:
    """The words of every line that has any."""
    return [words for line in text.splitlines() if (words := line.split())]


def joined(sentences: list[list[str]]) -> list[str]:
    """All words in one list, the end mark before the first sentence and behind each."""
    words = [END]
    for sentence in sentences:
        words += sentence
        words.append(END)
    return words


def train(sentences: list[list[str]]) -> tuple[BackoffModel, dict[str, int]]:
    """From lists of words to a finished model and its vocabulary."""
    id_of: dict[str, int] = defaultdict(count(2).__next__)
    id_of[END], id_of[UNKNOWN] = 0, 1
    words = joined(sentences)
    ids = np.fromiter(map(id_of.__getitem__, words), np.int64, len(words))
    return modified_kneser_ney(count_ngrams(ids, ORDER, len(id_of), boundary=0)), dict(id_of)


def train_nltk(sentences: list[list[str]]):
    """nltk's counts of the same n-grams; its model smooths when it is asked."""
    from nltk.lm import KneserNeyInterpolated
    from nltk.lm.preprocessing import padded_everygram_pipeline

    model = KneserNeyInterpolated(order=ORDER)
    model.fit(*padded_everygram_pipeline(ORDER, sentences))
    return model


def scoring_pair(model: BackoffModel, tokens: list[str], path: Path, lines: list[str]):
    """Two functions that score all lines, ours and KenLM's, each from strings to log10 of every line's probability."""
    import kenlm

    peer = kenlm.Model(str(path))
    id_of = {token: i for i, token in enumerate(tokens)}
    end, unknown = id_of[END], id_of[UNKNOWN]

    def ours() -> np.ndarray:
        words = f" {END} ".join(["", *lines, ""]).split()
        ids = np.fromiter(map(id_of.get, words, [unknown] * len(words)), np.int64, len(words))
        totals = np.cumsum(model.log_probabilities(ids))
        return np.diff(totals[ids == end]) / math.log(10)

    def theirs() -> list[float]:
        return [peer.score(line) for line in lines]

    return ours, theirs, peer


def expect_equal_scores(model: BackoffModel, tokens: list[str], peer, lines: list[str]) -> float:
    """The greatest difference of a word's log10 probability; ends the program if the two are not one model."""
    id_of = {token: i for i, token in enumerate(tokens)}
    largest = 0.0
    for line in lines:
        ids = [id_of[END], *(id_of.get(word, id_of[UNKNOWN]) for word in line.split()), id_of[END]]
        found = model.log_probabilities(ids)[1:] / math.log(10)
        expected = [score for score, _, _ in peer.full_scores(line)]
        largest = max(largest, float(np.abs(found - expected).max()))
    if largest > 1e-4:
        raise SystemExit(f"KenLM scores our file differently, by up to {largest}: the comparison would mean nothing")
    return largest


def count_much(n_bytes: int, folder: Path) -> None:
    """Count and smooth `n_bytes` of words, chunk by chunk, and print how many words that were and the peak memory.

    The words are an order-2 walk: each sentence's words are drawn from what followed the word before in the training
    text, with 5 % of all words drawn anywhere, so that new n-grams keep coming.
    """
    ids, lengths = np.load(folder / "ids.npy"), np.load(folder / "lengths.npy")
    order = np.argsort(ids[:-1], kind="stable")
    starts = np.searchsorted(ids[:-1][order], np.arange(len(lengths) + 1))
    generator, seen = np.random.default_rng(0), [0, 0]

    def chunks():
        here = ids[generator.integers(len(ids) - 1, size=4096)]           # 4,096 walks side by side
        while seen[1] < n_bytes:
            steps = np.empty((CHUNK_WORDS // len(here), len(here)), np.int64)
            for row in steps:
                n_next = np.maximum(starts[here + 1] - starts[here], 1)
                place = np.minimum(starts[here] + generator.integers(n_next), len(order) - 1)
                anywhere = generator.random(len(here)) < 0.05
                here = np.where(anywhere, generator.choice(ids, len(here)), ids[order[place] + 1])
                row[:] = here
            seen[0], seen[1] = seen[0] + steps.size, seen[1] + int((lengths[steps] + 1).sum())
            yield steps.T.ravel()

    start = time.perf_counter()
    model = modified_kneser_ney(count_chunks(chunks(), ORDER, len(lengths), 0))
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(seen[0], seen[1], model.n_entries, model.n_bytes, peak_bytes, f"{time.perf_counter() - start:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--threads", type=int, default=1, help="accepted and not used: all sides have one thread")
    parser.add_argument("--quick", action="store_true", help="a tenth of the text, few pairs")
    parser.add_argument("--count-much", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, default=MEMORY_BYTES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count_much is not None:
        return count_much(options.bytes, options.count_much)
    n_pairs = 1 if options.quick else 3
    text = corpus(100_000 if options.quick else 1_000_000)
    sentences = sentences_of(text)
    n_words = sum(len(sentence) for sentence in sentences)

    our_seconds, peer_seconds = paired_seconds(lambda: train(sentences), lambda: train_nltk(sentences), n_pairs, 0)
    training = median_ratio(our_seconds, peer_seconds)
    print(f"training {n_words:,} words: ours {min(our_seconds):.3f} s, nltk {min(peer_seconds):.2f} s (best)")

    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.arpa"
        trained, id_of = train(sentences)
        write_arpa(trained, list(id_of), path)
        model, tokens = read_arpa(path)
        held_out = [" ".join(words) for words in sentences_of(corpus(2_000_000)[len(text) :])]
        lines = [" ".join(words) for words in sentences] if options.quick else held_out
        ours, theirs, peer = scoring_pair(model, tokens, path, lines)
        largest = expect_equal_scores(model, tokens, peer, lines[:2000])
        np.testing.assert_allclose(ours(), theirs(), rtol=1e-4, atol=1e-3)
        our_seconds, peer_seconds = paired_seconds(ours, theirs, 5 * n_pairs)
        scoring = median_ratio(our_seconds, peer_seconds)
        n_scored = sum(len(line.split()) + 1 for line in lines)
        speeds = [n_scored / min(seconds) / 1e6 for seconds in (our_seconds, peer_seconds)]
        print(
            f"scoring {n_scored:,} words of other text, from strings: ours {speeds[0]:.1f}, KenLM {speeds[1]:.1f} "
            f"million/s (best); a word's log10 p differs by at most {largest:.1g}"
        )

        np.save(Path(folder) / "ids.npy", np.array([id_of[word] for word in joined(sentences)]))
        np.save(Path(folder) / "lengths.npy", np.array([len(word.encode()) for word in id_of]))
        n_bytes = MEMORY_BYTES // 10 if options.quick else MEMORY_BYTES
        command = [sys.executable, __file__, "--count-much", folder, "--bytes", str(n_bytes)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    n_much, n_much_bytes, n_entries, n_model_bytes, peak_bytes = (int(number) for number in answer[:5])
    print(
        f"{n_much_bytes / 1e6:.0f} MB, {n_much:,} words: {n_entries:,} n-grams, {n_model_bytes / 1e6:.0f} MB, "
        f"peak {peak_bytes / 1e9:.2f} GB, {answer[5]} s (making the words included)"
    )
    print_claims(
        [
            Claim(f"order {ORDER} training, {n_words} words to finished model", "nltk.lm fit", training, 30, 50),
            Claim(f"order {ORDER} scoring, strings, same ARPA file", "KenLM score, a line a call", scoring, 0.3, 1),
            Claim(f"peak memory of training on {n_much_bytes / 1e6:.0f} MB of words", "2 GB", 2e9 / peak_bytes, 1, 2),
        ]
    )


if __name__ == "__main__":
    main()
