"""BERT, RoBERTa and ALBERT beside those of `transformers`: logits, gradients, checkpoints both ways, task heads."""

import pytest
import torch
from helpers.parity import assert_near, assert_same_gradients, random_ids, randomized

from minillm.export.bert import FAMILIES
from minillm.export.hugging_face import load_hugging_face, save_hugging_face
from minillm.export.weights import to_theirs
from minillm.models.bert import Bert, bert_config
from minillm.models.bert_heads import SpanReader, TextClassifier, TokenClassifier

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
CLASSES = {"bert": "BertForPreTraining", "roberta": "RobertaForMaskedLM", "albert": "AlbertForPreTraining"}
SHAPES = [
    {"n_layers": 2, "n_heads": 4, "d_model": 16, "d_ff": 24},
    {"n_layers": 3, "n_heads": 1, "d_model": 10, "feed_forward": "gelu", "kernels": "naive"},
    {"n_layers": 1, "n_heads": 3, "d_model": 12, "norm_epsilon": 1e-6, "n_segments": 3},
]
CASES = [(kind, seed) for kind in CLASSES for seed in range(3)]


def small(kind, seed, dtype=torch.float64, **settings):
    shape = {"vocab_size": 31 + seed, "max_seq_len": 20} | SHAPES[seed] | settings
    if kind == "albert":
        shape["d_embedding"] = 7
    if kind == "roberta":                                          # the head of theirs knows no other
        shape["feed_forward"] = "gelu_exact"
    return randomized(Bert(bert_config(kind, **shape), torch.Generator().manual_seed(seed)), seed).to(dtype)


def opened(kind, folder, dtype):
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, CLASSES[kind]).from_pretrained(folder, dtype=dtype, attn_implementation="eager")


def batch(model, seed):
    """Ids without those that pad, segments, and a mask with padding on the right."""
    ids = 3 + random_ids(model.config.vocab_size - 3, (3, 18), seed)
    mask = torch.arange(18) < torch.tensor([18, 5, 11])[:, None]
    return ids, random_ids(model.config.n_segments, (3, 18), seed + 1), mask


def on_disk(gradients):
    """Their tied bias is stored once."""
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind, seed", CASES)
def test_logits_and_all_gradients(kind, seed, dtype, tmp_path):
    model = small(kind, seed, dtype)
    peer = opened(kind, save_hugging_face(model, tmp_path / "saved"), dtype).eval()
    ids, segments, mask = batch(model, seed)
    if kind == "roberta":                                          # theirs finds its padding by the id
        ids = ids.masked_fill(~mask, 1)
    theirs = peer(input_ids=ids, token_type_ids=segments, attention_mask=mask.long())
    hidden = model.hidden(ids, segments, mask)
    ours, relative = model.logits(hidden), 1e-10 if dtype == torch.float64 else 1e-5
    expected = theirs.logits if kind == "roberta" else theirs.prediction_logits
    assert_near(ours[mask], expected[mask], relative, "logits")
    loss, expected_loss = ours[mask].square().mean(), expected[mask].square().mean()
    if kind != "roberta":
        answer = theirs.seq_relationship_logits if kind == "bert" else theirs.sop_logits
        assert_near(model.pair_logits(hidden), answer, relative, "pair logits")
        loss, expected_loss = loss + model.pair_logits(hidden).square().sum(), expected_loss + answer.square().sum()
    loss.backward()
    expected_loss.backward()
    assert_same_gradients(model, peer, relative, on_disk)


@pytest.mark.parametrize("kind", CLASSES)
def test_their_checkpoints_open_here(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = {"embedding_size": 9} if kind == "albert" else {}
    names = {"bert": "BertConfig", "roberta": "RobertaConfig", "albert": "AlbertConfig"}
    config = getattr(transformers, names[kind])(
        vocab_size=29, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
        max_position_embeddings=21, **settings,
    )  # fmt: skip
    peer = randomized(getattr(transformers, CLASSES[kind])(config)).eval()
    peer.save_pretrained(tmp_path)
    model, ids = load_hugging_face(tmp_path), 3 + random_ids(26, (2, 17))
    assert model.config.max_seq_len == (19 if kind == "roberta" else 21)
    assert_near(model(ids), peer(ids)[0], 1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_heads_for_tasks(kind):
    transformers = pytest.importorskip("transformers")
    body = small(kind, 0)
    family = {family.name: family for family in FAMILIES}[kind]
    weights = to_theirs(body.state_dict(), family.matches(body.config))
    prefix, name = {"bert": ("bert.", "Bert"), "roberta": ("roberta.", "Roberta")}[kind]
    theirs = getattr(transformers, f"{name}Config")(**family.config_to(body.config), num_labels=2)
    ids, segments, mask = batch(body, 4)
    if kind == "roberta":
        ids = ids.masked_fill(~mask, 1)
    heads = {"ForTokenClassification": TokenClassifier(body, 2), "ForQuestionAnswering": SpanReader(body)}
    if kind == "bert":
        heads["ForSequenceClassification"] = TextClassifier(body, 2)
    for task, head in heads.items():
        randomized(head.head, 7)
        head.double().eval()
        peer = getattr(transformers, f"{name}{task}")(theirs).double().eval()
        last = "qa_outputs" if task == "ForQuestionAnswering" else "classifier"
        given = weights | {f"{last}.{kind}": getattr(head.head, kind) for kind in ("weight", "bias")}
        missing, _ = peer.load_state_dict(given, strict=False)
        assert not missing
        out = peer(input_ids=ids, token_type_ids=segments, attention_mask=mask.long())
        if task == "ForQuestionAnswering":
            for ours, expected in zip(head(ids, segments, mask), (out.start_logits, out.end_logits), strict=True):
                assert_near(ours[mask], expected[mask], 1e-10)
        elif task == "ForTokenClassification":
            assert_near(head(ids, segments, mask)[mask], out.logits[mask], 1e-10)
        else:
            assert_near(head(ids, segments, mask), out.logits, 1e-10)
