"""LoRA: the closed-form optimum, counts of the paper, every model and layer kind, merging, several adapters, misuse."""

import copy
import math

import pytest
import torch
from helpers.adapt_models import disturb
from torch import nn
from torch.nn import functional as F

from minillm.adapt.adapted import adapt, load_delta
from minillm.adapt.lora import LoraConfig, LoraEmbedding, LoraLinear, initial_a
from minillm.errors import ConfigError
from minillm.models.bert import Bert, bert_config
from minillm.models.gpt import GPT, GPTConfig
from minillm.models.registry import model_config
from minillm.models.t5 import T5, t5_config
from minillm.nn.onednn_linear import use_onednn

IDS = torch.randint(0, 19, (3, 9), generator=torch.Generator().manual_seed(5))
SIZES = {"vocab_size": 19, "max_seq_len": 12, "n_layers": 2, "n_heads": 4, "d_model": 16}
EVERY = ("qkv", "output", "up", "down")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Conv1D(nn.Module):
    """As in transformers: the weight is (in, out)."""

    def __init__(self, n_out, n_in):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out, generator=seeded(n_in)))
        self.bias = nn.Parameter(torch.randn(n_out, generator=seeded(n_out)))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class FromOutside(nn.Module):
    """A model that knows nothing of this library: torch's layers and one transposed fused one."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(19, 16, padding_idx=0), nn.Linear(16, 19)
        self.c_attn = Conv1D(48, 16)

    def forward(self, ids):
        query, key, value = self.c_attn(self.table(ids)).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(query, key, value))


def gpt(**settings):
    return GPT(GPTConfig(**SIZES | {"bias": True} | settings), seeded())


def llama():
    return GPT(model_config("llama", "nano", 19, 12, n_layers=2, n_heads=4, n_kv_heads=2, d_model=16), seeded())


def t5():
    model = T5(t5_config("1.1", **SIZES), seeded())
    model.forward_both = model.forward
    model.forward = lambda ids: model.forward_both(ids, ids[:, :5])
    return model


MODELS = {
    "gpt": (gpt, EVERY),
    "gpt with tied table": (gpt, (*EVERY, "token_embedding")),
    "gpt with head": (lambda: gpt(tie_embeddings=False), (*EVERY, "head", "token_embedding", "position_embedding")),
    "llama": (llama, (*EVERY, "gate", "head")),
    "bert": (lambda: Bert(bert_config(**SIZES), seeded()), (*EVERY, "head_map", "token_embedding")),
    "albert": (lambda: Bert(bert_config("albert", **SIZES), seeded()), EVERY),
    "t5": (t5, (*EVERY, "query", "key_value", "head")),
    "from outside": (FromOutside, ("c_attn", "head", "table")),
}


@pytest.fixture(params=MODELS)
def case(request):
    make, targets = MODELS[request.param]
    return make().double().eval(), targets


@pytest.mark.parametrize("parts", [("query", "value"), (), ("query", "key", "value")], ids=str)
@torch.no_grad()
def test_every_model_starts_as_the_base_and_merges_exactly(case, parts):
    model, targets = case
    out, state = model(IDS), {name: value.clone() for name, value in model.state_dict().items()}
    adapted = adapt(model, LoraConfig(rank=2, targets=targets, parts=parts), generator=seeded())
    assert torch.equal(model(IDS), out)
    disturb(adapted)
    changed = model(IDS)
    assert (changed - out).abs().max() > 1e-3
    adapted.merge()
    torch.testing.assert_close(model(IDS), changed, rtol=1e-11, atol=1e-12)
    adapted.unmerge()
    assert torch.equal(model(IDS), changed)
    with adapted.disable():
        assert torch.equal(model(IDS), out)
    adapted.remove()
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[name], state[name]) for name in state)


def test_gradients_are_those_of_the_written_out_formula(case):
    """The same model with W + scale * B A written into its weights, and the chain rule by hand."""
    model, targets = case
    plain = copy.deepcopy(model)
    if hasattr(plain, "forward_both"):
        plain.forward_both = type(plain).forward.__get__(plain)
        plain.forward = lambda ids: plain.forward_both(ids, ids[:, :5])
    adapted = adapt(model, LoraConfig(rank=2, alpha=3.0, targets=targets), generator=seeded())
    disturb(adapted)
    if isinstance(model, FromOutside):
        adapted.trainable_parameters()["table.A"].data[:, 0] = 0   # padding has no vector and never gets one
    merged = {}
    for name, layer in adapted.delta.layers.items():
        weight = plain.get_submodule(name).weight
        weight.data = layer.weight.detach().clone()
        merged[name] = weight
    model(IDS).pow(2).sum().backward()
    plain(IDS).pow(2).sum().backward()
    for name, layer in adapted.delta.layers.items():
        gradient = merged[name].grad
        if isinstance(layer, LoraEmbedding):
            gradient = gradient.T
        elif isinstance(layer.base, Conv1D):
            gradient = gradient.T
        for branch in layer.branches["default"].values():
            rows = gradient[branch.rows]
            torch.testing.assert_close(branch.B.grad, 1.5 * rows @ branch.A.T, rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(branch.A.grad, 1.5 * branch.B.T @ rows, rtol=1e-9, atol=1e-10)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_linear_regression_reaches_the_whitened_optimum(rank):
    """The best change of rank R, in closed form: least squares, cut off after R singular values of D (X^T X)^(1/2)."""
    x = torch.randn(80, 6, generator=seeded(1), dtype=torch.float64) * torch.arange(1.0, 7.0, dtype=torch.float64)
    layer = nn.Linear(6, 5, bias=False).double()
    y = torch.randn(80, 5, generator=seeded(2), dtype=torch.float64)
    best = torch.linalg.lstsq(x, y).solution.T                     # (O, I)
    values, vectors = torch.linalg.eigh(x.T @ x)
    root = vectors @ values.sqrt().diag() @ vectors.T
    cut = torch.linalg.svdvals((best - layer.weight.detach()) @ root)[rank:].square().sum()
    optimum = (y - x @ best.T).square().sum() + cut
    model = nn.Sequential(layer)
    adapted = adapt(model, LoraConfig(rank=rank, alpha=2.0 * rank, targets=("0",)), generator=seeded())
    optimizer = torch.optim.LBFGS(
        adapted.trainable_parameters().values(), max_iter=2000, tolerance_change=0, tolerance_grad=1e-10,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss():
        optimizer.zero_grad()
        value = (model(x) - y).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert float(loss().detach()) == pytest.approx(float(optimum), rel=1e-9)


@pytest.mark.parametrize(("rank", "count"), [(1, 4_718_592), (8, 37_748_736)])
def test_counts_of_gpt_3_as_in_the_paper(rank, count):
    """Hu et al. 2021, table 4: 4.7 and 37.7 millions for queries and values of 96 layers of width 12288."""
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=8, max_seq_len=8, n_layers=96, n_heads=96, d_model=12288))
    adapted = adapt_on_meta(model, LoraConfig(rank=rank))
    assert adapted == count == 2 * 96 * 2 * 12288 * rank


def adapt_on_meta(model, config):
    """How many numbers LoRA would train; a model without numbers has no fingerprint."""
    return sum(p.numel() for p in config.inject(model, "default", None).parameters().values())


def test_the_start_of_code_and_paper():
    code, paper = initial_a(64, 400, "code", seeded()), initial_a(64, 400, "paper", seeded())
    assert code.abs().max() <= 1 / 20 and code.std() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)
    reference = nn.init.kaiming_uniform_(torch.empty(64, 400), a=math.sqrt(5))
    assert reference.abs().max() <= 1 / 20 and reference.std() == pytest.approx(float(code.std()), rel=0.02)
    assert paper.std() == pytest.approx(1 / 64, rel=0.02) and paper.abs().max() > 3 / 64
    model = gpt()
    adapted = adapt(model, LoraConfig(rank=3, initial="paper", targets=("qkv", "token_embedding")), generator=seeded())
    for name, parameter in adapted.trainable_parameters().items():
        zero = "A" if name.startswith("token_embedding") else "B"
        assert bool((parameter == 0).all()) == name.endswith(zero), name


def test_scale_is_alpha_over_rank_or_its_root():
    x = torch.randn(4, 6, generator=seeded(), dtype=torch.float64)
    for settings, scale in (({}, 12 / 4), ({"rank_stabilised": True}, 12 / 2)):
        model = nn.Sequential(nn.Linear(6, 5)).double()
        out = model(x)
        adapted = adapt(model, LoraConfig(rank=4, alpha=12, targets="0", **settings), generator=seeded())
        disturb(adapted)
        a, b = adapted.trainable_parameters().values()
        torch.testing.assert_close(model(x) - out, scale * x @ a.T @ b.T)


def test_parts_of_a_fused_layer_change_only_their_rows():
    model = llama().double()
    layer = model.blocks[0].attention.qkv
    x = torch.randn(2, 16, generator=seeded(), dtype=torch.float64)
    out = layer(x)
    adapted = adapt(model, LoraConfig(rank=2, parts=("key",)), generator=seeded())
    disturb(adapted)
    changed = (model.blocks[0].attention.qkv(x) - out).abs().amax(0) > 0
    assert changed.tolist() == [False] * 16 + [True] * 8 + [False] * 8
    assert {name.split(".")[-2] for name in adapted.trainable_parameters()} == {"key"}


def test_dropout_is_on_the_branch_only_and_only_while_training():
    model = nn.Sequential(nn.Linear(200, 3, bias=False)).double()
    x = torch.ones(2, 200, dtype=torch.float64)
    out = model(x)
    adapted = adapt(model, LoraConfig(rank=2, alpha=2.0, targets="0", dropout=0.75), generator=seeded())
    assert torch.equal(model.train()(x), out), "B is zero"
    disturb(adapted)
    a, b = adapted.trainable_parameters().values()
    torch.testing.assert_close(model.eval()(x), out + x @ a.T @ b.T)
    torch.manual_seed(0)
    got = model.train()(x) - out
    torch.manual_seed(0)
    torch.testing.assert_close(got, F.dropout(x, 0.75) @ a.T @ b.T)


def test_several_adapters_share_one_base(tmp_path):
    model = llama().double().eval()
    with torch.no_grad():
        out = model(IDS)
        first = adapt(model, LoraConfig(rank=2), "poems", seeded())
        disturb(first, seed=1)
        poems = model(IDS)
        first.save(tmp_path / "poems")
        first.add(LoraConfig(rank=3, alpha=1.0, targets=("qkv", "down")), "letters", seeded(1))
        assert torch.equal(model(IDS), out), "a fresh one changes nothing"
        disturb(first, seed=2)
        letters = model(IDS)
        first.use("poems")
        assert torch.equal(model(IDS), poems)
        first.use("letters").merge()
        torch.testing.assert_close(model(IDS), letters, rtol=1e-11, atol=1e-12)
        for forbidden in (lambda: first.use("poems"), lambda: first.add(LoraConfig(rank=2), "x"), first.merge):
            with pytest.raises(ConfigError, match="is merged; unmerge"):
                forbidden()
        first.unmerge()
        with pytest.raises(ConfigError, match="not merged"):
            first.unmerge()
        first.save(tmp_path / "letters")
        first.drop("letters")
        assert first.name == "poems" and torch.equal(model(IDS), poems)
        assert isinstance(model.blocks[0].attention.qkv, LoraLinear)
        assert not isinstance(model.blocks[0].feed_forward.down, LoraLinear), "its last branch is gone"
        load_delta(model, tmp_path / "letters")
        assert torch.equal(model(IDS), letters)
        first.remove()
        assert torch.equal(model(IDS), out)


def test_only_the_adapter_in_use_is_trained():
    model = gpt()
    adapted = adapt(model, LoraConfig(rank=2), "one", seeded()).add(LoraConfig(rank=2), "two", seeded())
    adapted.use("one")
    assert {id(p) for p in model.parameters() if p.requires_grad} == {
        id(p) for p in adapted.trainable_parameters().values()
    }
    model(IDS).square().mean().backward()
    adapted.use("two")
    assert all(parameter.grad is None for parameter in adapted.trainable_parameters().values())


def test_a_tied_table_is_changed_as_table_and_as_head():
    model = gpt().double().eval()
    adapted = adapt(model, LoraConfig(rank=2, targets="token_embedding"), generator=seeded())
    disturb(adapted)
    hidden = torch.randn(2, 16, generator=seeded(), dtype=torch.float64)
    vectors = model.token_embedding(torch.arange(19))
    torch.testing.assert_close(model.logits(hidden), hidden @ vectors.T)
    cache = model.make_cache(3)
    torch.testing.assert_close(torch.cat([model(IDS[:, :4], cache), model(IDS[:, 4:], cache)], 1), model(IDS))


def test_merging_one_of_two_tied_layers_leaves_the_other(tmp_path):
    model = nn.ModuleDict({"table": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    model["head"].weight = model["table"].weight
    before = model["table"].weight.detach().clone()
    adapted = adapt(model, LoraConfig(rank=2, targets="head"), generator=seeded())
    disturb(adapted)
    adapted.merge()
    assert torch.equal(model["table"].weight, before) and not torch.equal(model["head"].weight, before)
    adapted.remove()
    assert model["head"].weight is model["table"].weight and torch.equal(model["table"].weight, before)


def test_no_gradient_below_the_first_branch():
    """Nothing is trained below the second block's feed-forward layer, so nothing there needs a gradient."""
    model = gpt()
    adapt(model, LoraConfig(rank=2, targets=(r"blocks\.1\.feed_forward\.(up|down)",)), generator=seeded())
    seen = {}
    for name in ("blocks.0", "blocks.1.attention", "blocks.1.feed_forward"):
        module = model.get_submodule(name)
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.requires_grad}))
    model(IDS)
    assert seen == {"blocks.0": False, "blocks.1.attention": False, "blocks.1.feed_forward": True}


def test_faster_products_are_kept():
    model = gpt()
    adapted = adapt(model, LoraConfig(rank=2), generator=seeded())
    disturb(adapted)
    with torch.no_grad():
        out = model(IDS)
        use_onednn(model, anyway=True)
        torch.testing.assert_close(model(IDS), out, rtol=1e-4, atol=1e-5)


def test_sixteen_bits_keep_branches_of_thirty_two():
    model = gpt().bfloat16()
    adapted = adapt(model, LoraConfig(rank=2, targets=(*EVERY, "token_embedding")), generator=seeded())
    disturb(adapted, 0.02)
    assert {parameter.dtype for parameter in adapted.trainable_parameters().values()} == {torch.float32}
    out = model(IDS)
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    adapted.merge()
    assert model(IDS).dtype == torch.bfloat16
    torch.testing.assert_close(model(IDS).float(), out.float(), rtol=0.05, atol=0.05)


def test_autocast_trains():
    model = gpt()
    adapted = adapt(model, LoraConfig(rank=2, targets=(*EVERY, "token_embedding")), generator=seeded())
    disturb(adapted, 0.02)
    exact = model(IDS).detach()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(IDS)
    out.float().square().mean().backward()
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)
    assert all(parameter.grad is not None for parameter in adapted.trainable_parameters().values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 2.0}, "rank is 2.0"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"initial": "zeros"}, "initial is 'zeros'"),
        ({"targets": ()}, "targets is empty"),
        ({"parts": ("queries",)}, "unknown parts"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 17}, r"rank 17 is above 16, the smaller side of blocks.0.attention.qkv"),
        ({"rank": 9, "parts": ("value",)}, r"rank 9 is above 8, the smaller side of blocks.0.attention.qkv.value"),
        ({"targets": ("query_proj",)}, "candidates are .*attention.qkv"),
        ({"targets": ("attention_norm",)}, "no module of GPT is meant by"),
        ({"rank": 17, "targets": ("token_embedding",)}, "rank 17 is above 16, the smaller side of token_embedding"),
    ],
)
def test_a_model_that_cannot_be_adapted_is_left_as_it_was(settings, message):
    model = llama()
    names = list(model.state_dict())
    with pytest.raises(ConfigError, match=message):
        adapt(model, LoraConfig(**settings))
    assert list(model.state_dict()) == names and all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("wrong", ["no scale", "transposed A", "trained base", "B first", "merge without scale"])
def test_these_checks_would_notice(wrong):
    """Each of the usual mistakes, made on purpose, is far outside the tolerances above."""
    model = nn.Sequential(nn.Linear(6, 6, bias=False)).double()
    x = torch.randn(4, 6, generator=seeded(), dtype=torch.float64)
    adapted = adapt(model, LoraConfig(rank=2, alpha=6.0, targets="0"), generator=seeded())
    disturb(adapted)
    a, b = (parameter.detach() for parameter in adapted.trainable_parameters().values())
    right, base = model(x).detach(), x @ model[0].base.weight.detach().T
    others = {
        "no scale": base + x @ a.T @ b.T,
        "transposed A": base + 3 * x @ (b @ a),
        "trained base": x @ (model[0].base.weight.detach() * 1.01).T + 3 * x @ a.T @ b.T,
        "B first": base + 3 * x @ b @ a,
        "merge without scale": x @ (model[0].base.weight.detach() + b @ a).T,
    }
    torch.testing.assert_close(right, base + 3 * x @ a.T @ b.T)
    assert (others[wrong] - right).abs().max() > 1e-3
