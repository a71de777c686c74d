"""Three small tasks to adapt a language model to, each with batches, a loss and a score that no training has seen.

`Sentiment` asks for the class of a text, `Domain` for text of another kind, `Records` for the text that tells a record.
Their general forms take a user's own data: `TextClasses`, `Domain`, `TextPairs`. `fine_tune` (fine_tuning.py) works
with anything that has the attributes of `Task`.

Dimensions: B batch, T positions.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import torch
from torch import nn

from minillm.data.feelings import CLASSES, LabelledText, feelings
from minillm.data.records import TextPair, records
from minillm.data.tinyworld import World
from minillm.errors import ConfigError, DataError
from minillm.infer.generate import generate
from minillm.infer.sampling import SamplingConfig
from minillm.models.gpt import GPT
from minillm.models.gpt_heads import LastTokenClassifier
from minillm.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from minillm.train.accumulation import LossSum
from minillm.train.loop import validation_loss
from minillm.train.loss import IGNORED, next_token_loss
from minillm.train.text_class import TextClassLoss, class_batch, real_tokens

TEST_SEED = 1_000_003  # test texts are of another seed than all training texts


class Task:
    """What is learned and how well: a base class, and the list of what `fine_tune` asks of a task.

    Attributes:
        name: short, for tables.
        larger_is_better: of scores.
        unit: of scores, for people.
        heads: names of new modules that are trained and saved beside the method, whichever it is.
        loss_sum: as in the training loop.
        n_rows: number of training texts or rows of text.
    """

    name: str
    larger_is_better: bool = True
    unit: str = ""
    heads: tuple[str, ...] = ()
    loss_sum: LossSum = staticmethod(next_token_loss)

    def __init__(self, n_rows: int, batch_size: int):
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, expected at least 1")
        if n_rows < 1:
            raise DataError("there is nothing to learn from; give at least one text")
        self.n_rows, self.batch_size = n_rows, batch_size

    def batches(self, step: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of one step; epochs are shuffled, each differently.

        Args:
            step: 0 is the first.
            seed: of the order.

        Returns:
            (B, T) int64 both; T is the longest of the batch.
        """
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
        return self.batch([place_in_epochs(number, self.n_rows, seed) for number in numbers])

    def batch(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of these training rows."""
        raise NotImplementedError

    def prepare(self, model: GPT, generator: torch.Generator | None = None) -> nn.Module:
        """The model that is adapted: the language model itself, or with the task's new head on it."""
        return model

    def score(self, model: nn.Module) -> float:
        """How well the prepared model does the task on the test texts."""
        raise NotImplementedError


class TextClasses(Task):
    """One class for each text; the score is the share of right answers.

    Args:
        train: texts and the numbers of their classes.
        test: the same for scores.
        tokenizer: cuts the texts.
        classes: their names.
        batch_size: B.
        max_tokens: texts are cut to their last so many tokens; 0 cuts none.
        bias: whether the classifier has one; see `LastTokenClassifier`.

    Raises:
        DataError: if there are no texts, or a class that has no name.
    """

    name, unit = "classes", "accuracy"
    heads = ("head",)

    def __init__(
        self,
        train: Iterable[LabelledText],
        test: Iterable[LabelledText],
        tokenizer: Tokenizer,
        classes: Sequence[str] = CLASSES,
        batch_size: int = 16,
        max_tokens: int = 0,
        bias: bool = True,
    ):
        self.classes, self.pad_id, self.bias = tuple(classes), tokenizer.special_tokens[END_OF_TEXT], bias
        self.train, self.test = (
            [([self.pad_id, *tokenizer.encode(text)][-max_tokens:], label) for text, label in part]
            for part in (train, test)
        )
        for _, label in [*self.train, *self.test]:
            if not 0 <= label < len(self.classes):
                raise DataError(f"class {label} has no name; there are {len(self.classes)}: {', '.join(self.classes)}")
        if not self.test:
            raise DataError("there is no text to test with; set some aside")
        super().__init__(len(self.train), batch_size)
        self.loss_sum = TextClassLoss(self.pad_id)

    def batch(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        texts, labels = zip(*(self.train[row] for row in rows), strict=True)
        return class_batch(texts, labels, self.pad_id)

    def prepare(self, model: GPT, generator: torch.Generator | None = None) -> LastTokenClassifier:
        """The body of the model under a new classifier of the last token's vector."""
        return LastTokenClassifier(model, len(self.classes), dropout=0.0, generator=generator, bias=self.bias)

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        right, was_training = 0, model.training
        model.eval()
        for first in range(0, len(self.test), 64):
            texts, labels = zip(*self.test[first : first + 64], strict=True)
            inputs = torch.from_numpy(class_batch(texts, labels, self.pad_id)[0]).to(device_of(model))  # (B, T)
            answers = model(inputs, real_tokens(inputs, self.pad_id)).argmax(dim=1)  # (B,)
            right += int((answers.cpu() == torch.tensor(labels)).sum())
        model.train(was_training)
        return right / len(self.test)


class Sentiment(TextClasses):
    """Whether somebody is in a good mood at the end of a story of the made world (`minillm.data.feelings`).

    Args:
        world: tells the stories.
        tokenizer: cuts the texts.
        n_train: training texts.
        n_test: test texts, of another seed.
        batch_size: B.
        seed: of the training texts, not 1,000,003; a base is trained on texts of seed 0.
        max_tokens: as in `TextClasses`.
        bias: as there.
    """

    name = "sentiment"

    def __init__(
        self,
        world: World,
        tokenizer: Tokenizer,
        n_train: int = 2000,
        n_test: int = 400,
        batch_size: int = 16,
        seed: int = 1,
        max_tokens: int = 0,
        bias: bool = True,
    ):
        train, test = islice(feelings(world, seed), n_train), islice(feelings(world, TEST_SEED), n_test)
        super().__init__(train, test, tokenizer, CLASSES, batch_size, max_tokens, bias)


class Domain(Task):
    """Text of another kind: continued pre-training. The score is bits per byte of documents set aside; less is better.

    Args:
        train: documents.
        test: documents for scores.
        tokenizer: cuts them.
        seq_len: T; longer documents become several rows, each of which begins with the last token of the row before.
        batch_size: B.

    Raises:
        DataError: if there is nothing to learn from or to score.
    """

    name, unit = "domain", "bits per byte"
    larger_is_better = False

    def __init__(
        self, train: Iterable[str], test: Iterable[str], tokenizer: Tokenizer, seq_len: int = 64, batch_size: int = 16
    ):
        test = list(test)
        self.end_id, self.n_test_bytes = tokenizer.special_tokens[END_OF_TEXT], sum(len(text.encode()) for text in test)
        self.train, self.test = (
            [row for text in part for row in rows_of_document(tokenizer.encode(text), self.end_id, seq_len)]
            for part in (train, test)
        )
        if not self.n_test_bytes:
            raise DataError("there is no text to score; set some documents aside")
        super().__init__(len(self.train), batch_size)

    def batch(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        return padded([self.train[row] for row in rows], self.end_id)

    def score(self, model: nn.Module) -> float:
        groups = [self.test[first : first + 32] for first in range(0, len(self.test), 32)]
        batches = [padded(group, self.end_id) for group in groups]
        loss = validation_loss(model, lambda number: batches[number], len(batches), lambda: False)["loss"]
        n_tokens = sum(int((targets != IGNORED).sum()) for _, targets in batches)
        return loss * n_tokens / math.log(2) / self.n_test_bytes


class TextPairs(Task):
    """A text to be written for a given one by a decoder, which reads "source -> ", as prefix tuning was tried first.

    The loss counts the written text and its end alone. The score is the share of test pairs whose text is written
    exactly, each token the likeliest; `written` gives the texts, for other measures such as BLEU.

    Args:
        train: pairs.
        test: the same for scores.
        tokenizer: cuts the texts.
        batch_size: B.

    Raises:
        DataError: if there are no pairs.
    """

    name, unit = "pairs", "exact texts"

    def __init__(
        self, train: Iterable[TextPair], test: Iterable[TextPair], tokenizer: Tokenizer, batch_size: int = 16
    ):
        self.tokenizer, self.end_id = tokenizer, tokenizer.special_tokens[END_OF_TEXT]
        self.test_pairs = list(test)
        self.train = [self.row(pair) for pair in train]
        if not self.test_pairs:
            raise DataError("there is no pair to test with; set some aside")
        super().__init__(len(self.train), batch_size)
        self.longest = max(len(tokenizer.encode(f" {pair.target}")) for pair in self.test_pairs) + 1  # longer is wrong

    def prompt(self, source: str) -> list[int]:
        """What the model reads before it writes."""
        return [self.end_id, *self.tokenizer.encode(f"{source} ->")]

    def row(self, pair: TextPair) -> tuple[list[int], list[int]]:
        """Input and target ids of a pair, equally long; the prompt is not a target."""
        prompt = self.prompt(pair.source)
        answer = [*self.tokenizer.encode(f" {pair.target}"), self.end_id]
        return [*prompt, *answer[:-1]], [IGNORED] * (len(prompt) - 1) + answer

    def batch(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        return padded([self.train[row] for row in rows], self.end_id)

    def written(self, model: GPT, sources: Sequence[str]) -> list[str]:
        """What the model writes for each source, up to the end of the text or of the model's context."""
        was_training = model.training
        model.eval()
        texts: list[str] = []
        for first in range(0, len(sources), 64):
            prompts = [self.prompt(source) for source in sources[first : first + 64]]
            n_new = min(self.longest, model.config.max_seq_len - max(map(len, prompts)))
            ids = generate(model, prompts, n_new, SamplingConfig(temperature=0.0), stop_ids=[self.end_id])
            texts += [self.tokenizer.decode(row).strip() for row in ids]
        model.train(was_training)
        return texts

    def score(self, model: nn.Module) -> float:
        sources, targets = zip(*self.test_pairs, strict=True)
        right = [text == target for text, target in zip(self.written(model, sources), targets, strict=True)]
        return sum(right) / len(right)


class Records(TextPairs):
    """The sentences that tell a record of the made world (`minillm.data.records`); tests have unseen combinations.

    Args:
        world: its sizes say which words there are.
        tokenizer: cuts the texts.
        n_train: training pairs.
        n_test: test pairs, held out.
        batch_size: B.
        seed: of the training pairs, not 1,000,003.
    """

    name = "records"

    def __init__(
        self,
        world: World,
        tokenizer: Tokenizer,
        n_train: int = 2000,
        n_test: int = 128,
        batch_size: int = 16,
        seed: int = 1,
    ):
        train = islice(records(world, seed), n_train)
        test = islice(records(world, TEST_SEED, held_out=True), n_test)
        super().__init__(train, test, tokenizer, batch_size)


def place_in_epochs(number: int, n_rows: int, seed: int) -> int:
    """Which row is the `number`-th of shuffled epochs that follow one another."""
    epoch, place = divmod(number, n_rows)
    return int(order_of_epoch(n_rows, seed, epoch)[place])


def order_of_epoch(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch's rows."""
    return np.random.default_rng([seed, epoch]).permutation(n_rows)


def rows_of_document(ids: Sequence[int], end_id: int, seq_len: int) -> list[tuple[list[int], list[int]]]:
    """Inputs and targets of a document with its end, in rows of at most T; each token is a target once.

    Example:
        >>> rows_of_document([5, 6, 7], end_id=0, seq_len=3)
        [([0, 5, 6], [5, 6, 7]), ([7], [0])]
    """
    inputs, targets = [end_id, *ids], [*ids, end_id]
    starts = range(0, len(inputs), seq_len)
    return [(inputs[start : start + seq_len], targets[start : start + seq_len]) for start in starts]


def padded(rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of input and target ids as one batch, filled up on the right; what is filled up does not count.

    Example:
        >>> inputs, targets = padded([([0, 5], [5, 6]), ([7], [0])], pad_id=9)
        >>> inputs.tolist(), targets.tolist()
        ([[0, 5], [7, 9]], [[5, 6], [0, -100]])
    """
    longest = max(len(inputs) for inputs, _ in rows)
    inputs = np.full((len(rows), longest), pad_id, np.int64)
    targets = np.full((len(rows), longest), IGNORED, np.int64)
    for number, (row_inputs, row_targets) in enumerate(rows):
        inputs[number, : len(row_inputs)], targets[number, : len(row_targets)] = row_inputs, row_targets
    return inputs, targets


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters lie."""
    return next(model.parameters()).device
