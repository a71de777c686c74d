"""Generation with a key/value cache, batch 1: ours in fp32 and bf16 against `transformers` GPT-2 in fp32.

Both continue the same 16 tokens by 200 tokens, greedily, with the same 6/6/384 shape, vocabulary and number of threads.
The weights are random: speed does not depend on them. The peer is `GPT2LMHeadModel.generate` with its cache on.

    .venv-oracle-hf/bin/python benchmarks/generation.py --threads 2 [--quick]
"""

import argparse
import copy
from collections.abc import Callable

import torch
from pairs import Claim, median_ratio, paired_seconds, print_claims
from peers import gpt2_peer

from minillm.infer.generate import generate
from minillm.infer.packed import pack_linears
from minillm.infer.sampling import GREEDY
from minillm.models.gpt import GPT, GPTConfig
from minillm.models.registry import model_config

N_NEW, N_PROMPT = 200, 16
SHAPE = {"n_layers": 6, "n_heads": 6, "d_model": 384, "max_seq_len": 256, "vocab_size": 65}


def our_generation(model: GPT) -> Callable[[], list[list[int]]]:
    """A function that continues the prompt with our model."""
    prompt = list(range(N_PROMPT))
    model = copy.deepcopy(model)
    if pack_linears(model) == 0:
        print("torch has no packed product here: plain ones are timed", flush=True)
    return lambda: generate(model, [prompt], N_NEW, GREEDY)


def peer_generation(config: GPTConfig) -> Callable[[], torch.Tensor]:
    """A function that continues the prompt with `transformers`."""
    torch.manual_seed(0)
    model = gpt2_peer(config, eos_token_id=None, pad_token_id=0).eval()
    prompt = torch.arange(N_PROMPT)[None]                          # (1, T)
    mask = torch.ones_like(prompt)                                 # (1, T)
    settings = {"max_new_tokens": N_NEW, "min_new_tokens": N_NEW, "do_sample": False, "use_cache": True}

    def work() -> torch.Tensor:
        with torch.inference_mode():
            return model.generate(prompt, attention_mask=mask, **settings)

    return work


def compare(
    kind: str, model: GPT, peer: Callable[[], torch.Tensor], at_least: float, aim: float, n_pairs: int
) -> Claim:
    """Time both in pairs, print tokens per second, and return the claim."""
    ours = our_generation(model)
    n_ours, n_peer = len(ours()[0]), peer().shape[1] - N_PROMPT
    if n_ours != N_NEW or n_peer != N_NEW:
        raise SystemExit(f"both sides must make {N_NEW} tokens, ours made {n_ours}, the peer {n_peer}")
    our_seconds, peer_seconds = paired_seconds(ours, peer, n_pairs)
    rates = [N_NEW / sorted(seconds)[n_pairs // 2] for seconds in (our_seconds, peer_seconds)]
    print(f"{kind}: ours {rates[0]:.0f} tokens/s, peer {rates[1]:.0f} tokens/s", flush=True)
    what = f"generation 6/6/384, {N_NEW} new tokens, batch 1, {kind}"
    return Claim(what, "transformers generate fp32", median_ratio(our_seconds, peer_seconds), at_least, aim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides (default: 2)")
    parser.add_argument("--quick", action="store_true", help="fewer pairs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    n_pairs = 3 if arguments.quick else 9
    config = model_config("gpt2", "tiny", **SHAPE)
    model = GPT(config, torch.Generator().manual_seed(0))
    peer = peer_generation(config)
    claims = [
        compare("fp32", model, peer, at_least=1.3, aim=2.0, n_pairs=n_pairs),
        compare("bf16", copy.deepcopy(model).to(torch.bfloat16), peer, at_least=2.0, aim=3.0, n_pairs=n_pairs),
    ]
    print_claims(claims)


if __name__ == "__main__":
    main()
