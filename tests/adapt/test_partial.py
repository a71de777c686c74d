"""Full and partial fine-tuning: exactly the part is trained, saved and taken back; rates fall towards the input."""

import copy

import pytest
import torch
from helpers.adapt_models import ids_of, small_bert, small_gpt, small_t5
from helpers.parity import randomized

from minillm import surgery
from minillm.adapt.adapted import adapt, load_delta
from minillm.adapt.delta_file import TENSORS
from minillm.adapt.layer_order import depths, layer_groups, stacks
from minillm.adapt.lora import LoraConfig
from minillm.adapt.partial import EncoderConfig, FeedForwardConfig, FullConfig, HeadConfig, LastLayersConfig
from minillm.errors import CheckpointError, ConfigError
from minillm.models.bert_heads import TextClassifier, TokenClassifier
from minillm.models.gpt_heads import LastTokenClassifier
from minillm.models.transformer import Transformer, TransformerConfig
from minillm.train.optim import AdamW


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small_transformer():
    shape = {"vocab_size": 23, "max_seq_len": 24, "n_layers": 2, "n_heads": 2, "d_model": 12, "norm_place": "pre"}
    return randomized(Transformer(TransformerConfig(**shape), seeded()), 0).double()


def judge(seed=1):
    return TextClassifier(small_bert(), 3, 0.0, seeded(seed)).double()


def call(model):
    if isinstance(model, Transformer) or hasattr(model, "encoder"):
        return model(ids_of((2, 6)), ids_of((2, 4), 1))
    return model(ids_of((3, 7)))


def train(model, adapted, n_steps=2):
    optimizer = AdamW(adapted.trainable_parameters().values(), lr=1e-2)
    for _ in range(n_steps):
        optimizer.zero_grad()
        call(model).square().mean().backward()
        optimizer.step()


UNTIED = {"tie_embeddings": False, "bias": True, "n_layers": 3}
GATED = {"position": "rotary", "norm": "rms", "feed_forward": "swiglu", "tie_embeddings": False}
EXPERTS = {"n_experts": 2, "n_active_experts": 1, "feed_forward": "swiglu"}
PARTS = {  # case -> (model, config, beginnings of the names that are trained)
    "full": (small_gpt, FullConfig(), ("",)),
    "full, judge": (judge, FullConfig(heads=("pooler", "head")), ("",)),
    "head": (lambda: small_gpt(**UNTIED), HeadConfig(), ("head.",)),
    "head, llama": (lambda: small_gpt(**GATED), HeadConfig(), ("head.",)),
    "head, judge": (judge, HeadConfig(heads=("pooler", "head")), ("pooler.", "body.pooler.", "head.")),
    "head, tagger": (lambda: TokenClassifier(small_bert(), 4, 0.0).double(), HeadConfig(), ("head.",)),
    "head, decoder": (lambda: LastTokenClassifier(small_gpt(**UNTIED), 2, 0.0).double(), HeadConfig(), ("head.",)),
    "last": (small_gpt, LastLayersConfig(), ("blocks.1.", "final_norm.")),
    "last two": (
        lambda: small_gpt(**UNTIED), LastLayersConfig(n_layers=2), ("blocks.1.", "blocks.2.", "final_norm.", "head.")
    ),
    "last, judge": (judge, LastLayersConfig(), ("body.layers.1.", "pooler.", "body.pooler.", "head.")),
    "last, new head": (
        judge, LastLayersConfig(heads="head"), ("body.layers.1.", "pooler.", "body.pooler.", "head.")
    ),
    "last, T5": (small_t5, LastLayersConfig(), ("decoder.1.", "decoder_norm.", "head.")),
    "last three, T5": (
        small_t5, LastLayersConfig(n_layers=3), ("encoder.1.", "encoder_norm.", "decoder.", "decoder_norm.", "head.")
    ),
    "feed-forward": (small_gpt, FeedForwardConfig(), ("blocks.0.feed_forward.", "blocks.1.feed_forward.")),
    "feed-forward, experts": (
        lambda: small_gpt(**EXPERTS), FeedForwardConfig(), ("blocks.0.feed_forward.", "blocks.1.feed_forward.")
    ),
    "feed-forward, one": (
        small_gpt, FeedForwardConfig(targets=r"blocks\.1\.feed_forward"), ("blocks.1.feed_forward.",)
    ),
    "feed-forward, judge": (
        judge, FeedForwardConfig(heads="head"), ("body.layers.0.feed_forward.", "body.layers.1.feed_forward.", "head.")
    ),
    "encoder, T5": (small_t5, EncoderConfig(), ("encoder.", "encoder_norm.", "encoder_distances.")),
    "encoder, Transformer": (small_transformer, EncoderConfig(), ("encoder.", "encoder_norm.")),
}  # fmt: skip


@pytest.mark.parametrize("case", PARTS)
def test_exactly_the_part_is_trained_and_the_rest_stays_bit_for_bit(case):
    make, config, beginnings = PARTS[case]
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        out = call(model)
    adapted = adapt(model, config)
    train(model, adapted)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    meant = {name for name in before if name.startswith(beginnings)}
    unused = {name for name in meant if name.startswith(("body.head", "body.pair_head", "segment", "pair", "pooler"))}
    assert moved - meant == set() and meant - moved <= (unused if config.method == "full" else set())
    trained = {id(p) for p in adapted.trainable_parameters().values()}
    assert trained == {id(p) for n, p in model.named_parameters(remove_duplicate=False) if n.startswith(beginnings)}
    assert {id(p) for p in model.parameters() if p.requires_grad} == trained
    assert all(p.grad is None for p in model.parameters() if id(p) not in trained)
    with adapted.disable(), torch.no_grad():
        assert torch.equal(call(model), out)
    with torch.no_grad():
        assert not torch.equal(call(model), out)
    adapted.remove()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("case", ["full, judge", "head, judge", "last two", "feed-forward", "encoder, T5"])
def test_the_file_holds_the_part_alone_and_loads_on_the_same_base_with_another_new_head(case, tmp_path):
    make, config, _ = PARTS[case]
    model = make()
    other = judge(seed=9) if "judge" in case else copy.deepcopy(model)  # same body, other initial head
    if "judge" in case:
        other.body.load_state_dict(model.body.state_dict())
    adapted = adapt(model, config)
    train(model, adapted)
    adapted.save(tmp_path)
    n_bytes = sum(p.numel() * 8 for p in adapted.trainable_parameters().values())
    assert n_bytes < (tmp_path / TENSORS).stat().st_size < n_bytes + 150 * len(adapted.trainable_parameters()) + 200
    loaded = load_delta(other, tmp_path)
    assert loaded.config == config
    with torch.no_grad():
        assert torch.equal(call(other), call(model))


def test_a_part_of_another_base_is_refused(tmp_path):
    model = small_gpt()
    adapt(model, LastLayersConfig()).save(tmp_path)
    other = small_gpt(seed=1)
    with pytest.raises(CheckpointError, match="another base"):
        load_delta(other, tmp_path)
    adapt(other, LastLayersConfig())                               # nothing of the first attempt is left


def test_merging_is_no_work_and_can_be_undone_once():
    model = small_gpt()
    adapted = adapt(model, FullConfig())
    train(model, adapted)
    changed = call(model).detach()
    adapted.merge()
    assert torch.equal(call(model).detach(), changed)
    with pytest.raises(ConfigError, match="merged"):
        adapted.merge()
    adapted.unmerge()
    assert torch.equal(call(model).detach(), changed)


def test_counts_of_the_claims():
    model = small_gpt(bias=False, norm_bias=False, norm_weight=False, d_model=16, n_layers=2)
    n_layer = 12 * 16 * 16
    for config, expected in ((FeedForwardConfig(), 2 * 8 * 16 * 16), (LastLayersConfig(), n_layer)):
        adapted = adapt(model, config)
        assert adapted.count().trainable == expected               # two thirds of the layers are feed-forward
        adapted.remove()
    adapted = adapt(model, LoraConfig(rank=1))
    assert adapted.count().trainable == 2 * 2 * (16 + 16) < 2 * 8 * 16 * 16 / 8


def test_shared_layers_count_once():
    model = small_bert(kind="albert", d_embedding=8, n_layers=3)
    adapted = adapt(model, LastLayersConfig())
    assert {name.split(".")[0] for name in adapted.trainable_parameters()} == {
        "layers", "head_map", "head_norm", "head_bias", "pooler", "pair_head"
    }  # fmt: skip
    adapted.remove()
    with pytest.raises(ConfigError, match="n_layers is 2, the model has 1"):
        adapt(model, LastLayersConfig(n_layers=2))


def test_misuse_is_refused_and_leaves_the_model_alone():
    tied = small_gpt()
    for config, message in (
        (HeadConfig(), "no module of GPT is meant"),
        (EncoderConfig(), "no encoder-decoder"),
        (LastLayersConfig(n_layers=3), "the model has 2 layers"),
        (FeedForwardConfig(targets="mlp"), "no module of GPT"),
        (FullConfig(heads="nothing"), "no module of GPT"),
    ):
        with pytest.raises(ConfigError, match=message):
            adapt(tied, config)
    for make, message in (
        (lambda: LastLayersConfig(n_layers=0), "n_layers is 0"),
        (lambda: LastLayersConfig(n_layers=True), "n_layers is True"),
        (lambda: HeadConfig(heads=()), "heads is empty"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
    with pytest.raises(ConfigError, match=r"no nn\.ModuleList"):
        adapt(torch.nn.Linear(2, 2), LastLayersConfig())
    adapt(tied, FullConfig())


def test_a_tied_parameter_is_left_alone_unless_all_its_names_are_meant():
    model = small_gpt(tie_embeddings=False)
    model.head.weight = model.token_embedding.weight
    assert depths(model)["head.weight"] == 0
    adapted = adapt(model, LastLayersConfig())
    assert "token_embedding.weight" not in adapted.trainable_parameters()
    adapted.remove()
    with pytest.raises(ConfigError, match="tied"):
        adapt(model, HeadConfig())


def test_depth_is_the_order_in_which_a_signal_passes():
    assert stacks(small_t5()) == {"encoder": 2, "decoder": 2}
    assert stacks(small_gpt(**EXPERTS)) == {"blocks": 2}
    of_t5 = depths(small_t5())
    chosen = ["token_embedding.weight", "encoder_distances.weight", "encoder.1.attention.qkv.weight",
              "encoder_norm.weight", "decoder.0.attention.qkv.weight", "decoder_norm.weight",
              "head.weight"]  # fmt: skip
    assert [of_t5[name] for name in chosen] == [0, 0, 2, 2, 3, 5, 5]
    of_judge = depths(judge())
    chosen = ["body.segment_embedding.weight", "body.embedding_norm.bias", "body.layers.0.attention.qkv.bias",
              "pooler.weight", "head.bias"]  # fmt: skip
    assert [of_judge[name] for name in chosen] == [0, 0, 1, 3, 3]


@pytest.mark.parametrize("make", [small_gpt, judge, small_t5, lambda: small_gpt(**UNTIED)])
def test_each_layer_learns_more_slowly_than_the_one_above_it(make):
    model = make()
    groups = layer_groups(model, 0.1, decay=0.5, weight_decay=0.2)
    depth, top = depths(model), sum(stacks(model).values()) + 1
    seen = [name for group in groups for name, _ in group["params"]]
    assert sorted(seen) == sorted(name for name, _ in model.named_parameters())
    for group in groups:
        for name, parameter in group["params"]:
            assert group["lr"] == pytest.approx(0.1 * 0.5 ** (top - depth[name]), rel=1e-12)
            assert group["weight_decay"] == (0.2 if parameter.dim() >= 2 else 0.0)
    rates = [group["lr"] for group in groups]
    assert rates == sorted(rates, reverse=True) and rates[0] == 0.1
    same = layer_groups(model, 0.1, decay=1.0)
    assert {group["lr"] for group in same} == {0.1}


def test_one_step_of_descent_moves_each_layer_by_its_own_rate():
    model, twin = small_gpt(), small_gpt()
    for net, groups in ((model, layer_groups(model, 0.3)), (twin, [{"params": list(twin.named_parameters())}])):
        optimizer = torch.optim.SGD(groups, lr=0.3)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        call(net).square().mean().backward()
        optimizer.step()
        net.moved = {name: p.detach() - before[name] for name, p in net.named_parameters()}
    for name, depth in depths(model).items():
        torch.testing.assert_close(model.moved[name], twin.moved[name] / 2.6 ** (3 - depth), atol=1e-14, rtol=1e-9)


def test_frozen_parameters_are_in_no_group_and_wrong_rates_are_refused():
    model = small_gpt()
    adapt(model, LastLayersConfig())
    names = {name for group in layer_groups(model, 0.1) for name, _ in group["params"]}
    assert names == set(surgery.trainable(model)) and all(name.startswith(("blocks.1", "final")) for name in names)
    for settings in ({"learning_rate": -1}, {"learning_rate": 1, "decay": 0}, {"learning_rate": 1, "decay": 1.1}):
        with pytest.raises(ConfigError, match="expected at least 0"):
            layer_groups(model, **settings)
