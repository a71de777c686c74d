"""Chapter 25, Adapters and prompts: fill in the holes (17 points).

`minillm course test 25` tests this file, `minillm course test 25 25.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm import surgery
from minillm.adapt.adapted import adapt
from minillm.adapt.adapter import ACTIVATIONS, AdapterConfig
from minillm.adapt.bitfit import BitFitConfig
from minillm.adapt.heads import head_modules
from minillm.adapt.ia3 import IA3Config
from minillm.adapt.in_front import repeated
from minillm.adapt.layers import layers_of
from minillm.adapt.prefix import PrefixConfig
from minillm.adapt.prompt import PTuningConfig, PromptConfig, PromptEncoder
from minillm.adapt.prompted import (
    CacheBehindPrompt,
    inner_cache,
    insert,
    padding_on_the_left,
    with_new_words,
    with_room,
)
from minillm.errors import ConfigError
from minillm.models.bert import Bert
from minillm.models.gpt import GPT
from minillm.models.gpt_heads import LastTokenClassifier
from minillm.models.t5 import T5
from minillm.nn.cache import KVCache
from minillm.nn.linear import Linear, normal_weight
from minillm.runtime import default_generators
from minillm.train.optim import AdamW


class Bottleneck(nn.Module):
    """What an adapter adds to a vector: W_up f(W_down h + b_down) + b_up, without h itself.

    Args:
        d_model: width C.
        config: width of the waist, activation and initial values.
        generator: where initial numbers come from; None is torch's own default generator.

    Example:
        >>> Bottleneck(8, AdapterConfig(bottleneck=2, zero_up=True))(torch.ones(3, 8)).abs().max().item()
        0.0
    """

    def __init__(self, d_model: int, config: AdapterConfig, generator: torch.Generator | None = None):
        # TASK 25.1 (2 points)
        # Two linear layers with biases, one down to `config.bottleneck` and one up again. A Linear with std=0.0
        # starts at zero; `nn.init.trunc_normal_` draws numbers between two bounds, from a generator. Which matrix
        # stays at zero if `zero_up` is set?
        raise NotImplementedError("task 25.1")

    def forward(self, h: Tensor) -> Tensor:
        """Map (..., C) to (..., C), in h's number format."""
        wide = h.to(self.down.weight.dtype)
        return self.up(ACTIVATIONS[self.activation](self.down(wide))).to(h.dtype)


class Behind:
    """Laid over a module: its output h becomes h + adapter(h)."""

    def forward(self, *args, **kwargs) -> Tensor:
        """The module's own arguments -> (..., C)."""
        # TASK 25.2 (1 point)
        # `super().forward` is the module's own; the network behind it is `self.adapter`, which may be switched off.
        raise NotImplementedError("task 25.2")


class Table(nn.Module):
    """A table of P learned rows, which perhaps a network makes until it has been trained; a base class.

    A subclass has the attribute `table`, the rows or None, and the method `made`, the rows that its network makes.

    Attributes:
        is_on: whether the rows stand in front of texts.
    """

    table: nn.Parameter | None

    def __init__(self):
        super().__init__()
        self.is_on = True

    def made(self) -> Tensor:
        """The rows as the network makes them, with a gradient."""
        raise NotImplementedError

    def rows(self) -> Tensor:
        """All rows, (P, ...), with a gradient."""
        return self.made() if self.table is None else self.table

    @torch.no_grad()
    def folded(self) -> Tensor:
        """The rows as numbers."""
        return self.rows().detach().clone()

    @torch.no_grad()
    def fold(self, table: Tensor) -> None:
        """Keep these rows, and no network."""
        # TASK 25.3 (2 points)
        # Two cases. Where there is a table already, an optimizer may know it: write into it. Where a network makes
        # the rows, remember device, number format and `requires_grad` of one of its parameters before you delete all
        # of them.
        raise NotImplementedError("task 25.3")


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
        # TASK 25.4 (3 points)
        # A row of the table holds layer 0's key, layer 0's value, layer 1's key and so on, each as wide as all heads
        # together. With a network only the part of its last layer that makes this layer's rows is needed: rows of its
        # weight, and of its bias.
        raise NotImplementedError("task 25.4")


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
        # TASK 25.5 (1 point)
        # Where does the text's first token stand if P rows come before it? The places come as a slice or as a tensor.
        raise NotImplementedError("task 25.5")


def first_vectors(config: PromptConfig, vocabulary: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The vectors that a prompt starts from.

    Args:
        config: says which.
        vocabulary: (V, C) the vectors of the model's own words.
        generator: where random numbers come from; None is torch's own default generator.

    Returns:
        (P, C).

    Raises:
        ConfigError: if an id is not in the vocabulary.

    Example:
        >>> words = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        >>> first_vectors(PromptConfig(n_virtual=3, initial="text", initial_ids=(2, 0)), words).tolist()
        [[5.0, 6.0], [1.0, 2.0], [5.0, 6.0]]
    """
    # TASK 25.6 (2 points)
    # Three starts. Random numbers want a standard deviation, the config's or that of the vocabulary. A text gives
    # ids that `repeated` brings to the right number. From the vocabulary, words are drawn one by one, and may
    # come twice. No gradient leads from the first vectors back to the vocabulary.
    raise NotImplementedError("task 25.6")


class PromptedGPT:
    """Methods laid over `GPT`: texts, masks, positions and caches are the caller's; the words in front are added."""

    prompt: nn.Module

    def hidden(
        self,
        token_ids: Tensor,
        cache: CacheBehindPrompt | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """As `GPT.hidden`, for the text's own positions: (B, T, C)."""
        # TASK 25.7 (3 points)
        # Two kinds of call: with a cache that holds something already, the words were read before and only mask and
        # positions must know of them; otherwise ids, mask and positions all get P entries more, behind the padding.
        # Which positions does the caller get?
        raise NotImplementedError("task 25.7")

    def check_input(self, token_ids: Tensor, n_past: int, mask: Tensor | None, positions: Tensor | None) -> None:
        """Nothing more: `hidden` has checked what the caller gave, before it added anything."""
        if not self.prompt.is_on:
            super().check_input(token_ids, n_past, mask=mask, positions=positions)

    def make_cache(self, batch_size: int, max_seq_len: int = 0) -> KVCache | CacheBehindPrompt:
        """As `GPT.make_cache`, with room for the words in front."""
        if not self.prompt.is_on:
            return super().make_cache(batch_size, max_seq_len)
        n_new, room = self.prompt.n_virtual, max_seq_len or self.config.max_seq_len
        return CacheBehindPrompt(super().make_cache(batch_size, room + n_new), n_new)


class Multiplied:
    """Laid over a linear layer: l_out * layer(l_in * x), with the vectors of its child `ia3`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        # TASK 25.8 (1 point)
        # Inputs before, outputs behind the layer, bias included. Either vector may be missing, and merged means: done
        # already.
        raise NotImplementedError("task 25.8")


def biases_of(model: nn.Module, config: BitFitConfig) -> list[str]:
    """Names of the biases to be trained.

    Raises:
        ConfigError: if a target means nothing, or the model has no biases: then nothing, or a head alone, would be
            trained without a word.

    Example:
        >>> biases_of(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2, bias=False)), BitFitConfig())
        ['0.bias', '1.bias']
    """
    # TASK 25.9 (2 points)
    # Go through the modules, not through the parameters: whose `bias` is a parameter? Leave out what is inside of
    # a head. Without targets, biases of a head or an embedding alone are not enough: at least one must be in a
    # layer.
    raise NotImplementedError("task 25.9")
