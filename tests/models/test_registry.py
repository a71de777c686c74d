"""Names, counts and estimates."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minillm.errors import ConfigError
from minillm.models.gpt import GPT
from minillm.models.registry import (
    SIZES,
    active_parameters,
    cache_bytes,
    config_differences,
    difference_table,
    families,
    flops_per_token,
    memory_bytes,
    model_config,
    parameters,
    parameters_by_part,
    product_weights,
    sizes,
)

VARIANTS = [
    {},
    {"n_kv_heads": 1},
    {"feed_forward": "swiglu"},
    {"bias": False, "norm_weight": False},
    {"norm": "rms", "bias": True, "norm_weight": True},
    {"position": "rotary"},
    {"tie_embeddings": False},
    {"d_ff": 40},
    {"feed_forward": "geglu"},
    {"feed_forward": "gelu_exact"},
    {"embedding_norm": True},
    {"position": "alibi"},
    {"position": "sinusoidal"},
    {"position": "none"},
    {"parallel_block": True},
    {"norm_bias": True, "bias": False},
    {"norm_bias": True, "parallel_block": True, "embedding_norm": True},
    {"n_experts": 3, "n_active_experts": 2, "capacity_factor": 1.0},
]
DENSE = {"n_experts": 0, "n_active_experts": 0, "capacity_factor": 0.0}


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
def test_parameter_count_is_that_of_the_module(family, overrides):
    config = model_config(family, "nano", vocab_size=17, max_seq_len=9, **overrides)
    assert parameters(config) == GPT(config).n_parameters() == sum(p.numel() for p in GPT(config).parameters())


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
def test_parts_and_products_agree(family, overrides):
    """Two tables of the same shapes: one for parameters, one for operations."""
    config = model_config(family, "nano", 17, 9, **overrides | {"bias": False} | DENSE)
    parts = parameters_by_part(config)
    assert parts["attention"] + parts["feed-forward"] == config.n_layers * product_weights(config)


def test_base_is_gpt2_small():
    assert parameters(model_config("gpt2", "base", 50257, 1024)) == 124_439_808
    assert parameters(model_config("gpt2", "large", 50257, 1024)) == 354_823_168


@pytest.mark.parametrize("size, at_most", [("tiny", 1.35), ("base", 1.02)])  # rounding d_ff weighs less there
def test_families_of_one_size_have_about_equal_active_parameters(size, at_most):
    counts = [active_parameters(model_config(family, size, 65, 64, n_kv_heads=0)) for family in families()]
    assert max(counts) / min(counts) < at_most


@pytest.mark.parametrize("family", families())
def test_widths_from_small_up_are_multiples_of_256(family):
    for size in sizes()[sizes().index("small") :]:
        for feed_forward in ("gelu", "swiglu", "relu2"):
            config = model_config(family, size, 1000, 128, feed_forward=feed_forward)
            assert config.d_model % 256 == 0 and config.d_ff % 256 == 0


def test_known_models_have_the_counts_of_their_papers():
    """LLaMA 7B: arXiv:2302.13971; Mistral 7B: arXiv:2310.06825; BLOOM 560M: the sum over its published tensors."""
    llama = model_config("llama", "large", 32000, 2048, n_layers=32, n_heads=32, d_model=4096, d_ff=11008)
    assert parameters(llama) == 6_738_415_616
    shape = {"n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "d_model": 4096, "d_ff": 14336}
    mistral = model_config("mistral", "large", 32000, 8192, **shape)
    assert parameters(mistral) == 7_241_732_096
    assert parameters(model_config("bloom", "large", 250880, 2048)) == 559_214_592


def test_falcon_7b_has_the_numbers_of_its_published_tensors():
    """The shape is what their `FalconConfig` takes unless told otherwise; the published file holds 6.92 billion."""
    falcon = model_config("falcon", "large", 65024, 2048, n_layers=32, n_heads=71, d_model=4544, d_ff=4 * 4544)
    block = 4544 * (4544 + 2 * 64) + 4544 * 4544 + 8 * 4544 * 4544 + 2 * 4544
    assert parameters(falcon) == 65024 * 4544 + 32 * block + 2 * 4544 == 6_921_720_704


def test_mixtral_has_the_counts_of_its_paper():
    """Mixtral 8x7B: 46.7 billion, of which 12.9 work on a token; arXiv:2401.04088, section 2."""
    shape = {"n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "d_model": 4096, "d_ff": 14336}
    mixtral = model_config("mixtral", "large", 32000, 32768, **shape)
    assert parameters(mixtral) == 46_702_792_704 and round(active_parameters(mixtral) / 1e9, 1) == 12.9


@pytest.mark.parametrize("n_active", [1, 2, 3])
def test_active_parameters_are_those_that_get_a_gradient_from_one_token(n_active):
    config = model_config("mixtral", "nano", 17, 9, n_experts=3, n_active_experts=n_active, tie_embeddings=False)
    model = GPT(config)
    model(torch.tensor([[5]])).square().sum().backward()
    touched = {name for name, weight in model.named_parameters() if weight.grad.abs().max() > 0}
    n_touched = sum(weight.numel() for name, weight in model.named_parameters() if name in touched)
    assert n_touched == active_parameters(config)


def test_differences_are_what_differs():
    first, second = (model_config(family, "base", 50257, 1024) for family in ("gpt2", "llama"))
    assert config_differences(first, first) == {}
    assert config_differences(first, second) == {
        "d_ff": (3072, 2048),
        "norm": ("layer", "rms"),
        "position": ("learned", "rotary"),
        "feed_forward": ("gelu", "swiglu"),
        "bias": (True, False),
        "tie_embeddings": (True, False),
        "parameters": (124_439_808, parameters(second)),
    }
    experts = config_differences(first, model_config("mixtral", "base", 50257, 1024))
    assert experts["n_experts"] == (0, 8) and experts["active parameters"][0] == 124_439_808
    lines = difference_table(first, second, "gpt2", "llama").splitlines()
    assert lines[0].split() == ["setting", "gpt2", "llama"] and lines[1].split() == ["d_ff", "3,072", "2,048"]
    assert lines[5].split() == ["bias", "yes", "no"] and len(lines) == 8
    assert all(line[lines[0].index(head) - 2 :].startswith("  ") for line in lines for head in ("gpt2", "llama"))


def test_sizes_grow():
    counts = [parameters(model_config("gpt2", size, 1000, 128)) for size in sizes()]
    assert counts == sorted(counts) and tuple(SIZES) == sizes()


@pytest.mark.parametrize(
    "overrides",
    [{}, {"n_kv_heads": 2}, {"feed_forward": "swiglu"}, {"n_experts": 4, "n_active_experts": 2}, {"n_experts": 4,
     "n_active_experts": 1}],
    ids=str,
)  # fmt: skip
def test_flops_agree_with_torch_counting_the_operations(overrides):
    config = model_config("modern", "tiny", 65, 32, kernels="naive", **overrides)
    model, ids = GPT(config), torch.zeros(2, 32, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    # Each product costs 2 forward and 4 backward operations a weight; every input has a gradient here.
    assert counter.get_total_flops() == flops_per_token(config) * ids.numel()


def test_flops_of_a_shorter_sequence():
    config = model_config("gpt2", "tiny", 65, 64)
    assert flops_per_token(config) - flops_per_token(config, 32) == 12 * 4 * 128 * 32


def test_memory_estimate_is_near_what_autograd_keeps():
    config = model_config("gpt2", "tiny", 65, 64)
    model, seen = GPT(config), {}

    def remember(tensor):
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    held = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        logits = model(torch.zeros(8, 64, dtype=torch.long))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.zeros(512, dtype=torch.long))
    measured = sum(size for pointer, size in seen.items() if pointer not in held)
    estimate = memory_bytes(config, batch_size=8)
    assert loss.isfinite()
    assert estimate.activations_bytes == pytest.approx(measured, rel=0.35)
    assert estimate.weights_bytes == estimate.gradients_bytes == 4 * parameters(config)
    assert estimate.optimizer_bytes == 8 * parameters(config)
    assert estimate.total_bytes == 16 * parameters(config) + estimate.activations_bytes


def test_naive_kernels_and_fewer_bytes_are_counted():
    config = model_config("gpt2", "tiny", 65, 64)
    naive = memory_bytes(model_config("gpt2", "tiny", 65, 64, kernels="naive"), 2)
    fast = memory_bytes(config, 2)
    assert naive.activations_bytes - fast.activations_bytes == 2 * 64 * 4 * (2 * 4 * 64) * 4
    assert memory_bytes(config, 2, bytes_per_activation=2).activations_bytes * 2 == fast.activations_bytes


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("gpt2", {}), ("llama", {"n_kv_heads": 1}), ("mistral", {}), ("mistral", {"window": 3}), ("gpt2", {"window": 9})],
)
def test_a_cache_takes_the_bytes_that_were_counted(family, overrides):
    config = model_config(family, "nano", 11, 8, **overrides)
    model = GPT(config)
    for n_positions in (0, 1, 5, 8):
        counted = cache_bytes(config, 3, n_positions, bytes_per_number=4)
        assert model.make_cache(3, n_positions).n_bytes == counted == 2 * cache_bytes(config, 3, n_positions)


def test_caches_of_known_models():
    shape = {"n_layers": 32, "n_heads": 32, "d_model": 4096}
    models = {
        "LLaMA 7B": model_config("llama", "tiny", 100, 2**20, **shape),
        "Llama 3 8B": model_config("llama", "tiny", 100, 2**20, **shape, n_kv_heads=8),
        "Mistral 7B": model_config("mistral", "tiny", 100, 2**20, **shape, n_kv_heads=8),
    }
    counts = {name: [cache_bytes(config, 1, n) for n in (1, 32768)] for name, config in models.items()}
    assert counts["LLaMA 7B"] == [512 * 2**10, 16 * 2**30]
    assert counts["Llama 3 8B"] == [128 * 2**10, 4 * 2**30]
    assert counts["Mistral 7B"] == [128 * 2**10, 512 * 2**20]


@pytest.mark.parametrize(
    ("arguments", "overrides", "message"),
    [
        (("gpt3", "tiny"), {}, "unknown model family 'gpt3'; known are"),
        (("gpt2", "huge"), {}, "unknown model size 'huge'; known are"),
        (("gpt2", "tiny"), {"n_layer": 3}, r"unknown model settings \['n_layer'\]; known are"),
        (("gpt2", "tiny"), {"n_heads": 5}, "not a multiple"),
    ],
)
def test_registry_refuses(arguments, overrides, message):
    with pytest.raises(ConfigError, match=message):
        model_config(*arguments, 65, 64, **overrides)
