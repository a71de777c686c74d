"""Small models under the heads of tasks, for tests: each with the class of transformers that computes the same."""

import torch
from helpers.parity import randomized

from minillm.models.bert import Bert, bert_config
from minillm.models.bert_heads import SpanReader, TextClassifier, TokenClassifier
from minillm.models.gpt import GPT
from minillm.models.gpt_heads import LastTokenClassifier
from minillm.models.registry import model_config

SIZES = {"vocab_size": 31, "max_seq_len": 24, "n_layers": 2, "n_heads": 4, "d_model": 32}
N_CLASSES = 3
SHAPES = {
    "gpt2": {}, "bloom": {}, "llama": {"n_kv_heads": 2}, "mistral": {"n_kv_heads": 2, "window": 5},
    "falcon": {"n_kv_heads": 4, "bias": True}, "mixtral": {"n_kv_heads": 2},
}  # fmt: skip
IDS = torch.randint(3, 31, (2, 9), generator=torch.Generator().manual_seed(5))


def last_token(family, generator):
    body = GPT(model_config(family, "nano", **SIZES | SHAPES[family]), generator)
    return LastTokenClassifier(body, N_CLASSES, 0.0, generator, bias=False)


def encoder(kind, generator):
    special = {"albert": {"d_embedding": 8}, "roberta": {"position_offset": 2}}.get(kind, {})
    return Bert(bert_config(kind, **SIZES | special), generator)


CLASSES = {  # name -> how it is made, the class of theirs
    **{family: (lambda draw, family=family: last_token(family, draw), "SequenceClassification") for family in SHAPES},
    **{
        f"{kind} text": (
            lambda draw, kind=kind: TextClassifier(encoder(kind, draw), N_CLASSES, 0.0, draw), "SequenceClassification",
        )
        for kind in ("bert", "roberta", "albert")
    },
    "bert tokens": (lambda draw: TokenClassifier(encoder("bert", draw), N_CLASSES, 0.0, draw), "TokenClassification"),
    "roberta span": (lambda draw: SpanReader(encoder("roberta", draw), draw), "QuestionAnswering"),
}  # fmt: skip


def classifier(kind, seed=1):
    """A model with noise on every parameter, in float64."""
    return randomized(CLASSES[kind][0](torch.Generator().manual_seed(seed)), 2).double().eval()


@torch.no_grad()
def answers(model, ids=IDS):
    """(B, K), (B, T, K), or both logits of a span."""
    found = model(ids)
    return torch.stack(found) if isinstance(found, tuple) else found
