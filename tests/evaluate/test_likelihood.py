"""Every token predicted exactly once, whatever the windows: models whose losses are known per token."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from minillm.data.packing import pack
from minillm.errors import ConfigError, DataError
from minillm.evaluate.likelihood import Likelihood, bits_per_byte, evaluate_likelihood, evaluation_windows, perplexity
from minillm.tokenizers.bytes import ByteTokenizer

V = 11
TOKENS = np.random.default_rng(0).integers(V, size=53)


def bigram_scores():
    return torch.randn(V, V, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def bigram_model(token_ids):
    """Logits that depend on the current token only, so that windows must not matter."""
    return bigram_scores()[token_ids]


def bigram_losses(tokens):
    log_shares = bigram_scores().double().log_softmax(dim=-1).numpy()
    return np.array([-log_shares[a, b] for a, b in zip(tokens[:-1], tokens[1:], strict=True)])


class Counting(nn.Module):
    """Says how many tokens of context it saw: the logit of token 0 grows with the position in the window."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.modes = []

    def forward(self, token_ids):
        self.modes.append((self.training, torch.is_inference_mode_enabled(), tuple(token_ids.shape)))
        logits = torch.zeros(*token_ids.shape, V)
        logits[..., 0] = torch.arange(token_ids.shape[1]).float()
        return logits + self.weight


@pytest.mark.parametrize(
    ("seq_len", "stride"), [(1, 1), (8, 8), (8, None), (8, 3), (8, 1), (52, 5), (53, None), (200, 7)]
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_windows_do_not_change_a_model_without_memory(seq_len, stride, batch_size):
    found = evaluate_likelihood(bigram_model, TOKENS, seq_len, stride, batch_size, return_losses=True)
    np.testing.assert_allclose(found.losses, bigram_losses(TOKENS), rtol=1e-5, atol=1e-6)
    assert found.n_tokens == 52 and found.nats_total == pytest.approx(found.losses.sum(), rel=1e-12)
    assert evaluate_likelihood(bigram_model, TOKENS, seq_len, stride, batch_size).losses is None


@pytest.mark.parametrize(("seq_len", "stride"), [(8, None), (8, 3), (1, None), (100, None)])
def test_a_start_id_makes_the_first_token_count(seq_len, stride):
    found = evaluate_likelihood(bigram_model, TOKENS, seq_len, stride, 4, start_id=7, return_losses=True)
    np.testing.assert_allclose(found.losses, bigram_losses([7, *TOKENS]), rtol=1e-5, atol=1e-6)
    assert found.n_tokens == 53


@pytest.mark.parametrize("stride", [1, 3, 4])
def test_every_token_has_the_context_it_was_promised(stride):
    tokens = np.zeros(24, np.int64)
    losses = evaluate_likelihood(Counting(), tokens, 4, stride, 3, return_losses=True).losses
    positions = np.rint(np.log((V - 1) / np.expm1(losses))).astype(int)     # loss = log(1 + (V-1) exp(-position))
    assert positions[:4].tolist() == [0, 1, 2, 3]
    assert positions[4:].min() >= 4 - stride and (positions[4:] == 4 - stride).any()
    if stride == 1:
        assert (positions[4:] == 3).all()


@pytest.mark.parametrize("n_predictions", range(1, 20))
def test_windows_cover_everything_once(n_predictions):
    for seq_len in range(1, 8):
        for stride in range(1, seq_len + 1):
            windows = evaluation_windows(n_predictions, seq_len, stride)
            new = [place for start, skipped, stop in windows for place in range(start + skipped, stop)]
            assert new == list(range(n_predictions))
            assert {stop - start for start, _, stop in windows} == {min(seq_len, n_predictions)}
            assert len(windows) == 1 + max(0, math.ceil((n_predictions - seq_len) / stride))


def test_a_module_is_evaluated_without_gradients_and_put_back():
    model = Counting().train()
    evaluate_likelihood(model, TOKENS, 8, batch_size=3)
    assert model.training and model.modes == [(False, True, (3, 8)), (False, True, (3, 8)), (False, True, (1, 8))]
    evaluate_likelihood(model.eval(), TOKENS, 8)
    assert not model.training

    class Broken(nn.Module):
        def forward(self, token_ids):
            raise RuntimeError("broken")

    broken = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        evaluate_likelihood(broken, TOKENS, 8)
    assert broken.training


def test_sixteen_bit_logits_are_summed_in_more():
    found = evaluate_likelihood(lambda ids: bigram_scores()[ids].bfloat16(), TOKENS, 8, return_losses=True)
    rounded = bigram_scores().bfloat16().double().log_softmax(dim=-1).numpy()
    expected = [-rounded[a, b] for a, b in zip(TOKENS[:-1], TOKENS[1:], strict=True)]
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5, atol=1e-6)


def test_packed_tokens_bring_their_bytes(tmp_path):
    texts = ["abc", "é"]
    tokens = pack(texts, ByteTokenizer(), tmp_path / "packed", shard_tokens=3)
    found = evaluate_likelihood(lambda ids: torch.zeros(*ids.shape, 257), tokens, 4, start_id=256)
    assert (found.n_tokens, found.n_bytes) == (7, 5)                        # 5 bytes and two ends of text
    assert found.nats_per_token == pytest.approx(math.log(257), rel=1e-6)
    assert found.perplexity == pytest.approx(257, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(7 / 5 * math.log2(257), rel=1e-6)
    assert evaluate_likelihood(lambda ids: torch.zeros(*ids.shape, 257), tokens, 4, n_bytes=50).n_bytes == 50


def test_closed_forms():
    assert perplexity(0.0, 3) == 1 and perplexity(10 * math.log(2), 10) == pytest.approx(2, rel=1e-12)
    assert perplexity(1e6, 1) == math.inf
    assert bits_per_byte(math.log(256) * 7, 7) == pytest.approx(8, rel=1e-12)
    with pytest.raises(DataError, match="at least one predicted token"):
        perplexity(1.0, 0)
    with pytest.raises(DataError, match="at least one byte"):
        bits_per_byte(1.0, 0)
    with pytest.raises(DataError, match="give n_bytes"):
        _ = Likelihood(1.0, 1).bits_per_byte


def test_wrong_settings():
    for settings in ({"seq_len": 0}, {"batch_size": 0}, {"stride": 0}, {"stride": 9}, {"stride": -1}):
        with pytest.raises(ConfigError, match="stride between 1 and seq_len"):
            evaluate_likelihood(bigram_model, TOKENS, **{"seq_len": 8, **settings})


def test_nothing_to_predict():
    for tokens in ([], [3]):
        with pytest.raises(DataError, match=rf"a text of {len(tokens)} token\(s\) leaves nothing .* at least 2"):
            evaluate_likelihood(bigram_model, np.array(tokens, np.int64), 8)
    with pytest.raises(DataError, match="at least 1"):
        evaluate_likelihood(bigram_model, np.array([], np.int64), 8, start_id=0)
    assert evaluate_likelihood(bigram_model, np.array([3]), 8, start_id=0).n_tokens == 1
