"""GPT-2 of `transformers` with our weights gives our logits, in float64."""

import pytest
import torch

from minillm.models.gpt import GPT
from minillm.models.registry import model_config

pytestmark = pytest.mark.oracle
NAMES = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}


def their_weights(model):
    """Our weights under their names; their linear maps store (in, out)."""
    state = {"wte.weight": model.token_embedding.weight, "wpe.weight": model.position_embedding.weight}
    state |= {f"ln_f.{name}": value for name, value in model.final_norm.named_parameters()}
    for layer, block in enumerate(model.blocks):
        for ours, theirs in NAMES.items():
            for name, value in block.get_submodule(ours).named_parameters():
                state[f"h.{layer}.{theirs}.{name}"] = value.T if value.dim() == 2 else value
    return state


def test_logits_and_gradients_agree_with_transformers():
    transformers = pytest.importorskip("transformers")
    model = GPT(model_config("gpt2", "nano", 31, 24), torch.Generator().manual_seed(0)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():                       # biases and norm scales must matter too
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=24, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    peer = transformers.GPT2LMHeadModel(config).double()
    missing, unexpected = peer.transformer.load_state_dict(their_weights(model), strict=False)
    assert not unexpected and all("bias" in name for name in missing), (missing, unexpected)

    ids = torch.randint(31, (3, 20), generator=generator)
    ours, theirs = model(ids), peer(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    peer_gradients = {name: value.grad for name, value in peer.transformer.named_parameters()}
    pairs = [
        (model.token_embedding.weight.grad, peer_gradients["wte.weight"]),
        (model.position_embedding.weight.grad, peer_gradients["wpe.weight"]),
        (model.blocks[0].attention.qkv.weight.grad, peer_gradients["h.0.attn.c_attn.weight"].T),
        (model.blocks[1].feed_forward.down.bias.grad, peer_gradients["h.1.mlp.c_proj.bias"]),
    ]
    for gradient, expected in pairs:
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)
