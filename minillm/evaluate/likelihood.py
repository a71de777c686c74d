"""How likely a model finds a text: nats per token, perplexity, bits per byte.

Dimensions: N tokens of the text, B windows at a time, T context, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from minillm.data.packing import PackedTokens
from minillm.errors import ConfigError, DataError
from minillm.train.loss import token_cross_entropy


def perplexity(nats_total: float, n_tokens: int) -> float:
    """exp(nats per token): among how many equally likely tokens the model seems to choose.

    Args:
        nats_total: summed loss.
        n_tokens: how many tokens were predicted, at least 1.

    Returns:
        At least 1; inf where the exponential overflows.

    Raises:
        DataError: if no token was predicted.

    Example:
        >>> round(perplexity(3 * math.log(7), 3), 12)
        7.0
    """
    if n_tokens < 1:
        raise DataError(f"perplexity needs at least one predicted token, not {n_tokens}")
    try:
        return math.exp(nats_total / n_tokens)
    except OverflowError:
        return math.inf


def bits_per_byte(nats_total: float, n_bytes: int) -> float:
    """nats / (ln 2 * bytes): comparable between tokenizers, and with compressors.

    Args:
        nats_total: summed loss of the whole text.
        n_bytes: UTF-8 bytes of that text, at least 1.

    Returns:
        Bits of surprise per byte of text.

    Raises:
        DataError: if there is no byte.

    Example:
        >>> bits_per_byte(16 * math.log(2), 2)
        8.0
    """
    if n_bytes < 1:
        raise DataError(f"bits per byte need at least one byte, not {n_bytes}")
    return nats_total / math.log(2) / n_bytes


@dataclass(frozen=True)
class Likelihood:
    """What a model made of a text.

    Attributes:
        nats_total: summed loss over all predicted tokens.
        n_tokens: how many were predicted.
        n_bytes: UTF-8 bytes of the text, or None where they are not known.
        losses: (n_tokens,) float64 nats in the order of the text, or None where they were not asked for.
    """

    nats_total: float
    n_tokens: int
    n_bytes: int | None = None
    losses: np.ndarray | None = None

    @property
    def nats_per_token(self) -> float:
        """Mean loss."""
        return self.nats_total / self.n_tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        return perplexity(self.nats_total, self.n_tokens)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text; ends of text are paid for but are no bytes."""
        if self.n_bytes is None:
            raise DataError("bits per byte need the number of UTF-8 bytes of the text; give n_bytes")
        return bits_per_byte(self.nats_total, self.n_bytes)


def evaluate_likelihood(
    model: Callable[[Tensor], Tensor],
    tokens: PackedTokens | np.ndarray,
    seq_len: int,
    stride: int | None = None,
    batch_size: int = 16,
    start_id: int | None = None,
    n_bytes: int | None = None,
    return_losses: bool = False,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Likelihood:
    """Predict every token of a text exactly once, in windows of `seq_len` that move on by `stride`.

    The first window predicts all its tokens; each later one only those that no window before it predicted, with at
    least seq_len - stride tokens of context. The last window ends with the text, so all windows are full. A module is
    put into evaluation mode meanwhile.

    Args:
        model: token_ids (B, T) int64 -> logits (B, T, V).
        tokens: (N,) ids.
        seq_len: context T, at most what the model can take.
        stride: 1 .. T; None means T, the cheapest. Smaller gives more context per token and costs T / stride times as
            much.
        batch_size: windows B at a time; memory grows with B * T * V.
        start_id: put before the first token (usually the end-of-text id) so that it is predicted too: N predictions.
            None: the first token is only context: N - 1 predictions.
        n_bytes: UTF-8 bytes of the text, for bits per byte; None takes `tokens.n_text_bytes` where it exists.
        return_losses: keep the loss of each token.
        device: where the model computes; None means where its first parameter lies, else the CPU.
        progress: draw a progress bar on stderr.

    Returns:
        Sums in float64.

    Raises:
        ConfigError: if a size is out of range.
        DataError: if there is nothing to predict.
    """
    stride = seq_len if stride is None else stride
    if seq_len < 1 or batch_size < 1 or not 1 <= stride <= seq_len:
        raise ConfigError(
            "seq_len and batch_size must be at least 1 and stride between 1 and seq_len; "
            f"given are seq_len {seq_len}, batch_size {batch_size}, stride {stride}"
        )
    n_start = 0 if start_id is None else 1
    n_predictions = len(tokens) - 1 + n_start
    if n_predictions < 1:
        raise DataError(f"a text of {len(tokens)} token(s) leaves nothing to predict; expected at least {2 - n_start}")
    windows = evaluation_windows(n_predictions, seq_len, stride)
    losses = np.zeros(n_predictions if return_losses else 0)
    nats_total = 0.0
    device = _device_of(model) if device is None else device
    with _evaluation_mode(model), torch.inference_mode():
        for first in tqdm(range(0, len(windows), batch_size), desc="evaluating", disable=not progress):
            group = windows[first : first + batch_size]
            window_losses = _window_losses(model, _read(tokens, group, start_id), device)  # (B, T)
            for (start, skipped, stop), row in zip(group, window_losses, strict=True):
                nats_total += float(row[skipped:].sum())
                if return_losses:
                    losses[start + skipped : stop] = row[skipped:]
    if n_bytes is None:
        n_bytes = getattr(tokens, "n_text_bytes", None)
    return Likelihood(nats_total, n_predictions, n_bytes, losses if return_losses else None)


def document_log_probabilities(
    model: Callable[[Tensor], Tensor], token_ids: np.ndarray, end_of_text_id: int, seq_len: int
) -> np.ndarray:
    """The log-probability of every id of packed documents, each document predicted from its own beginning.

    The first id of a document is predicted from an end-of-text id alone. Documents of more than `seq_len` ids are read
    in windows that move on by half of it.

    Args:
        model: token_ids (B, T) int64 -> logits (B, T, V).
        token_ids: (N,) ids, each document followed by the end-of-text id; what follows the last one counts as one more.
        end_of_text_id: what parts documents.
        seq_len: context T, at least 1, at most what the model can take.

    Returns:
        (N,) float64 nats.

    Raises:
        ConfigError: if the context is out of range.
    """
    token_ids = np.asarray(token_ids)
    ends = np.flatnonzero(token_ids == end_of_text_id) + 1
    losses = [
        evaluate_likelihood(
            model, document, length := min(seq_len, len(document)), max(1, length // 2),
            start_id=end_of_text_id, return_losses=True,
        ).losses
        for document in np.split(token_ids, ends)
        if len(document)
    ]  # fmt: skip
    return -np.concatenate([*losses, np.zeros(0)])


def evaluation_windows(n_predictions: int, seq_len: int, stride: int) -> list[tuple[int, int, int]]:
    """Which predictions each window makes and which of them are new.

    Args:
        n_predictions: how many in all, at least 1.
        seq_len: window length T; a shorter text has one window of its own length.
        stride: how far to move on, 1 .. T.

    Returns:
        (start, n_skipped, stop) per window: it makes the predictions start .. stop-1 and counts all but the first
        n_skipped.

    Example:
        >>> evaluation_windows(7, seq_len=4, stride=2)
        [(0, 0, 4), (2, 2, 6), (3, 3, 7)]
    """
    windows, n_done = [], 0
    while n_done < n_predictions:
        stop = min(n_done + (stride if windows else seq_len), n_predictions)
        start = max(stop - seq_len, 0)
        windows.append((start, n_done - start, stop))
        n_done = stop
    return windows


def _read(tokens: PackedTokens | np.ndarray, group: list[tuple[int, int, int]], start_id: int | None) -> Tensor:
    """The ids of the windows with one target more, (B, T+1); with a start id everything moves on by one."""
    rows = []
    for start, _, stop in group:
        if start_id is None:
            rows.append(np.asarray(tokens[start : stop + 1], dtype=np.int64))
        else:
            ids = np.asarray(tokens[max(start - 1, 0) : stop], dtype=np.int64)
            rows.append(np.concatenate([[start_id], ids]) if start == 0 else ids)
    return torch.from_numpy(np.stack(rows))


def _window_losses(model: Callable[[Tensor], Tensor], ids: Tensor, device: torch.device | str) -> np.ndarray:
    ids = ids.to(device)                                                 # (B, T+1)
    logits = model(ids[:, :-1])                                          # (B, T, V)
    losses = token_cross_entropy(logits, ids[:, 1:], reduction="none")   # (B, T)
    return losses.double().cpu().numpy()


def _device_of(model: Callable[[Tensor], Tensor]) -> torch.device:
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if first is None else first.device


@contextmanager
def _evaluation_mode(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Switch a module to evaluation and back; a plain function is left alone."""
    was_training = isinstance(model, nn.Module) and model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
