"""Mixtral in `transformers`: `MixtralForCausalLM`, LLaMA with experts in the place of each feed-forward layer.

Their w1, w3 and w2 are our gate, up and down. Their router divides the weights of the chosen experts by their sum, as
ours does for two and more; for one alone ours does not, which has no counterpart there.
"""

from typing import Any

from minillm.errors import CheckpointError
from minillm.export.family import Family, Theirs, check_settings, differences, taken
from minillm.export.llama import FREE, NEEDED, PREFIX, SHARED, matches_outside, settings_from, settings_to
from minillm.export.weights import Match, same
from minillm.models.gpt import GPTConfig

EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}
IN_TRAINING = {"capacity_factor"}  # nothing is dropped in evaluation mode


def config_from(theirs: Theirs) -> GPTConfig:
    """Our config of a Mixtral."""
    check_settings(theirs, {"router_jitter_noise": (0.0,)})
    n_active = taken(theirs, "num_experts_per_tok", 2)
    if n_active < 2:
        raise CheckpointError(
            "config.json says num_experts_per_tok = 1: their one expert counts fully, ours with its probability"
        )
    return GPTConfig(
        **settings_from(theirs),
        window=taken(theirs, "sliding_window", 0),
        n_experts=taken(theirs, "num_local_experts", 8),
        n_active_experts=n_active,
    )


def config_to(config: GPTConfig) -> dict[str, Any]:
    """The keys of `MixtralConfig`."""
    return settings_to(config) | {
        "num_local_experts": config.n_experts,
        "num_experts_per_tok": config.n_active_experts,
        "sliding_window": config.window or None,
        "router_jitter_noise": 0.0,
    }


def matches(config: GPTConfig) -> list[Match]:
    """Every parameter, under the names of their files; in memory they stack the experts."""
    found = matches_outside(config)
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}.feed_forward", f"{PREFIX}layers.{layer}.block_sparse_moe"
        found.append(same(f"{ours}.router.weight", f"{theirs}.gate.weight"))
        for expert in range(config.n_experts):
            found += [
                same(f"{ours}.experts.{expert}.{name}.weight", f"{theirs}.experts.{expert}.{their}.weight")
                for name, their in EXPERT.items()
            ]
    return found


def reasons_against(config: GPTConfig) -> list[str]:
    """Which settings Mixtral does not have."""
    reasons = differences(config, NEEDED, FREE | IN_TRAINING | {"window", "n_experts", "n_active_experts"})
    if config.n_experts == 0:
        reasons.append("n_experts is 0 (needs experts)")
    if config.n_active_experts == 1:
        reasons.append("n_active_experts is 1 (needs 2 or more)")
    return reasons


FAMILY = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    config_from=config_from,
    config_to=config_to,
    matches=matches,
    reasons_against=reasons_against,
    **SHARED,
)
