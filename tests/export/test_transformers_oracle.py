"""Our decoders and those of `transformers`: equal logits and gradients, through checkpoints in both directions."""

import pytest
import torch
from helpers.parity import assert_near, assert_same_gradients, random_ids, randomized

from minillm.export.hugging_face import load_hugging_face, save_hugging_face
from minillm.infer.generate import generate
from minillm.infer.sampling import GREEDY
from minillm.models.gpt import GPT
from minillm.models.registry import model_config

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore"),  # theirs are not our concern
]
SHAPES = {
    "gpt2": [{}, {"d_ff": 40, "tie_embeddings": False, "norm_epsilon": 1e-4}, {"n_heads": 1, "kernels": "naive"}],
    "bloom": [{}, {"n_heads": 8, "tie_embeddings": False, "norm_epsilon": 1e-4}, {"n_heads": 1, "kernels": "naive"}],
    "llama": [
        {"n_kv_heads": 2, "norm_epsilon": 1e-6},
        {"n_kv_heads": 1, "rotary_base": 500.0, "tie_embeddings": True},
        {"bias": True, "kernels": "naive", "d_ff": 24},
        {"rotary_scaling": "linear", "rotary_factor": 3.0},
        {"rotary_scaling": "ntk", "rotary_factor": 2.0},
        {"rotary_scaling": "llama3", "rotary_factor": 4.0, "rotary_trained_len": 12},
    ],
    "mistral": [{"window": 5, "n_kv_heads": 2}, {"window": 3, "kernels": "naive"}],
    "falcon": [
        {},
        {"n_kv_heads": 4, "bias": True, "tie_embeddings": False, "norm_epsilon": 1e-4, "rotary_base": 500.0},
        {"d_ff": 40, "bias": True, "kernels": "naive"},
    ],
    "mixtral": [{"n_kv_heads": 2}, {"n_experts": 5, "n_active_experts": 3, "window": 4, "kernels": "naive"}],
}
# Theirs computes RMSNorm's scale and rotary angles, ALiBi's slopes and Mixtral's router in float32; up to 1.0e-6 was
# seen of a LLaMA's gradient, on a processor without AVX.
EXACT = {"gpt2": 1e-10, "bloom": 4e-6, "llama": 4e-6, "mistral": 4e-6, "falcon": 4e-6, "mixtral": 1e-5}
CASES = [(family, seed, shape) for family, shapes in SHAPES.items() for seed, shape in enumerate(shapes)]


def small(family, seed, shape, dtype):
    settings = {"n_layers": 2, "n_heads": 4, "d_model": 32} | shape
    config = model_config(family, "nano", vocab_size=31 + seed, max_seq_len=24, **settings)
    return randomized(GPT(config, torch.Generator().manual_seed(seed)), seed).to(dtype)


def opened(folder, dtype):
    transformers = pytest.importorskip("transformers")
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}  # their grouped experts have no float64
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **plain).eval()


def on_disk(gradients):
    """Names as in Mixtral's files, where each expert's matrices stand alone: w1, w3 (gate, up) and w2 (down)."""
    found = {}
    for name, gradient in gradients.items():
        name = name.replace("mlp.experts", "block_sparse_moe.experts").replace("mlp.gate.", "block_sparse_moe.gate.")
        body, _, kind = name.rpartition(".")
        for expert, matrix in enumerate(gradient if "experts" in name else ()):
            parts = {"w2": matrix} if kind == "down_proj" else dict(zip(("w1", "w3"), matrix.chunk(2), strict=True))
            found |= {f"{body}.{expert}.{part}.weight": value for part, value in parts.items()}
        found[name] = gradient
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family, seed, shape", CASES)
def test_logits_and_all_gradients(family, seed, shape, dtype, tmp_path):
    model = small(family, seed, shape, dtype)
    peer = opened(save_hugging_face(model, tmp_path / "saved"), dtype)
    ids = random_ids(model.config.vocab_size, (3, 20), seed)
    ours, theirs = model(ids), peer(ids).logits
    relative = EXACT[family] if dtype == torch.float64 else 1e-5
    assert_near(ours, theirs, relative, "logits")
    for logits in (ours, theirs):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    assert_same_gradients(model, peer, relative, on_disk)


@pytest.mark.parametrize("family, seed, shape", CASES)
def test_padding_on_the_left_and_steps_with_a_cache(family, seed, shape, tmp_path):
    """Theirs sees each row alone, without padding: rows that may see nothing are NaN in some of their kernels."""
    model = small(family, seed, shape, torch.float64).eval()
    peer = opened(save_hugging_face(model, tmp_path / "saved"), torch.float64)
    ids, n_padding = random_ids(model.config.vocab_size, (2, 12), seed), [0, 5]
    mask = torch.stack([torch.arange(12) >= n for n in n_padding])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, past = model.make_cache(2, 12), [None, None]
    for start, end in ((0, 7), (7, 8), (8, 12)):
        ours = model(ids[:, start:end], cache, mask[:, :end], positions[:, start:end])
        for row in range(2):
            first = max(start, n_padding[row])
            theirs = peer(ids[row : row + 1, first:end], past_key_values=past[row], use_cache=True)
            past[row] = theirs.past_key_values
            assert_near(ours[row, first - start :], theirs.logits[0], EXACT[family], f"row {row}, {first} to {end}")


def their_models(transformers):
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    shape = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6, "vocab_size": 29}
    yield transformers.GPT2Config(
        n_embd=24, n_layer=3, n_head=6, n_positions=17, vocab_size=29, activation_function="gelu_pytorch_tanh", **ends
    )
    yield transformers.LlamaConfig(
        **shape, num_key_value_heads=3, intermediate_size=20, max_position_embeddings=17, attention_bias=True,
        mlp_bias=True, **ends,
    )  # fmt: skip
    yield transformers.MistralConfig(
        **shape, num_key_value_heads=2, intermediate_size=20, max_position_embeddings=17, sliding_window=None, **ends
    )
    yield transformers.MistralConfig(
        **shape, num_key_value_heads=2, intermediate_size=20, max_position_embeddings=17, sliding_window=4, **ends
    )
    yield transformers.MixtralConfig(
        **shape, num_key_value_heads=2, intermediate_size=20, max_position_embeddings=17, num_local_experts=3, **ends
    )
    yield transformers.BloomConfig(hidden_size=24, n_layer=3, n_head=6, vocab_size=29, **ends)
    yield transformers.FalconConfig(**shape, max_position_embeddings=17, **ends)
    yield transformers.FalconConfig(**shape, multi_query=False, bias=True, tie_word_embeddings=False, **ends)


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("size", ["1GB", "4KB"])
def test_their_checkpoints_open_here(number, size, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(number)
    peer = transformers.AutoModelForCausalLM.from_config(list(their_models(transformers))[number]).eval()
    randomized(peer, number)
    peer.save_pretrained(tmp_path, max_shard_size=size)
    assert (size == "1GB") == (tmp_path / "model.safetensors").is_file()
    model, ids = load_hugging_face(tmp_path), random_ids(29, (2, 17), number)
    assert_near(model(ids), peer(ids).logits, 1e-5)


def test_a_body_without_a_head_opens_too(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=24, n_layer=1, n_head=2, n_positions=17, vocab_size=29, eos_token_id=0)
    peer = transformers.GPT2LMHeadModel(config).eval()
    peer.transformer.save_pretrained(tmp_path)
    ids = random_ids(29, (2, 17))
    assert_near(load_hugging_face(tmp_path)(ids), peer(ids).logits, 1e-5)


@pytest.mark.parametrize("family", SHAPES)
def test_our_shards_open_there_and_continue_texts_greedily(family, tmp_path):
    model = small(family, 3, {}, torch.float32).eval()
    peer = opened(save_hugging_face(model, tmp_path / "saved", shard_bytes=8000), torch.float32)
    assert len(list((tmp_path / "saved").glob("model-*.safetensors"))) > 2
    prompt = random_ids(model.config.vocab_size, (1, 5))
    ours = generate(model, prompt.tolist(), 15, GREEDY)[0]
    theirs = peer.generate(prompt, max_new_tokens=15, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert ours == theirs[0, 5:].tolist()
