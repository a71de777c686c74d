"""`minillm models`: the families and sizes by name with their parameters, or what one family changed of another."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minillm.config import setting

if TYPE_CHECKING:
    from minillm.models.gpt import GPTConfig


@dataclass(frozen=True)
class Settings:
    """List model families and sizes with their parameters; with two families, print how their settings differ."""

    first: str = setting("", "a family; with a second one, what the second changed is printed", positional=True)
    second: str = setting("", "another family", positional=True)
    size: str = setting("base", "the size at which two families are compared")
    vocab_size: int = setting(50257, "token ids of the models counted")
    max_seq_len: int = setting(1024, "their context in tokens")


def run(settings: Settings) -> None:
    """Print the table of all, of one family, or of two side by side."""
    from minillm.models.registry import difference_table, families, sizes

    if settings.second:
        pair = (settings.first, settings.second)
        print(difference_table(*(config_of(settings, name, settings.size) for name in pair), *pair))
        return
    shown = (settings.first,) if settings.first else families()
    rows = [("family", *sizes()), *((family, *counts(settings, family)) for family in shown)]
    if not settings.first:
        rows.insert(1, ("layers/heads/width", *(shape_of(config_of(settings, shown[0], size)) for size in sizes())))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print(
        f"\nparameters with {settings.vocab_size:,} token ids and {settings.max_seq_len:,} positions (* of experts: "
        "those that work on one token)\nwhat one family changed of another: minillm models gpt2 llama"
    )


def config_of(settings: Settings, family: str, size: str) -> "GPTConfig":
    """The config of a named model; a ConfigError names the known ones."""
    from minillm.models.registry import model_config

    return model_config(family, size, settings.vocab_size, settings.max_seq_len)


def counts(settings: Settings, family: str) -> list[str]:
    """The parameters of each size of a family, in words."""
    from minillm.models.registry import active_parameters, parameters, sizes

    configs = [config_of(settings, family, size) for size in sizes()]
    return [
        in_words(parameters(config)) + (f" ({in_words(active_parameters(config))}*)" if config.n_experts else "")
        for config in configs
    ]


def shape_of(config: "GPTConfig") -> str:
    """Layers, heads and width, in short."""
    return f"{config.n_layers}/{config.n_heads}/{config.d_model}"


def in_words(number: int) -> str:
    """A large number with three digits.

    Example:
        >>> in_words(124_439_808), in_words(1_650_000), in_words(46_702_792_704)
        ('124M', '1.65M', '46.7B')
    """
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return str(number)
