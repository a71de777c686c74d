"""Activation checkpointing: keep a block's input, forget what lies between, and compute it again when backward comes.

Backward needs what forward computed. Keeping all of it is fast and large; keeping one tensor per block costs one more
forward pass. A model need not know: `recomputing` wraps parts of it from outside.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Recompute(torch.autograd.Function):
    """A function that keeps its inputs instead of its intermediate results; used through `recompute`."""

    @staticmethod
    def forward(context, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Run without building a graph; remember the inputs and what else decides the result."""
        context.function = function
        context.surroundings = Surroundings(tensors[0].device)
        context.save_for_backward(*tensors)
        return function(tensors[0])

    @staticmethod
    @once_differentiable
    def backward(context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Run again, with a graph this time, and go back through it."""
        x, *parameters = context.saved_tensors
        x = x.detach().requires_grad_(context.needs_input_grad[1])
        with torch.enable_grad(), context.surroundings.restored():
            output = context.function(x)
        wanted = [tensor for tensor in (x, *parameters) if tensor.requires_grad]
        found = iter(torch.autograd.grad(output, wanted, gradient, allow_unused=True))
        return None, *(next(found) if tensor.requires_grad else None for tensor in (x, *parameters))


class Surroundings:
    """What decides a result beside the arguments: the state of the generators (dropout) and the autocast setting."""

    def __init__(self, device: torch.device):
        self.device = device
        self.cpu_state = torch.get_rng_state()
        self.card_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self.autocast = (torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within it everything is as it was; afterwards the generators go on as if nothing had been drawn."""
        enabled, dtype = self.autocast
        autocast = torch.autocast(self.device.type, dtype=dtype) if enabled else nullcontext()
        with torch.random.fork_rng([self.device] if self.card_state is not None else []), autocast:
            torch.set_rng_state(self.cpu_state)
            if self.card_state is not None:
                torch.cuda.set_rng_state(self.card_state, self.device)
            yield


def recompute(function: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
    """function(x), of which only x is kept for backward; backward computes the rest again.

    Args:
        function: of one tensor. The second call must do what the first did: generators of torch and the autocast
            setting are put back, anything else that it reads must not have changed.
        x: its argument.
        parameters: all other tensors that need gradients through `function`.

    Returns:
        function(x), with the same gradients for x and the parameters.

    Source:
        Chen et al. 2016, arXiv:1604.06174, section 4.

    Example:
        >>> weight = torch.tensor([3.0], requires_grad=True)
        >>> recompute(lambda x: (x * weight).exp(), torch.zeros(1), [weight]).backward()
        >>> recompute(lambda x: (x * weight).exp(), torch.ones(1), [weight]).log().backward()
        >>> weight.grad
        tensor([1.])
    """
    return Recompute.apply(function, x, *parameters)


@contextmanager
def recomputing(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it, each of these modules keeps only its input for backward. Backward may come later.

    Args:
        modules: parts of a model whose forward takes a tensor first and gives one tensor (the blocks of a decoder);
            further arguments are passed on and get no gradient. Parameters, names and results stay what they were.
    """
    wrapped = []
    try:
        for module in modules:
            module.forward = partial(forward_recomputed, module, module.forward)
            wrapped.append(module)
        yield
    finally:
        for module in wrapped:
            del module.forward


def forward_recomputed(module: nn.Module, forward: Callable[..., Tensor], x: Tensor, *others, **named) -> Tensor:
    """A module's forward through `recompute`."""
    return recompute(lambda x: forward(x, *others, **named), x, list(module.parameters()))


def kept_bytes(run: Callable[[], object], not_counted: Iterable[Tensor] = ()) -> int:
    """How many bytes autograd keeps for backward while `run` runs; a memory that is kept twice counts once.

    Args:
        run: builds a graph, such as `lambda: model(token_ids)`.
        not_counted: tensors that are in memory anyway, such as the model's parameters.

    Returns:
        the bytes of all memory kept, views counted as the whole that they look into.

    Example:
        >>> x = torch.ones(10, requires_grad=True)
        >>> kept_bytes(lambda: x.exp())  # exp keeps its result: the derivative is the value
        40
    """
    kept: dict[int, Tensor] = {}

    def remember(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        result = run()
    for tensor in not_counted:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    n_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result
    return n_bytes
