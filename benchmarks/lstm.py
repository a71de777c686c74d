"""Our LSTM against torch.nn.LSTM; its time per token against a decoder's; what it learns of TinyShakespeare.

The claim is about one training step of two layers, 256 wide, on 32 rows of 64 steps: forward, token cross-entropy,
backward, clip to norm 1, AdamW. Embedding and head are the same module on both sides; the two run in turn. Beside it
stand what the decoder of equal size needs per new token at growing lengths, with and without its cache, and, with
`--shakespeare`, the loss of a two-layer LSTM on the split of `recipe.py`, the state carried over the whole text.

    .venv/bin/python benchmarks/lstm.py --threads 2 [--quick] [--shakespeare 6000]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pairs import Claim, median_ratio, paired_seconds, print_claims, seconds_of
from torch import nn

from minillm.infer.recurrent import generate_recurrent
from minillm.models.gpt import GPT
from minillm.models.lstm import RecurrentConfig, RecurrentLM
from minillm.models.registry import model_config
from minillm.nn.onednn_linear import use_onednn
from minillm.tokenizers.chars import CharTokenizer
from minillm.train.clip import clip_gradients
from minillm.train.loss import kernel_cross_entropy
from minillm.train.optim import AdamW
from minillm.train.recurrent import RecurrentTraining, train_recurrent

TEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "tinyshakespeare.txt"
VOCAB_SIZE, BATCH_SIZE, SEQ_LEN = 66, 32, 64
SHAPE = {"d_hidden": 256, "n_layers": 2}
LENGTHS = (64, 256, 1024)


class Peer(nn.Module):
    """The same language model around `torch.nn.LSTM`."""

    def __init__(self, ours: RecurrentLM):
        super().__init__()
        self.token_embedding, self.head = ours.token_embedding, ours.head
        self.layers = nn.LSTM(ours.config.d_embedding, ours.config.d_hidden, ours.config.n_layers, batch_first=True)
        self.layers.load_state_dict(ours.layers.state_dict())

    def forward(self, token_ids, state=None):
        x, state = self.layers(self.token_embedding(token_ids), state)
        return self.head(x), state


def fresh_model(**settings) -> RecurrentLM:
    """Our model of the claim's shape."""
    config = RecurrentConfig(vocab_size=VOCAB_SIZE, end_of_text_id=0, **(SHAPE | settings))
    return RecurrentLM(config, torch.Generator().manual_seed(0))


def training_step(model: nn.Module) -> Callable[[], float]:
    """A function that makes one training step on random ids and returns the loss in nats."""
    optimizer, parameters = AdamW(model.parameters(), lr=1e-3, fused=True), list(model.parameters())
    generator = torch.Generator().manual_seed(0)

    def step() -> float:
        ids = torch.randint(1, VOCAB_SIZE, (BATCH_SIZE, SEQ_LEN + 1), generator=generator)  # (B, T + 1)
        loss = kernel_cross_entropy(model(ids[:, :-1])[0], ids[:, 1:])
        loss.backward()
        clip_gradients(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def speed(n_pairs: int) -> Claim:
    """Time both sides in turn; before that, both make the same three steps and must have the same losses."""
    for kind in ("lstm", "gru", "rnn"):
        step = training_step(fresh_model(kind=kind))
        step()
        rate = BATCH_SIZE * SEQ_LEN / min(seconds_of(step) for _ in range(n_pairs))
        print(f"{kind}: {rate:,.0f} tokens/s at best", flush=True)
    mine, theirs = fresh_model(), Peer(fresh_model())
    use_onednn(mine.layers)  # embedding and head stay the same modules on both sides
    ours, peer = training_step(mine), training_step(theirs)
    losses = [(ours(), peer()) for _ in range(3)]
    if any(abs(one - other) > 1e-4 for one, other in losses):
        raise SystemExit(f"the two sides do not compute the same: losses {losses}")
    our_seconds, peer_seconds = paired_seconds(ours, peer, n_pairs)
    rates = [BATCH_SIZE * SEQ_LEN / statistics.median(seconds) for seconds in (our_seconds, peer_seconds)]
    print(f"lstm: ours {rates[0]:,.0f} tokens/s, torch.nn.LSTM {rates[1]:,.0f} (medians)", flush=True)
    what = "training step, LSTM, 2 layers, 256 wide, batch 32, 64 steps"
    return Claim(what, "torch.nn.LSTM", median_ratio(our_seconds, peer_seconds), at_least=0.4, aim=0.65)


@torch.inference_mode()
def time_per_token(n_new: int) -> None:
    """Milliseconds for one more token, the fastest of several, after texts of growing length."""
    lstm = fresh_model(d_hidden=448).eval()
    room = LENGTHS[-1] + n_new
    decoder = GPT(model_config("gpt2", "small", VOCAB_SIZE, room), torch.Generator().manual_seed(0)).eval()
    print(f"one more token (ms); LSTM of {lstm.n_parameters():,} weights, decoder of {decoder.n_parameters():,}")
    ids = torch.randint(1, VOCAB_SIZE, (1, room), generator=torch.Generator().manual_seed(1))
    steps_with_state(lstm, ids, range(8, 24)), steps_with_cache(decoder, ids, range(8, 24))  # both warm
    for length in LENGTHS:
        places = range(length, length + n_new)
        figures = {
            "LSTM": steps_with_state(lstm, ids, places),
            "decoder with cache": steps_with_cache(decoder, ids, places),
            "without": [seconds_of(lambda p=place: decoder(ids[:, : p + 1])) for place in places[: max(2, n_new // 8)]],
        }
        state_bytes = 4 * 2 * lstm.config.n_layers * lstm.config.d_hidden
        cache_bytes = 4 * 2 * length * decoder.config.n_layers * decoder.config.d_model
        listed = ", ".join(f"{name} {1000 * min(each):.2f}" for name, each in figures.items())
        print(f"after {length:5}: {listed}; the state {state_bytes:,} bytes, the cache {cache_bytes:,}", flush=True)


def steps_with_state(lstm: RecurrentLM, ids: torch.Tensor, places: range) -> list[float]:
    """Seconds of each further step of the LSTM."""
    _, state = lstm(ids[:, : places.start])
    found = []
    for place in places:
        start = time.perf_counter()
        _, state = lstm(ids[:, place : place + 1], state)
        found.append(time.perf_counter() - start)
    return found


def steps_with_cache(decoder: GPT, ids: torch.Tensor, places: range) -> list[float]:
    """Seconds of each further step of the decoder with its cache."""
    cache = decoder.make_cache(1)
    decoder(ids[:, : places.start], cache)
    return [seconds_of(lambda p=place: decoder(ids[:, p : p + 1], cache)) for place in places]


def shakespeare(path: Path, n_steps: int, d_hidden: int, dropout: float, batch_size: int) -> None:
    """Train on the first nine tenths of the text by characters and score the last tenth in one piece."""
    text = path.read_text(encoding="utf-8")
    tokenizer = CharTokenizer.train(text)
    ids = np.array(tokenizer.encode(text))
    training_ids, validation_ids = np.split(ids, [int(0.9 * len(ids))])
    end = tokenizer.special_tokens["<|endoftext|>"]
    config = RecurrentConfig(
        vocab_size=tokenizer.vocab_size, end_of_text_id=end, d_hidden=d_hidden, n_layers=2, dropout=dropout
    )
    training = RecurrentTraining(n_steps=n_steps, batch_size=batch_size, seq_len=64, learning_rate=3e-3)
    torch.manual_seed(0)                                           # of dropout
    start = time.perf_counter()
    model = train_recurrent(training_ids, config, training, progress=False)
    seconds = time.perf_counter() - start
    nats = -model.log_probabilities(validation_ids)[1:].mean()
    n_tokens = n_steps * batch_size * 64
    print(f"TinyShakespeare: {model.n_parameters():,} weights, {n_tokens:,} tokens, {seconds:.0f} s, {nats:.3f} nats")
    sample = generate_recurrent(model, [], 300, generator=torch.Generator().manual_seed(0))
    print(tokenizer.decode(sample), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides (default: 2)")
    parser.add_argument("--quick", action="store_true", help="few pairs, no growing lengths")
    parser.add_argument("--shakespeare", type=int, default=0, metavar="STEPS", help="also train on TinyShakespeare")
    parser.add_argument("--width", type=int, default=256, help="of the model for --shakespeare")
    parser.add_argument("--dropout", type=float, default=0.2, help="of the model for --shakespeare")
    parser.add_argument("--batch-size", type=int, default=32, help="streams for --shakespeare")
    parser.add_argument("--text", type=Path, default=TEXT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.shakespeare:
        shakespeare(arguments.text, arguments.shakespeare, arguments.width, arguments.dropout, arguments.batch_size)
    if not arguments.quick:
        time_per_token(n_new=64)
    print_claims([speed(5 if arguments.quick else 25)])


if __name__ == "__main__":
    main()
