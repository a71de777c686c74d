"""Chapter 10, Transformer: fill in the holes (14 points).

`minillm course test 10` tests this file, `minillm course test 10 10.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ShapeError
from minillm.evaluate.bleu import runs_of
from minillm.nn.attention import SelfAttention
from minillm.nn.feedforward import FeedForward
from minillm.nn.linear import Linear
from minillm.nn.transformer_layers import EncoderLayer, LayerConfig, attention_of, norm_of
from minillm.train.loss import IGNORED


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """Shift and scale each vector to mean 0 and variance 1, then apply a learned scale and shift.

    Args:
        x: (..., C).
        weight: (C,) learned scale, or None for 1.
        bias: (C,) learned shift, or None for 0.
        epsilon: added to the variance (the one that divides by C) so that a constant vector gives zeros.

    Returns:
        (..., C).

    Source:
        Ba, Kiros and Hinton 2016, arXiv:1607.06450, eq. (4).

    Example:
        >>> layer_norm(torch.tensor([1.0, 3.0]), epsilon=0.0).tolist()
        [-1.0, 1.0]
    """
    # TASK 10.1 (2 points)
    # Everything happens along the last dimension, and the mean and the variance keep it with size 1, so that they
    # can be taken from vectors of any shape. The variance divides by C, not by C - 1, and epsilon belongs under
    # the root. Take the mean away before you square: of large numbers the difference of two squares has no digits
    # left.
    raise NotImplementedError("task 10.1")


class Layer(nn.Module):
    """What encoder and decoder layers share: self-attention, a feed-forward layer, and how a part is added.

    Args:
        config: the layer's settings.
        generator: where the initial weights come from; None is torch's own default generator.
    """

    def __init__(self, config: LayerConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.attention = attention_of(config, SelfAttention, generator)
        self.attention_norm = norm_of(config)
        self.feed_forward = FeedForward(
            config.d_model,
            config.d_ff,
            config.feed_forward,
            bias=config.bias,
            std=config.std,
            output_std=config.std,
            kernels=config.kernels,
            generator=generator,
        )
        self.feed_forward_norm = norm_of(config)
        self.dropout, self.norm_first = config.dropout, config.norm_place == "pre"

    def add(self, x: Tensor, part: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        """norm(x + part(x)), or x + part(norm(x)) where norms come first; the part's output passes through dropout.

        Source:
            Vaswani et al. 2017, arXiv:1706.03762, section 3.1 (post); Xiong et al. 2020, arXiv:2002.04745, table 1.
        """
        # TASK 10.2 (2 points)
        # Two orders of the same three things: a part, a norm, a sum. `self.norm_first` says which. Only what the part
        # gives passes through dropout, never x itself, and only while the module trains: `F.dropout` takes the chance
        # and whether it trains.
        raise NotImplementedError("task 10.2")


def shift_right(targets: Tensor, start_id: int) -> Tensor:
    """What the decoder reads while it is taught: the start, then each target but the last.

    Args:
        targets: (B, T) ids; -100 where none is wanted.
        start_id: the id that begins every text; it also stands where the target is -100.

    Returns:
        (B, T) ids.

    Raises:
        ShapeError: if targets are not (B, T).

    Example:
        >>> shift_right(torch.tensor([[7, 8, 1], [7, 1, -100]]), start_id=0).tolist()
        [[0, 7, 8], [0, 7, 1]]
    """
    # TASK 10.3 (2 points)
    # Write down what a decoder may have read before each target: before the first one only the start. The last
    # target is read by nobody. What remains of the -100 are no ids, and an embedding would refuse them.
    raise NotImplementedError("task 10.3")


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float, ignore_index: int = IGNORED) -> Tensor:
    """Cross-entropy against targets that are a little unsure, summed over the counted ones, in nats.

    The target has probability 1 - smoothing + smoothing / V, every other id smoothing / V. So the loss is
    (1 - smoothing) times that of the target plus smoothing times the mean over all V ids.

    Args:
        logits: (..., V) unnormalised scores.
        targets: (...) integer token ids, each 0 .. V-1 or `ignore_index`.
        smoothing: from 0 (plain cross-entropy) to 1.
        ignore_index: a target with this id costs nothing.

    Returns:
        a scalar.

    Source:
        Szegedy et al. 2016, arXiv:1512.00567, section 7.

    Example:
        >>> smoothed_cross_entropy(torch.tensor([[3.0, 0.0], [0.0, 9.0]]), torch.tensor([0, -100]), smoothing=0.5)
        tensor(0.7986)
    """
    # TASK 10.4 (3 points)
    # One logarithm of the softmax serves both terms: the entry of the target, and the mean over all V. An ignored
    # target is no index; put any valid id in its place before you gather, and zero in place of its loss before
    # you sum.
    raise NotImplementedError("task 10.4")


def beam_step(totals: Tensor, log_probabilities: Tensor, end_id: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One round of a beam search: extend every beam by every id, see which end, and keep the K best of the others.

    An extension by the end counts if it is among the K best of all extensions of its sentence. It never goes on.

    Args:
        totals: (B, K) log-probabilities of the beams; -inf for a beam that is not there.
        log_probabilities: (B, K, V) of the next id after each beam.
        end_id: the id with which a sentence ends.

    Returns:
        Four tensors (B, K): for each beam its log-probability with the end, or -inf if it does not end here; then for
        each new beam, the best first, its log-probability, the beam that it extends, and its last id.

    Example:
        >>> totals, scores = torch.tensor([[0.0, -1.0]]), torch.tensor([[[-1.0, -2.0, -3.0], [-9.0, -0.5, -9.0]]])
        >>> beam_step(totals, scores, end_id=0)  # the first beam ends with -1.0; the second goes on better than it
        (tensor([[-1., -inf]]), tensor([[-1.5000, -2.0000]]), tensor([[1, 0]]), tensor([[1, 1]]))
    """
    # TASK 10.5 (3 points)
    # Add the totals to the scores of their beams; then one row of K * V numbers per sentence is all that there is
    # to choose from. Which number is the K-th best of it? An end below that does not count. For the new beams,
    # forbid the end and choose again. From a place in the row of K * V, whole division and remainder by V give
    # beam and id.
    raise NotImplementedError("task 10.5")


def matching_runs(words: Sequence[str], references: Sequence[Sequence[str]], order: int) -> int:
    """How many runs of `order` words are in a reference; each counts at most as often as in the reference with most.

    Args:
        words: the translation.
        references: correct translations.
        order: length of the runs, at least 1.

    Returns:
        The sum of the clipped counts.

    Source:
        Papineni et al. 2002, section 2.1.1 (modified precision).

    Example:
        >>> matching_runs("the the the".split(), ["the cat and the dog".split()], 1)
        2
    """
    # TASK 10.6 (2 points)
    # `runs_of` counts the runs of one text. Of several references the largest count of each run applies, not the
    # sum; of the translation's count only so much as that. Python's `Counter` has an operator for each of the
    # two.
    raise NotImplementedError("task 10.6")
