"""The rungs of the ladder: which models climb it, how large each is and how long it learns.

Dimensions: N ids of a text, V vocabulary, T context.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from minillm.data.batches import DocumentBatches
from minillm.errors import ConfigError
from minillm.evaluate.ladder import LadderText, Rung, Scorer
from minillm.evaluate.likelihood import document_log_probabilities
from minillm.models.gpt import GPT
from minillm.models.registry import model_config
from minillm.statistical.ngram import NGramModel
from minillm.statistical.smoothing import ALL_METHODS, fit_ngram
from minillm.train.hooks import ProgressLine
from minillm.train.loop import LoopConfig, train
from minillm.train.recipes import choose_recipe, make_optimizer, make_schedule

WITHOUT_SHORTER_CONTEXTS = ("add-k", "good-turing")  # theirs may reach across documents
BYTES_PER_WEIGHT = 4


def all_rungs(text: LadderText, quick: bool = False) -> list[Rung]:
    """Every model of the course, with the shape and budget that fit the text.

    Args:
        text: whether its floor is known decides between the settings for short stories and for running text.
        quick: models that hardly learn, for a look at the machinery.
    """
    return [*counting_rungs(3 if quick else 6), *network_rungs(text, quick)]


def network_rungs(text: LadderText, quick: bool = False) -> list[Rung]:
    """The models that learn by gradients; arguments as in `all_rungs`."""
    seq_len = 160 if text.floor is not None else 128
    n_steps = 3 if quick else 2000
    return [
        gpt_rung("GPT-2 style", GPTRungConfig("gpt2", n_steps=n_steps, seq_len=seq_len, learning_rate=0.006)),
        gpt_rung("GPT, modern", GPTRungConfig("modern", n_steps=n_steps, seq_len=seq_len)),
    ]


def counting_rungs(largest_order: int = 6, methods: Sequence[str] = ALL_METHODS) -> list[Rung]:
    """The uniform distribution, then n-grams of every order with every smoothing method.

    Args:
        largest_order: at least 1.
        methods: of `minillm.statistical.smoothing`.

    Raises:
        ConfigError: if a method is unknown or the order below 1.
    """
    if largest_order < 1:
        raise ConfigError(f"n-grams of up to {largest_order} ids cannot be counted; give an order of at least 1")
    if unknown := sorted(set(methods) - set(ALL_METHODS)):
        raise ConfigError(f"unknown smoothing {', '.join(unknown)}; known are {', '.join(ALL_METHODS)}")
    rungs = [Rung("uniform", lambda text: NGramModel(0, text.vocab_size).fit(text.train_ids))]
    for order in range(1, largest_order + 1):
        for method in methods:
            rungs.append(Rung(f"{order}-gram, {method}", partial(_fit_counts, method, order), order, method))
    return rungs


def _fit_counts(method: str, order: int, text: LadderText) -> Scorer:
    boundary = None if method in WITHOUT_SHORTER_CONTEXTS else text.end_id
    return fit_ngram(method, text.train_ids, order, text.vocab_size, boundary)


@dataclass(frozen=True)
class GPTRungConfig:
    """A decoder and how long it learns.

    Args:
        family: of `minillm.models.registry`.
        size: likewise.
        n_steps: steps of training.
        batch_size: documents, or parts of long ones, a step.
        seq_len: context T; longer documents are cut to learn from and read with a moving window to be scored.
        learning_rate: top rate; 0 takes the recipe's own.
        seed: of weights and batches.
    """

    family: str = "modern"
    size: str = "nano"
    n_steps: int = 2000
    batch_size: int = 16
    seq_len: int = 160
    learning_rate: float = 0.0
    seed: int = 0


def gpt_rung(name: str, config: GPTRungConfig, progress: bool = False) -> Rung:
    """A decoder trained by the library's recipe for its family.

    Args:
        name: as it stands in the table.
        config: its shape and budget.
        progress: show the loop's progress line.
    """
    return Rung(name, partial(_fit_gpt, config, progress))


def _fit_gpt(config: GPTRungConfig, progress: bool, text: LadderText) -> Scorer:
    shape = model_config(config.family, config.size, text.vocab_size, config.seq_len)
    model = GPT(shape, torch.Generator().manual_seed(config.seed))
    recipe = choose_recipe(config.family, "auto", config.learning_rate, n_warmup_steps=20, weight_decay=0.0)
    batches = DocumentBatches(text.train_ids, text.end_id, config.batch_size, config.seq_len, config.seed)
    train(
        model, make_optimizer(recipe, model, shape), batches.batch, LoopConfig(config.n_steps, spike_sigmas=0),
        schedule=make_schedule(recipe, config.n_steps), hooks=[ProgressLine()] if progress else [],
    )  # fmt: skip
    return DecoderScorer(model.eval(), text.end_id, config.seq_len)


@dataclass(frozen=True)
class DecoderScorer:
    """A trained decoder as a rung leaves it.

    Attributes:
        model: token_ids (B, T) -> logits (B, T, V).
        end_id: the end-of-text id.
        seq_len: context T.
    """

    model: nn.Module
    end_id: int
    seq_len: int

    @property
    def n_entries(self) -> int:
        """Its weights."""
        return self.model.n_parameters()

    @property
    def n_bytes(self) -> int:
        """Memory of the weights in fp32."""
        return BYTES_PER_WEIGHT * self.n_entries

    def log_probabilities(self, ids: np.ndarray) -> np.ndarray:
        """(N,) float64 nats, every document predicted from its own beginning."""
        return document_log_probabilities(self.model, ids, self.end_id, self.seq_len)
