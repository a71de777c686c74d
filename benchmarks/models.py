"""Decoders in the LLaMA style: a training step, a mixture of experts, and what one more token costs.

1. A training step of ours against the LLaMA of `transformers` at the same shape (the step of `train_step.py`).
2. A step with a mixture of experts against a dense model of ours with equal active parameters.
3. The time to the next token at several lengths, with the cache (one new token, keys and values of the others kept) and
   without (everything again): a line whose slope is small and one whose slope is the cost of a whole token.

    .venv-oracle-hf/bin/python benchmarks/models.py --threads 2 [--quick] [--next-token]
"""

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from pairs import Claim, median_ratio, paired_seconds, print_claims, seconds_of
from peers import llama_peer
from train_step import BATCH_SIZES, LARGE, SMALL, VOCAB_SIZE, our_step, peer_step, random_batches

from minillm.models.gpt import GPT, GPTConfig
from minillm.models.registry import flops_per_token, model_config, parameters

LENGTHS = (32, 64, 128, 256, 512)
DECODER = {"n_layers": 6, "n_heads": 6, "d_model": 384, "max_seq_len": 1 + max(LENGTHS)}
EXPERTS = {"n_experts": 8, "n_active_experts": 1, "capacity_factor": 1.25}


def rates(ours: Callable, peer: Callable, n_pairs: int, n_each: int, n_tokens: int) -> tuple[float, str]:
    """Median ratio of `n_each` calls of both in `n_pairs` pairs, and both rates in words."""
    our_seconds, peer_seconds = paired_seconds(
        lambda: [ours() for _ in range(n_each)], lambda: [peer() for _ in range(n_each)], n_pairs
    )
    our_rate, peer_rate = (n_each * n_tokens / statistics.median(all_) for all_ in (our_seconds, peer_seconds))
    return median_ratio(our_seconds, peer_seconds), f"{our_rate:,.0f} tokens/s, peer {peer_rate:,.0f}"


def size_of(config: GPTConfig, batch_size: int) -> str:
    """A shape in words."""
    return f"{config.n_layers}/{config.n_heads}/{config.d_model}/{config.max_seq_len}/batch {batch_size}"


def llama_step(name: str, shape: dict, at_least: float, aim: float, n_pairs: int, n_each: int) -> Claim:
    """Our training step against that of `transformers`."""
    config, batch_size = model_config("llama", "tiny", VOCAB_SIZE, **shape), BATCH_SIZES[name]
    ours = our_step(config, random_batches(config, batch_size), "fp32")
    peer = peer_step(config, random_batches(config, batch_size), llama_peer)
    ratio, shown = rates(ours, peer, n_pairs, n_each, batch_size * config.max_seq_len)
    print(f"llama {name}: {shown}", flush=True)
    return Claim(f"training step {size_of(config, batch_size)} fp32", "transformers LLaMA", ratio, at_least, aim)


def experts_step(name: str, shape: dict, n_pairs: int, n_each: int) -> Claim:
    """A step with 8 experts, 1 active, against the dense model that each token meets."""
    dense = model_config("llama", "tiny", VOCAB_SIZE, **shape)
    sparse = model_config("llama", "tiny", VOCAB_SIZE, **shape, **EXPERTS)
    batch_size = BATCH_SIZES[name]
    steps = [our_step(config, random_batches(config, batch_size), "fp32") for config in (sparse, dense)]
    ratio, shown = rates(*steps, n_pairs, n_each, batch_size * dense.max_seq_len)
    print(
        f"experts {name}: {parameters(sparse):,} parameters, {shown} with {parameters(dense):,}; "
        f"operations per token {flops_per_token(sparse) / flops_per_token(dense):.3f} of the dense model's",
        flush=True,
    )
    what = f"training step with 8 experts, 1 active, {size_of(dense, batch_size)}: at most 1.5 times as long"
    return Claim(what, "our dense model", ratio, 1 / 1.5, 0.8)


@torch.inference_mode()
def milliseconds_per_token(model: GPT, length: int, cached: bool, n_times: int) -> float:
    """Median time to the scores of the token after `length` others."""
    ids = torch.randint(VOCAB_SIZE, (1, length), generator=torch.Generator().manual_seed(0))  # (1, T)
    cache = model.make_cache(1, length) if cached else None
    if cache is not None:
        model(ids[:, :-1], cache)

    def work() -> None:
        if cache is None:
            model(ids)
        else:
            cache.length = length - 1
            model(ids[:, -1:], cache)

    work()
    return 1000 * statistics.median(seconds_of(work) for _ in range(n_times))


def next_token(n_times: int) -> Claim:
    """Print the cost of the next token at each length, the lines through both, and claim what the cache saves."""
    model = GPT(model_config("llama", "tiny", VOCAB_SIZE, **DECODER), torch.Generator().manual_seed(0)).eval()
    costs = {cached: [milliseconds_per_token(model, n, cached, n_times) for n in LENGTHS] for cached in (True, False)}
    print("| tokens before | with cache, ms | without, ms |\n| --: | --: | --: |")
    for length, with_cache, without in zip(LENGTHS, costs[True], costs[False], strict=True):
        print(f"| {length} | {with_cache:.2f} | {without:.2f} |")
    for cached, name in ((True, "with the cache"), (False, "without")):
        slope, start = np.polyfit(LENGTHS, costs[cached], 1)
        print(f"{name}: {start:.2f} ms + {1000 * slope:.2f} microseconds per token before", flush=True)
    shape = "/".join(str(DECODER[key]) for key in ("n_layers", "n_heads", "d_model"))
    what = f"next token after {max(LENGTHS)} with the cache, {shape}, batch 1"
    return Claim(what, "ours without it", costs[False][-1] / costs[True][-1], 5.0, 20.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides (default: 2)")
    parser.add_argument("--quick", action="store_true", help="few pairs: a smoke test")
    parser.add_argument("--next-token", action="store_true", help="only the last part")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    n_times = 5 if arguments.quick else 30
    if arguments.next_token:
        print_claims([next_token(n_times)])
        return
    n_pairs = 3 if arguments.quick else 9
    print_claims(
        [
            llama_step("small", SMALL, at_least=1.1, aim=1.4, n_pairs=2 * n_pairs, n_each=10),
            llama_step("large", LARGE, at_least=1.1, aim=1.25, n_pairs=n_pairs, n_each=1),
            experts_step("small", SMALL, n_pairs=2 * n_pairs, n_each=10),
            experts_step("large", LARGE, n_pairs=n_pairs, n_each=1),
            next_token(n_times),
        ]
    )


if __name__ == "__main__":
    main()
