"""Encoders in the Hugging Face layout: there and back, and what has no class there; the peers are in *_oracle.py."""

import json

import pytest
import torch
from helpers.parity import random_ids, randomized

from minillm.errors import CheckpointError
from minillm.export.hugging_face import family_of, load_hugging_face, save_hugging_face
from minillm.models.bert import Bert, bert_config

SHAPE = {"vocab_size": 23, "max_seq_len": 12, "n_layers": 2, "n_heads": 2, "d_model": 8, "d_ff": 20}
KINDS = {"bert": {}, "roberta": {}, "albert": {"d_embedding": 6}}


def small(kind, **settings):
    return randomized(Bert(bert_config(kind, **SHAPE | KINDS[kind] | settings), torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind, tmp_path):
    model = small(kind)
    assert family_of(model.config).name == kind
    loaded = load_hugging_face(save_hugging_face(model, tmp_path / "saved"))
    ids = random_ids(23, (2, 9))
    assert loaded.config == model.config and torch.equal(loaded(ids), model(ids))


@pytest.mark.parametrize("kind, settings, reason", [
    ("bert", {"pair_head": False}, "pair_head is False"),
    ("bert", {"d_embedding": 4}, "d_embedding is 4"),
    ("bert", {"share_layers": True}, "share_layers is True|d_embedding is 8 like d_model"),
    ("roberta", {"pair_head": True}, "pair_head is True|position_offset is 2"),
    ("roberta", {"feed_forward": "gelu"}, "feed_forward is 'gelu'"),
    ("albert", {"d_embedding": 8}, "like d_model|share_layers"),
])  # fmt: skip
def test_what_has_no_class_there(kind, settings, reason, tmp_path):
    with pytest.raises(CheckpointError, match=reason):
        save_hugging_face(small(kind, **settings), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("kind, change, message", [
    ("bert", {"hidden_act": "relu"}, "hidden_act"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("bert", {"is_decoder": True}, "is_decoder"),
    ("roberta", {"hidden_act": "gelu_new"}, "hidden_act"),
    ("albert", {"num_hidden_groups": 2}, "num_hidden_groups"),
    ("bert", {"vocab_size": None}, "lacks 'vocab_size'"),
])  # fmt: skip
def test_settings_that_ours_does_not_have(kind, change, message, tmp_path):
    folder = save_hugging_face(small(kind), tmp_path / "saved")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load_hugging_face(folder)
