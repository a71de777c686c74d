"""Chapter 13, BERT: fill in the holes (15 points).

`minillm course test 13` tests this file, `minillm course test 13 13.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from minillm.data.batches import NOT_COUNTED
from minillm.data.masking import MaskingConfig, check_token_ids, ngram_groups, random_tokens, word_groups
from minillm.data.sentence_pairs import Document, SentencePair
from minillm.errors import DataError, SamplingError, ShapeError
from minillm.infer.fill_masks import probabilities_of
from minillm.models.bert import Bert, BertConfig
from minillm.train.loss import IGNORED, kernel_cross_entropy


def choose_tokens(
    allowed: np.ndarray,
    rate: float,
    generator: np.random.Generator,
    continues_word: np.ndarray | None = None,
    longest_ngram: int = 1,
) -> np.ndarray:
    """Choose which tokens are asked for: exactly `rate` of those allowed, rounded, and at least one.

    With `continues_word` whole words are chosen in random order; one that would make it too many is passed over, so
    that it may come out fewer, and a text whose every word is too long gives none. With `longest_ngram` it is the same
    with runs of words.

    Args:
        allowed: (T,) bool, True for tokens that may be chosen.
        rate: share of the allowed tokens.
        generator: where the choice comes from.
        continues_word: (T,) bool, True for tokens that belong to the word of the token before; None chooses single
            tokens. A token that is not allowed ends a word.
        longest_ngram: 1, or the most words of the runs that are chosen whole, see `ngram_groups`.

    Returns:
        (T,) bool; none is chosen where none is allowed.

    Raises:
        DataError: if the two arrays differ in shape or are not bool.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, section 3.1; whole words: the README of the authors' code, 31 May 2019.

    Example:
        >>> choose_tokens(np.array([False, True, True, False]), 1.0, np.random.default_rng(0)).tolist()
        [False, True, True, False]
    """
    # TASK 13.1 (2 points)
    # `word_groups` gives the places of each word (without `continues_word` every token is one), `ngram_groups`
    # joins them to runs. Count first how many places are to be chosen. Then go through all groups in a random
    # order, and take each that still fits.
    raise NotImplementedError("task 13.1")


def mask_tokens(
    token_ids: Sequence[int] | np.ndarray,
    config: MaskingConfig,
    generator: np.random.Generator,
    continues_word: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Hide some tokens and ask for them.

    Each chosen token becomes the mask with probability `mask_share`, a random token that is not special with
    `random_share` (which may be the same one), and stays otherwise. The model cannot know whether a token that it sees
    was left alone or is a guess to be corrected, so it must have an opinion about every one.

    Args:
        token_ids: (T,) ids of one text.
        config: how many and what for.
        generator: where choices come from.
        continues_word: (V,) bool, True for ids that continue the word before ("##ing"): whole words are chosen then;
            None chooses single tokens.

    Returns:
        inputs (T,) int64, and targets (T,) int64: the original id where a token was chosen, `NOT_COUNTED` elsewhere.

    Raises:
        DataError: if an id is outside the vocabulary.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, section 3.1.

    Example:
        >>> config = MaskingConfig(vocab_size=9, mask_id=8, special_ids=(0,), rate=0.5, mask_share=1, random_share=0)
        >>> inputs, targets = mask_tokens([0, 5, 5, 0], config, np.random.default_rng(0))
        >>> sorted(inputs.tolist()), sorted(targets.tolist())
        ([0, 0, 5, 8], [-100, -100, -100, 5])
    """
    # TASK 13.2 (3 points)
    # `check_token_ids` makes an array of the ids, `choose_tokens` says which are asked for. Draw one number
    # between 0 and 1 for every token: below `mask_share` it becomes the mask, in the piece of length
    # `random_share` behind that it becomes one of `random_tokens`. The targets hold what stood there before, at
    # the chosen places only.
    raise NotImplementedError("task 13.2")


def hidden_token_loss(model: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the counted targets, summed; only their places go through the head, the costliest part.

    Args:
        model: a `Bert`.
        hidden: (B, T, C) its last vectors.
        targets: (B, T) ids, -100 where nothing is asked.

    Returns:
        a scalar, float32.
    """
    # TASK 13.3 (1 point)
    # A mask of bools picks the asked places out of `hidden` and out of the targets alike; `model.logits` takes
    # vectors of any leading shape. The loop divides later, so here it is a sum.
    raise NotImplementedError("task 13.3")


def next_sentence_pairs(documents: Sequence[Document], generator: np.random.Generator) -> list[SentencePair]:
    """One pair for each two neighbouring sentences; in half of them the second is one of another document.

    BERT joins several sentences to a segment, so that pairs fill its context; here a segment is what the caller gives
    as one sentence.

    Args:
        documents: at least two, each a sequence of sentences, each a sequence of ids.
        generator: decides which pairs are false, and takes the false sentence from a document that is equally likely
            any other one, there from anywhere.

    Returns:
        Pairs in the order of the text, label 0 for a true neighbour and 1 for a false one.

    Raises:
        DataError: if there are fewer than two documents, or an empty one.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, section 3.1, task 2 (labels IsNext and NotNext).
    """
    # TASK 13.4 (2 points)
    # For each sentence but the last of a document throw a coin (`generator.integers(2)`). For a false pair draw
    # the other document first, each with the same chance, and then a sentence of it. To skip the document itself
    # without drawing twice, count from it onwards in a circle. The label is a plain int, and segments are tuples.
    raise NotImplementedError("task 13.4")


def encoder_parameters_by_part(config: BertConfig) -> dict[str, int]:
    """How many learned numbers each part of an encoder has, without making it.

    Args:
        config: the shape; every setting that changes a count is taken into account.

    Returns:
        "embeddings": the vectors of tokens, positions and segments, their norm, and the map to width C where E is
        another; "layers": attention and feed-forward layers with their biases and norms, a shared layer once; "token
        head": the map from C to E, its norm, and a bias per token (the vocabulary's vectors are used again);
        "pair head": the map of the first vector and the two answers, or 0. The sum is `Bert(config).n_parameters()`.

    Source:
        Lan et al. 2019, arXiv:1909.11942, section 3.1: V E + E C numbers instead of V C.

    Example:
        >>> shape = {"vocab_size": 30_000, "max_seq_len": 512, "n_layers": 12, "n_heads": 12, "d_model": 768}
        >>> encoder_parameters_by_part(bert_config("bert", **shape))["layers"]
        85054464
        >>> encoder_parameters_by_part(bert_config("albert", **shape, d_embedding=128))["layers"]
        7087872
    """
    # TASK 13.5 (2 points)
    # Write the shapes down: attention has four maps of C by C with biases, the feed-forward layer one of C by F
    # and one of F by C, a norm has a scale and a shift. Then ask of each setting which part it changes:
    # `position_offset`, `n_segments`, `d_embedding` (in two parts), `share_layers`, `pair_head`.
    raise NotImplementedError("task 13.5")


@torch.inference_mode()
def fill_masks(
    model: Bert,
    token_ids: Tensor,
    mask_id: int,
    forbidden_ids: tuple[int, ...] = (),
    surest_first: bool = True,
) -> tuple[Tensor, Tensor]:
    """Fill one mask after the other, each in sight of those already filled: an encoder that generates.

    Filling all masks at once would choose each without knowing the others: two masks for a name of two characters may
    then get the first of one name and the second of another.

    Args:
        model: used in evaluation mode; left in the mode it was in.
        token_ids: (B, T) ids, some of them the mask, without padding.
        mask_id: the id of the mask; it is never put in.
        forbidden_ids: other ids that are never put in.
        surest_first: fill the mask with the most probable candidate of all first; False goes from left to right.

    Returns:
        (B, T) ids without masks, and (B,) the log-probability of what was put in: the sum over the steps.

    Raises:
        SamplingError: if every id is forbidden.

    Source:
        Wang and Cho 2019, arXiv:1902.04094 (BERT as a generator); the surest first: Ghazvininejad et al. 2019,
        arXiv:1904.09324, with one token per step.
    """
    # TASK 13.6 (3 points)
    # As many steps as the row with the most masks has. In each: `probabilities_of` the ids so far, nothing for
    # the mask and the forbidden ids, the best candidate of every position; then the one position of each row that
    # is filled now. Rows that have no mask any more stay as they are, and so does the tensor you were given.
    raise NotImplementedError("task 13.6")


def best_spans(
    first_scores: Tensor, last_scores: Tensor, allowed: Tensor | None = None, max_length: int = 0
) -> Tensor:
    """The span with the largest sum of both scores that does not end before it begins.

    Args:
        first_scores: (B, T).
        last_scores: (B, T).
        allowed: (B, T) bool, True for tokens that an answer may begin and end with (those of the text, not of the
            question); None allows all.
        max_length: the most tokens of a span; 0 means any number.

    Returns:
        (B, 2) first and last position.

    Raises:
        ShapeError: if the shapes differ.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, section 4.2.

    Example:
        >>> best_spans(torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[9.0, 2.0, 1.0]])).tolist()
        [[0, 0]]
    """
    # TASK 13.7 (2 points)
    # A column of first scores plus a row of last scores is the sum for every pair. Hide the pairs that are no
    # span: last before first, longer than `max_length`, first or last not allowed. The argmax of the flattened
    # table is a number that `//` and `%` take apart.
    raise NotImplementedError("task 13.7")
