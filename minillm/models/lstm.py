"""A recurrent language model: it reads one token after another and keeps all it remembers in a state of fixed size.

A token becomes a vector, the layers mix it with their state, and one matrix product turns the last layer's state into a
score for every possible next token. The end-of-text id wipes the state, so that no document sees the one before it.

Dimensions: B rows, T steps, E width of a token vector, D width of the state, L layers, V vocabulary, N ids of a text.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import ConfigError, ShapeError
from minillm.nn.embedding import Embedding
from minillm.nn.linear import Linear
from minillm.nn.recurrent import Recurrent, check_recurrent
from minillm.nn.recurrent_cells import State
from minillm.statistical.counts import checked_ids

ROWS, WINDOW = 64, 64  # documents scored side by side, and steps at a time; both only bound the memory


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """Everything that decides the shape of a recurrent language model; checked when made.

    Args:
        vocab_size: number of token ids V.
        end_of_text_id: reading this id first sets the state to zero.
        kind: "lstm", "gru" or "rnn".
        d_hidden: width D of the state of each layer.
        d_embedding: width E of a token vector; 0 means D.
        n_layers: number of layers L.
        dropout: chance of dropping a number of the token vectors, between layers and before the head, while training.
        forget_bias: where the forget gates of an LSTM start, before the sigmoid; the other kinds have none.
        tie_embeddings: whether the head uses the token vectors; needs E = D.
        kernels: "fused" for the fast path, "naive" for the readable steps.

    Raises:
        ConfigError: naming the first setting that is out of range or contradicts another.
    """

    vocab_size: int
    end_of_text_id: int
    kind: str = "lstm"
    d_hidden: int = 128
    d_embedding: int = 0
    n_layers: int = 1
    dropout: float = 0.0
    forget_bias: float = 1.0
    tie_embeddings: bool = False
    kernels: str = "fused"

    def __post_init__(self):
        object.__setattr__(self, "d_embedding", self.d_embedding or self.d_hidden)
        check_recurrent(self.kind, self.d_embedding, self.d_hidden, self.n_layers, self.dropout, self.kernels)
        if not 0 <= self.end_of_text_id < self.vocab_size:
            raise ConfigError(f"end_of_text_id is {self.end_of_text_id}, expected 0 to {self.vocab_size - 1}")
        if self.tie_embeddings and self.d_embedding != self.d_hidden:
            raise ConfigError(
                f"tie_embeddings needs token vectors as wide as the state, got {self.d_embedding} and {self.d_hidden}"
            )


class RecurrentLM(nn.Module):
    """Token ids and a state in, scores of the next token and the new state out.

    Args:
        config: the shape.
        generator: where the initial weights come from; None is torch's own default generator.

    Source:
        Mikolov et al. 2010, "Recurrent neural network based language model"; with LSTM: Sundermeyer, Schlueter and Ney
        2012, "LSTM neural networks for language modeling"; dropout as Zaremba et al. 2014, arXiv:1409.2329.

    Example:
        >>> model = RecurrentLM(RecurrentConfig(vocab_size=5, end_of_text_id=0, d_hidden=8))
        >>> logits, state = model(torch.tensor([[3, 1, 4]]))
        >>> logits, state = model(torch.tensor([[1]]), state)  # goes on where the first call stopped
        >>> logits.shape, [each.shape for each in state]
        (torch.Size([1, 1, 5]), [torch.Size([1, 1, 8]), torch.Size([1, 1, 8])])
    """

    def __init__(self, config: RecurrentConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        width, tied = config.d_hidden, config.tie_embeddings
        self.token_embedding = Embedding(config.vocab_size, config.d_embedding, width**-0.5 if tied else 1.0, generator)
        self.layers = Recurrent(
            config.kind,
            config.d_embedding,
            width,
            config.n_layers,
            config.dropout,
            config.forget_bias if config.kind == "lstm" else None,
            config.kernels,
            generator,
        )
        self.head = Linear(width, config.vocab_size, bias=True, std=width**-0.5, generator=generator)
        if tied:
            self.head.weight = self.token_embedding.weight

    def forward(self, token_ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Score every possible next token after each position.

        Args:
            token_ids: (B, T) integers from 0 to V - 1.
            state: what the call before left, tensors (L, B, D); None to begin with nothing.

        Returns:
            logits (B, T, V), and the state after the last id.

        Raises:
            ShapeError: if ids and state do not fit each other or the model.
            DataError: if an id is outside the vocabulary.
        """
        if token_ids.dim() != 2:
            raise ShapeError(f"token_ids has shape {tuple(token_ids.shape)}, expected (B, T)")
        x = self.drop(self.token_embedding(token_ids))             # (B, T, E)
        starts = token_ids == self.config.end_of_text_id           # (B, T)
        none_starts = not starts.is_cuda and not bool(starts.any())  # asking a GPU would make every step wait for it
        x, state = self.layers(x, state, starts=None if none_starts else starts)
        return self.head(self.drop(x)), state

    def drop(self, x: Tensor) -> Tensor:
        """Dropout while training, nothing otherwise."""
        return F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x

    def n_parameters(self) -> int:
        """Number of learned numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def log_probabilities(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """How likely each id of a text was after all ids before it in its document.

        Args:
            token_ids: (N,) ids, each document followed by the end-of-text id; the first document begins at the start.

        Returns:
            (N,) float64, nats.

        Raises:
            DataError: if the ids are no sequence of whole numbers of the vocabulary.
        """
        ids = checked_ids(token_ids, self.config.vocab_size)
        found, was_training = np.zeros(len(ids)), self.training
        rows = sorted(document_rows(ids, self.config.end_of_text_id), key=lambda row: row[1] - row[0])
        self.eval()
        try:
            for first in range(0, len(rows), ROWS):
                self.score_rows(ids, rows[first : first + ROWS], found)
        finally:
            self.train(was_training)
        return found

    @torch.inference_mode()
    def score_rows(self, ids: np.ndarray, rows: list[tuple[int, int]], found: np.ndarray) -> None:
        """Write the log-probabilities of the documents (start, stop) of `ids` into their places in `found`."""
        end, device = self.config.end_of_text_id, self.token_embedding.weight.device
        longest = max(stop - start for start, stop in rows)
        padded = np.full((len(rows), longest + 1), end)
        for row, (start, stop) in enumerate(rows):
            padded[row, 1 : stop - start + 1] = ids[start:stop]
        state = None
        for first in range(0, longest, WINDOW):
            window = torch.from_numpy(padded[:, first : first + WINDOW + 1]).to(device)  # (B, T + 1)
            logits, state = self(window[:, :-1], state)
            nats = logits.double().log_softmax(dim=-1).gather(-1, window[:, 1:, None])[..., 0].cpu().numpy()  # (B, T)
            for row, (start, stop) in enumerate(rows):
                begin, behind = start + first, min(start + first + WINDOW, stop)
                found[begin:behind] = nats[row, : max(behind - begin, 0)]


def document_rows(ids: np.ndarray, end_of_text_id: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of each document, its end-of-text id included; the last one may lack it.

    Example:
        >>> list(document_rows(np.array([5, 6, 0, 0, 7]), end_of_text_id=0))
        [(0, 3), (3, 4), (4, 5)]
    """
    borders = [0, *(np.flatnonzero(ids == end_of_text_id) + 1).tolist(), len(ids)]
    return ((start, stop) for start, stop in itertools.pairwise(borders) if start < stop)
