"""What a compressed model takes, to the byte: codes, scales, zeros and masks, and all that was left as it was.

A ratio depends on what is counted and on what it is compared with. So the report has the parts of the model one by one,
the whole with its embeddings and head and without them, and each ratio against numbers of 32 bits and of 16.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from minillm import surgery


@dataclass(frozen=True)
class Part:
    """Some of a model's numbers.

    Attributes:
        name: of the layer, or of the kind.
        n_weights: numbers that they mean.
        n_bytes: that they take, with everything that is needed to read them.
        form: in which they are stored, for example "QuantLinear, 4 bits".

    Example:
        >>> Part("up", n_weights=1000, n_bytes=500).bits_per_weight, Part("up", 1000, 500).ratio(16)
        (4.0, 4.0)
    """

    name: str
    n_weights: int
    n_bytes: int
    form: str = ""

    @property
    def bits_per_weight(self) -> float:
        """8 bytes / weights; 0 if there are none."""
        return 8 * self.n_bytes / self.n_weights if self.n_weights else 0.0

    def ratio(self, bits: int) -> float:
        """How many times smaller than with so many bits a weight; 1 if there are none."""
        return bits / self.bits_per_weight if self.n_bytes else 1.0


@dataclass(frozen=True)
class CompressionReport:
    """A model's bytes; printed, it is a table.

    Attributes:
        layers: each linear layer but the head, without its bias.
        embeddings: token and position vectors, and the head.
        rest: norms, biases and what else is stored.
    """

    layers: tuple[Part, ...]
    embeddings: Part
    rest: Part

    @property
    def linear(self) -> Part:
        """All linear layers but the head."""
        return total("linear layers", self.layers)

    @property
    def body(self) -> Part:
        """All but embeddings and head, as papers usually count."""
        return total("without embeddings and head", (self.linear, self.rest))

    @property
    def whole(self) -> Part:
        """Everything."""
        return total("everything", (self.body, self.embeddings))

    def __str__(self) -> str:
        lines = [f"{'part':28} {'weights':>13} {'bytes':>13} {'bits/weight':>11} {'of fp32':>8} {'of fp16':>8}"]
        for part in (self.linear, self.embeddings, self.rest, self.body, self.whole):
            figures = f"{part.n_weights:13,} {part.n_bytes:13,} {part.bits_per_weight:11.3f}"
            lines.append(f"{part.name:28} {figures} {part.ratio(32):7.2f}x {part.ratio(16):7.2f}x")
        return "\n".join(lines)


def total(name: str, parts: Iterable[Part]) -> Part:
    """Several parts as one."""
    parts = list(parts)
    return Part(name, sum(part.n_weights for part in parts), sum(part.n_bytes for part in parts))


def compression_report(model: nn.Module, head: str | Iterable[str] = ("head",)) -> CompressionReport:
    """Count a model's numbers and bytes; what several modules share counts once, with the first.

    Args:
        model: any.
        head: names, as in `surgery.find`, of the layers that turn hidden states into scores.

    Returns:
        the report. Its `whole.n_bytes` is what `stored_bytes` says and, but for the table of names, what a file takes.

    Example:
        >>> report = compression_report(nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3)))
        >>> report.linear.n_weights, report.embeddings.n_weights, report.rest.n_weights, report.whole.ratio(32)
        (12, 40, 3, 1.0)
    """
    heads, tables, seen, layers = surgery.as_list(head), [], set(), []
    counts = {"embeddings and head": [0, 0], "norms, biases, other": [0, 0]}
    for name, module in model.named_modules():
        own, meant = own_tensors(module, seen), 0
        bias = [tensor for last, tensor in own if last == "bias"]
        table = [tensor for last, tensor in own if last != "bias"]
        if surgery.is_packed(module) and table:
            meant = module.d_out * module.d_in
        elif surgery.is_linear(module) or surgery.is_embedding(module):
            meant = sum(tensor.numel() for tensor in table)
        if surgery.is_embedding(module):
            tables.append(f"{name}.")
        if name.startswith(tuple(tables)) or f"{name}." in tables or any(surgery.means(name, each) for each in heads):
            add(counts["embeddings and head"], meant, table)
        elif meant:
            layers.append(Part(name, meant, n_bytes_of(table), form_of(module)))
        else:
            bias = bias + table
        add(counts["norms, biases, other"], sum(tensor.numel() for tensor in bias), bias)
    embeddings, rest = (Part(name, *count) for name, count in counts.items())
    return CompressionReport(tuple(layers), embeddings, rest)


def own_tensors(module: nn.Module, seen: set[int]) -> list[tuple[str, Tensor]]:
    """What a module itself stores in a file and no module before it does; marks it as seen.

    A packed layer's parts, such as a second layer in it, are its own.
    """
    within = module.state_dict(keep_vars=True) if surgery.is_packed(module) else direct(module)
    own = [(name.rpartition(".")[2], tensor) for name, tensor in within.items() if id(tensor) not in seen]
    seen |= {id(tensor) for _, tensor in own}
    return own


def direct(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers that are the module's and not its parts'."""
    return {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if "." not in name}


def add(count: list[int], n_weights: int, tensors: list[Tensor]) -> None:
    """Add numbers and bytes to a count of both."""
    count[0] += n_weights
    count[1] += n_bytes_of(tensors)


def n_bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def form_of(module: nn.Module) -> str:
    """The form of a linear layer, in words."""
    if not surgery.is_packed(module):
        return str(module.weight.dtype).removeprefix("torch.")
    settings = ", ".join(f"{name}={value}" for name, value in module.settings().items())
    return f"{type(module).__name__}({settings})"
