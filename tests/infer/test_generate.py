"""Generation: with a cache as without, together as alone, stops, streams, and what it refuses."""

import pytest
import torch

from minillm.errors import DataError, SamplingError
from minillm.infer.generate import GrowingTexts, generate, generate_stream, logits_after
from minillm.infer.sampling import GREEDY, SamplingConfig
from minillm.models.gpt import GPT
from minillm.models.registry import families, model_config

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 0, 1], [2, 2, 2]]
CONTEXT = 16


def make(family="gpt2", **settings):
    config = model_config(family, "nano", 11, CONTEXT, **{"zero_outputs": False, "tie_embeddings": False} | settings)
    model = GPT(config, torch.Generator().manual_seed(2)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():                       # large weights: the greedy text must wander
            parameter.mul_(8.0 if parameter.dim() == 2 else 1.0)
    return model


def by_definition(model, prompt, n_new):
    """Greedy generation with nothing but the model's forward pass and a window."""
    ids = list(prompt)
    for _ in range(n_new):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids[-CONTEXT:]]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_cached_batch_is_each_prompt_alone_also_beyond_the_context(family, n_kv_heads):
    model, n_new = make(family, n_kv_heads=n_kv_heads), 2 * CONTEXT
    expected = [by_definition(model, prompt, n_new) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in expected}) > 2 and len(set().union(*expected)) > 2, "a dull test"
    assert generate(model, PROMPTS, n_new, GREEDY) == expected
    assert generate(model, PROMPTS, n_new, GREEDY, use_cache=False) == expected
    assert [generate(model, [prompt], n_new, GREEDY)[0] for prompt in PROMPTS] == expected
    assert [list(generate_stream(model, prompt, n_new, GREEDY)) for prompt in PROMPTS] == expected


@pytest.mark.parametrize("family", families())
def test_scores_with_a_cache_are_those_without(family):
    model = make(family)
    texts = GrowingTexts(model, PROMPTS, max_new_tokens=8, use_cache=True)
    for _ in range(8):
        with torch.inference_mode():
            expected = torch.cat([model(torch.tensor([row]))[:, -1] for row in texts.rows])
            torch.testing.assert_close(logits_after(model, texts.rows), expected, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(texts.next_logits(), expected, rtol=1e-10, atol=1e-10)
            for row, token_id in zip(texts.rows, expected.argmax(dim=-1).tolist(), strict=True):
                row.append(token_id)
    assert texts.cache.length == 15, "the longest prompt has 8 tokens, the last one chosen is not in the cache yet"


def test_sampled_text_is_decided_by_the_generator():
    model, config = make(), SamplingConfig(temperature=2.0, top_k=5)
    texts = [generate(model, PROMPTS, 8, config, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    uncached = generate(model, PROMPTS, 8, config, generator=torch.Generator().manual_seed(0), use_cache=False)
    assert uncached == texts[0]


def test_a_repetition_penalty_sees_prompt_and_new_tokens():
    model, ids = make(), [1, 2, 3]
    for _ in range(8):
        with torch.no_grad():
            scores = model(torch.tensor([ids]))[0, -1].tolist()
        scores = [(x / 3 if x > 0 else x * 3) if i in ids else x for i, x in enumerate(scores)]
        ids.append(max(range(11), key=lambda i: scores[i]))
    penalized = SamplingConfig(temperature=0.0, repetition_penalty=3.0)
    assert generate(model, [[1, 2, 3]], 8, penalized) == [ids[3:]] != generate(model, [[1, 2, 3]], 8, GREEDY)


def test_rows_stop_apart_and_without_the_stop():
    model = make()
    whole = [by_definition(model, prompt, 12) for prompt in PROMPTS]
    stop = whole[0][4]
    expected = [ids[: ids.index(stop)] if stop in ids else ids for ids in whole]
    assert len(set(map(len, expected))) > 1, "a dull test"
    assert generate(model, PROMPTS, 12, GREEDY, stop_ids=[stop]) == expected


def test_stop_sequences_and_streams_that_hold_back():
    model, prompt = make(), PROMPTS[0]
    whole = by_definition(model, prompt, 12)
    stop, almost = whole[5:8], [*whole[2:4], (whole[4] + 1) % 11]
    expected = whole[:5]
    assert generate(model, [prompt], 12, GREEDY, stop_sequences=[almost, stop]) == [expected]
    assert list(generate_stream(model, prompt, 12, GREEDY, stop_sequences=[almost, stop])) == expected
    unfinished = [whole[10], whole[11], 0]
    assert list(generate_stream(model, prompt, 12, GREEDY, stop_sequences=[unfinished])) == whole


def test_a_stream_gives_each_id_before_the_next_is_computed():
    model, calls = make(), []
    model.register_forward_pre_hook(lambda *_: calls.append(0))
    model.final_norm.register_forward_hook(lambda *_: calls.append(1))
    stream = generate_stream(model, PROMPTS[0], 5, GREEDY)
    assert calls == []
    next(stream), next(stream)
    assert calls.count(1) == 2


def test_nothing_to_do():
    model = make()
    assert generate(model, [], 5, GREEDY) == []
    assert generate(model, PROMPTS, 0, GREEDY) == [[], [], [], []]
    assert list(generate_stream(model, [1], 0, GREEDY)) == []


def test_prompts_that_do_not_fit_are_refused():
    model, long = make(), [i % 11 for i in range(CONTEXT + 1)]
    with pytest.raises(SamplingError, match="prompt 1 has 17 tokens, the model's context is 16"):
        generate(model, [[1], long], 5, GREEDY)
    with pytest.raises(SamplingError, match="prompt 1 is empty"):
        generate(model, [[1], []], 5, GREEDY)
    with pytest.raises(SamplingError, match="max_new_tokens is -1"):
        generate(model, [[1]], -1, GREEDY)
    with pytest.raises(SamplingError, match="stop sequence is empty"):
        generate(model, [[1]], 5, GREEDY, stop_sequences=[[]])
    with pytest.raises(DataError, match="vocabulary"):
        generate(model, [[11]], 5, GREEDY)
    with pytest.raises(SamplingError, match="top_k is 12"):
        generate(model, [[1]], 5, SamplingConfig(top_k=12))


def test_the_last_part_of_a_long_prompt_on_request():
    model, long = make(), [i * i % 11 for i in range(CONTEXT + 9)]
    expected = [by_definition(model, long, 6), by_definition(model, [1], 6)]
    assert generate(model, [long, [1]], 6, GREEDY, keep_last=True) == expected


def test_a_full_prompt_still_grows():
    model = make()
    prompt = [i % 11 for i in range(CONTEXT)]
    assert generate(model, [prompt], 4, GREEDY) == [by_definition(model, prompt, 4)]


def test_the_model_is_left_as_it_was():
    model = make(dropout=0.5).train()
    first, second = (generate(model, PROMPTS, 6, GREEDY) for _ in range(2))
    assert first == second, "dropout must be off while generating"
    assert model.training
    stream = generate_stream(model, [1], 6, GREEDY)
    next(stream)
    stream.close()
    assert model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_grad_mode_outside_a_running_stream():
    stream = generate_stream(make(), [1], 3, GREEDY)
    next(stream)
    assert not torch.is_inference_mode_enabled()
