"""Small models of every kind in float64, and batches of texts of unequal length, for what adapts them."""

import torch
from helpers.parity import randomized

from minillm.models.bert import Bert, bert_config
from minillm.models.gpt import GPT, GPTConfig
from minillm.models.t5 import T5, t5_config

VOCAB, CONTEXT = 23, 24
GPTS = {
    "learned": {"bias": True},
    "sinusoidal": {"position": "sinusoidal", "kernels": "naive"},
    "rotary": {"position": "rotary", "n_kv_heads": 2, "norm": "rms", "feed_forward": "swiglu", "tie_embeddings": False},
    "interleaved": {"position": "rotary", "rotary_layout": "interleaved", "qk_norm": True, "kernels": "tiled"},
    "alibi": {"position": "alibi", "n_kv_heads": 1},
    "alibi_tiled": {"position": "alibi", "kernels": "tiled"},
    "none": {"position": "none", "parallel_block": True},
    "token_shift": {"position": "rotary", "token_shift": True, "embedding_norm": True},
}


@torch.no_grad()
def disturb(adapted, std=0.2, seed=3):
    """What training would do: every trained number becomes another one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapted.trainable_parameters().values():
        parameter += torch.empty_like(parameter).normal_(0.0, std, generator=generator)


def small_gpt(seed=0, dtype=torch.float64, **settings):
    settings = {"n_layers": 2, "n_heads": 4, "d_model": 16} | settings
    config = GPTConfig(vocab_size=VOCAB, max_seq_len=CONTEXT, **settings)
    return randomized(GPT(config, torch.Generator().manual_seed(seed)), seed).to(dtype)


def small_bert(seed=0, kind="bert", **settings):
    shape = {"n_layers": 2, "n_heads": 2, "d_model": 16} | settings
    config = bert_config(kind, vocab_size=VOCAB, max_seq_len=CONTEXT, **shape)
    return randomized(Bert(config, torch.Generator().manual_seed(seed)), seed).double()


def small_t5(seed=0, version="1.1", **settings):
    shape = {"n_layers": 2, "n_heads": 2, "d_model": 12, "d_head": 4, "n_buckets": 8, "max_distance": 12} | settings
    config = t5_config(version, vocab_size=VOCAB, max_seq_len=CONTEXT, **shape)
    return randomized(T5(config, torch.Generator().manual_seed(seed)), seed).double()


def ids_of(shape, seed=0):
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def padded_left(rows):
    """(B, T) ids padded on the left, and mask and positions for `GPT.forward`."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    index = torch.arange(longest) - torch.tensor([longest - len(row) for row in rows])[:, None]
    return ids, index >= 0, index.clamp(min=0)


def padded_right(rows):
    """(B, T) ids padded on the right, and their mask."""
    longest = max(map(len, rows))
    ids = torch.tensor([list(row) + [0] * (longest - len(row)) for row in rows])
    return ids, torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
