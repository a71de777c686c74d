"""Layers in parts on a small stage: regions, a row-parallel layer and a loss, played through among threads.

For looking at what each rank has; nothing here is needed for training.

Dimensions: P ranks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.errors import ConfigError
from minillm.nn.linear import Linear
from minillm.parallel import regions, tensor, vocab_loss
from minillm.parallel.comm import Comm
from minillm.parallel.threads import launch_threads
from minillm.parallel.traffic import CommCounter

PATIENCE_SECONDS = 3.0  # of a rank that waits for another one
REGIONS = {
    "copy": regions.copy_to_tensor_model_parallel_region,
    "reduce": regions.reduce_from_tensor_model_parallel_region,
    "scatter": regions.scatter_to_tensor_model_parallel_region,
    "gather": regions.gather_from_tensor_model_parallel_region,
    "scatter positions": regions.scatter_to_sequence_parallel_region,
    "gather positions": regions.gather_from_sequence_parallel_region,
    "reduce-scatter positions": regions.reduce_scatter_to_sequence_parallel_region,
}


def rehearse_region(
    name: str, tensors: Sequence[Tensor], output_gradients: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor, Tensor, list[str]]]:
    """Let each of P ranks send a tensor through a region and a gradient back.

    Args:
        name: one of `REGIONS`.
        tensors: one per rank, as its input.
        output_gradients: one per rank, gradient of the loss by its output; another branch gets the same one.

    Returns:
        for each rank: the output, the gradient of the input, the output gradient as the other branch finds it, and the
        collectives of this rank in order.

    Raises:
        ConfigError: if the name is unknown.

    Example:
        >>> ones = [torch.ones(1), torch.ones(1)]
        >>> [gradient.item() for _, gradient, _, _ in rehearse_region("copy", ones, [ones[0], 10 * ones[0]])]
        [11.0, 11.0]
    """
    if name not in REGIONS:
        raise ConfigError(f"region {name!r} is unknown; known are {', '.join(REGIONS)}")

    def act(comm: Comm) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        other = torch.zeros_like(output_gradients[comm.rank], requires_grad=True)
        branch = other * 1.0                                       # before the region, so backward comes to it later
        x = tensors[comm.rank].clone().requires_grad_()
        y = REGIONS[name](x, comm)
        (y + branch).backward(output_gradients[comm.rank].clone())
        said = [transfer.operation for transfer in comm.counter.transfers]
        return y.detach(), x.grad, other.grad, said

    counters = [CommCounter() for _ in tensors]
    return launch_threads(act, len(tensors), counters=counters, timeout_seconds=PATIENCE_SECONDS)


def rehearse_row_parallel(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    output_gradients: Sequence[Tensor],
    sequence_parallel: bool = False,
    input_is_parallel: bool = True,
) -> list[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Let each of P ranks use its part of one linear layer, cut by its inputs.

    Args:
        inputs: for each rank (B, T, N / P), its part of the inputs, or (B, T, N) if `input_is_parallel` is False.
        weight: (M, N), of the whole layer.
        bias: (M,) or None.
        output_gradients: one per rank, gradient of the loss by its output.
        sequence_parallel: whether each rank is to leave with its positions only.
        input_is_parallel: see `tensor.RowParallelLinear`.

    Returns:
        for each rank: the output, the gradients of its input, of its part of the weight, and of the bias.
    """

    def act(comm: Comm) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        whole = Linear(weight.shape[1], weight.shape[0], bias is not None).to(weight.dtype)
        with torch.no_grad():
            whole.weight.copy_(weight)
            if bias is not None:
                whole.bias.copy_(bias)
        layer = tensor.RowParallelLinear(whole, comm, input_is_parallel, sequence_parallel)
        x = inputs[comm.rank].clone().requires_grad_()
        y = layer(x)
        y.backward(output_gradients[comm.rank].clone())
        return y.detach(), x.grad, layer.weight.grad, None if bias is None else layer.bias.grad

    return launch_threads(act, len(inputs), timeout_seconds=PATIENCE_SECONDS)


def rehearse_losses(parts: Sequence[Tensor], targets: Tensor) -> list[tuple[Tensor, Tensor, Tensor, list[int]]]:
    """Let each of P ranks call `vocab_loss.losses_from_parts`.

    Args:
        parts: for each rank its part of the scores, (..., V / P).
        targets: (...) ids from 0 to V - 1.

    Returns:
        for each rank: the losses, its part of the softmax, its scores as they are afterwards, and how many numbers it
        gave to each collective, in order.

    Example:
        >>> one = torch.zeros(1, 1)
        >>> [round(losses.item(), 4) for losses, *_ in rehearse_losses([one, one], torch.tensor([1]))]  # log 2
        [0.6931, 0.6931]
    """

    def act(comm: Comm) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        logits = parts[comm.rank].clone()
        losses, weights = vocab_loss.losses_from_parts(logits, targets, comm)
        said = [transfer.n_bytes // logits.element_size() for transfer in comm.counter.transfers]
        return losses, weights, logits, said

    counters = [CommCounter() for _ in parts]
    return launch_threads(act, len(parts), counters=counters, timeout_seconds=PATIENCE_SECONDS)
