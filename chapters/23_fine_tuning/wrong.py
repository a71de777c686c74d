"""Wrong answers to chapter 23: the mistakes that are really made, each of which must cost exactly its task."""

import numpy as np
import torch

from minillm import surgery
from minillm.adapt.continual import LABELS, add_square, add_squared_scores, answers_of, check_same
from minillm.adapt.layer_order import depths, stacks
from minillm.course.wrong_answers import wrong
from minillm.errors import ConfigError, DataError
from minillm.train.grouping import decay_groups
from minillm.train.loss import IGNORED

# --- 23.1 rates that fall towards the input


@wrong("23.1", "the wrong way round: the layers near the input learn fastest")
def layer_groups(model, learning_rate, decay=1 / 2.6, weight_decay=0.0):
    if not (learning_rate >= 0 and 0 < decay <= 1 and weight_decay >= 0):
        raise ConfigError("out of range")
    depth, top = depths(model), sum(stacks(model).values()) + 1
    groups = []
    for group in decay_groups(model, weight_decay):
        for level in range(top, -1, -1):
            pairs = [(name, parameter) for name, parameter in group["params"] if depth[name] == level]
            groups.append(group | {"params": pairs, "lr": learning_rate * decay**level})
    return sorted([group for group in groups if group["params"]], key=lambda group: -group["lr"])


@wrong("23.1", "the last layer already has the full rate: the head does not count as a step")
def layer_groups(model, learning_rate, decay=1 / 2.6, weight_decay=0.0):
    if not (learning_rate >= 0 and 0 < decay <= 1 and weight_decay >= 0):
        raise ConfigError("out of range")
    depth, top = depths(model), sum(stacks(model).values()) + 1
    groups = []
    for group in decay_groups(model, weight_decay):
        for level in range(top, -1, -1):
            pairs = [(name, parameter) for name, parameter in group["params"] if depth[name] == level]
            groups.append(group | {"params": pairs, "lr": learning_rate * decay ** max(0, top - 1 - level)})
    return sorted([group for group in groups if group["params"]], key=lambda group: -group["lr"])


@wrong("23.1", "divides by the decay: higher rates below, beyond the one that was given")
def layer_groups(model, learning_rate, decay=1 / 2.6, weight_decay=0.0):
    if not (learning_rate >= 0 and 0 < decay <= 1 and weight_decay >= 0):
        raise ConfigError("out of range")
    depth, top = depths(model), sum(stacks(model).values()) + 1
    groups = []
    for group in decay_groups(model, weight_decay):
        for level in range(top, -1, -1):
            pairs = [(name, parameter) for name, parameter in group["params"] if depth[name] == level]
            groups.append(group | {"params": pairs, "lr": learning_rate / decay ** (top - level)})
    return sorted([group for group in groups if group["params"]], key=lambda group: -group["lr"])


@wrong("23.1", "biases and norms decay as well")
def layer_groups(model, learning_rate, decay=1 / 2.6, weight_decay=0.0):
    if not (learning_rate >= 0 and 0 < decay <= 1 and weight_decay >= 0):
        raise ConfigError("out of range")
    depth, top = depths(model), sum(stacks(model).values()) + 1
    groups = []
    for level in range(top, -1, -1):
        pairs = [(name, p) for name, p in surgery.trainable(model).items() if depth[name] == level]
        if pairs:
            groups.append({"params": pairs, "lr": learning_rate * decay ** (top - level), "weight_decay": weight_decay})
    return groups


@wrong("23.1", "frozen parameters are grouped too, and move by weight decay")
def layer_groups(model, learning_rate, decay=1 / 2.6, weight_decay=0.0):
    if not (learning_rate >= 0 and 0 < decay <= 1 and weight_decay >= 0):
        raise ConfigError("out of range")
    depth, top = depths(model), sum(stacks(model).values()) + 1
    groups = []
    for level in range(top, -1, -1):
        for is_matrix in (True, False):
            here = [(name, p) for name, p in model.named_parameters() if depth[name] == level]
            pairs = [(name, p) for name, p in here if (p.dim() > 1) == is_matrix]
            rate = learning_rate * decay ** (top - level)
            if pairs:
                groups.append({"params": pairs, "lr": rate, "weight_decay": weight_decay if is_matrix else 0.0})
    return groups


# --- 23.2 gradual unfreezing


@wrong("23.2", "from the bottom: the embeddings learn first")
def let_learn(self, step):
    joined = sorted(set(self.depth.values()))[: 1 + step // self.steps_per_depth]
    for name, parameter in self.model.named_parameters():
        if name in self.depth:
            parameter.requires_grad_(self.depth[name] in joined)
            if self.depth[name] not in joined:
                parameter.grad = None


@wrong("23.2", "only the newest depth learns, and those above it are frozen again")
def let_learn(self, step):
    levels = sorted(set(self.depth.values()), reverse=True)
    newest = levels[min(step // self.steps_per_depth, len(levels) - 1)]
    for name, parameter in self.model.named_parameters():
        if name in self.depth:
            parameter.requires_grad_(self.depth[name] == newest)
            if self.depth[name] != newest:
                parameter.grad = None


@wrong("23.2", "a depth at which nothing takes part costs a pause all the same")
def let_learn(self, step):
    top = sum(stacks(self.model).values()) + 1
    lowest = top - step // self.steps_per_depth
    for name, parameter in self.model.named_parameters():
        if name in self.depth:
            parameter.requires_grad_(self.depth[name] >= lowest)
            if self.depth[name] < lowest:
                parameter.grad = None


@wrong("23.2", "thaws what the method had frozen")
def let_learn(self, step):
    depth = depths(self.model)
    joined = sorted(set(self.depth.values()), reverse=True)[: 1 + step // self.steps_per_depth]
    for name, parameter in self.model.named_parameters():
        parameter.requires_grad_(depth[name] in joined)
        if depth[name] not in joined:
            parameter.grad = None


@wrong("23.2", "old gradients stay, and the optimizer takes another step with them")
def let_learn(self, step):
    joined = sorted(set(self.depth.values()), reverse=True)[: 1 + step // self.steps_per_depth]
    for name, parameter in self.model.named_parameters():
        if name in self.depth:
            parameter.requires_grad_(self.depth[name] in joined)


@wrong("23.2", "one depth too many: the last layer learns from the first step on")
def let_learn(self, step):
    joined = sorted(set(self.depth.values()), reverse=True)[: 2 + step // self.steps_per_depth]
    for name, parameter in self.model.named_parameters():
        if name in self.depth:
            parameter.requires_grad_(self.depth[name] in joined)
            if self.depth[name] not in joined:
                parameter.grad = None


# --- 23.3 texts and their classes


@wrong("23.3", "the class stands at the last place of the row, behind the padding")
def class_batch(texts, classes, pad_id):
    if not len(texts) or len(texts) != len(classes) or not all(len(text) for text in texts) or min(classes) < 0:
        raise DataError("no such batch")
    longest = max(map(len, texts))
    inputs = np.full((len(texts), longest), pad_id, np.int64)
    targets = np.full((len(texts), longest), IGNORED, np.int64)
    for row, (text, label) in enumerate(zip(texts, classes, strict=True)):
        inputs[row, : len(text)] = text
        targets[row, -1] = label
    return inputs, targets


@wrong("23.3", "places without a question hold 0, which is a class")
def class_batch(texts, classes, pad_id):
    if not len(texts) or len(texts) != len(classes) or not all(len(text) for text in texts) or min(classes) < 0:
        raise DataError("no such batch")
    longest = max(map(len, texts))
    inputs = np.full((len(texts), longest), pad_id, np.int64)
    targets = np.zeros((len(texts), longest), np.int64)
    for row, (text, label) in enumerate(zip(texts, classes, strict=True)):
        inputs[row, : len(text)] = text
        targets[row, len(text) - 1] = label
    return inputs, targets


@wrong("23.3", "cut to the shortest text")
def class_batch(texts, classes, pad_id):
    if not len(texts) or len(texts) != len(classes) or not all(len(text) for text in texts) or min(classes) < 0:
        raise DataError("no such batch")
    shortest = min(map(len, texts))
    inputs = np.array([list(text)[:shortest] for text in texts], np.int64)
    targets = np.full_like(inputs, IGNORED)
    targets[:, -1] = classes
    return inputs, targets


@wrong("23.3", "padded on the left, where the positions of a text then depend on its neighbours")
def class_batch(texts, classes, pad_id):
    if not len(texts) or len(texts) != len(classes) or not all(len(text) for text in texts) or min(classes) < 0:
        raise DataError("no such batch")
    longest = max(map(len, texts))
    inputs = np.full((len(texts), longest), pad_id, np.int64)
    targets = np.full((len(texts), longest), IGNORED, np.int64)
    for row, (text, label) in enumerate(zip(texts, classes, strict=True)):
        inputs[row, longest - len(text) :] = text
        targets[row, -1] = label
    return inputs, targets


# --- 23.4 the Fisher information


@wrong("23.4", "the gradient of a whole batch, squared: the scores of its examples cancel")
def fisher_diagonal(model, parameters, batches, labels="model", generator=None, answers=answers_of):
    if labels not in LABELS:
        raise ConfigError("labels")
    parameters = surgery.trainable(model) if parameters is None else parameters
    if any(not parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("frozen")
    sums, n_batches = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}, 0
    for inputs, targets in batches:
        log_shares = answers(model, inputs, targets).log_softmax(-1)
        add_squared_scores(sums, parameters, log_shares, targets, labels, generator)
        n_batches += len(inputs)
    if not n_batches:
        raise DataError("no example")
    return {name: total / n_batches for name, total in sums.items()}


@wrong("23.4", "a mean over batches of sums over examples")
def fisher_diagonal(model, parameters, batches, labels="model", generator=None, answers=answers_of):
    if labels not in LABELS:
        raise ConfigError("labels")
    parameters = surgery.trainable(model) if parameters is None else parameters
    if any(not parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("frozen")
    sums, n_batches = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}, 0
    for inputs, targets in batches:
        for number in range(len(inputs)):
            one = slice(number, number + 1)
            log_shares = answers(model, inputs[one], targets[one]).log_softmax(-1)
            add_squared_scores(sums, parameters, log_shares, targets[one], labels, generator)
        n_batches += 1
    if not n_batches:
        raise DataError("no example")
    return {name: total / n_batches for name, total in sums.items()}


@wrong("23.4", "always with the labels of the data: the empirical Fisher under another name")
def fisher_diagonal(model, parameters, batches, labels="model", generator=None, answers=answers_of):
    if labels not in LABELS:
        raise ConfigError("labels")
    parameters = surgery.trainable(model) if parameters is None else parameters
    if any(not parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("frozen")
    sums, n_examples = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}, 0
    for inputs, targets in batches:
        for number in range(len(inputs)):
            one = slice(number, number + 1)
            log_shares = answers(model, inputs[one], targets[one]).log_softmax(-1)
            add_squared_scores(sums, parameters, log_shares, targets[one], "data", generator)
            n_examples += 1
    if not n_examples:
        raise DataError("no example")
    return {name: total / n_examples for name, total in sums.items()}


@wrong("23.4", "logits handed on as log-probabilities")
def fisher_diagonal(model, parameters, batches, labels="model", generator=None, answers=answers_of):
    if labels not in LABELS:
        raise ConfigError("labels")
    parameters = surgery.trainable(model) if parameters is None else parameters
    if any(not parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("frozen")
    sums, n_examples = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}, 0
    for inputs, targets in batches:
        for number in range(len(inputs)):
            one = slice(number, number + 1)
            logits = answers(model, inputs[one], targets[one])
            add_squared_scores(sums, parameters, logits, targets[one], labels, generator)
            n_examples += 1
    if not n_examples:
        raise DataError("no example")
    return {name: total / n_examples for name, total in sums.items()}


# --- 23.5 one example's expected squared score


@wrong("23.5", "answers are not weighted with their probabilities")
def add_squared_scores(sums, parameters, log_shares, targets, labels, generator):
    counted = log_shares[targets != IGNORED]
    if labels == "all":
        for log_share in counted.flatten():
            add_square(sums, parameters, log_share, weight=1 / counted.shape[-1])
        return
    chosen = targets[targets != IGNORED]
    if labels == "model" and len(counted):
        chosen = torch.multinomial(counted.detach().exp(), 1, generator=generator)[:, 0]
    add_square(sums, parameters, counted.gather(1, chosen[:, None]).sum())


@wrong("23.5", "the gradient of the expected log-probability, squared: the expectation is inside of the square")
def add_squared_scores(sums, parameters, log_shares, targets, labels, generator):
    counted = log_shares[targets != IGNORED]
    if labels == "all":
        add_square(sums, parameters, (counted.detach().exp() * counted).sum())
        return
    chosen = targets[targets != IGNORED]
    if labels == "model" and len(counted):
        chosen = torch.multinomial(counted.detach().exp(), 1, generator=generator)[:, 0]
    add_square(sums, parameters, counted.gather(1, chosen[:, None]).sum())


@wrong("23.5", "the mean over a text's positions: long texts count less")
def add_squared_scores(sums, parameters, log_shares, targets, labels, generator):
    counted = log_shares[targets != IGNORED]
    if labels == "all":
        for log_share in counted.flatten():
            add_square(sums, parameters, log_share, weight=log_share.detach().exp() / len(counted))
        return
    chosen = targets[targets != IGNORED]
    if labels == "model" and len(counted):
        chosen = torch.multinomial(counted.detach().exp(), 1, generator=generator)[:, 0]
    if len(counted):
        add_square(sums, parameters, counted.gather(1, chosen[:, None]).mean())


@wrong("23.5", "each position of a text as an example of its own, also with the data's answers")
def add_squared_scores(sums, parameters, log_shares, targets, labels, generator):
    counted = log_shares[targets != IGNORED]
    if labels == "all":
        for log_share in counted.flatten():
            add_square(sums, parameters, log_share, weight=log_share.detach().exp())
        return
    chosen = targets[targets != IGNORED]
    if labels == "model" and len(counted):
        chosen = torch.multinomial(counted.detach().exp(), 1, generator=generator)[:, 0]
    for log_share in counted.gather(1, chosen[:, None]).flatten():
        add_square(sums, parameters, log_share)


@wrong("23.5", "the likeliest answer instead of a drawn one")
def add_squared_scores(sums, parameters, log_shares, targets, labels, generator):
    counted = log_shares[targets != IGNORED]
    if labels == "all":
        for log_share in counted.flatten():
            add_square(sums, parameters, log_share, weight=log_share.detach().exp())
        return
    chosen = counted.argmax(-1) if labels == "model" else targets[targets != IGNORED]
    add_square(sums, parameters, counted.gather(1, chosen[:, None]).sum())


@wrong("23.5", "places where nothing is asked count as well")
def add_squared_scores(sums, parameters, log_shares, targets, labels, generator):
    counted = log_shares.flatten(0, -2)
    if labels == "all":
        for log_share in counted.flatten():
            add_square(sums, parameters, log_share, weight=log_share.detach().exp())
        return
    chosen = targets.flatten().clamp(min=0)
    if labels == "model" and len(counted):
        chosen = torch.multinomial(counted.detach().exp(), 1, generator=generator)[:, 0]
    add_square(sums, parameters, counted.gather(1, chosen[:, None]).sum())


# --- 23.6 springs


@wrong("23.6", "without the half: springs twice as stiff as lambda says")
def elastic_penalty(parameters, anchors, strength):
    if not strength >= 0 or not anchors:
        raise ConfigError("out of range")
    energies = []
    for anchor in anchors:
        check_same(parameters, anchor.values)
        for name, parameter in parameters.items():
            energies.append((anchor.importance[name] * (parameter - anchor.values[name]).square()).sum())
    return strength * torch.stack(energies).sum()


@wrong("23.6", "the mean over the weights instead of the sum")
def elastic_penalty(parameters, anchors, strength):
    if not strength >= 0 or not anchors:
        raise ConfigError("out of range")
    energies = []
    for anchor in anchors:
        check_same(parameters, anchor.values)
        for name, parameter in parameters.items():
            energies.append((anchor.importance[name] * (parameter - anchor.values[name]).square()).mean())
    return strength / 2 * torch.stack(energies).sum()


@wrong("23.6", "only the newest anchor holds: the first task is let go when the second has been learned")
def elastic_penalty(parameters, anchors, strength):
    if not strength >= 0 or not anchors:
        raise ConfigError("out of range")
    energies = []
    for anchor in anchors:
        check_same(parameters, anchor.values)
    for name, parameter in parameters.items():
        energies.append((anchor.importance[name] * (parameter - anchor.values[name]).square()).sum())
    return strength / 2 * torch.stack(energies).sum()


@wrong("23.6", "the importance is squared with the way")
def elastic_penalty(parameters, anchors, strength):
    if not strength >= 0 or not anchors:
        raise ConfigError("out of range")
    energies = []
    for anchor in anchors:
        check_same(parameters, anchor.values)
        for name, parameter in parameters.items():
            energies.append((anchor.importance[name] * (parameter - anchor.values[name])).square().sum())
    return strength / 2 * torch.stack(energies).sum()


# --- 23.7 a memory of fixed size


@wrong("23.7", "keeps the first items for ever")
def keep(stream, n_kept, generator):
    return [item for number, item in enumerate(stream) if number < n_kept]


@wrong("23.7", "every item gets in: the memory holds mostly the newest")
def keep(stream, n_kept, generator):
    kept = []
    for number, item in enumerate(stream):
        if number < n_kept:
            kept.append(item)
        else:
            kept[int(generator.integers(n_kept))] = item
    return kept


@wrong("23.7", "one too few to draw from: items let in with chance k / (i - 1)")
def keep(stream, n_kept, generator):
    kept = []
    for number, item in enumerate(stream):
        if number < n_kept:
            kept.append(item)
        elif (place := int(generator.integers(number))) < n_kept:
            kept[place] = item
    return kept


@wrong("23.7", "draws with a constant chance, whatever has passed already")
def keep(stream, n_kept, generator):
    kept = []
    for number, item in enumerate(stream):
        if number < n_kept:
            kept.append(item)
        elif generator.random() < 0.5:
            kept[int(generator.integers(n_kept))] = item
    return kept


# --- 23.8 what is forgotten


@wrong("23.8", "compares with the score before anything was learned")
def forgotten(self):
    behind = {}
    for number, task in enumerate(self.tasks[:-1]):
        behind[task] = self.sign * (self.rows[0][number] - self.rows[-1][number])
    return behind


@wrong("23.8", "for losses the sign is missing: what is forgotten comes out negative or 0")
def forgotten(self):
    behind = {}
    for number, task in enumerate(self.tasks[:-1]):
        since = [row[number] for row in self.rows[number + 1 :]]
        behind[task] = max(since) - since[-1]
    return behind


@wrong("23.8", "against the moment of learning, although it may have become better since")
def forgotten(self):
    behind = {}
    for number, task in enumerate(self.tasks[:-1]):
        since = [self.sign * row[number] for row in self.rows[number + 1 :]]
        behind[task] = since[0] - since[-1]
    return behind


@wrong("23.8", "the last task is counted too")
def forgotten(self):
    behind = {}
    for number, task in enumerate(self.tasks):
        since = [self.sign * row[number] for row in self.rows[number + 1 :]]
        behind[task] = max(since) - since[-1]
    return behind
