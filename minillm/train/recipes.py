"""Which optimizer, learning rates and schedule go with which model family, so that no argument at all trains well.

The figures behind the choices stand in `benchmarks/recipe_log.md`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from minillm.errors import ConfigError
from minillm.models.gpt import GPTConfig
from minillm.train.grouping import decay_groups, muon_and_adamw
from minillm.train.optim import AdamW
from minillm.train.schedule import warmup_cosine, warmup_linear_to_zero

OPTIMIZERS = ("auto", "adamw", "muon")
DEFAULT_RATES = {"adamw": 1e-3, "muon": 0.03}
ADAMW_BESIDE_MUON = 0.4  # the rate of embeddings and vectors, as a share of Muon's; the head has half of it
LAST_ADAMW_RATE = 0.1  # where the cosine ends, as a share of the top


@dataclass(frozen=True)
class Recipe:
    """An optimizer by name with its top learning rate, warm-up steps and weight decay."""

    optimizer: str
    learning_rate: float
    n_warmup_steps: int
    weight_decay: float


def choose_recipe(
    family: str, optimizer: str, learning_rate: float, n_warmup_steps: int, weight_decay: float
) -> Recipe:
    """Fill in what the caller left open.

    Args:
        family: of the model; "auto" is muon for "modern", whose normalised queries and keys bear large steps.
        optimizer: "auto", "adamw" or "muon".
        learning_rate: top rate, of Muon's matrices or of AdamW; 0 takes the optimizer's default.
        n_warmup_steps: as given.
        weight_decay: as given.

    Raises:
        ConfigError: if a number is negative.
    """
    for name, value in (
        ("learning_rate", learning_rate),
        ("warmup_steps", n_warmup_steps),
        ("weight_decay", weight_decay),
    ):
        if not value >= 0:
            raise ConfigError(f"{name} is {value}; it must be 0 or more")
    chosen = {"modern": "muon"}.get(family, "adamw") if optimizer == "auto" else optimizer
    return Recipe(chosen, learning_rate or DEFAULT_RATES[chosen], n_warmup_steps, weight_decay)


def make_optimizer(recipe: Recipe, model: nn.Module, config: GPTConfig, ns_dtype: str = "fp32") -> Optimizer:
    """The recipe's optimizer over the model's parameters; Muon makes queries, keys and values orthogonal apart.

    Args:
        recipe: as `choose_recipe` gives it.
        model: the decoder.
        config: its shape, which says where the rows of queries, keys and values begin.
        ns_dtype: number format of Muon's products, "fp32" or "bf16".
    """
    if recipe.optimizer == "adamw":
        return AdamW(decay_groups(model, recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.95))
    kv_rows = config.n_kv_heads * config.d_head
    return muon_and_adamw(
        model,
        muon_lr=recipe.learning_rate,
        adamw_lr=recipe.learning_rate * ADAMW_BESIDE_MUON,
        head_lr=recipe.learning_rate * ADAMW_BESIDE_MUON / 2,
        momentum=0.9,
        betas=(0.8, 0.95),
        neuron_beta=0.95,
        ns_dtype=ns_dtype,
        weight_decay=recipe.weight_decay,
        splits={"qkv.weight": (config.d_model, kv_rows, kv_rows)},
    )


def make_schedule(recipe: Recipe, n_steps: int) -> Callable[[int], float]:
    """Step -> factor on every group's rate: a cosine for AdamW, a straight line to zero for Muon.

    Args:
        recipe: as `choose_recipe` gives it.
        n_steps: steps of the whole run.
    """
    warmup = min(recipe.n_warmup_steps, n_steps // 2)
    if recipe.optimizer == "adamw":
        return lambda step: warmup_cosine(step, 1.0, LAST_ADAMW_RATE, warmup, n_steps)
    return lambda step: warmup_linear_to_zero(step, 1.0, warmup, n_steps)
