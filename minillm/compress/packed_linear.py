"""Linear layers that are stored in few bits: they make their matrix anew for every product and never keep it.

Gradients flow to a layer's input and not to its weights, so that something else can be trained around it (QLoRA).

Dimensions: I width of a layer's input, O width of its output, N = O I weights, n blocks of them.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from minillm import surgery
from minillm.compress import nf4
from minillm.errors import ConfigError, ShapeError


class PackedProduct(torch.autograd.Function):
    """x W^T with a packed W. With the gradient g by the product, that by x is g W; W is made twice and kept never."""

    @staticmethod
    def forward(x: Tensor, layer: "PackedLinear") -> Tensor:
        return layer.multiply(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, "PackedLinear"], output: Tensor) -> None:
        ctx.layer = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.multiply_back(gradient), None


class PackedLinear(nn.Module):
    """A linear layer whose matrix is stored in a packed form; what all such forms have in common.

    Args:
        layer: a linear layer whose matrix the subclass stores; its bias, if it has one, is taken over as it is.

    Attributes:
        d_in, d_out: I and O.
        stretch: what the result is multiplied by, see `StretchedLinear`.
        like: an empty tensor; its number format, which `model.to` changes, is that of `weight`.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        matrix = surgery.matrix_of(layer)                          # (O, I)
        self.d_out, self.d_in = matrix.shape
        self.stretch: float = getattr(layer, "stretch", 1.0)
        self.bias = getattr(layer, "bias", None)
        self.register_buffer("like", matrix.detach().new_empty(0), persistent=False)

    def matrix(self) -> Tensor:
        """What the stored numbers mean: (O, I) float."""
        raise NotImplementedError

    def settings(self) -> dict[str, object]:
        """What else the constructor was given, as JSON can hold it: enough for `empty`."""
        return {}

    @classmethod
    def empty(cls, layer: nn.Module, **settings: object) -> "PackedLinear":
        """A layer of this form with the settings of another, into which that one's numbers can be loaded.

        Args:
            layer: of the same shape, with weights that do not matter; zeros are quickest.
            settings: what `settings` of the other returned.
        """
        return cls(layer, **settings)

    def multiply(self, x: Tensor) -> Tensor:
        """x W^T: (..., I) to (..., O)."""
        return F.linear(x, self.matrix().to(x.dtype))

    def multiply_back(self, gradient: Tensor) -> Tensor:
        """g W: (..., O) to (..., I)."""
        return gradient @ self.matrix().to(gradient.dtype)

    @property
    def weight(self) -> Tensor:
        """The matrix (O, I), made anew at every access, in the number format that the model has; without gradient."""
        return self.matrix().to(self.like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O).

        Raises:
            ShapeError: if the last dimension of x is not I.
        """
        if x.shape[-1] != self.d_in:
            raise ShapeError(f"input has width {x.shape[-1]}, the packed layer expects {self.d_in}")
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if x.requires_grad and torch.is_grad_enabled():
            out = PackedProduct.apply(x, self)                     # (..., O)
        else:
            out = self.multiply(x)                                 # the same; the wrapping takes about 40 microseconds
        out = out if self.bias is None else out + self.bias.to(out.dtype)
        return out if self.stretch == 1.0 else out * self.stretch

    def unpacked(self, weight: Tensor | None = None) -> nn.Linear:
        """An ordinary layer that computes the same, with all its bytes; or one with another weight (O, I)."""
        weight = self.weight if weight is None else weight
        with torch.device("meta"):
            layer = nn.Linear(self.d_in, self.d_out, bias=self.bias is not None)
        layer.weight = nn.Parameter(weight.detach() * self.stretch, requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach() * self.stretch, requires_grad=False)
        return layer

    def _apply(self, fn, recurse: bool = True):
        """Move to a device with the model, but leave the stored numbers in their own format: bits are bits."""
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, old in before.items():
            if name != "like" and old is not None and old.is_floating_point():
                setattr(self, name, old.to(getattr(self, name).device))
        return self

    def extra_repr(self) -> str:
        return f"d_in={self.d_in}, d_out={self.d_out}, bias={self.bias is not None}"


class NF4Linear(PackedLinear):
    """A linear layer in NF4: four bits a weight, and scales in 32 bits or, by double quantization, in eight.

    Args:
        layer: a linear layer, which is not changed.
        double: whether to quantize the scales too.
        block_size: weights that share a scale.

    Attributes:
        packed: (ceil(N / 2),) uint8.
        absmax: (n,) float, or None with double quantization; then `codes`, `largest` and `mean` stand for it.

    Raises:
        ConfigError: if the layer is none, is packed already, or has weights that are not finite.

    Source:
        Dettmers et al. 2023, arXiv:2305.14314, equation 5.

    Example:
        >>> layer = NF4Linear(nn.Linear(128, 64, bias=False))
        >>> layer(torch.zeros(2, 128)).shape, 8 * stored_bytes(layer) / (64 * 128)
        (torch.Size([2, 64]), 4.1328125)
    """

    def __init__(self, layer: nn.Module, double: bool = True, block_size: int = nf4.BLOCK):
        if surgery.is_packed(layer):
            raise ConfigError(f"the layer is packed already ({layer.extra_repr()}); quantizing twice only adds errors")
        super().__init__(layer)
        self.block_size, self.double = block_size, double
        packed, absmax = nf4.quantize_nf4(surgery.matrix_of(layer).detach(), block_size)
        scales = nf4.quantize_scales(absmax) if double else None
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", None if scales else absmax)
        self.register_buffer("codes", scales.codes if scales else None)
        self.register_buffer("largest", scales.largest if scales else None)
        self.register_buffer("mean", scales.mean if scales else None)

    def settings(self) -> dict[str, object]:
        return {"double": self.double, "block_size": self.block_size}

    def scales(self) -> Tensor:
        """(n,) float: the largest absolute value of each block, as far as it is known."""
        if not self.double:
            return self.absmax
        return nf4.dequantize_scales(nf4.SmallScales(self.codes, self.largest, self.mean))

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """The same numbers as `dequantize_nf4`, by a table of bytes that is about eight times as fast."""
        levels = levels_of_bytes(self.packed)[: self.d_out * self.d_in]  # (N,)
        blocks = nf4.blocks_of(levels, self.block_size)            # (n, block_size)
        return blocks.mul_(self.scales()[:, None]).view(-1)[: levels.numel()].view(self.d_out, self.d_in)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, block_size={self.block_size}, double={self.double}"


def levels_of_bytes(packed: Tensor) -> Tensor:
    """The levels of packed indices, two at a time: a table of 256 pairs, each looked up as one complex number.

    Args:
        packed: (k,) uint8.

    Returns:
        (2 k,) float.

    Example:
        >>> levels_of_bytes(torch.tensor([0x7F, 0x07], dtype=torch.uint8)).tolist()
        [0.0, 1.0, -1.0, 0.0]
    """
    code = nf4.nf4_code().to(packed.device)                        # (16,)
    table = torch.complex(code.repeat_interleave(16), code.repeat(16))  # (256,)
    return torch.view_as_real(table.index_select(0, packed.int())).view(-1)


def quantize_model(
    model: nn.Module,
    how: Callable[[str, nn.Module], "PackedLinear"],
    targets: str | Iterable[str] = (),
    exclude: str | Iterable[str] = ("head",),
    progress: bool = False,
) -> surgery.Operation:
    """Store the linear layers of a model in few bits, each as `how` says.

    Embeddings, norms and biases stay as they are. To give the memory of the old matrices back, forget the operation
    that is returned; to give the model its old matrices back, call its `restore`.

    Args:
        model: is changed.
        how: (name, layer) -> the packed layer that takes its place.
        targets: which linear layers, as in `surgery.find`; none means all.
        exclude: layers to leave alone; what turns hidden states into scores is sensitive, and most leave it alone.
        progress: whether to show a bar.

    Returns:
        the operation.

    Raises:
        ConfigError: if no layer is meant, one is packed already, or one shares its matrix with another module, which
            would have to be stored all the same. The model is as it was then.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> _ = quantize_model(model, lambda name, layer: NF4Linear(layer), exclude="2")
        >>> [type(layer).__name__ for layer in model]
        ['NF4Linear', 'ReLU', 'Linear']
    """
    found = surgery.find(model, targets, surgery.is_linear, exclude)
    shared = {name for group in surgery.tied(model) for name in group}
    for name, layer in found.items():
        if surgery.is_packed(layer):
            raise ConfigError(
                f"{name} is packed already ({layer.extra_repr()}); quantizing twice only adds errors: begin with the "
                "model in full precision"
            )
        if f"{name}.weight" in shared:
            raise ConfigError(f"{name} shares its matrix with another module, so packing it saves nothing; exclude it")
    return surgery.wrap(model, tqdm(found, desc="quantize", unit="layer", leave=False, disable=not progress), how)


def pack_model(
    model: nn.Module,
    targets: str | Iterable[str] = (),
    exclude: str | Iterable[str] = ("head",),
    double: bool = True,
    block_size: int = nf4.BLOCK,
) -> surgery.Operation:
    """Store the linear layers of a model in NF4; see `quantize_model`.

    Args:
        model: is changed.
        targets: which linear layers, as in `surgery.find`; none means all.
        exclude: layers to leave alone.
        double: whether to quantize the scales too.
        block_size: weights that share a scale.

    Returns:
        the operation.

    Raises:
        ConfigError: as `quantize_model`.
    """
    return quantize_model(model, lambda name, layer: NF4Linear(layer, double, block_size), targets, exclude)


def stored_bytes(model: nn.Module) -> int:
    """Bytes that a model takes in a file and in memory: parameters and saved buffers, shared ones once.

    Example:
        >>> stored_bytes(nn.Linear(10, 3))
        132
    """
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
