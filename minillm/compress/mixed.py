"""Not all weights are equal: bits by a budget, and a few weights kept exact.

How much a layer suffers from few bits is measured by rounding it alone. A budget is then spent where it helps most.
And within a layer a few weights matter more than all others: kept exact beside a dense matrix in few bits, they cost
48 bits each and save the rest (SqueezeLLM, SpQR).

Dimensions: O width of a layer's output, I width of its input, K weights kept exact.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from minillm import surgery
from minillm.compress.grid import QuantSpec, find_grid, round_to_grid, stored
from minillm.compress.packed_linear import PackedLinear
from minillm.compress.quant_linear import QuantLinear
from minillm.errors import ConfigError, ShapeError


@torch.no_grad()
def sensitivity(
    model: nn.Module, names: Sequence[str], specs: Sequence[QuantSpec], loss: Callable[[nn.Module], float]
) -> dict[str, dict[int, float]]:
    """By how much the loss rises when one layer alone is rounded.

    Args:
        model: as before afterwards.
        names: of the layers.
        specs: how to round, each of another number of bits.
        loss: model -> a number; for example on some held-out text. It is called once for each layer and spec.

    Returns:
        layer -> bits -> loss with this layer rounded, less that of the whole model; may be a little below 0.
    """
    before, rises = loss(model), {}
    for name in names:
        matrix = surgery.matrix_of(model.get_submodule(name)).data  # (O, I)
        kept, rises[name] = matrix.clone(), {}
        try:
            for spec in specs:
                matrix.copy_(round_to_grid(kept, stored(find_grid(kept, spec))))
                rises[name][spec.bits] = loss(model) - before
        finally:
            matrix.copy_(kept)
    return rises


def allocate_bits(
    rises: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], bits_per_weight: float
) -> dict[str, int]:
    """The bits for each layer with which the sum of the rises is least, within a budget.

    Rises of layers rounded together are taken to add up, which they do not exactly. Given that, the choice is the best
    there is: layer by layer, of all ways to spend so far those are kept that no other beats in both cost and rise.

    Args:
        rises: layer -> bits -> rise of the loss, as `sensitivity` gives them.
        sizes: layer -> number of weights.
        bits_per_weight: on average over all weights, at most; scales not counted.

    Returns:
        layer -> bits. Of equally good choices, the one with fewer bits.

    Raises:
        ConfigError: if not even the fewest bits everywhere fit into the budget.

    Source:
        The multiple-choice knapsack problem, solved by its undominated partial solutions (Nemhauser and Ullmann 1969).

    Example:
        >>> rises = {"a": {2: 5.0, 4: 1.0}, "b": {2: 2.0, 4: 1.5}, "c": {2: 3.0, 4: 0.0}}
        >>> allocate_bits(rises, {"a": 100, "b": 100, "c": 200}, bits_per_weight=3.0)
        {'a': 4, 'b': 4, 'c': 2}
    """
    total = sum(sizes[name] for name in rises)
    budget = bits_per_weight * total + 1e-6
    ways: list[tuple[int, float, dict[str, int]]] = [(0, 0.0, {})]  # cost in bits, rise, choice
    for name, options in rises.items():
        ways = undominated(
            [
                (cost + bits * sizes[name], rise + options[bits], choice | {name: bits})
                for cost, rise, choice in ways
                for bits in options
                if cost + bits * sizes[name] <= budget
            ]
        )
    if not ways:
        fewest = sum(min(options) * sizes[name] for name, options in rises.items()) / total
        raise ConfigError(f"bits_per_weight={bits_per_weight}: the fewest bits everywhere are {fewest:.2f}")
    return ways[-1][2]


def undominated(ways: list[tuple[int, float, dict[str, int]]]) -> list[tuple[int, float, dict[str, int]]]:
    """Of (cost, rise, choice) those than which none cheaper, or as cheap, has no higher rise; by rising cost.

    Example:
        >>> undominated([(2, 1.0, {}), (1, 3.0, {}), (3, 1.0, {}), (2, 5.0, {})])
        [(1, 3.0, {}), (2, 1.0, {})]
    """
    kept: list[tuple[int, float, dict[str, int]]] = []
    for way in sorted(ways, key=lambda way: way[:2]):
        if not kept or way[1] < kept[-1][1]:
            kept.append(way)
    return kept


def split_outliers(weight: Tensor, share: float, input_size: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A matrix as a dense one without its most important weights, and these.

    Args:
        weight: (O, I).
        share: of the weights that are taken out, 0 to 1, rounded down to whole weights.
        input_size: (I,) of each input, for example its root mean square: what counts is weight times input. None counts
            the weight alone.

    Returns:
        dense (O, I) with zeros where a weight was taken out, and the places (K,) int64 of these, counted row by row,
        rising. Of equally important weights the first is taken.

    Raises:
        ConfigError: if the share is none.
        ShapeError: if the inputs have another width.

    Source:
        Kim et al. 2023, arXiv:2306.07629, section 4.2 (dense and sparse); importance by |w| rms(x) as in Wanda
        (Sun et al. 2023, arXiv:2306.11695, equation 1).

    Example:
        >>> dense, places = split_outliers(torch.tensor([[1.0, -5.0], [3.0, 2.0]]), share=0.5)
        >>> dense.tolist(), places.tolist()
        ([[1.0, 0.0], [0.0, 2.0]], [1, 2])
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"share={share}: expected 0 to 1")
    if input_size is not None and input_size.shape != weight.shape[1:]:
        raise ShapeError(f"input_size has the shape {tuple(input_size.shape)}, the weights {tuple(weight.shape)}")
    importance = weight.abs() if input_size is None else weight.abs() * input_size
    order = importance.flatten().sort(descending=True, stable=True).indices
    places = order[: int(share * weight.numel() + 1e-9)].sort().values  # (K,)
    return weight.flatten().index_fill(0, places, 0.0).view_as(weight), places


class DenseAndSparseLinear(PackedLinear):
    """A linear layer on a grid, but for a few weights in 16 bits at places in 32 bits.

    Args:
        layer: a linear layer, which is not changed.
        spec: the grid of the rest; it is found without the weights that are kept, and is finer for it.
        share: of the weights that are kept, see `split_outliers`.
        input_size: (I,), likewise.

    Attributes:
        dense: the rest, a `QuantLinear`.
        places: (K,) int32.
        values: (K,) fp16.

    Raises:
        ConfigError: if the layer is packed already.

    Example:
        >>> from minillm.compress.packed_linear import stored_bytes
        >>> layer = nn.Linear(64, 50, bias=False)
        >>> stored_bytes(DenseAndSparseLinear(layer, QuantSpec(4, symmetric=True), share=0.01)) - 32 * 6
        1700
    """

    def __init__(self, layer: nn.Module, spec: QuantSpec, share: float = 0.005, input_size: Tensor | None = None):
        if surgery.is_packed(layer):
            raise ConfigError(f"the layer is packed already ({layer.extra_repr()}); quantizing twice only adds errors")
        super().__init__(layer)
        weight = surgery.matrix_of(layer).detach().float()         # (O, I)
        rest, places = split_outliers(weight, share, input_size)
        self.spec, self.share = spec, share
        with torch.device("meta"):
            whole = nn.Linear(self.d_in, self.d_out, bias=False)
        whole.weight = nn.Parameter(rest, requires_grad=False)
        self.dense = QuantLinear(whole, spec)
        self.register_buffer("places", places.int())
        self.register_buffer("values", weight.flatten()[places].half())

    def settings(self) -> dict[str, object]:
        return dataclasses.asdict(self.spec) | {"share": self.share}

    @classmethod
    def empty(cls, layer: nn.Module, share: float = 0.0, **settings: object) -> "DenseAndSparseLinear":
        return cls(layer, QuantSpec(**settings), share)

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """(O, I) float32."""
        return self.dense.matrix().flatten().index_copy(0, self.places.long(), self.values.float()).view(self.d_out, -1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.spec.bits}, kept={len(self.places)}"
