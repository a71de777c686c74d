"""Models with (IA)^3 vectors that differ from one, for the exchange with `peft`."""

import torch
from helpers.adapt_models import ids_of, small_bert, small_gpt, small_t5

from minillm.adapt.adapted import adapt

IDS = ids_of((3, 9), 5)
LLAMA = {"position": "rotary", "n_kv_heads": 2, "norm": "rms", "feed_forward": "swiglu", "tie_embeddings": False}
BLOOM = {"position": "alibi", "bias": True, "embedding_norm": True}
MODELS = {
    "gpt2": lambda: small_gpt(bias=True),
    "bloom": lambda: small_gpt(**BLOOM),
    "llama": lambda: small_gpt(**LLAMA),
    "bert": small_bert,
    "t5": small_t5,
}


def run(model):
    return model(IDS, IDS[:, :5]) if hasattr(model, "decoder") else model(IDS)


@torch.no_grad()
def disturbed(kind, config):
    adapted = adapt(MODELS[kind](), config)
    for number, vector in enumerate(adapted.trainable_parameters().values()):
        vector.add_(torch.randn(vector.shape, generator=torch.Generator().manual_seed(number)).to(vector) * 0.3)
    return adapted
