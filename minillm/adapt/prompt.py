"""Prompt tuning and P-Tuning: new words that stand before every text, of which only the vectors are learned.

The P words get ids behind the vocabulary's, V to V + P - 1; a model that is asked to read a text reads these first, and
answers for the text's own positions only.

Dimensions: B batch, T positions of a text, S all positions including cached ones, P words, C width, V vocabulary.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from minillm.adapt.in_front import Host, InFront, Table, check_in_front, host_of, repeated, shorter_context
from minillm.adapt.prompted import PromptedBert, PromptedGPT, PromptedT5, WithNewWords
from minillm.errors import ConfigError
from minillm.models.bert import Bert
from minillm.models.gpt import GPT, check_count
from minillm.nn.functional import dropout
from minillm.nn.linear import Linear, normal_weight
from minillm.nn.recurrent import Recurrent
from minillm.surgery import overlay

INITIALS = ("random", "vocabulary", "text")
ENCODERS = ("mlp", "lstm")


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Settings of prompt tuning.

    Args:
        n_virtual: number of learned words P.
        initial: what their vectors start as: "random" ones as large as those of the vocabulary, those of words drawn
            from the "vocabulary", or those of a "text".
        initial_ids: the text's token ids, cut or repeated to P; the ids to draw from, if not all, for "vocabulary".
        std: standard deviation of random ones; 0 means that of the vocabulary's vectors.
        heads: modules that are trained and saved beside the prompt.

    Raises:
        ConfigError: if a setting is out of range or contradicts another.

    Source:
        Lester et al. 2021, arXiv:2104.08691, section 2 and 3.2 (starts from the vocabulary and from texts).
    """

    method: ClassVar[str] = "prompt"
    n_virtual: int = 10
    initial: str = "random"
    initial_ids: tuple[int, ...] = ()
    std: float = 0.0
    heads: tuple[str, ...] = ()

    def __post_init__(self):
        check_count("n_virtual", self.n_virtual, at_least=1)
        if self.initial not in INITIALS:
            raise ConfigError(f"initial is {self.initial!r}, expected one of {INITIALS}")
        if (self.initial == "text" and not self.initial_ids) or (self.initial == "random" and self.initial_ids):
            raise ConfigError(f"initial_ids are {self.initial_ids} with initial={self.initial!r}: a text has some")
        if not self.std >= 0:
            raise ConfigError(f"std is {self.std}, expected a number of at least 0")

    def inject(self, model: nn.Module, name: str, generator: torch.Generator | None) -> "PromptDelta":
        """Put learned words before every text that the model reads."""
        host = host_of(model)
        check_in_front(host, self.n_virtual, "prompt")
        return PromptDelta(host, Prompt(first_vectors(self, host.token_embedding.weight, generator)))


@dataclass(frozen=True, kw_only=True)
class PTuningConfig:
    """Settings of P-Tuning: prompt tuning whose vectors a network makes, so that they depend on each other.

    Args:
        n_virtual: number of words P.
        encoder: "mlp" (two hidden layers) or "lstm" (in both directions, then a hidden layer).
        d_hidden: width of its hidden layers, in each direction.
        n_layers: number of layers of the LSTM.
        dropout: chance of dropping a number between layers of the LSTM while training.
        heads: modules that are trained and saved beside the prompt.

    Raises:
        ConfigError: if a setting is out of range.

    Source:
        Liu et al. 2021, arXiv:2103.10385, section 3.2 (the LSTM); the MLP is that of the authors' later code.
    """

    method: ClassVar[str] = "ptuning"
    n_virtual: int = 10
    encoder: str = "mlp"
    d_hidden: int = 128
    n_layers: int = 2
    dropout: float = 0.0
    heads: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("n_virtual", "d_hidden", "n_layers"):
            check_count(name, getattr(self, name), at_least=1)
        if self.encoder not in ENCODERS:
            raise ConfigError(f"encoder is {self.encoder!r}, expected one of {ENCODERS}")
        if not 0.0 <= self.dropout < 1.0 or (self.dropout and self.encoder != "lstm"):
            raise ConfigError(f"dropout is {self.dropout}, expected 0, or with encoder='lstm' less than 1")

    def inject(self, model: nn.Module, name: str, generator: torch.Generator | None) -> "PromptDelta":
        """Put words before every text that the model reads, with a network that makes their vectors."""
        host = host_of(model)
        check_in_front(host, self.n_virtual, "prompt")
        return PromptDelta(host, PromptEncoder(host.token_embedding.weight.shape[1], self, generator))


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
    vocabulary = vocabulary.detach()
    n_words, width = vocabulary.shape
    if config.initial == "random":
        std = config.std or float(vocabulary.float().std())
        return normal_weight(config.n_virtual, width, std, generator).to(vocabulary.device, vocabulary.dtype)
    if wrong := [token_id for token_id in config.initial_ids if not 0 <= token_id < n_words]:
        raise ConfigError(f"initial_ids has {wrong[0]}, the vocabulary has ids 0 to {n_words - 1}")
    if config.initial == "text":
        ids = torch.tensor(repeated(config.initial_ids, config.n_virtual))
    else:
        among = torch.tensor(config.initial_ids or range(n_words))
        ids = among[torch.randint(len(among), (config.n_virtual,), generator=generator)]  # (P,)
    return vocabulary[ids.to(vocabulary.device)].clone()


class Prompt(Table):
    """The vectors of P learned words.

    Args:
        vectors: (P, C) at the start.
    """

    def __init__(self, vectors: Tensor):
        super().__init__()
        self.n_virtual = len(vectors)
        self.table = nn.Parameter(vectors)


class PromptEncoder(Table):
    """A network that makes the vectors of P words from P learned ones.

    Args:
        d_model: width C of the vectors.
        config: number of words and kind of network.
        generator: where initial numbers come from; None is torch's own default generator.

    Source:
        Liu et al. 2021, arXiv:2103.10385, eq. (4): h_i = MLP([LSTM forwards; LSTM backwards]).

    Example:
        >>> encoder = PromptEncoder(4, PTuningConfig(n_virtual=3, encoder="lstm", d_hidden=5))
        >>> encoder.rows().shape
        torch.Size([3, 4])
    """

    def __init__(self, d_model: int, config: PTuningConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.n_virtual, self.dropout = config.n_virtual, config.dropout
        self.table = None
        self.start = nn.Parameter(normal_weight(config.n_virtual, d_model, 1.0, generator))
        hidden, lstm = config.d_hidden, config.encoder == "lstm"
        self.readers = nn.ModuleList()
        for layer in range(config.n_layers if lstm else 0):
            d_in = 2 * hidden if layer else d_model
            pair = [Recurrent("lstm", d_in, hidden, generator=generator) for _ in range(2)]
            self.readers.append(nn.ModuleList(pair))
        widths = (2 * hidden, 2 * hidden, d_model) if lstm else (d_model, hidden, hidden, d_model)
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.maps = nn.ModuleList(Linear(d_in, d_out, True, d_in**-0.5, generator) for d_in, d_out in pairs)

    def made(self) -> Tensor:
        """The words' vectors, (P, C)."""
        x = self.start
        for layer, (forwards, backwards) in enumerate(self.readers):
            x = dropout(x, self.dropout, self.training and layer > 0)
            ahead, back = forwards(x[None])[0][0], backwards(x.flip(0)[None])[0][0].flip(0)
            x = torch.cat((ahead, back), dim=1)
        for number, linear in enumerate(self.maps):
            x = linear(x if number == 0 else torch.relu(x))
        return x


class PromptDelta(InFront):
    """Learned words before every text of a model.

    Args:
        host: is changed; `check_in_front` has looked at it.
        prompt: makes the words' vectors.
    """

    def __init__(self, host: Host, prompt: Prompt | PromptEncoder):
        weight = host.token_embedding.weight
        prompt = prompt.to(weight.device, weight.dtype)
        super().__init__(host, "prompt", prompt, shorter_context(host, prompt.n_virtual))
        methods = PromptedGPT if isinstance(host, GPT) else PromptedBert if isinstance(host, Bert) else PromptedT5
        self.overlays = [
            overlay(host, methods),
            overlay(host.token_embedding, WithNewWords, prompt=prompt),
        ]
