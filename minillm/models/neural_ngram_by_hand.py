"""The neural n-gram model in NumPy: every derivative written out, and the descent along them.

The weights are a dictionary whose names are those of the torch module in `minillm.models.neural_ngram`, so that either
can go on with the other's.

Dimensions: B examples, T = n - 1 ids of context, C width of a word's vector, F hidden width, V vocabulary.

Source: Bengio, Ducharme, Vincent and Jauvin 2003, "A neural probabilistic language model", JMLR 3, sections 2 and 3.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from minillm.errors import ConfigError, TrainingError
from minillm.models.neural_ngram import NeuralNGramConfig
from minillm.nn.by_hand import affine, affine_backward, embedding_backward, softmax_cross_entropy, tanh_backward

Weights = dict[str, np.ndarray]


def initial_weights(
    config: NeuralNGramConfig, generator: np.random.Generator, dtype: type[np.floating] = np.float64
) -> Weights:
    """Normal random numbers of the sizes that the config asks for; biases and direct connections are 0.

    Args:
        config: the model's shape.
        generator: where the numbers come from.
        dtype: float64 for checking gradients, float32 for speed.

    Returns:
        "embedding.weight" (V, C), "hidden.weight" (F, T * C), "hidden.bias" (F,), "output.weight" (V, F),
        "output.bias" (V,), and with `config.direct` "direct.weight" (V, T * C).
    """
    vocab_size, d_input, d_hidden = config.vocab_size, config.d_input, config.d_hidden

    def normal(std: float, *shape: int) -> np.ndarray:
        return config.scale * std * generator.standard_normal(shape)

    weights = {
        "embedding.weight": normal(config.embedding_std, vocab_size, config.d_embedding),
        "hidden.weight": normal(d_input**-0.5, d_hidden, d_input),
        "hidden.bias": np.zeros(d_hidden),
        "output.weight": normal(d_hidden**-0.5, vocab_size, d_hidden),
        "output.bias": np.zeros(vocab_size),
    }
    if config.direct:
        weights["direct.weight"] = np.zeros((vocab_size, d_input))
    return {name: values.astype(dtype) for name, values in weights.items()}


def forward(weights: Weights, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scores of every id after each context, and on the way what the backward pass will ask for.

    Args:
        weights: see `initial_weights`.
        contexts: (B, T) integers, the nearest id last.

    Returns:
        the vectors side by side (B, T * C), the hidden units tanh(...) (B, F), and the scores (B, V).
    """
    x = weights["embedding.weight"][contexts].reshape(len(contexts), -1)                # (B, T * C)
    hidden = np.tanh(affine(x, weights["hidden.weight"], weights["hidden.bias"]))       # (B, F)
    logits = affine(hidden, weights["output.weight"], weights["output.bias"])           # (B, V)
    if "direct.weight" in weights:
        logits = logits + affine(x, weights["direct.weight"])      # (B, V)
    return x, hidden, logits


def loss_and_gradients(weights: Weights, contexts: np.ndarray, targets: np.ndarray) -> tuple[float, Weights]:
    """The mean loss of the examples, and its derivative by every number of the model: back-propagation.

    `forward` gives the vectors x, the hidden units and the scores. From the loss backwards: `softmax_cross_entropy`
    gives the derivative by the scores; `affine_backward` of the output layer those by its weight, its bias and the
    hidden units; `tanh_backward` and `affine_backward` of the hidden layer the next, down to x. Where there are direct
    connections, x acts on the scores on two ways, and its derivatives are added. x is T vectors side by side;
    `embedding_backward` brings each back to the row it was copied from.

    Args:
        weights: see `initial_weights`; they are not changed.
        contexts: (B, T) integers 0 .. V-1, the nearest id last; B at least 1.
        targets: (B,) integers 0 .. V-1.

    Returns:
        nats per example, and a derivative for each weight under the same names, in the same shapes.

    Raises:
        ShapeError, DataError: as `softmax_cross_entropy`.

    Source:
        Bengio et al. 2003, section 3.1, "backward/update phase"; there for one example at a time.
    """
    x, hidden, logits = forward(weights, contexts)
    loss, d_logits = softmax_cross_entropy(logits, targets)
    gradients = {}
    d_hidden, gradients["output.weight"], gradients["output.bias"] = affine_backward(
        d_logits, hidden, weights["output.weight"]
    )
    d_x, gradients["hidden.weight"], gradients["hidden.bias"] = affine_backward(
        tanh_backward(d_hidden, hidden), x, weights["hidden.weight"]
    )
    if "direct.weight" in weights:
        d_x_direct, gradients["direct.weight"], _ = affine_backward(d_logits, x, weights["direct.weight"])
        d_x = d_x + d_x_direct
    n_rows, width = weights["embedding.weight"].shape
    gradients["embedding.weight"] = embedding_backward(d_x.reshape(*contexts.shape, width), contexts, n_rows)
    return loss, gradients


@dataclass(frozen=True)
class LossOfOne:
    """The loss as a function of one of the weights, the others fixed: what `finite_differences` can be given.

    Args:
        name: of the weight that varies.
        weights: all of them.
        contexts: (B, T) integers.
        targets: (B,) integers.
    """

    name: str
    weights: Weights
    contexts: np.ndarray
    targets: np.ndarray

    def __call__(self, values: np.ndarray) -> float:
        """The loss with these values in place of the weight of that name."""
        _, _, logits = forward({**self.weights, self.name: values}, self.contexts)
        return softmax_cross_entropy(logits, self.targets)[0]


def descend(weights: Weights, gradients: Weights, learning_rate: float) -> Weights:
    """One step downhill: every weight minus learning_rate times its derivative; the old weights are not changed."""
    return {name: values - learning_rate * gradients[name] for name, values in weights.items()}


def train_by_hand(
    weights: Weights,
    batches: Callable[[int], tuple[np.ndarray, np.ndarray]],
    n_steps: int,
    learning_rate: float,
    half_after: float = float("inf"),
    progress: bool = True,
) -> tuple[Weights, list[float]]:
    """Stochastic gradient descent: a batch, its gradients, a step, and again.

    Args:
        weights: where to begin.
        batches: step (0 is the first) -> contexts and targets, both (B, T); of the targets the last of each row is
            meant, as `minillm.data.contexts.ContextBatches.batch` gives them.
        n_steps: how many steps.
        learning_rate: of the first step.
        half_after: after so many steps the rate is half of it, after twice as many a third, and so on.
        progress: draw a progress bar on stderr.

    Returns:
        the weights after the last step, and the loss of each step's batch before it.

    Raises:
        ConfigError: if a number is out of range.
        TrainingError: if the loss is no longer finite.
    """
    if n_steps < 0 or not learning_rate > 0 or not half_after > 0:
        raise ConfigError(
            f"n_steps {n_steps}, learning_rate {learning_rate}, half_after {half_after}: expected 0 or more steps, and "
            "positive numbers"
        )
    losses: list[float] = []
    with tqdm(range(n_steps), unit="step", mininterval=0.2, disable=not progress) as bar:
        for step in bar:
            contexts, targets = batches(step)
            loss, gradients = loss_and_gradients(weights, contexts, targets[:, -1])
            if not np.isfinite(loss):
                raise TrainingError(f"the loss of step {step} is {loss}; lower the learning rate {learning_rate}")
            weights = descend(weights, gradients, learning_rate / (1 + step / half_after))
            losses.append(loss)
            tokens_per_second = len(contexts) * (bar.format_dict["rate"] or 0)
            bar.set_postfix_str(f"loss {loss:.3f} {tokens_per_second:,.0f} tokens/s", refresh=False)
    return weights, losses
