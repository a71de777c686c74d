"""Tasks to adapt to: batches and scores against brute force; `fine_tune` with every method."""

import math
from itertools import islice

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minillm.adapt.fine_tuning import fine_tune
from minillm.adapt.lora import LoraConfig
from minillm.adapt.methods import METHODS, Sizes, method_named, ready_for
from minillm.adapt.partial import FullConfig
from minillm.adapt.tasks import Domain, Records, Sentiment, TextClasses, TextPairs, padded
from minillm.data.answers import read_answers, set_aside, with_numbers
from minillm.data.feelings import SHORT_WORLD, LabelledText, feelings
from minillm.data.records import TextPair, records
from minillm.data.tinyworld import World
from minillm.errors import ConfigError, DataError
from minillm.models.gpt import GPT, GPTConfig
from minillm.runtime import generator
from minillm.tokenizers.words import WordTokenizer

WORLD = World(SHORT_WORLD)
SIZES = Sizes(rank=2, width=3, n_virtual=3, d_hidden=5, dimension=20)


@pytest.fixture(scope="module")
def tokenizer():
    texts = [text for text, _ in islice(feelings(WORLD, 0), 150)]
    return WordTokenizer.train([*texts, *(f"{a} -> {b}" for a, b in islice(records(WORLD, 0), 100))])


@pytest.fixture
def model(tokenizer):
    shape = {"vocab_size": tokenizer.vocab_size, "max_seq_len": 80, "n_layers": 2, "n_heads": 2, "d_model": 12}
    return GPT(GPTConfig(**shape, bias=True), generator(3)).eval()


def test_batches_are_epochs_of_all_rows_each_in_another_order(tokenizer):
    texts = [text for text, _ in islice(feelings(WORLD, 0), 14)]
    task = Domain(texts, ["The plums are ripe."], tokenizer, seq_len=80, batch_size=7)
    assert task.n_rows == 14
    rows = [tuple(row[row >= 0]) for step in range(4) for row in task.batches(step, seed=5)[1]]
    first, second = rows[:14], rows[14:]
    assert len(set(first)) == 14 and set(first) == set(second) and first != second
    same = [tuple(row[row >= 0]) for step in (0, 1) for row in task.batches(step, seed=5)[1]]
    assert same == first
    assert not np.array_equal(task.batches(0, seed=6)[0], task.batches(0, seed=5)[0])


def test_the_score_of_classes_is_that_of_one_text_after_the_other(model, tokenizer):
    task = Sentiment(WORLD, tokenizer, n_train=5, n_test=21)
    judge = task.prepare(model, generator(1)).eval()
    right = 0
    for ids, label in task.test:
        with torch.no_grad():
            hidden = model.hidden(torch.tensor([ids]))[0, -1]
            right += int((judge.head.weight @ hidden + judge.head.bias).argmax() == label)
    assert task.score(judge) == pytest.approx(right / 21)
    texts = list(islice(feelings(WORLD, 1_000_003), 21))
    assert [label for _, label in task.test] == [label for _, label in texts]
    assert tokenizer.decode(task.test[4][0][1:]) == texts[4].text


def test_long_texts_are_cut_to_their_ends(tokenizer):
    text = LabelledText("The plums are ripe. Bo is glad.", 1)
    task = TextClasses([text], [text], tokenizer, max_tokens=4)
    assert tokenizer.decode(task.train[0][0]) == " Bo is glad."


def test_bits_per_byte_are_those_of_each_token_on_its_own(model, tokenizer):
    texts = [text for text, _ in islice(feelings(WORLD, 8), 5)]
    task = Domain(texts[:1], texts, tokenizer, seq_len=11)
    end, nats = task.end_id, 0.0
    for text in texts:
        whole = [end, *tokenizer.encode(text), end]
        for place in range(1, len(whole)):
            start = (place - 1) // 11 * 11
            with torch.no_grad():
                logits = model(torch.tensor([whole[start:place]]))[0, -1].double()
            nats += float(F.cross_entropy(logits, torch.tensor(whole[place])))
    n_bytes = sum(len(text.encode()) for text in texts)
    assert task.score(model) == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-6)


def test_only_the_answer_of_a_pair_is_learned_and_greedy_texts_are_scored(model, tokenizer):
    task = Records(WORLD, tokenizer, n_train=6, n_test=5)
    inputs, targets = task.row(TextPair("name: Bo", "Bo is at the mill."))
    learned = [target for target in targets if target >= 0]
    assert len(inputs) == len(targets) and tokenizer.decode(learned[:-1]) == " Bo is at the mill."
    assert learned[-1] == task.end_id and inputs[-1] == learned[-2]
    sources = [pair.source for pair in task.test_pairs]
    for source, text in zip(sources, task.written(model, sources), strict=True):
        ids, new = task.prompt(source), []
        while len(new) < task.longest:
            with torch.no_grad():
                token = int(model(torch.tensor([ids + new]))[0, -1].argmax())
            if token == task.end_id:
                break
            new.append(token)
        assert text == tokenizer.decode(new).strip()
    written = task.written(model, sources)
    task.test_pairs = [TextPair(source, text) for source, text in zip(sources, written, strict=True)][:3]
    task.test_pairs.append(TextPair(sources[3], "never written"))
    assert task.score(model) == 0.75


def test_padding_does_not_count():
    inputs, targets = padded([([3, 4, 5], [4, 5, 6]), ([7], [8])], pad_id=0)
    assert inputs.tolist() == [[3, 4, 5], [7, 0, 0]] and targets.tolist() == [[4, 5, 6], [8, -100, -100]]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_and_gives_the_base_back(name, model, tokenizer):
    task = TextClasses(
        [LabelledText("Bo is glad.", 1), LabelledText("Bo is sad.", 0)],
        [LabelledText("Bo is glad.", 1)], tokenizer, batch_size=2,
    )  # fmt: skip
    base = ready_for(method_named(name), model)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    result = fine_tune(base, task, METHODS[name].make(SIZES), steps=12, learning_rate=0.03, progress=False)
    assert len(result.losses) == 12 and min(result.losses[-3:]) < result.losses[0], name
    trained = result.adapted.trainable_parameters()
    assert result.n_trained == sum(p.numel() for p in trained.values()) and any("head" in key for key in trained)
    result.adapted.remove()
    after = base.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


def test_seeds_decide_everything(model, tokenizer):
    task = Sentiment(WORLD, tokenizer, n_train=20, n_test=8, batch_size=4)

    def losses(seed):
        result = fine_tune(model, task, LoraConfig(rank=2), 3, 0.01, seed=seed, progress=False, scored=False)
        assert math.isnan(result.score)
        result.adapted.remove()
        return result.losses

    assert losses(1) == losses(1) != losses(2)


def test_training_a_domain_lowers_its_bits(model, tokenizer):
    texts = ["The plums are ripe. Bo is at the mill."]
    task = Domain(texts * 4, texts, tokenizer, batch_size=4)
    before = task.score(model)
    result = fine_tune(model, task, FullConfig(), 20, 0.01, progress=False)
    assert result.score < 0.75 * before and result.score == task.score(model)


def test_bad_tasks_are_refused(tokenizer):
    text = LabelledText("Bo is glad.", 1)
    with pytest.raises(DataError, match="no text to test"):
        TextClasses([text], [], tokenizer)
    with pytest.raises(DataError, match="class 3 has no name"):
        TextClasses([LabelledText("Bo", 3)], [text], tokenizer)
    with pytest.raises(DataError, match="nothing to learn"):
        Domain([], ["Bo is glad."], tokenizer)
    with pytest.raises(DataError, match="no text to score"):
        Domain(["Bo is glad."], [], tokenizer)
    with pytest.raises(DataError, match="no pair"):
        TextPairs([TextPair("Bo", "Bo")], [], tokenizer)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Sentiment(WORLD, tokenizer, 2, 2, batch_size=0)
    with pytest.raises(ConfigError, match="the method 'lara' is unknown"):
        method_named("lara")


def test_files_with_answers(tmp_path):
    columns, lines = tmp_path / "a.tsv", tmp_path / "b.jsonl"
    columns.write_text("good\tfine text\n\nbad\tpoor text\n")
    lines.write_text('{"source": "3", "target": "three"}\n')
    texts, classes = with_numbers(read_answers(columns, "classes"))
    assert classes == ["bad", "good"] and [text.label for text in texts] == [1, 0]
    assert read_answers(lines, "pairs") == [("3", "three")]
    for content, message in (("one column\n", "line 1"), ("a\tb\tc\n", "line 1"), ("", "is empty")):
        columns.write_text(content)
        with pytest.raises(DataError, match=message):
            read_answers(columns, "pairs")
    empty = '{"source": "", "target": 1}'
    for content, message in (("{}", "keys source and target"), ("[", "is not JSON"), (empty, "source is empty")):
        lines.write_text(content)
        with pytest.raises(DataError, match=message):
            read_answers(lines, "pairs")
    with pytest.raises(DataError, match="cannot be read"):
        read_answers(tmp_path / "none.tsv", "classes")
    with pytest.raises(DataError, match="label"):
        with_numbers([("a", "x"), ("a", "y")])
    train, test = set_aside(list(range(20)), 0.1, seed=3)
    assert len(test) == 2 and sorted(train + test) == list(range(20)) and set_aside(range(20), 0.1, 4)[1] != test
