"""Beam search: keep the most probable beginnings instead of only the best one.

Dimensions: B sentences, K beams each, N = B * K rows, T ids so far, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.errors import SamplingError, ShapeError

Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """How widely and how far to search.

    Args:
        end_id: the id with which a sentence ends.
        max_new_tokens: the most ids to add, the end among them.
        n_beams: beginnings K that are kept.
        length_penalty: exponent alpha of `length_norm`; 0 compares plain log-probabilities, which favours short
            sentences.

    Raises:
        SamplingError: if a number is out of range.
    """

    end_id: int
    max_new_tokens: int
    n_beams: int = 4
    length_penalty: float = 0.6

    def __post_init__(self):
        if self.n_beams < 1 or self.max_new_tokens < 0 or self.end_id < 0:
            raise SamplingError(
                f"n_beams is {self.n_beams}, max_new_tokens {self.max_new_tokens}, end_id {self.end_id}; expected at "
                "least 1, 0 and 0"
            )
        if not 0 <= self.length_penalty < math.inf:
            raise SamplingError(f"length_penalty is {self.length_penalty}, expected a number of at least 0")


@dataclass(frozen=True)
class Hypothesis:
    """A sentence that the search found.

    Attributes:
        ids: the new ids, without the end.
        log_probability: of the new ids and, if it is finished, of the end, in nats.
        score: that divided by `length_norm` of their number.
        is_finished: whether it ended by itself, not by `max_new_tokens`.
    """

    ids: tuple[int, ...]
    log_probability: float
    score: float
    is_finished: bool


def length_norm(n_tokens: int, length_penalty: float) -> float:
    """((5 + n) / 6)^alpha, by which log-probabilities are divided so that long sentences have a chance.

    Args:
        n_tokens: number of ids n, the end included.
        length_penalty: alpha; 0 gives 1.

    Source:
        Wu et al. 2016, arXiv:1609.08144, eq. (14).

    Example:
        >>> length_norm(1, 0.6), length_norm(7, 1.0)
        (1.0, 2.0)
    """
    return ((5 + n_tokens) / 6) ** length_penalty


def beam_search(step: Step, prefixes: Tensor, config: BeamConfig) -> list[list[Hypothesis]]:
    """The best sentences that begin with each prefix, as far as K beams find them.

    Each round extends every beam by every id. Of the K best extensions of a sentence, those with the end are finished;
    the K best of the others are the new beams. A sentence's search ends when K sentences are finished and no beam can
    become better than the worst of them, however long it grows: a log-probability only falls, so a beam's
    log-probability divided by the largest norm bounds its score. With one beam and no length penalty this is greedy
    search, with as many beams as there are beginnings it is exhaustive.

    Args:
        step: (ids so far (N, T), parents (N,)) -> log-probabilities (N, V) of the next id. Row n goes on from row
            parents[n] of the call before, so that a cache can be put into the same order; at first parents are
            0 .. N - 1, and the K rows of a sentence are equal.
        prefixes: (B, T) ids with which the sentences begin, at least one.
        config: how widely and how far.

    Returns:
        For each sentence up to K hypotheses, the one with the best score first. At `max_new_tokens` the beams count as
        they are.

    Raises:
        ShapeError: if prefixes are not (B, T) with T >= 1, or the step gives another shape.
        SamplingError: if the end id is outside the vocabulary, or the vocabulary has no other id.
    """
    if prefixes.dim() != 2 or prefixes.shape[1] == 0:
        raise ShapeError(f"prefixes have shape {tuple(prefixes.shape)}, expected (B, T) with at least one id each")
    beams = Beams(prefixes, config)
    for _ in range(config.max_new_tokens):
        if all(map(beams.is_done, range(len(prefixes)))):
            break
        beams.extend(step(beams.ids, beams.parents))
    return [beams.best(row) for row in range(len(prefixes))]


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
    n_beams, vocab_size = log_probabilities.shape[1:]
    extended = totals[:, :, None] + log_probabilities              # (B, K, V)
    best = extended.flatten(1).topk(n_beams).values                # (B, K)
    ended = extended[:, :, end_id]                                 # (B, K)
    ended = ended.masked_fill(ended < best[:, -1:], -math.inf)     # (B, K)
    is_end = torch.arange(vocab_size, device=totals.device) == end_id  # (V,)
    kept, places = extended.masked_fill(is_end, -math.inf).flatten(1).topk(n_beams)  # (B, K)
    return ended, kept, places // vocab_size, places % vocab_size


class Beams:
    """The beginnings of all sentences and what is finished.

    Args:
        prefixes: (B, T) ids.
        config: of the search.
    """

    def __init__(self, prefixes: Tensor, config: BeamConfig):
        self.config, (self.n_rows, self.n_given) = config, prefixes.shape
        self.ids = prefixes.repeat_interleave(config.n_beams, dim=0)  # (N, T)
        self.parents = torch.arange(len(self.ids), device=prefixes.device)  # (N,)
        self.totals: Tensor | None = None
        self.finished: list[list[Hypothesis]] = [[] for _ in range(self.n_rows)]

    def extend(self, log_probabilities: Tensor) -> None:
        """Take one more id: (N, V) log-probabilities of it."""
        self.check_step(log_probabilities)
        by_beam = log_probabilities.view(self.n_rows, self.config.n_beams, -1)  # (B, K, V)
        if self.totals is None:                                    # all beams are equal yet: one of them counts
            self.totals = torch.full_like(by_beam[:, :, 0], -math.inf)
            self.totals[:, 0] = 0.0
        ended, self.totals, beams, new_ids = beam_step(self.totals, by_beam, self.config.end_id)  # four of (B, K)
        self.finish(ended)
        first_rows = self.config.n_beams * torch.arange(self.n_rows, device=beams.device)[:, None]  # (B, 1)
        self.parents = (first_rows + beams).flatten()              # (N,)
        self.ids = torch.cat((self.ids[self.parents], new_ids.view(-1, 1)), dim=1)  # (N, T)

    def check_step(self, log_probabilities: Tensor) -> None:
        """Refuse what is not (N, V) with the end and another id in the vocabulary."""
        shape = tuple(log_probabilities.shape)
        if len(shape) != 2 or shape[0] != len(self.ids):
            raise ShapeError(f"the step gave {shape}, expected (N, V) = ({len(self.ids)}, V)")
        if not self.config.end_id < shape[1] or shape[1] < 2:
            raise SamplingError(
                f"the end id is {self.config.end_id}, the vocabulary has {shape[1]} ids; expected one of at least two"
            )

    def finish(self, ended: Tensor) -> None:
        """Note the beams (B, K) that end here, those above minus infinity; keep the K best finished sentences."""
        for row, beam in (ended > -math.inf).nonzero().tolist():
            ids = self.ids[row * self.config.n_beams + beam, self.n_given :].tolist()
            self.finished[row].append(self.hypothesis(ids, ended[row, beam].item(), True))
        for found in self.finished:
            found.sort(key=lambda hypothesis: -hypothesis.score)
            del found[self.config.n_beams :]

    def hypothesis(self, ids: list[int], log_probability: float, is_finished: bool) -> Hypothesis:
        """With its score."""
        norm = length_norm(len(ids) + is_finished, self.config.length_penalty)
        return Hypothesis(tuple(ids), log_probability, log_probability / norm, is_finished)

    def is_done(self, row: int) -> bool:
        """Whether no beam of this sentence can still get among its K best."""
        if self.totals is None:
            return False
        bound = self.totals[row].max().item() / length_norm(self.config.max_new_tokens, self.config.length_penalty)
        is_full = len(self.finished[row]) == self.config.n_beams
        return bound <= self.finished[row][-1].score if is_full else bound == -math.inf

    def best(self, row: int) -> list[Hypothesis]:
        """The K best: finished ones, and beams if they reached the last length."""
        found, n_beams = list(self.finished[row]), self.config.n_beams
        if self.totals is not None and self.ids.shape[1] - self.n_given == self.config.max_new_tokens:
            rows = self.ids[row * n_beams : (row + 1) * n_beams, self.n_given :].tolist()
            totals = self.totals[row].tolist()
            found += [self.hypothesis(ids, t, False) for ids, t in zip(rows, totals, strict=True) if t > -math.inf]
        if self.totals is None:
            found = [self.hypothesis([], 0.0, False)]
        return sorted(found, key=lambda hypothesis: -hypothesis.score)[:n_beams]
