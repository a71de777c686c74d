"""The rungs of the ladder: which models climb it, how large each is and how long it learns.

Dimensions: N ids of a text, V vocabulary, T context.
"""

from collections.abc import Callable, Sequence
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
from minillm.models.lstm import RecurrentConfig
from minillm.models.neural_ngram import NeuralNGramConfig
from minillm.models.registry import model_config
from minillm.statistical.hmm_training import HMMConfig, fit_hmm
from minillm.statistical.ngram import NGramModel
from minillm.statistical.smoothing import ALL_METHODS, fit_ngram
from minillm.train.hooks import ProgressLine
from minillm.train.loop import LoopConfig, train
from minillm.train.neural_ngram import NeuralNGramTraining, fit_neural_ngram
from minillm.train.recipes import choose_recipe, make_optimizer, make_schedule
from minillm.train.recurrent import RecurrentTraining, train_recurrent

WITHOUT_SHORTER_CONTEXTS = ("add-k", "good-turing")  # theirs may reach across documents


@dataclass(frozen=True)
class Budget:
    """Shapes and lengths of training for one kind of text; found by trying, a few tries each.

    Attributes:
        hmm: the hidden Markov model.
        order: of the feed-forward model: it sees order - 1 ids.
        n_epochs: of the feed-forward model.
        n_layers: of the recurrent networks.
        d_hidden: of the recurrent networks, and of the feed-forward model's layer.
        recurrent: their training.
        dropout: of recurrent networks and decoders.
        size: of the decoders.
        n_steps: of the decoders.
        batch_size: rows a step, likewise.
        seq_len: context T, likewise; longer documents are cut to learn from and read with a moving window.
    """

    hmm: HMMConfig
    order: int
    n_epochs: float
    n_layers: int
    d_hidden: int
    recurrent: RecurrentTraining
    dropout: float
    size: str
    n_steps: int
    batch_size: int
    seq_len: int


STORIES = Budget(
    hmm=HMMConfig(n_states=64, n_iterations=40), order=6, n_epochs=3, n_layers=1, d_hidden=256,
    recurrent=RecurrentTraining(n_steps=2000), dropout=0.0, size="nano", n_steps=2000, batch_size=16, seq_len=160,
)  # fmt: skip
RUNNING_TEXT = Budget(
    hmm=HMMConfig(n_states=64, n_iterations=40), order=6, n_epochs=10, n_layers=2, d_hidden=256,
    recurrent=RecurrentTraining(n_steps=1500), dropout=0.2, size="tiny", n_steps=1500, batch_size=16, seq_len=128,
)  # fmt: skip
QUICK = Budget(
    hmm=HMMConfig(n_states=4, n_iterations=2), order=3, n_epochs=0.1, n_layers=1, d_hidden=16,
    recurrent=RecurrentTraining(n_steps=5, batch_size=4), dropout=0.0, size="nano", n_steps=3, batch_size=4,
    seq_len=128,
)  # fmt: skip


DECODERS = (("GPT-2 style", "gpt2", 0.006), ("BLOOM style", "bloom", 0.006), ("GPT, modern", "modern", 0.0))


def all_rungs(text: LadderText, quick: bool = False, progress: bool = False) -> list[Rung]:
    """Every model of the course, with the shape and budget that fit the text.

    Args:
        text: a known floor means short stories, which are seen whole; otherwise it is running text.
        quick: models that hardly learn, for a look at the machinery.
        progress: show every network's own progress line.
    """
    budget = QUICK if quick else STORIES if text.floor is not None else RUNNING_TEXT
    return [*counting_rungs(3 if quick else 6), *network_rungs(budget, progress)]


def network_rungs(budget: Budget, progress: bool = False) -> list[Rung]:
    """The models that learn step by step, in the order in which history found them.

    Args:
        budget: their shapes and how long they learn.
        progress: show every model's own progress line.
    """
    hidden_states = Rung(f"HMM, {budget.hmm.n_states} states", partial(_fit_hmm, budget.hmm, progress))
    feed_forward = Rung(f"feed-forward {budget.order}-gram", partial(_fit_feed_forward, budget, progress))
    recurrent = [Rung(kind.upper(), partial(_fit_recurrent, kind, budget, progress)) for kind in ("rnn", "gru", "lstm")]
    decoders = [
        Rung(name, partial(_fit_decoder, family, rate, budget, progress))
        for name, family, rate in DECODERS
    ]
    return [hidden_states, feed_forward, *recurrent, *decoders]


@dataclass(frozen=True)
class Network:
    """A trained network as a rung leaves it.

    Attributes:
        module: whose parameters are counted.
        log_probabilities: (N,) ids -> (N,) float64 nats, every document predicted from its own beginning.
    """

    module: nn.Module
    log_probabilities: Callable[[np.ndarray], np.ndarray]

    @property
    def n_entries(self) -> int:
        """Its weights."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def n_bytes(self) -> int:
        """Memory of the weights."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.module.parameters())


def _fit_hmm(config: HMMConfig, progress: bool, text: LadderText) -> Scorer:
    return fit_hmm(text.train_ids, text.vocab_size, config, boundary=text.end_id, progress=progress)


def _fit_feed_forward(budget: Budget, progress: bool, text: LadderText) -> Scorer:
    config = NeuralNGramConfig(
        vocab_size=text.vocab_size, end_of_text_id=text.end_id, order=budget.order, d_hidden=budget.d_hidden
    )
    model = fit_neural_ngram(text.train_ids, config, NeuralNGramTraining(n_epochs=budget.n_epochs), progress=progress)
    return Network(model, model.log_probabilities)


def _fit_recurrent(kind: str, budget: Budget, progress: bool, text: LadderText) -> Scorer:
    config = RecurrentConfig(
        vocab_size=text.vocab_size, end_of_text_id=text.end_id, kind=kind, d_hidden=budget.d_hidden,
        n_layers=budget.n_layers, dropout=budget.dropout,
    )  # fmt: skip
    torch.manual_seed(0)  # dropout draws from torch's own generator
    model = train_recurrent(text.train_ids, config, budget.recurrent, progress=progress)
    return Network(model, model.log_probabilities)


def _fit_decoder(family: str, learning_rate: float, budget: Budget, progress: bool, text: LadderText) -> Scorer:
    config = model_config(family, budget.size, text.vocab_size, budget.seq_len, dropout=budget.dropout)
    torch.manual_seed(0)
    model = GPT(config, torch.Generator().manual_seed(0))
    recipe = choose_recipe(family, "auto", learning_rate, n_warmup_steps=20, weight_decay=0.0)
    batches = DocumentBatches(text.train_ids, text.end_id, budget.batch_size, budget.seq_len, seed=0)
    train(
        model, make_optimizer(recipe, model, config), batches.batch, LoopConfig(budget.n_steps, spike_sigmas=0),
        schedule=make_schedule(recipe, budget.n_steps), hooks=[ProgressLine()] if progress else [],
    )  # fmt: skip
    model.eval()
    return Network(model, lambda ids: document_log_probabilities(model, ids, text.end_id, budget.seq_len))


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
