"""An n-gram model without a table: the words before become vectors, and a network with one hidden layer does the rest.

    y = b + W x + U tanh(d + H x),   p(next | context) = softmax(y)

where x holds the vectors of the n - 1 ids before, side by side. H, d are `hidden`, U, b are `output`, and W, left out
unless asked for, is `direct`. `minillm.models.neural_ngram_by_hand` has the same with every gradient written out.

Dimensions: B examples, T = n - 1 ids of context, C width of a word's vector, F hidden width, V vocabulary, N ids.

Source: Bengio, Ducharme, Vincent and Jauvin 2003, "A neural probabilistic language model", JMLR 3, section 2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from minillm.data.contexts import contexts_before
from minillm.errors import ConfigError, DataError, ShapeError
from minillm.nn.embedding import Embedding
from minillm.nn.functional import log_softmax
from minillm.nn.linear import Linear

IDS_AT_A_TIME = 4096  # scored together: the scores of so many ids over a large vocabulary still fit into memory


@dataclass(frozen=True, kw_only=True)
class NeuralNGramConfig:
    """Everything that decides the shape of the model and its numbers at the start.

    Args:
        vocab_size: number of token ids V.
        end_of_text_id: the id behind each document; it also fills the places before a document's beginning.
        order: n, at least 2: n - 1 ids are looked at, and the next is predicted.
        d_embedding: width C of an id's vector.
        d_hidden: hidden units F.
        direct: whether scores also depend on the vectors directly, past the hidden layer.
        embedding_std: standard deviation of the vectors at the start. With 1, every hidden unit gets an input of
            variance 1, where tanh is neither flat nor a straight line; much smaller ones show afterwards what was
            learned, and not where chance had put them.
        scale: factor on all initial weights.

    Raises:
        ConfigError: naming the first setting that is out of range.
    """

    vocab_size: int
    end_of_text_id: int
    order: int = 5
    d_embedding: int = 32
    d_hidden: int = 128
    direct: bool = False
    embedding_std: float = 1.0
    scale: float = 1.0

    def __post_init__(self):
        for name, least in (("vocab_size", 1), ("order", 2), ("d_embedding", 1), ("d_hidden", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected {least} or more")
        if not 0 <= self.end_of_text_id < self.vocab_size:
            raise ConfigError(
                f"end_of_text_id is {self.end_of_text_id}, expected one of the ids 0 to {self.vocab_size - 1}"
            )
        for name in ("embedding_std", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a positive number")

    @property
    def n_context(self) -> int:
        """T = n - 1, the ids that are looked at."""
        return self.order - 1

    @property
    def d_input(self) -> int:
        """T * C, the width of the vectors side by side."""
        return self.n_context * self.d_embedding


class NeuralNGram(nn.Module):
    """The network as a torch module.

    Args:
        config: its shape.
        generator: where the initial weights come from; None is torch's own default generator.
    """

    def __init__(self, config: NeuralNGramConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config, scale = config, config.scale
        self.embedding = Embedding(config.vocab_size, config.d_embedding, scale * config.embedding_std, generator)
        self.hidden = Linear(config.d_input, config.d_hidden, True, scale * config.d_input**-0.5, generator)
        self.output = Linear(config.d_hidden, config.vocab_size, True, scale * config.d_hidden**-0.5, generator)
        self.direct = Linear(config.d_input, config.vocab_size, False, 0.0) if config.direct else None

    def forward(self, contexts: Tensor) -> Tensor:
        """Scores of every id as the next one.

        Args:
            contexts: (B, T) int64, the nearest id last.

        Returns:
            (B, V).

        Raises:
            ShapeError: if a context has another length.
            DataError: if an id is outside the vocabulary.
        """
        if contexts.dim() != 2 or contexts.shape[1] != self.config.n_context:
            raise ShapeError(f"contexts have shape {tuple(contexts.shape)}, expected (B, {self.config.n_context})")
        x = self.embedding(contexts).flatten(start_dim=1)          # (B, T * C)
        hidden = torch.tanh(self.hidden(x))                        # (B, F)
        logits = self.output(hidden)                               # (B, V)
        return logits if self.direct is None else logits + self.direct(x)  # (B, V)

    @property
    def order(self) -> int:
        """n: ids of context and the predicted one together."""
        return self.config.order

    def n_parameters(self) -> int:
        """Number of learned numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def log_probabilities(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """log p(id | the n - 1 ids before it) for every id of a packed text.

        Args:
            token_ids: (N,) ids, each document followed by the end-of-text id; N may be 0. The first id begins one.

        Returns:
            (N,) float64 nats. The probabilities of all V ids after a context sum to 1.

        Raises:
            DataError: if an id is outside the vocabulary.
        """
        token_ids = self.checked(token_ids)
        contexts = contexts_before(token_ids, self.config.n_context, self.config.end_of_text_id)  # (N, T)
        found = np.zeros(len(token_ids))
        for start in range(0, len(token_ids), IDS_AT_A_TIME):
            here = slice(start, start + IDS_AT_A_TIME)
            found[here] = self.log_distributions(contexts[here])[np.arange(len(token_ids[here])), token_ids[here]]
        return found

    def log_distributions(self, contexts: np.ndarray) -> np.ndarray:
        """log p of every id after each context: (B, T) int64 -> (B, V) float64 nats."""
        with torch.inference_mode():
            logits = self(torch.from_numpy(contexts).to(self.output.weight.device))  # (B, V)
            found = log_softmax(logits.double())                   # (B, V)
        return found.cpu().numpy()

    def distribution(self, context: Sequence[int] | np.ndarray) -> np.ndarray:
        """p(x | context) for every id x; with it, `minillm.statistical.backoff.sample_ids` draws texts.

        Args:
            context: (T,) integers, any number of them; those from before the last end-of-text id do not count.

        Returns:
            (V,) float64 that sums to 1.

        Raises:
            DataError: if an id is outside the vocabulary.
        """
        context = np.append(self.checked(context), self.config.end_of_text_id)  # the last id is only a place to stand
        before = contexts_before(context, self.config.n_context, self.config.end_of_text_id)
        return np.exp(self.log_distributions(before[-1:])[0])      # (V,)

    def checked(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """The ids as int64, if all of them are in the vocabulary."""
        found = np.asarray(token_ids)
        found = found.astype(np.int64) if found.size == 0 or found.dtype.kind in "iu" else found
        if found.dtype != np.int64 or (found.size and not 0 <= found.min() <= found.max() < self.config.vocab_size):
            raise DataError(
                f"expected token ids 0 to {self.config.vocab_size - 1}; encode the text with the tokenizer that the "
                "model was trained with"
            )
        return found
