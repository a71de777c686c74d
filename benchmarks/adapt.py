"""A training step with LoRA against the same in `peft`, and against our own full fine-tuning; what the optimizer keeps.

One step is: forward, token cross-entropy, backward, AdamW, no dropout; rank 8 on queries and values of every layer of a
LLaMA-style decoder. All sides see random batches of one size, in fp32, with the same number of threads. Afterwards one
forward pass of a short text: without an adapter, with one beside the weights, and with it merged into them.

    .venv-oracle-peft/bin/python benchmarks/adapt.py --threads 1 [--quick]
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from pairs import Claim, median_ratio, paired_seconds, print_claims, seconds_of
from peers import llama_peer
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import Tensor, nn

from minillm.adapt.adapted import adapt
from minillm.adapt.lora import LoraConfig
from minillm.models.gpt import GPT, GPTConfig
from minillm.models.registry import model_config
from minillm.nn.onednn_linear import use_onednn
from minillm.train.loss import kernel_cross_entropy
from minillm.train.optim import AdamW

SMALL = {"n_layers": 4, "n_heads": 4, "d_model": 128, "max_seq_len": 64}
LARGE = {"n_layers": 6, "n_heads": 6, "d_model": 384, "max_seq_len": 256}
BATCH_SIZES, RANK, ALPHA = {"small": 12, "large": 4}, 8, 16.0
VOCAB_SIZE = 65
Step = Callable[[], None]


def random_batch(config: GPTConfig, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets, each (B, T)."""
    ids = torch.randint(VOCAB_SIZE, (batch_size, config.max_seq_len + 1), generator=generator)  # (B, U)
    return ids[:, :-1], ids[:, 1:]


def step_of(loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Step:
    """A function that makes one training step."""

    def step() -> None:
        loss_of().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_model(config: GPTConfig) -> GPT:
    """Ours, with the fast products that `minillm train` uses."""
    model = GPT(config, torch.Generator().manual_seed(0))
    use_onednn(model)
    return model


def our_step(model: GPT, parameters: list[nn.Parameter], batch_size: int) -> tuple[Step, AdamW]:
    """A step of ours that trains these parameters, and its optimizer."""
    generator, optimizer = torch.Generator().manual_seed(1), AdamW(parameters, lr=1e-3, fused=True)

    def loss() -> Tensor:
        inputs, targets = random_batch(model.config, batch_size, generator)
        return kernel_cross_entropy(model(inputs), targets)

    return step_of(loss, optimizer), optimizer


def peft_step(config: GPTConfig, batch_size: int) -> tuple[Step, int]:
    """The same step by `peft` on the LLaMA of `transformers`, and how many numbers it trains."""
    torch.manual_seed(0)
    settings = PeftConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(llama_peer(config, use_cache=False, eos_token_id=0).train(), settings)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(1)

    def loss() -> Tensor:
        inputs, targets = random_batch(config, batch_size, generator)
        return torch.nn.functional.cross_entropy(model(inputs).logits.view(-1, VOCAB_SIZE), targets.reshape(-1))

    step = step_of(loss, torch.optim.AdamW(parameters, lr=1e-3, fused=True))
    return step, sum(parameter.numel() for parameter in parameters)


def compare_steps(name: str, shape: dict[str, int], n_pairs: int, n_each: int) -> list[Claim]:
    """Time LoRA against `peft` and against training everything."""
    config, batch_size = model_config("llama", "tiny", VOCAB_SIZE, **shape), BATCH_SIZES[name]
    model = our_model(config)
    adapted = adapt(model, LoraConfig(rank=RANK, alpha=ALPHA), generator=torch.Generator().manual_seed(0))
    ours, optimizer = our_step(model, list(adapted.trainable_parameters().values()), batch_size)
    whole_model = our_model(config)
    whole, whole_optimizer = our_step(whole_model, list(whole_model.parameters()), batch_size)
    theirs, n_theirs = peft_step(config, batch_size)
    n_trained = adapted.count().trainable
    if n_theirs != n_trained:
        raise SystemExit(f"peft trains {n_theirs} numbers, we {n_trained}: not the same work")

    def several(step: Step) -> Callable[[], list]:
        return lambda: [step() for _ in range(n_each)]

    against_peft = paired_seconds(several(ours), several(theirs), n_pairs)
    against_whole = paired_seconds(several(ours), several(whole), n_pairs)
    milliseconds = [1e3 * statistics.median(times) / n_each for times in (*against_peft, against_whole[1])]
    print(f"{name}: {adapted.count()}; a step takes {milliseconds[0]:.1f} ms, peft {milliseconds[1]:.1f} ms, "
          f"training everything {milliseconds[2]:.1f} ms", flush=True)  # fmt: skip
    kept, predicted = state_bytes(optimizer), 8 * n_trained
    print(f"{name}: the optimizer keeps {kept:,} bytes, predicted {predicted:,}, and {state_bytes(whole_optimizer):,} "
          "when everything is trained", flush=True)  # fmt: skip
    what = f"LoRA step {'/'.join(str(shape[key]) for key in shape)}/batch {batch_size} fp32"
    return [
        Claim(what, "peft", median_ratio(*against_peft), 1.0, 1.25),
        Claim(what, "our full fine-tuning", median_ratio(*against_whole), 1.0, 1.25),
        Claim(f"optimizer state of LoRA, {name}", "8 bytes a trained number", predicted / kept, 1.0, 1.0),
    ]


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Memory of the moments, without counters."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.dim())


@torch.no_grad()
def compare_latency(n_pairs: int, n_each: int) -> Claim:
    """One short text through the large shape: base, adapter beside it, adapter merged."""
    config = model_config("llama", "tiny", VOCAB_SIZE, **LARGE)
    ids = torch.randint(VOCAB_SIZE, (1, 32), generator=torch.Generator().manual_seed(0))
    models = [our_model(config).eval() for _ in range(3)]
    adapt(models[1], LoraConfig(rank=RANK), generator=torch.Generator().manual_seed(0))
    adapt(models[2], LoraConfig(rank=RANK), generator=torch.Generator().manual_seed(0)).merge()
    passes = [lambda model=model: [model(ids) for _ in range(n_each)] for model in models]
    times = [[seconds_of(one) for one in passes] for _ in range(n_pairs + 1)][1:]
    beside = statistics.median(row[1] / row[0] for row in times)
    merged = statistics.median(row[0] / row[2] for row in times)
    print(f"a forward pass of 32 tokens with the adapter beside the weights takes {beside:.2f} times the base's")
    return Claim("forward pass of a merged adapter, 32 tokens", "the base", merged, 0.95, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of all sides (default: 2)")
    parser.add_argument("--quick", action="store_true", help="fewer pairs: a smoke test, not a measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    n_pairs = 3 if arguments.quick else 11
    claims = [
        *compare_steps("small", SMALL, n_pairs, n_each=10),
        *compare_steps("large", LARGE, n_pairs, n_each=1),
        compare_latency(n_pairs, n_each=10),
    ]
    print_claims(claims)


if __name__ == "__main__":
    main()
