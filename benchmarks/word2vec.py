"""Word vectors: speed of the block version against the 500,000 pairs a second asked for, and its loss against the plain
version's: `python benchmarks/word2vec.py [--quick] [--threads 1]`.

Both versions train skip-gram vectors of 100 numbers with 5 negatives, a window of 5 and thinning at 1e-3 on the words
of our English stories, from the same seeds, and are scored on the same stories that neither has seen, with all noise
words at once (`held_out_loss`, nothing random). The time is that of the whole of `train_word2vec`: thinning, windows,
drawing noise and steps. Speed is that of the best of many single passes, so that other programs disturb it little; the
plain version is compared by processor time. One thread is used unless more are asked for: products as small as these
gain nothing from a second one, and lose much where another program wants that core.
"""

import argparse
import os
import statistics
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from pairs import Claim, median_ratio, print_claims

from minillm.data.context_windows import context_windows, keep_probabilities
from minillm.data.corpora import documents
from minillm.data.shingles import words_of
from minillm.data.split import split_documents
from minillm.models.word2vec import Word2VecConfig
from minillm.models.word2vec_training import held_out_loss, train_word2vec, word_counts

ASKED = 500_000
MIN_COUNT = 3


def story_ids() -> tuple[np.ndarray, np.ndarray, int]:
    """Ids of the training and the held-out stories, 0 behind each, and the number of ids; rare words are left out."""
    old, new = split_documents(list(documents("stories-en")), 0.1, seed=0)
    counts = Counter(word for text in old for word in words_of(text))
    id_of = {word: rank for rank, (word, n) in enumerate(counts.most_common(), 1) if n >= MIN_COUNT}
    ids = [
        np.array([token for text in texts for token in (*(id_of[w] for w in words_of(text) if w in id_of), 0)])
        for texts in (old, new)
    ]
    return ids[0], ids[1], len(id_of) + 1


def pairs_of_an_epoch(ids: np.ndarray, config: Word2VecConfig) -> float:
    """How many pairs a thinned text has, the mean of twenty draws; they differ by less than one in a hundred."""
    rng = np.random.default_rng(0)
    keep = keep_probabilities(word_counts(ids, config.vocab_size, 0), config.subsample)
    n_pairs = []
    for _ in range(20):
        text = ids[rng.random(len(ids)) < keep[ids]]
        n_pairs.append(context_windows(text, rng.integers(1, config.window + 1, size=len(text)), 0)[1].sum())
    return float(np.mean(n_pairs))


def train(ids: np.ndarray, config: Word2VecConfig, seed: int, plain: bool):
    """Train and return the vectors, wall-clock seconds, and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    vectors = train_word2vec(ids, config, np.random.default_rng(seed), boundary=0, plain=plain, progress=False)
    return vectors, time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--threads", type=int, default=1, help="threads for matrix products")
    parser.add_argument("--quick", action="store_true", help="a tenth of the text, one seed")
    options = parser.parse_args()
    if os.environ.get("OPENBLAS_NUM_THREADS") != str(options.threads):  # NumPy's library reads it once, when it starts
        os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    ids, new, vocab_size = story_ids()
    ids = ids[: len(ids) // 10] if options.quick else ids
    config = Word2VecConfig(vocab_size, n_epochs=2 if options.quick else 5, learning_rate=0.05)
    counts = word_counts(ids, vocab_size, 0)
    n_pairs = config.n_epochs * pairs_of_an_epoch(ids, config)
    print(f"{len(ids):,} words, {vocab_size:,} different ones, {n_pairs:,.0f} pairs in {config.n_epochs} epochs")

    losses: dict[bool, list[float]] = {False: [], True: []}
    processor_seconds: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(1 if options.quick else 3):
        for plain in (False, True):
            vectors, wall, processor = train(ids, config, seed, plain)
            losses[plain].append(held_out_loss(vectors, new, counts, config, 0))
            processor_seconds[plain].append(processor)
            print(
                f"seed {seed}, {'plain ' if plain else 'blocks'}: {wall:6.2f} s, {n_pairs / wall:9,.0f} pairs/s, "
                f"{n_pairs / processor:9,.0f} pairs per processor second, held-out loss {losses[plain][-1]:.4f}",
                flush=True,
            )
    one_pass = replace(config, n_epochs=1)
    seconds = [train(ids, one_pass, seed, plain=False)[1] for seed in range(5 if options.quick else 60)]
    speed = n_pairs / config.n_epochs / min(seconds)
    ours, peer = statistics.mean(losses[False]), statistics.mean(losses[True])
    spread = max(losses[True]) - min(losses[True])
    print(f"blocks: {speed:,.0f} pairs/s (best of {len(seconds)} passes); loss {ours:.4f}, plain {peer:.4f}, "
          f"whose seeds differ by {spread:.4f}")
    print_claims(
        [
            Claim("skip-gram pairs a second, 100 dimensions, 5 negatives", f"of {ASKED:,}", speed / ASKED, 1, 2),
            Claim("held-out loss of the block version", "the plain version's", peer / ours, 0.99, 1),
            Claim(
                "processor time of training", "the plain version's",
                median_ratio(processor_seconds[False], processor_seconds[True]), 20, 50,
            ),
        ]
    )


if __name__ == "__main__":
    main()
