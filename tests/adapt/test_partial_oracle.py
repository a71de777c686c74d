"""Partial fine-tuning of models of `transformers`: layers, heads and feed-forward layers are found as in ours."""

import pytest
import torch

from minillm.adapt.adapted import adapt
from minillm.adapt.layer_order import depths, stacks
from minillm.adapt.partial import EncoderConfig, FeedForwardConfig, LastLayersConfig
from minillm.errors import ConfigError

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle
IDS = torch.tensor([[3, 1, 4, 1]])


def gpt2():
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=8, **ends)
    return transformers.GPT2LMHeadModel(config)


def llama():
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=11, **sizes))


def t5():
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=8, num_layers=2, num_heads=2, d_kv=4, d_ff=16, vocab_size=11)
    )


def bert():
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=11, **sizes))


OF_BERT = FeedForwardConfig(targets=r".*layer\.\d\.(intermediate|output)")
CASES = [  # model, config, whole beginnings of the names that are trained
    (gpt2, LastLayersConfig(), ("transformer.h.1.", "transformer.ln_f.")),
    (gpt2, FeedForwardConfig(), ("transformer.h.0.mlp.", "transformer.h.1.mlp.")),
    (llama, LastLayersConfig(), ("model.layers.1.", "model.norm.", "lm_head.")),
    (llama, FeedForwardConfig(), ("model.layers.0.mlp.", "model.layers.1.mlp.")),
    (t5, LastLayersConfig(n_layers=2), ("decoder.block.", "decoder.final_layer_norm.")),
    (t5, EncoderConfig(), ("encoder.block.", "encoder.final_layer_norm.")),
    (bert, LastLayersConfig(heads="classifier"), ("bert.encoder.layer.1.", "bert.pooler.", "classifier.")),
    (bert, OF_BERT, tuple(f"bert.encoder.layer.{n}.{part}." for n in "01" for part in ("intermediate", "output"))),
]


@pytest.mark.parametrize("make, config, beginnings", CASES)
def test_exactly_the_part_is_trained(make, config, beginnings):
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = adapt(model, config)
    assert set(adapted.trainable_parameters()) == {
        name for name, _ in model.named_parameters() if name.startswith(beginnings)
    }
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS} if make is t5 else {"input_ids": IDS}
    model(**inputs).logits.square().mean().backward()
    torch.optim.SGD(adapted.trainable_parameters().values(), lr=1.0).step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith(beginnings) for name in moved)
    adapted.remove()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_depths_of_foreign_models():
    assert stacks(t5()) == {"encoder.block": 2, "decoder.block": 2}
    assert {name: depths(gpt2())[name] for name in ("lm_head.weight", "transformer.ln_f.bias")} == {
        "lm_head.weight": 0, "transformer.ln_f.bias": 3
    }  # fmt: skip
    of_t5 = depths(t5())
    assert [of_t5[f"{half}.final_layer_norm.weight"] for half in ("encoder", "decoder")] == [2, 5]
    with pytest.raises(ConfigError, match="no module of BertForSequenceClassification is meant"):
        adapt(bert(), FeedForwardConfig())
