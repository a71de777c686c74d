"""Fitting a neural n-gram model to a packed text with the training loop of this library."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from minillm.data.contexts import ContextBatches
from minillm.errors import ConfigError
from minillm.models.neural_ngram import NeuralNGram, NeuralNGramConfig
from minillm.train.grouping import decay_groups
from minillm.train.hooks import ProgressLine
from minillm.train.loop import LoopConfig, train
from minillm.train.loss import kernel_cross_entropy
from minillm.train.optim import AdamW
from minillm.train.schedule import warmup_cosine


@dataclass(frozen=True, kw_only=True)
class NeuralNGramTraining:
    """How a neural n-gram model is fitted.

    Args:
        n_epochs: how often every id of the text is predicted; parts of an epoch are allowed.
        batch_size: examples per step B.
        learning_rate: of AdamW at its highest; it falls to a hundredth along a cosine.
        weight_decay: of matrices, the word vectors among them.
        seed: of the initial weights and the order of the examples.

    Raises:
        ConfigError: naming the first setting that is out of range.
    """

    n_epochs: float = 10.0
    batch_size: int = 256
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self):
        for name in ("n_epochs", "batch_size", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a positive number")
        if not 0 <= self.weight_decay < math.inf or self.seed < 0:
            raise ConfigError(f"weight_decay is {self.weight_decay}, seed {self.seed}; expected 0 or more")


def fit_neural_ngram(
    token_ids: np.ndarray,
    config: NeuralNGramConfig,
    training: NeuralNGramTraining | None = None,
    validation_ids: np.ndarray | None = None,
    progress: bool = True,
    device: torch.device | str = "cpu",
) -> NeuralNGram:
    """Train a neural n-gram model on a packed text.

    Args:
        token_ids: (N,) ids, each document followed by the end-of-text id.
        config: the model's shape.
        training: how long and how fast; None takes the defaults.
        validation_ids: (N',) ids of other documents, scored about once an epoch; the weights that scored best are
            kept. None keeps the last ones.
        progress: draw a line with loss and tokens per second on stderr.
        device: where to train; the model stays there.

    Returns:
        the model, ready to score.

    Raises:
        ConfigError, DataError: if the sizes do not fit, or there is no id.
        TrainingError: if loss or gradients stop being finite.
    """
    training = training or NeuralNGramTraining()
    model = NeuralNGram(config, torch.Generator().manual_seed(training.seed)).to(device)
    model.checked(token_ids)
    batches = ContextBatches(token_ids, config.n_context, config.end_of_text_id, training.batch_size, training.seed)
    n_steps = max(1, round(training.n_epochs * batches.batches_per_epoch))
    optimizer = AdamW(decay_groups(model, training.weight_decay), lr=training.learning_rate, fused=True)
    schedule = partial(
        warmup_cosine, max_learning_rate=1.0, min_learning_rate=0.01, n_warmup_steps=min(100, n_steps // 10),
        n_steps=n_steps,
    )  # fmt: skip
    best = None if validation_ids is None else BestSoFar(model, validation_ids)
    loop = LoopConfig(n_steps=n_steps, validate_every=min(n_steps, batches.batches_per_epoch))
    hooks = [ProgressLine()] if progress else []
    train(
        model, optimizer, batches.batch, loop, schedule=schedule, loss_sum=last_token_loss, validate=best, hooks=hooks
    )
    if best is not None:
        model.load_state_dict(best.state)
    return model.eval()


def last_token_loss(model: NeuralNGram, contexts: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the last target of each row, summed, in nats; a `loss_sum` of the training loop.

    Args:
        model: (B, T) contexts -> (B, V) scores.
        contexts: (B, T) int64.
        targets: (B, T) int64, of which the last column counts.

    Returns:
        a scalar.
    """
    return kernel_cross_entropy(model(contexts), targets[:, -1], reduction="sum")


class BestSoFar:
    """Scores a text whenever it is called, and keeps the weights that did best; a `validate` of the training loop."""

    def __init__(self, model: NeuralNGram, validation_ids: np.ndarray):
        self.model, self.validation_ids = model, validation_ids
        self.loss, self.state = math.inf, copy.deepcopy(model.state_dict())

    def __call__(self, should_stop: Callable[[], bool]) -> dict[str, float]:
        loss = -float(self.model.log_probabilities(self.validation_ids).mean())
        if loss < self.loss:
            self.loss, self.state = loss, copy.deepcopy(self.model.state_dict())
        return {"loss": loss}
