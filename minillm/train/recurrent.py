"""Training a recurrent language model on one long text: its state goes from batch to batch, its gradient does not."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minillm.data.batches import StreamBatches
from minillm.errors import ConfigError, TrainingError
from minillm.models.lstm import RecurrentConfig, RecurrentLM
from minillm.nn.recurrent_cells import State, detached
from minillm.runtime import generator
from minillm.train.grouping import decay_groups
from minillm.train.hooks import Hook, ProgressLine
from minillm.train.loop import LoopConfig, train
from minillm.train.loss import IGNORED, kernel_cross_entropy
from minillm.train.optim import AdamW
from minillm.train.schedule import warmup_cosine

LAST_RATE = 0.05  # where the cosine ends, as a share of the top


@dataclass(frozen=True, kw_only=True)
class RecurrentTraining:
    """How a recurrent language model is trained; checked when made.

    Args:
        n_steps: batches in all.
        batch_size: streams B that are read side by side.
        seq_len: steps T through which gradients run back; the state is carried further.
        learning_rate: AdamW's top rate; it rises for a twentieth of the steps and falls along a cosine.
        weight_decay: of the matrices.
        max_norm: gradients longer than this are shortened to it; infinity leaves them.
        carry_state: False begins every batch with an empty state.

    Raises:
        ConfigError: if a number is out of range.
    """

    n_steps: int
    batch_size: int = 16
    seq_len: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    max_norm: float = 1.0
    carry_state: bool = True

    def __post_init__(self):
        for name in ("n_steps", "batch_size", "seq_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("learning_rate", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if not self.max_norm > 0:
            raise ConfigError(f"max_norm is {self.max_norm}, expected a number above 0")


class CarriedState(Hook):
    """A loss for `train` that begins each batch with the state that the batch before left, cut off from its history.

    It is also a hook of the same run, which tells it at which batch a resumed run goes on; the state itself is not in
    a checkpoint, so that such a run begins with an empty one. The batch must not be split into micro-batches.

    Args:
        batches: the streams, which say where they begin anew.
        carry: False begins every batch with an empty state.
    """

    def __init__(self, batches: StreamBatches, carry: bool = True):
        self.batches, self.carry = batches, carry
        self.step, self.state = 0, None

    def on_start(self, step: int, n_steps: int, pending: Collection[str]) -> None:
        self.step, self.state = step, None

    def __call__(self, model: RecurrentLM, inputs: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy summed over the batch, in nats; arguments as those of `next_token_loss`."""
        before: State | None = None if self.batches.begins_anew(self.step) or not self.carry else self.state
        logits, state = model(inputs, before)
        self.step, self.state = self.step + 1, detached(state)
        return kernel_cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def train_recurrent(
    token_ids: Sequence[int] | np.ndarray,
    config: RecurrentConfig,
    training: RecurrentTraining,
    seed: int = 0,
    progress: bool = True,
    device: torch.device | str = "cpu",
    hooks: Iterable[Hook] = (),
) -> RecurrentLM:
    """Make a model and train it on a text.

    Args:
        token_ids: (N,) ids, each document followed by the end-of-text id.
        config: the model's shape.
        training: how.
        seed: of the initial weights. Dropout draws from torch's own generator.
        progress: show a line with steps, loss and tokens per second.
        device: where to train.
        hooks: further listeners of the run.

    Returns:
        The model, in evaluation mode.

    Raises:
        ConfigError: if a size is out of range.
        DataError: if the text is too short, or an id is outside the vocabulary.
        TrainingError: if the loss is not finite for several steps in a row, or a signal stopped the training.

    Example:
        >>> config = RecurrentConfig(vocab_size=3, end_of_text_id=0, d_hidden=8)
        >>> training = RecurrentTraining(n_steps=60, batch_size=2, seq_len=8, learning_rate=0.03)
        >>> model = train_recurrent([1, 1, 2, 0] * 40, config, training, progress=False)
        >>> bool((model.log_probabilities([1, 1, 2, 0]) > -0.1).all())  # it has learned to count to two
        True
    """
    tokens = np.asarray(token_ids)
    batches = StreamBatches(tokens, training.batch_size, training.seq_len)
    model = RecurrentLM(config, generator(seed)).to(device)
    optimizer = AdamW(decay_groups(model, training.weight_decay), training.learning_rate, betas=(0.9, 0.99), fused=True)
    n_warmup = training.n_steps // 20
    state = CarriedState(batches, training.carry_state)
    result = train(
        model,
        optimizer,
        batches.batch,
        LoopConfig(training.n_steps, max_norm=training.max_norm, spike_sigmas=0.0),
        schedule=lambda step: warmup_cosine(step, 1.0, LAST_RATE, n_warmup, training.n_steps),
        loss_sum=state,
        hooks=[state, *([ProgressLine()] if progress else []), *hooks],
    )
    if result.stopped_by is not None:
        raise TrainingError(f"{result.stopped_by} stopped the training after {result.step} of {training.n_steps} steps")
    return model.eval()
