"""Prefix tuning: learned keys and values in every layer, at which all positions of a text may look.

The model reads a text as if P tokens stood before it, whose keys and values are learned in each layer instead of
computed; the text's own places count from P. P-Tuning v2 is the same without a network that makes them.

Dimensions: B batch, T positions, S key positions, P prefix rows, H query heads, G key/value heads, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.adapt.in_front import Host, InFront, Table, check_in_front, host_of, repeated, shorter_context
from minillm.errors import ConfigError
from minillm.models.bert import Bert
from minillm.models.gpt import GPT, check_count
from minillm.models.t5 import T5
from minillm.nn.attention import SelfAttention, causal_mask
from minillm.nn.cache import KVCache
from minillm.nn.linear import Linear, normal_weight
from minillm.nn.source_attention import SourceAttention
from minillm.surgery import overlay

PLACES = ("encoder", "decoder", "source")


@dataclass(frozen=True, kw_only=True)
class PrefixConfig:
    """Settings of prefix tuning.

    Args:
        n_virtual: number of prefix rows P in each layer.
        reparametrised: whether a network with one hidden layer makes the rows while they are trained (prefix tuning);
            without it they are learned themselves (P-Tuning v2).
        d_hidden: width of its hidden layer.
        places: which attention gets a prefix, as far as the model has it: of the "encoder" to itself, of the "decoder"
            to itself, of the decoder to the "source".
        std: standard deviation of the rows at the start, or of what the network makes them from; a bare table wants a
            learning rate some ten times that of a network.
        initial_ids: token ids whose keys and values the rows start as, cut or repeated to P: the model then computes
            what it would after these tokens. For a GPT, without a network. Empty for random rows.
        heads: modules that are trained and saved beside the prefix.

    Raises:
        ConfigError: if a setting is out of range.

    Source:
        Li and Liang 2021, arXiv:2101.00190, section 4; Liu et al. 2021, arXiv:2110.07602 (P-Tuning v2).

    Example:
        >>> config = PrefixConfig(n_virtual=2)
        >>> config.reparametrised, config.places
        (False, ('encoder', 'decoder', 'source'))
    """

    method: ClassVar[str] = "prefix"
    n_virtual: int = 10
    reparametrised: bool = False
    d_hidden: int = 512
    places: tuple[str, ...] = PLACES
    std: float = 1.0
    initial_ids: tuple[int, ...] = ()
    heads: tuple[str, ...] = ()

    def __post_init__(self):
        check_count("n_virtual", self.n_virtual, at_least=1)
        check_count("d_hidden", self.d_hidden, at_least=1)
        if not self.places or set(self.places) - set(PLACES):
            raise ConfigError(f"places are {self.places}, expected some of {PLACES}")
        if not self.std > 0:
            raise ConfigError(f"std is {self.std}, expected a number above 0")
        if self.initial_ids and self.reparametrised:
            raise ConfigError("initial_ids give the rows themselves; with reparametrised=True a network makes them")

    def inject(self, model: nn.Module, name: str, generator: torch.Generator | None) -> "PrefixDelta":
        """Give every layer of the model's attention its prefix."""
        return PrefixDelta(host_of(model), self, generator)


class Prefix(Table):
    """Keys and values for every layer: a table of P rows, or the network that makes it.

    A row holds, layer after layer, a key and then a value, each for G heads of width D.

    Args:
        n_layers: how many attention layers L get a prefix.
        n_kv_heads: number of key/value heads G.
        d_head: head width D.
        config: number of rows, network, initial values.
        generator: where initial numbers come from; None is torch's own default generator.

    Source:
        Li and Liang 2021, arXiv:2101.00190, section 4.3: P_theta[i, :] = MLP(P'_theta[i, :]).

    Example:
        >>> prefix = Prefix(2, 1, 4, PrefixConfig(n_virtual=3))
        >>> prefix.table.shape, prefix.keys_and_values(1)[0].shape
        (torch.Size([3, 16]), torch.Size([1, 3, 4]))
    """

    def __init__(
        self,
        n_layers: int,
        n_kv_heads: int,
        d_head: int,
        config: PrefixConfig,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.n_kv_heads, self.d_head, self.n_virtual = n_kv_heads, d_head, config.n_virtual
        width = n_kv_heads * d_head
        self.table = None
        if not config.reparametrised:
            self.table = nn.Parameter(normal_weight(config.n_virtual, 2 * n_layers * width, config.std, generator))
            return
        self.start = nn.Parameter(normal_weight(config.n_virtual, width, config.std, generator))
        self.widen = Linear(width, config.d_hidden, True, width**-0.5, generator)
        self.output = Linear(config.d_hidden, 2 * n_layers * width, True, config.d_hidden**-0.5, generator)

    def made(self) -> Tensor:
        return self.output(torch.tanh(self.widen(self.start)))

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """The prefix of one layer.

        Args:
            layer: number of the attention layer, from 0.

        Returns:
            keys and values, each (G, P, D).
        """
        width = self.n_kv_heads * self.d_head
        here = slice(2 * layer * width, 2 * (layer + 1) * width)
        if self.table is not None:
            rows = self.table[:, here]                             # (P, 2 * G * D)
        else:
            hidden = torch.tanh(self.widen(self.start))            # (P, F)
            rows = F.linear(hidden, self.output.weight[here], self.output.bias[here])  # (P, 2 * G * D)
        key, value = rows.unflatten(1, (2, self.n_kv_heads, self.d_head)).permute(1, 2, 0, 3)
        return key, value


class PrefixedAttention:
    """Methods laid over `SelfAttention`: learned keys and values stand before those of the text."""

    prefix: Prefix
    prefix_layer: int

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        bias: Tensor | None = None,
    ) -> Tensor:
        """As `SelfAttention.forward`, with P keys and values that every position may see."""
        if not self.prefix.is_on:
            return super().forward(x, mask, causal, rotation, cache, layer, bias)
        n_before, n_new = self.prefix.n_virtual, x.shape[1]
        if self.slopes is not None and mask is not None:
            bias = padding_undone(mask, self.slopes, n_before)
        if causal:
            mask = causal_mask(n_new, n_before + n_new, x.device)
        elif mask is not None:
            mask = F.pad(mask, (n_before, 0), value=True)
        prefixed = CacheBehindPrefix(*self.prefix.keys_and_values(self.prefix_layer), cache)
        return super().forward(x, mask, False, rotation, prefixed, layer, bias)


class CacheBehindPrefix:
    """What attention takes for a cache: a prefix, then what a cache remembers, then what is new.

    Args:
        key: (G, P, D).
        value: (G, P, D).
        cache: of the text alone, or None.
    """

    def __init__(self, key: Tensor, value: Tensor, cache: KVCache | None):
        self.key, self.value, self.cache = key, value, cache

    def check_window(self, window: int) -> None:
        """Nothing to check: layers with a window get no prefix."""

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values (B, G, P + S, D) from the new ones (B, G, T, D); the cache gets these alone."""
        if self.cache is not None:
            key, value = self.cache.update(layer, key, value)
        return before(self.key, key), before(self.value, value)


def before(rows: Tensor, x: Tensor) -> Tensor:
    """The same rows (G, P, D) before those of every text (B, G, S, D): (B, G, P + S, D)."""
    return torch.cat((rows.to(x.dtype).expand(len(x), *rows.shape), x), dim=2)


def padding_undone(mask: Tensor, slopes: Tensor, n_before: int) -> Tensor:
    """What ALiBi's scores of the prefix need so that padding between prefix and text counts no distance.

    Args:
        mask: (B, 1, T, S) or (T, S) bool, True where a key of the text may be seen; all keys up to the query that
            are not padding.
        slopes: (H,).
        n_before: number of prefix rows P.

    Returns:
        (B, H, T, P + S), or (H, T, P + S) from a mask without B, numbers to be added to the scores.

    Example:
        >>> padding_undone(torch.tensor([[False, True]]), torch.tensor([0.5]), 1).tolist()
        [[[0.5, 0.0, 0.0]]]
    """
    n_new, n_keys = mask.shape[-2:]
    places = torch.arange(n_keys - n_new, n_keys, device=mask.device) + 1  # (T,)
    n_padding = places - mask.sum(dim=-1)                          # (..., T)
    n_padding = n_padding if mask.dim() == 4 else n_padding[None]
    nearer = slopes[:, None, None] * n_padding[..., None].expand(*n_padding.shape, n_before)  # (..., H, T, P)
    return F.pad(nearer, (0, n_keys))


class PrefixedSource:
    """Methods laid over `SourceAttention`: learned keys and values stand before those of the source."""

    prefix: Prefix
    prefix_layer: int

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of prefix and source (B, S, C), each (B, G, P + S, D)."""
        key, value = super().keys_values(source)
        if not self.prefix.is_on:
            return key, value
        first_key, first_value = self.prefix.keys_and_values(self.prefix_layer)
        return before(first_key, key), before(first_value, value)

    def attend(
        self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """As `SourceAttention.attend`, for the keys and values that `keys_values` gave."""
        if self.prefix.is_on and mask is not None:
            mask = F.pad(mask, (self.prefix.n_virtual, 0), value=True)
        return super().attend(x, key, value, mask, bias)


class PlacesAfterPrefix:
    """Methods laid over `GPT`: a text's places count from P."""

    prefix: Prefix

    def place(self, x: Tensor, here: slice | Tensor) -> Tensor:
        """As `GPT.place`, P places later."""
        return super().place(x, self.moved(here))

    def rotation(self, here: slice | Tensor) -> tuple[Tensor, Tensor] | None:
        """As `GPT.rotation`, P places later."""
        return super().rotation(self.moved(here))

    def moved(self, here: slice | Tensor) -> slice | Tensor:
        """The places behind the prefix."""
        n_before = self.prefix.n_virtual if self.prefix.is_on else 0
        if isinstance(here, slice):
            return slice(here.start + n_before, here.stop + n_before)
        return here + n_before


class DistancesFromPrefix:
    """Methods laid over `RelativeBias`: the P rows of a prefix are the places before the first key."""

    prefix: Prefix

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Map positions (T,) and (S,) to a bias (H, T, P + S)."""
        if self.prefix.is_on:
            earlier = torch.arange(-self.prefix.n_virtual, 0, device=key_positions.device)  # (P,)
            key_positions = torch.cat((key_positions[0] + earlier, key_positions))  # (P + S,)
        return super().forward(query_positions, key_positions)


class PrefixDelta(InFront):
    """A prefix on a model.

    Args:
        host: is changed.
        config: of the prefix.
        generator: where initial numbers come from; None is torch's own default generator.

    Raises:
        ConfigError: if the model has no such attention, attention with a window, or no room.
    """

    def __init__(self, host: Host, config: PrefixConfig, generator: torch.Generator | None = None):
        check_in_front(host, config.n_virtual, "prefix")
        attentions = attentions_of(host, config.places)
        first = attentions[0]
        if any(getattr(attention, "window", 0) for attention in attentions):
            raise ConfigError("layers with a window soon lose sight of a prefix; prefix tuning needs window=0")
        d_head = first.output.weight.shape[1] // first.n_heads
        weight = host.token_embedding.weight
        prefix = Prefix(len(attentions), first.n_kv_heads, d_head, config, generator).to(weight.device, weight.dtype)
        if config.initial_ids:
            prefix.fold(rows_of(host, config.initial_ids, config.n_virtual))
        super().__init__(host, "prefix", prefix, config_behind(host, config.n_virtual))
        for layer, attention in enumerate(attentions):
            methods = PrefixedSource if isinstance(attention, SourceAttention) else PrefixedAttention
            self.overlays.append(overlay(attention, methods, prefix=prefix, prefix_layer=layer))
        if isinstance(host, GPT):
            self.overlays.append(overlay(host, PlacesAfterPrefix))
        if isinstance(host, T5):
            told = {"encoder": host.encoder_distances, "decoder": host.decoder_distances}
            for place in config.places:
                if place in told:
                    self.overlays.append(overlay(told[place], DistancesFromPrefix, prefix=prefix))


def attentions_of(host: Host, places: Sequence[str]) -> list[SelfAttention | SourceAttention]:
    """The layers that get a prefix: those of the encoder, then of the decoder, then the decoder's look at the source.

    Raises:
        ConfigError: if the model has none of these places.
    """
    if isinstance(host, T5):
        found = {
            "encoder": [layer.attention for layer in host.encoder],
            "decoder": [layer.attention for layer in host.decoder],
            "source": [layer.source_attention for layer in host.decoder],
        }
    elif isinstance(host, Bert):
        found = {"encoder": [layer.attention for layer in host.layers]}
    else:
        found = {"decoder": [block.attention for block in host.blocks]}
    attentions = [attention for place in PLACES if place in places for attention in found.get(place, ())]
    if not attentions:
        raise ConfigError(f"a {type(host).__name__} has attention in {list(found)}, not in {list(places)}")
    return attentions


def config_behind(host: Host, n_virtual: int) -> object:
    """The host's config for texts behind P places; a T5 has no places, so that nothing is taken from its context."""
    if isinstance(host, Bert):
        first, room = host.config.position_offset + n_virtual, host.config.max_seq_len - n_virtual
        return replace(host.config, position_offset=first, max_seq_len=room)
    return shorter_context(host, n_virtual)


@torch.no_grad()
def rows_of(host: Host, token_ids: Sequence[int], n_virtual: int) -> Tensor:
    """Prefix rows that are the keys and values of real tokens.

    Args:
        host: a GPT.
        token_ids: cut, or repeated, to P.
        n_virtual: number of rows P.

    Returns:
        (P, 2 * L * G * D), as `Prefix` keeps them.

    Raises:
        ConfigError: if the model is another one: where later tokens are seen too, keys depend on the text.
    """
    if not isinstance(host, GPT):
        raise ConfigError(f"initial_ids need a GPT; in a {type(host).__name__} keys depend on what follows them")
    ids = torch.tensor(repeated(token_ids, n_virtual), device=host.token_embedding.weight.device)
    cache, was_training = host.make_cache(1, n_virtual), host.training
    host.eval()
    host.hidden(ids[None], cache)
    host.train(was_training)
    rows = torch.stack((cache.keys[:, 0], cache.values[:, 0]), dim=1)  # (L, 2, G, P, D)
    return rows.permute(3, 0, 1, 2, 4).flatten(1)
