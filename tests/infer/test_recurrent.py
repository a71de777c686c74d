"""Generation with a state against reading the whole text again for every id."""

import pytest
import torch

from minillm.errors import DataError, SamplingError
from minillm.infer.recurrent import generate_recurrent
from minillm.infer.sampling import GREEDY, SamplingConfig
from minillm.models.lstm import RecurrentConfig, RecurrentLM


def make(kind="lstm"):
    config = RecurrentConfig(vocab_size=9, end_of_text_id=0, kind=kind, d_hidden=12, n_layers=2, dropout=0.3)
    model = RecurrentLM(config, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)                                    # far from indifferent
    return model


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("prompt", [[], [3], [5, 1, 8, 2]])
def test_greedy_is_the_likeliest_id_after_the_whole_text(kind, prompt):
    model = make(kind).eval()
    got, text = generate_recurrent(model, prompt, 12, GREEDY), [0, *prompt]
    for token_id in got:
        assert token_id == int(model(torch.tensor([text]))[0][0, -1].argmax())
        text.append(token_id)
    assert len(got) == 12


def test_sampling_is_repeatable_and_leaves_the_mode_alone():
    model = make().train()
    draws = [generate_recurrent(model, [1], 20, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and model.training


def test_it_stops_before_the_stop_id():
    model = make()
    free = generate_recurrent(model, [4], 30, GREEDY)
    stop = free[2]
    assert generate_recurrent(model, [4], 30, GREEDY, stop_id=stop) == free[: free.index(stop)]
    assert generate_recurrent(model, [4], 0) == []


def test_a_penalty_counts_the_prompt_and_what_was_said():
    model = make()
    never_again = SamplingConfig(temperature=0.0, repetition_penalty=1e9)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.arange(9.0) + 1)
    assert generate_recurrent(model, [8, 6], 4, never_again) == [7, 5, 4, 3]


def test_bad_input_is_refused():
    with pytest.raises(SamplingError, match="max_new_tokens is -1"):
        generate_recurrent(make(), [1], -1)
    with pytest.raises(DataError, match="vocabulary"):
        generate_recurrent(make(), [9], 1)
