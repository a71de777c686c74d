"""A training step of our GPT-2-style decoder against the same shape in `transformers`.

One step is: forward, token cross-entropy, backward, clip to norm 1, AdamW, no dropout. Both sides see the same random
batches and use the same number of threads; the peer uses scaled_dot_product_attention and torch's fused AdamW.
Afterwards a run of 200 steps in fp32 and in bf16 shows that the number format does not change what is learned.

    .venv-oracle-hf/bin/python benchmarks/train_step.py --threads 2 [--quick]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from pairs import Claim, median_ratio, paired_seconds, print_claims
from peers import gpt2_peer
from torch import Tensor

from minillm.models.gpt import GPT, GPTConfig
from minillm.models.registry import flops_per_token, model_config
from minillm.nn.onednn_linear import use_onednn
from minillm.runtime import DTYPES, matmul_flops_per_second
from minillm.train.clip import clip_gradients
from minillm.train.loss import kernel_cross_entropy
from minillm.train.optim import AdamW

LEARNING_RATE = 3e-4
SMALL = {"n_layers": 4, "n_heads": 4, "d_model": 128, "max_seq_len": 64}
LARGE = {"n_layers": 6, "n_heads": 6, "d_model": 384, "max_seq_len": 256}
BATCH_SIZES = {"small": 12, "large": 16}
VOCAB_SIZE = 65


def our_config(shape: dict[str, int]) -> GPTConfig:
    """The GPT-2-style decoder of a shape."""
    return model_config("gpt2", "tiny", VOCAB_SIZE, **shape)


def random_batches(config: GPTConfig, batch_size: int, seed: int = 0) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function that gives the next random inputs and targets, each (B, T)."""
    generator = torch.Generator().manual_seed(seed)

    def next_batch() -> tuple[Tensor, Tensor]:
        ids = torch.randint(VOCAB_SIZE, (batch_size, config.max_seq_len + 1), generator=generator)  # (B, U)
        return ids[:, :-1], ids[:, 1:]

    return next_batch


def text_batches(config: GPTConfig, batch_size: int, path: Path, seed: int = 0) -> Callable[[], tuple[Tensor, Tensor]]:
    """The same with windows of the bytes of a text, its 65 commonest characters kept."""
    text = path.read_text(encoding="utf-8", errors="replace")
    characters = sorted(set(text), key=lambda character: (-text.count(character), character))[:VOCAB_SIZE]
    index = {character: i for i, character in enumerate(characters)}
    data = torch.tensor([index[character] for character in text if character in index])  # (N,)
    generator = torch.Generator().manual_seed(seed)

    def next_batch() -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(data) - config.max_seq_len, (batch_size, 1), generator=generator)  # (B, 1)
        ids = data[starts + torch.arange(config.max_seq_len + 1)]  # (B, U)
        return ids[:, :-1], ids[:, 1:]

    return next_batch


def our_step(config: GPTConfig, next_batch: Callable[[], tuple[Tensor, Tensor]], kind: str) -> Callable[[], float]:
    """A function that makes one training step of ours and returns the loss in nats."""
    model = GPT(config, torch.Generator().manual_seed(0))
    use_onednn(model)
    optimizer = AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    parameters = list(model.parameters())

    def step() -> float:
        inputs, targets = next_batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            loss = kernel_cross_entropy(model(inputs), targets)
        loss.backward()
        clip_gradients(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def peer_step(
    config: GPTConfig, next_batch: Callable[[], tuple[Tensor, Tensor]], make_peer: Callable = gpt2_peer
) -> Callable[[], float]:
    """The same step with `transformers`' GPT-2 (or another of `peers`) in fp32."""
    torch.manual_seed(0)
    model = make_peer(config, use_cache=False, eos_token_id=0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    parameters = list(model.parameters())

    def step() -> float:
        inputs, targets = next_batch()
        logits = model(inputs).logits                              # (B, T, V)
        loss = torch.nn.functional.cross_entropy(logits.view(-1, VOCAB_SIZE), targets.reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def compare(
    name: str, shape: dict[str, int], kind: str, at_least: float, aim: float, n_pairs: int, n_each: int
) -> Claim:
    """Time `n_each` steps of each side in `n_pairs` pairs, print tokens per second and MFU, and return the claim."""
    config, batch_size = our_config(shape), BATCH_SIZES[name]
    ours = our_step(config, random_batches(config, batch_size), kind)
    peer = peer_step(config, random_batches(config, batch_size))
    our_seconds, peer_seconds = paired_seconds(
        lambda: [ours() for _ in range(n_each)], lambda: [peer() for _ in range(n_each)], n_pairs
    )
    n_tokens = n_each * batch_size * config.max_seq_len
    rate = n_tokens / sorted(our_seconds)[n_pairs // 2]
    ceiling = matmul_flops_per_second(torch.device("cpu"), DTYPES[kind])
    print(
        f"{name} {kind}: ours {rate:,.0f} tokens/s, peer {n_tokens / sorted(peer_seconds)[n_pairs // 2]:,.0f}; "
        f"MFU = (6 N + 12 L C T) * tokens/s / {ceiling / 1e9:.0f} GFLOP/s of a {kind} matrix product "
        f"= {flops_per_token(config) * rate / ceiling:.0%}",
        flush=True,
    )
    size = "/".join(str(shape[name]) for name in ("n_layers", "n_heads", "d_model", "max_seq_len"))
    what = f"training step {size}/batch {batch_size} {kind}"
    return Claim(what, "transformers GPT-2 fp32", median_ratio(our_seconds, peer_seconds), at_least, aim)


def loss_agreement(n_steps: int) -> Claim:
    """Train the large shape on our stories in fp32 and bf16 from the same weights on the same batches."""
    config = our_config(LARGE)
    path = Path(__file__).parents[1] / "data" / "stories_en.txt"
    losses = {}
    for kind in ("fp32", "bf16"):
        step = our_step(config, text_batches(config, BATCH_SIZES["large"], path), kind)
        history = [step() for _ in range(n_steps)]
        losses[kind] = sum(history[-10:]) / len(history[-10:])
    difference = abs(losses["bf16"] / losses["fp32"] - 1.0)
    print(f"mean loss of the last 10 of {n_steps} steps: {losses}, relative difference {difference:.3%}")
    return Claim(
        f"bf16 loss after {n_steps} steps within 0.5 % of fp32 (0.5 % over the difference)",
        "our fp32",
        0.005 / max(difference, 1e-6),
        1.0,
        1.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides (default: 2)")
    parser.add_argument("--quick", action="store_true", help="fewer pairs, no 200-step comparison of number formats")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    n_pairs = 3 if arguments.quick else 9
    claims = [
        compare("small", SMALL, "fp32", at_least=1.15, aim=1.4, n_pairs=2 * n_pairs, n_each=20),
        compare("large", LARGE, "fp32", at_least=1.1, aim=1.25, n_pairs=n_pairs, n_each=1),
        compare("large", LARGE, "bf16", at_least=2.0, aim=2.6, n_pairs=n_pairs, n_each=1),
    ]
    if not arguments.quick:
        claims.append(loss_agreement(n_steps=200))
    print_claims(claims)


if __name__ == "__main__":
    main()
