"""What few bits do to a model that was trained. Margins are at least twice the spread over three training seeds."""

import copy

import numpy as np
import pytest
import torch

from minillm import surgery
from minillm.compress.gptq_model import gptq_model
from minillm.compress.grid import QuantSpec
from minillm.compress.mixed import DenseAndSparseLinear, allocate_bits, sensitivity
from minillm.compress.packed_linear import quantize_model
from minillm.compress.quant_linear import QuantLinear
from minillm.data.batches import RandomWindows
from minillm.data.corpora import documents
from minillm.evaluate.likelihood import evaluate_likelihood
from minillm.models.gpt import GPT, GPTConfig
from minillm.tokenizers.chars import CharTokenizer
from minillm.train.grouping import muon_and_adamw
from minillm.train.loss import token_cross_entropy
from minillm.train.schedule import warmup_cosine

pytestmark = pytest.mark.slow
N_STEPS = 300


def trained(seed):
    """A character model of three layers, text it has not seen, and text that methods may look at."""
    text = "\n".join(documents("stories-en"))
    tokenizer = CharTokenizer.train([text])
    ids = np.array(tokenizer.encode(text))
    config = GPTConfig(vocab_size=tokenizer.vocab_size, max_seq_len=64, n_layers=3, n_heads=4, d_model=64, bias=True)
    model = GPT(config, torch.Generator().manual_seed(seed))
    optimizer = muon_and_adamw(model, muon_lr=0.03, adamw_lr=5e-3, splits={"qkv.weight": 3})
    rates = [group["lr"] for group in optimizer.param_groups]
    windows = RandomWindows(ids[:-20_000], 16, seq_len=64, seed=seed)
    for step in range(N_STEPS):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * warmup_cosine(step, 1.0, 0.05, N_STEPS // 10, N_STEPS)
        inputs, targets = map(torch.from_numpy, windows.batch(step))
        optimizer.zero_grad()
        token_cross_entropy(model(inputs), targets).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval(), ids[-16_001:], torch.from_numpy(ids[: 64 * 64].reshape(64, 64))


@pytest.fixture(scope="module")
def case():
    return trained(seed=0)


def nats(model, judged):
    return evaluate_likelihood(model, judged, 64, batch_size=64).nats_per_token


def stored(model, form):
    packed = copy.deepcopy(model)
    quantize_model(packed, form)
    return packed


def rounded(model, *spec):
    return stored(model, lambda _, layer: QuantLinear(layer, QuantSpec(*spec)))


def test_two_bits_collapse_where_one_step_serves_a_whole_matrix_and_eight_cost_nothing(case):
    model, judged, _ = case
    full = nats(model, judged)
    assert full < 2.1
    assert nats(rounded(model, 8, -1), judged) == pytest.approx(full, abs=0.005)
    assert nats(rounded(model, 2, -1), judged) > full + 0.5


@pytest.mark.parametrize(("bits", "margin"), [(3, 0.0), (2, 0.1)])
def test_gptq_beats_rounding_to_nearest_in_every_layer_and_in_the_model(case, bits, margin):
    model, judged, calibration = case
    mended = copy.deepcopy(model)
    report = gptq_model(mended, [calibration], QuantSpec(bits))
    assert len(report.layers) == 12 and all(layer.error < layer.nearest for layer in report.layers)
    assert nats(mended, judged) < nats(rounded(model, bits), judged) - margin


def test_half_a_bit_more_in_the_right_layers_rescues_two_bits(case):
    model, judged, calibration = case
    loss, two = nats(model, judged), nats(rounded(model, 2, 32), judged)
    sizes = {name: layer.weight.numel() for name, layer in surgery.find(model, (), surgery.is_linear).items()}
    seen = calibration.flatten().numpy()
    rises = sensitivity(model, list(sizes), [QuantSpec(bits, 32) for bits in (2, 3, 4)], lambda some: nats(some, seen))
    chosen = allocate_bits(rises, sizes, 2.5)
    mixed = stored(model, lambda name, layer: QuantLinear(layer, QuantSpec(chosen[name], 32)))
    assert nats(mixed, judged) - loss < 0.6 * (two - loss)


def test_exact_outliers_take_back_a_part_of_what_two_bits_lose(case):
    model, judged, _ = case
    loss, two = nats(model, judged), nats(rounded(model, 2), judged)
    kept = stored(model, lambda _, layer: DenseAndSparseLinear(layer, QuantSpec(2), 0.05))
    assert nats(kept, judged) - loss < 0.8 * (two - loss)
