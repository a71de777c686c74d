"""BLEU against sacrebleu itself: scores, counts, lengths."""

import random

import pytest

from minillm.evaluate.bleu import corpus_bleu

pytestmark = pytest.mark.oracle
PIECES = "the cat 1,000 3.5 well-known it's ( ) no? &amp; 猫 x/y a.b 5-year $".split()


def random_corpus(seed):
    generator = random.Random(seed)
    hypotheses, references = [], []
    n_references = generator.randint(1, 3)
    for _ in range(generator.randint(1, 12)):
        words = generator.choices(PIECES, k=generator.randint(0, 12))
        hypotheses.append(" ".join(words))
        changed = [
            [generator.choice(PIECES) if generator.random() < 0.4 else word for word in words]
            for _ in range(n_references)
        ]
        references.append([" ".join(sentence + ["end"] * generator.randint(0, 2)) for sentence in changed])
    return hypotheses, references


@pytest.mark.parametrize("smoothing", ["exp", "none"])
@pytest.mark.parametrize("tokenize", ["13a", "none", "char"])
def test_equal_to_sacrebleu(tokenize, smoothing):
    sacrebleu = pytest.importorskip("sacrebleu")
    scores = []
    for seed in range(60):
        hypotheses, references = random_corpus(seed)
        ours = corpus_bleu(hypotheses, references, tokenize, smoothing)
        streams = [list(stream) for stream in zip(*references, strict=True)]
        theirs = sacrebleu.corpus_bleu(
            hypotheses, streams, tokenize=tokenize, smooth_method=smoothing, use_effective_order=False
        )
        assert ours.score == pytest.approx(theirs.score, rel=1e-12, abs=1e-12)
        assert list(ours.matches) == theirs.counts and list(ours.totals) == theirs.totals
        assert (ours.n_system_words, ours.n_reference_words) == (theirs.sys_len, theirs.ref_len)
        scores.append(ours.score)
    assert sum(0 < score < 100 for score in scores) > 20
