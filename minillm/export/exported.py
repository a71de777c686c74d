"""Where the numbers of a model of ours stand in its exported form, also of one under a task's head.

Of a classifier the body is exported. The head belongs to the task: `AutoModelForSequenceClassification` and its like
put a fresh one on the exported body, and `peft` brings its numbers with the adapter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from minillm import surgery
from minillm.adapt.adapted import Adapted
from minillm.errors import CheckpointError
from minillm.export.bert import FAMILIES as ENCODERS
from minillm.export.hugging_face import DECODERS, family_of
from minillm.export.weights import Match, same
from minillm.models.bert_heads import SpanReader, TextClassifier, TokenClassifier
from minillm.models.gpt import GPTConfig
from minillm.models.gpt_heads import LastTokenClassifier
from minillm.models.t5 import T5Config

BODY = "body."
TASKS = {GPTConfig: "CAUSAL_LM", T5Config: "SEQ_2_SEQ_LM"}
TASKS_OF_HEADS: dict[type, str] = {
    LastTokenClassifier: "SEQ_CLS",
    TextClassifier: "SEQ_CLS",
    TokenClassifier: "TOKEN_CLS",
    SpanReader: "QUESTION_ANS",
}
HEADS: dict[type, dict[str, dict[str, str]]] = {  # our class -> family -> our module -> theirs
    LastTokenClassifier: {family.name: {"head": "score"} for family in DECODERS},
    TextClassifier: {
        "bert": {"pooler": "bert.pooler.dense", "head": "classifier"},
        "roberta": {"pooler": "classifier.dense", "head": "classifier.out_proj"},
        "albert": {"pooler": "albert.pooler", "head": "classifier"},
    },
    TokenClassifier: {family.name: {"head": "classifier"} for family in ENCODERS},
    SpanReader: {family.name: {"head": "qa_outputs"} for family in ENCODERS},
}
WHOLE_HEAD = "classifier"  # a RoBERTa's has two layers, and peft keeps the head as one


@dataclass(frozen=True)
class Exported:
    """How a model is written as one of theirs.

    Attributes:
        matches: our parameter's name -> where it is in theirs.
        tied: their tensors that have a second name.
        task: peft's name for what the model does, or None if it has none.
        own: our names of the task's head, which the exported body does not hold.
    """

    matches: dict[str, Match]
    tied: frozenset[str]
    task: str | None
    own: tuple[str, ...] = ()


def exported(model: nn.Module) -> Exported:
    """Where the numbers of a model are in theirs.

    Args:
        model: of a family that transformers has, or a classifier or `SpanReader` over such a body.

    Raises:
        CheckpointError: if transformers has no such model, or its head has no bias where ours has one.
    """
    if type(model) in HEADS:
        return with_head(model)
    config = config_of(model)
    family = family_of(config)
    matches = {match.ours: match for match in family.matches(config)}
    return Exported(matches, frozenset(family.aliases(config).values()), TASKS.get(type(config)))


def config_of(model: nn.Module) -> Any:
    """The config that says which family a model is of.

    Raises:
        CheckpointError: if there is none.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise CheckpointError(
            f"a {type(model).__name__} is none of the models that can be exported; adapt its body, or save with save()"
        )
    return config


def with_head(model: nn.Module) -> Exported:
    """The same for a body under a task's head: our names begin with "body.", theirs have no language model's head."""
    config, kind = config_of(model.body), type(model)
    family = family_of(config)
    modules = HEADS[kind].get(family.name)
    if modules is None:
        raise CheckpointError(f"transformers has no class for a {kind.__name__} over a {family.name}; save with save()")
    if kind is LastTokenClassifier and surgery.unwrapped(model.head).bias is not None:
        raise CheckpointError(
            "the classifier's head has a bias, which those of decoders in transformers have not; make it with bias="
            "False, as minillm finetune --save-peft does"
        )
    of_body = {match.ours: match for match in family.matches(config)}
    start = of_body["token_embedding.weight"].theirs[0].partition(".")[0] + "."
    matches = {
        BODY + name: replace(match, ours=BODY + name)
        for name, match in of_body.items()
        if all(theirs.startswith(start) for theirs in match.theirs) and (kind is TextClassifier or "pooler" not in name)
    }
    in_body = {id(parameter) for parameter in model.body.parameters()}
    own = []
    for ours, theirs in modules.items():
        for last, parameter in surgery.unwrapped(model.get_submodule(ours)).named_parameters(recurse=False):
            matches[f"{ours}.{last}"] = same(f"{ours}.{last}", f"{theirs}.{last}")
            if id(parameter) not in in_body:
                own.append(f"{ours}.{last}")
    return Exported(matches, frozenset(), TASKS_OF_HEADS[kind], tuple(own))


def head_tensors(adapted: Adapted, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an adapter's file holds whole: parameters that were trained beside it, and the task's head in any case.

    Args:
        adapted: the model.
        trained: our parameter's name -> numbers.

    Returns:
        their name -> numbers.

    Raises:
        CheckpointError: if the exported model has no such parameter.
    """
    with adapted.disable() as base:
        form = exported(base)
        whole = {name: parameter_named(base, name).detach().clone() for name in form.own} | dict(trained)
    if lost := sorted(trained.keys() - form.matches.keys()):
        raise CheckpointError(f"the exported model has no place for the head's {lost[0]}; it would be lost")
    return {
        theirs: tensor.contiguous()
        for name, value in whole.items()
        for theirs, tensor in zip(form.matches[name].theirs, form.matches[name].part(value), strict=True)
    }


def parameter_named(model: nn.Module, name: str) -> Tensor:
    """A parameter by the name that it has while nothing is wrapped around its module."""
    module, _, last = name.rpartition(".")
    return surgery.unwrapped(model.get_submodule(module)).get_parameter(last)


def modules_of(tensors: Mapping[str, Tensor]) -> list[str] | None:
    """`modules_to_save` of peft's settings: the modules of these tensors, or None."""
    modules = {name.rpartition(".")[0] for name in tensors}
    return sorted({WHOLE_HEAD if name.startswith(f"{WHOLE_HEAD}.") else name for name in modules}) or None


def heads_from(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Tensors of theirs that are saved whole -> under our names; the way back of `head_tensors`.

    Args:
        model: ours, not adapted.
        tensors: their name -> numbers.
        where: the file, for messages.

    Raises:
        CheckpointError: if one has no place, another size or is only a piece of a parameter of ours, or if a part of a
            head is missing.
    """
    if not tensors and type(model) not in HEADS:
        return {}
    form, kept, used = exported(model), {}, set()
    for name, match in form.matches.items():
        if set(match.theirs) <= tensors.keys():
            kept[name] = match.join([tensors[theirs] for theirs in match.theirs])
            used |= set(match.theirs)
    if lost := sorted(tensors.keys() - used):
        raise CheckpointError(f"{where} has {lost[0]}, for which this model has no place")
    begun = {name.rpartition(".")[0] for name in (*kept, *form.own)}
    if missing := [name for name in form.matches if name not in kept and name.rpartition(".")[0] in begun]:
        raise CheckpointError(f"{where} lacks the head's {form.matches[missing[0]].theirs[0]}; was it made for a task?")
    for name, tensor in kept.items():
        if tensor.shape != (expected := parameter_named(model, name)).shape:
            raise CheckpointError(
                f"{where}: the head's {name} is {tuple(tensor.shape)}, that of this model {tuple(expected.shape)}"
            )
    return kept
