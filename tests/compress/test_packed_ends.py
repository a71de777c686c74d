"""Tables and heads in few bits: vectors and scores of the rounded table, shared or not, bytes, saving, the way back."""

import copy

import pytest
import torch
from helpers.adapt_models import VOCAB, ids_of, small_bert, small_gpt

from minillm.compress.grid import QuantSpec, find_grid, round_to_grid, stored
from minillm.compress.packed_ends import PackedScores, pack_embedding, score_by_packed
from minillm.compress.packed_linear import quantize_model, stored_bytes
from minillm.compress.quant_linear import QuantLinear, use_backend
from minillm.compress.report import compression_report
from minillm.compress.saved import forms_of, rebuild
from minillm.errors import ConfigError, DataError

SPECS = [QuantSpec(8), QuantSpec(4, 8), QuantSpec(3, -1, True)]


def decoder(tied, **settings):
    return small_gpt(tie_embeddings=tied, logit_cap=5.0, **settings).float().eval()


def rounded(model, spec):
    """The model with its table rounded in place."""
    plain = copy.deepcopy(model)
    weight = plain.token_embedding.weight.data
    weight.copy_(round_to_grid(weight, stored(find_grid(weight, spec))))
    return plain


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_vectors_and_scores_are_those_of_the_rounded_table(tied, spec):
    model = decoder(tied)
    expected, before, ids = rounded(model, spec), stored_bytes(model), ids_of((2, 5))
    old = model(ids)
    operation = pack_embedding(model, spec)
    assert torch.equal(model.token_embedding(ids), expected.token_embedding(ids))
    assert torch.allclose(model(ids), expected(ids), atol=1e-5)
    assert isinstance(model, PackedScores) == tied
    report = compression_report(model)
    assert report.whole.n_bytes == stored_bytes(model) < before
    assert report.embeddings.n_weights >= VOCAB * 16 and report.whole.n_weights == old_count(expected)
    operation.restore()
    assert torch.equal(model(ids), old) and stored_bytes(model) == before


def old_count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_saved_tables_and_heads_are_built_again_bit_by_bit(tied):
    model = decoder(tied, d_model=32)
    empty = copy.deepcopy(model)
    quantize_model(model, lambda _, layer: QuantLinear(layer, QuantSpec(4, 16)), exclude=())
    pack_embedding(model, QuantSpec(6, 16))
    forms = forms_of(model)
    assert forms["layers"]["token_embedding"]["form"] == "QuantEmbedding"
    assert "token_embedding.table" not in forms["layers"]
    rebuild(empty, forms)
    empty.load_state_dict(model.state_dict())
    ids = ids_of((2, 5))
    assert torch.equal(model(ids), empty(ids))
    assert isinstance(empty, PackedScores)


def test_a_packed_head_scores_by_its_kernel():
    model = decoder(False, d_model=64)
    model.head = QuantLinear(torch.nn.Linear(64, 32, bias=False), QuantSpec(4, 32))
    slow = model(ids_of((1, 3)))
    score_by_packed(model)
    assert torch.allclose(model(ids_of((1, 3))), slow, atol=1e-5)
    if use_backend(model, "auto"):
        with torch.no_grad():
            fast = model(ids_of((1, 3)))
        assert 0 < (fast - slow).norm() < 0.02 * slow.norm()


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ConfigError, match="no decoder"):
        pack_embedding(small_bert(), QuantSpec())
    model = decoder(True)
    pack_embedding(model, QuantSpec(8))
    with pytest.raises(ConfigError, match="packed already"):
        pack_embedding(model, QuantSpec(8))
    with pytest.raises(DataError, match="vocabulary"):
        model(torch.tensor([[VOCAB]]))
    score_by_packed(torch.nn.Linear(1, 1))
    assert "n_rows=23" in repr(model.token_embedding)
