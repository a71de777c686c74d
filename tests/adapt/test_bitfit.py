"""BitFit: which numbers are trained, that no others move, switching and saving, and where it refuses."""

import pytest
import torch
from helpers.adapt_models import ids_of, small_bert, small_gpt, small_t5
from torch import nn
from torch.nn import functional as F

from minillm.adapt.adapted import adapt, load_delta
from minillm.adapt.bitfit import BitFitConfig
from minillm.adapt.lora import LoraConfig
from minillm.errors import CheckpointError, ConfigError
from minillm.models.bert_heads import TextClassifier
from minillm.models.gpt import GPT, GPTConfig

IDS = ids_of((3, 9), 5)
LLAMA = {"position": "rotary", "n_kv_heads": 2, "norm": "rms", "feed_forward": "swiglu", "tie_embeddings": False}
C, F_ = 16, 64
BLOCK = 3 * C + C + F_ + C + 2 * C                                 # qkv, output, up, down and two norms
MODELS = {
    "gpt": (lambda: small_gpt(bias=True), 2 * BLOCK + C),          # and the final norm
    "falcon": (lambda: small_gpt(position="rotary", parallel_block=True, bias=True), 2 * (BLOCK - C) + C),
    "norms only": (lambda: small_gpt(norm_bias=True), 2 * 2 * C + C),
    "bert": (small_bert, 2 * BLOCK + C + 2 * C + C + 2),           # embedding norm; token head; pooler and pair head
    "albert": (lambda: small_bert(kind="albert", d_embedding=8), BLOCK + 8 + C + 2 * 8 + C + 2),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=MODELS)
def case(request):
    make, count = MODELS[request.param]
    return make(), count


def train(model, adapted, n_steps=20):
    optimizer = torch.optim.AdamW(adapted.trainable_parameters().values(), lr=0.02, weight_decay=0.1)
    losses = []
    for _ in range(n_steps):
        loss = F.cross_entropy(model(IDS).flatten(0, -2), IDS.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_only_biases_are_trained_and_all_of_them(case):
    model, count = case
    before = {name: value.clone() for name, value in model.state_dict().items()}
    out = model(IDS).detach()
    adapted = adapt(model, BitFitConfig())
    trained = set(adapted.trainable_parameters())
    assert adapted.count().trainable == count
    assert trained == {name for name, _ in model.named_parameters() if name.split(".")[-1] == "bias"}
    assert torch.equal(model(IDS), out)
    losses = train(model, adapted)
    assert losses[-1] < losses[0]
    unused = {"pooler.bias", "pair_head.bias"}
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value) == (name not in trained - unused), name
    assert all((p.grad is not None) == (n in trained - unused) for n, p in model.named_parameters())
    changed = model(IDS).detach()
    with adapted.disable():
        assert torch.equal(model(IDS), out)
    assert torch.equal(model(IDS), changed)
    adapted.remove()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("make", [lambda: small_gpt(**LLAMA), small_t5, small_gpt], ids=["llama", "t5", "no bias"])
def test_refuses_without_biases(make):
    model = make()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match="no biases"):
        adapt(model, BitFitConfig())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    adapt(model, LoraConfig(rank=1)).remove()                      # the model can still be adapted


class Classified(nn.Module):
    """A decoder without biases under a head that has one."""

    def __init__(self):
        super().__init__()
        self.body, self.answer = small_gpt(**LLAMA), nn.Linear(16, 2).double()

    def forward(self, ids):
        return self.answer(self.body.hidden(ids)[:, -1])


@pytest.mark.parametrize("heads", [(), ("answer",)])
def test_the_bias_of_a_head_alone_is_not_enough(heads):
    with pytest.raises(ConfigError, match="no biases"):
        adapt(Classified(), BitFitConfig(heads=heads))


def test_chosen_modules_and_a_head(tmp_path):
    def classifier(seed=0):
        return TextClassifier(small_bert(seed), 2, generator=seeded()).double().eval()

    model = classifier()
    config = BitFitConfig(targets=("qkv", "up"), heads=("head",))
    adapted = adapt(model, config)
    assert adapted.count().trainable == 2 * (3 * C + F_) + 2 * C + 2
    labels = torch.tensor([0, 1, 0])
    optimizer = torch.optim.SGD(adapted.trainable_parameters().values(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(IDS), labels).backward()
        optimizer.step()
    adapted.save(tmp_path)
    again = classifier()
    loaded = load_delta(again, tmp_path)
    assert loaded.config == config
    with torch.no_grad():
        assert torch.equal(again(IDS), model(IDS)) and not torch.equal(again(IDS), classifier()(IDS))
        with loaded.disable():
            assert torch.equal(again(IDS), classifier()(IDS))
    with pytest.raises(CheckpointError, match="base"):
        load_delta(classifier(1), tmp_path)


def test_biases_of_a_head_belong_to_the_head():
    adapted = adapt(small_gpt(bias=True), BitFitConfig(heads=("blocks.1.feed_forward",)))
    assert adapted.count().trainable == 2 * BLOCK + C + 2 * C * F_
    adapted.remove()


def test_biases_alone_reach_what_they_can():
    """Regression on constants: the optimum of the last bias is the mean, which no other number has to know."""
    layer = nn.Sequential(nn.Linear(3, 2)).double()
    with torch.no_grad():
        layer[0].weight.zero_()
    target = torch.randn(50, 2, generator=seeded(), dtype=torch.float64)
    adapted = adapt(layer, BitFitConfig())
    optimizer = torch.optim.SGD(adapted.trainable_parameters().values(), lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        (layer(torch.ones(50, 3, dtype=torch.float64)) - target).square().sum(1).mean().backward()
        optimizer.step()
    torch.testing.assert_close(layer[0].bias.detach(), target.mean(0))
    assert not layer[0].weight.any()


def test_misuse():
    model = small_gpt(bias=True)
    adapted = adapt(model, BitFitConfig())
    with pytest.raises(ConfigError, match="adapted already"):
        adapt(model, BitFitConfig())
    with pytest.raises(ConfigError, match="adapted already"):
        adapted.add(BitFitConfig(), "second")
    adapted.remove()
    with pytest.raises(ConfigError, match="no module"):
        adapt(model, BitFitConfig(targets=("c_attn",)))
    with pytest.raises(ConfigError, match="no biases among token_embedding"):
        adapt(model, BitFitConfig(targets=("token_embedding",)))


def test_share_of_gpt2():
    """GPT-2 (124 M): 102,144 biases, 0.082 % of all numbers; counted without making its weights."""
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=50257, max_seq_len=1024, n_layers=12, n_heads=12, d_model=768, bias=True))
    n_biases = sum(p.numel() for name, p in model.named_parameters() if name.endswith(".bias"))
    assert n_biases == 12 * (3 * 768 + 768 + 3072 + 768 + 2 * 768) + 768 == 102_144
    assert round(100 * n_biases / sum(p.numel() for p in model.parameters()), 3) == 0.082
