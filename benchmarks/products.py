"""Which product trains faster in fp32 on this processor, oneDNN's or torch's, and does `use_onednn` take that one?

Whole training steps of two decoders and of an LSTM, one with each product, in turn; nothing else differs.

    .venv/bin/python benchmarks/products.py --threads 2 [--quick]
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from lstm import fresh_model, training_step
from pairs import Claim, paired_seconds, print_claims
from torch import nn

from minillm.models.gpt import GPT
from minillm.models.registry import model_config
from minillm.nn.onednn_linear import onednn_is_faster, onednn_works, use_onednn
from minillm.train.loss import kernel_cross_entropy
from minillm.train.optim import AdamW

DECODERS = {  # family, shape, batch
    "decoder 4/4/128, context 64, batch 12": ("gpt2", (4, 4, 128, 64), 12),
    "decoder 6/6/384, context 256, batch 4": ("llama", (6, 6, 384, 256), 4),
}
LSTM = "LSTM, 2 layers, 256 wide, batch 32, 64 steps"
VOCAB_SIZE = 65


def decoder_step(name: str, onednn: bool) -> Callable[[], object]:
    """A function that makes one training step of a decoder on random ids."""
    family, shape, batch_size = DECODERS[name]
    sizes = dict(zip(("n_layers", "n_heads", "d_model", "max_seq_len"), shape, strict=True))
    model = with_product(GPT(model_config(family, "tiny", VOCAB_SIZE, **sizes), seeded()), onednn)
    ids, optimizer = torch.randint(VOCAB_SIZE, (batch_size, shape[-1] + 1), generator=seeded()), optimizer_of(model)

    def step() -> None:
        kernel_cross_entropy(model(ids[:, :-1]), ids[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def with_product(model: nn.Module, onednn: bool) -> nn.Module:
    """The model, with oneDNN's product if wanted."""
    if onednn:
        use_onednn(model, anyway=True)
    return model


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def optimizer_of(model: nn.Module) -> AdamW:
    return AdamW(list(model.parameters()), lr=1e-3, fused=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides (default: 2)")
    parser.add_argument("--quick", action="store_true", help="fewer pairs: a smoke test, not a measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not onednn_works():
        raise SystemExit("torch has no such product of oneDNN here, or it is wrong; there is nothing to compare")
    steps = {name: (decoder_step(name, True), decoder_step(name, False)) for name in DECODERS}
    steps[LSTM] = training_step(with_product(fresh_model(), True)), training_step(fresh_model())
    print(f"{torch.backends.cpu.get_cpu_capability()}: use_onednn takes {('torch', 'oneDNN')[onednn_is_faster()]}'s")
    claims = []
    for name, pair in steps.items():
        onednn, plain = paired_seconds(*pair, 3 if arguments.quick else 11)
        ratio = statistics.median(theirs / ours for theirs, ours in zip(onednn, plain, strict=True))
        print(f"{name}: oneDNN {1e3 * statistics.median(onednn):.1f} ms, torch {1e3 * statistics.median(plain):.1f} ms "
              f"a step, oneDNN over torch {ratio:.2f}", flush=True)  # fmt: skip
        chosen = 1 / ratio if onednn_is_faster() else ratio
        claims.append(Claim(f"step with the product taken, {name}", "the other product", chosen, 0.95, 1.0))
    print_claims(claims)


if __name__ == "__main__":
    main()
