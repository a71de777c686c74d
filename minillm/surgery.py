"""Operations on a finished model: find its parts, wrap or replace them, put the old ones back, freeze, count, watch.

The model does not know. What adapts, compresses or explains models does it through here.

Dimensions: N rows of a layer's input (all positions together), I width of the input.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from minillm.errors import ConfigError, ShapeError

LINEAR_CLASSES = ("Linear", "Conv1D")  # torch's, ours, and transformers' GPT-2 layer whose weight is (in, out)
PACKED = "PackedLinear"  # what linear layers in few bits inherit from; their `weight` is made anew at every access
FUSED = {"qkv": ("query", "key", "value"), "c_attn": ("query", "key", "value"), "key_value": ("key", "value")}
SHOWN = 12  # names in an error message
Make = Callable[[str, nn.Module], nn.Module]


def find(
    model: nn.Module,
    targets: str | Iterable[str] = (),
    kinds: Callable[[nn.Module], bool] | None = None,
    exclude: str | Iterable[str] = (),
) -> dict[str, nn.Module]:
    """The modules of a model that are meant by name, by kind, or both.

    A target means a module if it is its whole dotted name ("blocks.0.attention.qkv"), the end of it ("qkv",
    "attention.qkv"), or a regular expression that matches the whole name (r"blocks\\.[01]\\..*"). One module that has
    several names is found once.

    Args:
        model: any module.
        targets: one or several; none means every name.
        kinds: module -> whether it is of the kind wanted, for example `is_linear`; None takes every kind.
        exclude: targets that are not meant after all.

    Returns:
        name -> module, in the model's order.

    Raises:
        ConfigError: if nothing is found, with the names that there are; or if a regular expression is none.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> list(find(model, kinds=is_linear)), list(find(model, "2"))
        (['0', '2'], ['2'])
    """
    wanted, unwanted = as_list(targets), as_list(exclude)
    named = [(name, module) for name, module in model.named_modules() if name]
    of_kind = [pair for pair in named if kinds is None or kinds(pair[1])]
    found = {name: module for name, module in of_kind if not wanted or any(means(name, target) for target in wanted)}
    found = {name: module for name, module in found.items() if not any(means(name, target) for target in unwanted)}
    unmatched = [target for target in wanted if not any(means(name, target) for name, _ in of_kind)]
    if not found or unmatched:
        raise ConfigError(
            f"no module of {type(model).__name__} is meant by {unmatched or wanted or 'that kind'}"
            f"{f' without {unwanted}' if unwanted else ''}; candidates are {endings([name for name, _ in of_kind])}"
        )
    return found


def as_list(targets: str | Iterable[str]) -> list[str]:
    """One name or several as a list."""
    return [targets] if isinstance(targets, str) else list(targets)


def means(name: str, target: str) -> bool:
    """Whether a target is a dotted name, its end, or a regular expression for the whole of it."""
    if name == target or name.endswith(f".{target}"):
        return True
    try:
        return re.fullmatch(target, name) is not None
    except re.error as error:
        raise ConfigError(f"{target!r} is neither the end of a name nor a regular expression ({error})") from error


def endings(names: Sequence[str]) -> str:
    """The different last words of names, for messages: a model of ninety layers has few."""
    last = list(dict.fromkeys(re.sub(r"^.*\.\d+\.", "", name) for name in names))
    more = f" and {len(last) - SHOWN} more" if len(last) > SHOWN else ""
    return f"{', '.join(last[:SHOWN])}{more}" if last else "none: the model has no such part"


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer: torch's, this library's, a packed one, or `transformers`' Conv1D."""
    if is_packed(module):
        return True
    has_matrix = isinstance(getattr(module, "weight", None), Tensor) and module.weight.dim() == 2
    return has_matrix and any(kind.__name__ in LINEAR_CLASSES for kind in type(module).__mro__)


def is_packed(module: nn.Module) -> bool:
    """Whether it is a linear layer stored in few bits: no weight of it can be trained or written to."""
    return any(kind.__name__ == PACKED for kind in type(module).__mro__)


def is_embedding(module: nn.Module) -> bool:
    """Whether it is a table of vectors: torch's or this library's."""
    return any(kind.__name__ == "Embedding" for kind in type(module).__mro__)


def is_transposed(module: nn.Module) -> bool:
    """Whether the layer's weight is stored as (in, out), as in GPT-2 of `transformers`."""
    return any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def matrix_of(layer: nn.Module) -> Tensor:
    """A linear layer's weight as (out, in), however it is stored; a view, so that writing into it writes the weight.

    Of a packed layer it is no view but made anew: writing into it changes nothing.

    Raises:
        ConfigError: if the module is no linear layer.
    """
    if not is_linear(layer):
        raise ConfigError(f"{type(layer).__name__} is no linear layer; expected one of {LINEAR_CLASSES}")
    return layer.weight.T if is_transposed(layer) else layer.weight


def sections_of(model: nn.Module, name: str) -> dict[str, slice]:
    """The rows of a layer that makes several things at once, by what they make.

    Args:
        model: holds the layer.
        name: of the layer.

    Returns:
        {"query": ..., "key": ..., "value": ...} for a fused `qkv` (or GPT-2's `c_attn`), {"key": ..., "value": ...} for
        `key_value`, nothing for any other layer; slices of the rows of `matrix_of`.
    """
    parent, last = parent_of(model, name)
    layer = unwrapped(model.get_submodule(name))
    if last not in FUSED:
        return {}
    names = FUSED[last]
    n_rows = matrix_of(layer).shape[0]
    sizes = getattr(parent, "sections", None) or (n_rows // len(names),) * len(names)
    sizes = tuple(sizes)[-len(names) :]
    if sum(sizes) != n_rows:
        return {}  # a layer of that name which makes something else, such as the queries alone of cross attention
    begins = [sum(sizes[:index]) for index in range(len(sizes))]
    return {part: slice(begin, begin + size) for part, begin, size in zip(names, begins, sizes, strict=True)}


def unwrapped(module: nn.Module) -> nn.Module:
    """The layer inside what was put around it; a wrapper calls it `base`."""
    while isinstance(inner := getattr(module, "base", None), nn.Module):
        module = inner
    return module


def parent_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a module, and the name by which it does."""
    path, _, last = name.rpartition(".")
    return model.get_submodule(path), last


def replace(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put `new` in a module's place; a module with several names is replaced under all of them.

    Args:
        model: is changed.
        name: of the module to replace.
        new: gets the old one's training mode.

    Returns:
        the old module.
    """
    old = model.get_submodule(name)
    for holder in list(model.modules()):
        for last, child in list(holder.named_children()):
            if child is old and holder is not new:
                setattr(holder, last, new)
    return old


@dataclass
class Operation:
    """What was replaced in a model, and the way back.

    Attributes:
        model: the patient.
        replaced: (name, the module that was there before), in the order of the work.
    """

    model: nn.Module
    replaced: list[tuple[str, nn.Module]] = field(default_factory=list)

    def restore(self) -> None:
        """Put all old modules back, the last first; a second call does nothing."""
        while self.replaced:
            name, old = self.replaced.pop()
            replace(self.model, name, old)


def wrap(model: nn.Module, names: Iterable[str], make: Make) -> Operation:
    """Put in place of each named module what `make` builds around it; all or, if one fails, none.

    Args:
        model: is changed.
        names: of modules, as `find` gives them.
        make: (name, module) -> the module that takes its place.

    Returns:
        the operation, which can be undone.
    """
    operation = Operation(model)
    try:
        for name in names:
            old = model.get_submodule(name)
            new = make(name, old).train(old.training)
            operation.replaced.append((name, old))
            replace(model, name, new)
    except BaseException:
        operation.restore()
        raise
    return operation


@dataclass
class Overlay:
    """Methods that were laid over a module's own, and the way back; made by `overlay`."""

    module: nn.Module
    methods: type
    attributes: tuple[str, ...] = ()

    def remove(self) -> None:
        """Give the module its own methods back; a second call does nothing.

        Raises:
            ConfigError: if something was laid over these methods since.
        """
        layered = type(self.module)
        if self.methods not in layered.__mro__:
            return
        if layered.__bases__[0] is not self.methods:
            raise ConfigError(
                f"{layered.__bases__[0].__name__} was laid over {self.methods.__name__} later; remove that first"
            )
        self.module.__class__ = layered.__bases__[1]
        for name in self.attributes:
            del self.module.__dict__[name]


def overlay(module: nn.Module, methods: type, **attributes: object) -> Overlay:
    """Lay the methods of a class over a module's own, which they call by `super()`; names and parameters stay.

    For changes that no wrapper can make: several methods at once, or one that the model calls by name. The module is
    still an instance of its class, and of `methods`.

    Args:
        module: is changed.
        methods: a plain class whose methods stand before the module's own.
        attributes: what these methods need of `self`; kept beside the module's own and not registered as its parts.

    Returns:
        the overlay, which can be removed.

    Raises:
        ConfigError: if the module has these methods already, or an attribute of one of the names.

    Example:
        >>> class Twice:
        ...     def forward(self, x):
        ...         return self.factor * super().forward(x)
        >>> layer = nn.ReLU()
        >>> laid = overlay(layer, Twice, factor=2.0)
        >>> layer(torch.tensor(3.0)).item(), type(layer).__name__
        (6.0, 'ReLU')
        >>> laid.remove()
        >>> layer(torch.tensor(3.0)).item()
        3.0
    """
    own = type(module)
    if isinstance(module, methods):
        raise ConfigError(f"{methods.__name__} is laid over this {own.__name__} already; remove it first")
    if taken := [name for name in attributes if hasattr(module, name)]:
        raise ConfigError(f"{own.__name__} has an attribute {taken[0]!r} already, which {methods.__name__} needs")
    module.__class__ = type(own.__name__, (methods, own), {"__module__": own.__module__, "__doc__": own.__doc__})
    module.__dict__.update(attributes)
    return Overlay(module, methods, tuple(attributes))


def tied(model: nn.Module) -> list[list[str]]:
    """Groups of names that mean one and the same parameter, for example an embedding and a head.

    Example:
        >>> model = nn.ModuleDict({"embedding": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
        >>> model["head"].weight = model["embedding"].weight
        >>> tied(model)
        [['embedding.weight', 'head.weight']]
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def freeze(model: nn.Module, but: Callable[[str, nn.Parameter], bool] | None = None) -> None:
    """Let no parameter be trained, except those that `but` names; gradients of frozen ones are dropped.

    Args:
        model: is changed.
        but: (name, parameter) -> whether it is to be trained; None freezes all. A tied parameter is trained if any of
            its names is.
    """
    trained = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if but is not None and but(name, p)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
        if id(parameter) not in trained:
            parameter.grad = None


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by their first name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@dataclass(frozen=True)
class Count:
    """Numbers of a model: all, and those that are trained.

    Example:
        >>> str(Count(total=1_000_000, trainable=2_500))
        '2,500 of 1,000,000 parameters are trained (0.25 %)'
    """

    total: int
    trainable: int

    @property
    def share(self) -> float:
        """Trained numbers over all."""
        return self.trainable / max(1, self.total)

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({100 * self.share:.3g} %)"


def count(model: nn.Module) -> Count:
    """Count a model's parameters, tied ones once."""
    return Count(sum(p.numel() for p in model.parameters()), sum(p.numel() for p in trainable(model).values()))


@dataclass
class InputStatistics:
    """What a linear layer was given, added up over any number of calls.

    Attributes:
        n_rows: positions N seen so far.
        products: (I, I) sum of x x^T over positions, or None if it was not asked for.
        largest: (I,) largest absolute value.
        sums: (I,) sum of absolute values.
        squares: (I,) sum of squares.
    """

    n_rows: int = 0
    products: Tensor | None = None
    largest: Tensor | None = None
    sums: Tensor | None = None
    squares: Tensor | None = None

    def add(self, x: Tensor, with_products: bool) -> None:
        """Add the rows of one input (..., I)."""
        rows = x.detach().reshape(-1, x.shape[-1])                 # (N, I)
        rows = rows if rows.dtype == torch.float64 else rows.float()  # (N, I)
        if not len(rows):
            return                                                 # an expert that no token of this batch visits
        absolute = rows.abs()
        new = {"largest": absolute.amax(0), "sums": absolute.sum(0), "squares": rows.square().sum(0)}
        if with_products:
            new["products"] = rows.T @ rows
        self.n_rows += len(rows)
        for name, value in new.items():
            old = getattr(self, name)
            if old is None:
                setattr(self, name, value)
            elif name == "largest":
                torch.maximum(old, value, out=old)
            else:
                old += value


class ActivationRecorder:
    """While open, watches the inputs of layers: one pass over some text serves every method that needs statistics.

    Args:
        model: the layers' model.
        names: of the layers to watch, as `find` gives them.
        with_products: also add up x x^T, which needs I^2 numbers a layer.

    Attributes:
        statistics: name -> `InputStatistics`.

    Raises:
        ShapeError: in the forward pass, if an input is not finite; names the layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1))
        >>> with ActivationRecorder(model, ["0"]) as recorder:
        ...     _ = model(torch.tensor([[1.0, -3.0], [2.0, 1.0]]))
        >>> recorder.statistics["0"].largest.tolist(), recorder.statistics["0"].products.tolist()
        ([2.0, 3.0], [[5.0, -1.0], [-1.0, 10.0]])
    """

    def __init__(self, model: nn.Module, names: Iterable[str], with_products: bool = True):
        self.model, self.with_products = model, with_products
        self.statistics = {name: InputStatistics() for name in names}
        self.handles: list = []

    def __enter__(self) -> "ActivationRecorder":
        for name in self.statistics:
            layer = self.model.get_submodule(name)
            self.handles.append(layer.register_forward_pre_hook(self.watcher(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def watcher(self, name: str) -> Callable[[nn.Module, tuple], None]:
        """The hook of one layer."""

        def watch(layer: nn.Module, inputs: tuple) -> None:
            x = inputs[0]
            if not bool(torch.isfinite(x).all()):
                raise ShapeError(f"an input of {name} is not finite (NaN or infinite); look at the layers before it")
            self.statistics[name].add(x, self.with_products)

        return watch
