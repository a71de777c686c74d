"""The same numbers under two naming schemes: which tensors of theirs make one parameter of ours, and back.

A family of models is a list of `Match`es. Conversion in both directions, the names that must be there and the sizes
that they must have all follow from that list.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.errors import CheckpointError

Join = Callable[[Sequence[Tensor]], Tensor]
Part = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Match:
    """One parameter of ours and the tensors of theirs that hold the same numbers.

    Args:
        ours: its name in our state_dict.
        theirs: the names of their tensors, in the order in which `join` takes and `part` gives them.
        join: their tensors -> ours.
        part: ours -> their tensors; works on the "meta" device too, which is how sizes are compared.
    """

    ours: str
    theirs: tuple[str, ...]
    join: Join
    part: Part


def same(ours: str, theirs: str) -> Match:
    """The same tensor under another name.

    Example:
        >>> same("norm.weight", "ln.weight").part(torch.ones(2))
        (tensor([1., 1.]),)
    """
    return Match(ours, (theirs,), lambda tensors: tensors[0], lambda tensor: (tensor,))


def transposed(ours: str, theirs: str) -> Match:
    """A matrix that they keep as (in, out), as GPT-2's Conv1D does; ours are (out, in)."""
    return Match(ours, (theirs,), lambda tensors: tensors[0].T, lambda tensor: (tensor.T,))


def joined_rows(ours: str, theirs: Iterable[str], n_rows: Sequence[int]) -> Match:
    """Several tensors of theirs, one below the other in ours.

    Args:
        ours: our name.
        theirs: their names from top to bottom.
        n_rows: how many rows each has.

    Example:
        >>> match = joined_rows("qkv.weight", ("q.weight", "k.weight"), (1, 2))
        >>> [part.tolist() for part in match.part(torch.tensor([[1.0], [2.0], [3.0]]))]
        [[[1.0]], [[2.0], [3.0]]]
    """
    sizes = list(n_rows)
    return Match(ours, tuple(theirs), torch.cat, lambda tensor: tensor.split(sizes))


def interleaved_rows(ours: str, theirs: str, n_parts: int, n_groups: int) -> Match:
    """Rows that they keep group by group, the parts of each group together (BLOOM: head by head, its queries, keys and
    values); ours are part by part.

    Args:
        ours: our name, rows in the order (part, group, row).
        theirs: their name, rows in the order (group, part, row).
        n_parts: number of parts, 3 for queries, keys and values.
        n_groups: number of groups, such as heads.

    Example:
        >>> match = interleaved_rows("qkv.bias", "query_key_value.bias", n_parts=3, n_groups=2)
        >>> match.part(torch.tensor([1, 2, 10, 20, 100, 200]))[0].tolist()
        [1, 10, 100, 2, 20, 200]
    """

    def reorder(tensor: Tensor, first: int, second: int) -> Tensor:
        return tensor.unflatten(0, (first, second, -1)).transpose(0, 1).flatten(0, 2)

    return Match(
        ours,
        (theirs,),
        lambda tensors: reorder(tensors[0], n_groups, n_parts),
        lambda tensor: (reorder(tensor, n_parts, n_groups),),
    )


def stacked(ours: str, theirs: Iterable[str]) -> Match:
    """Several tensors of one size, stacked in ours along a new first dimension, such as the matrices of experts."""
    return Match(ours, tuple(theirs), torch.stack, lambda tensor: tensor.unbind())


def to_theirs(state: Mapping[str, Tensor], matches: Iterable[Match]) -> dict[str, Tensor]:
    """Our parameters under their names.

    Args:
        state: our state_dict; what no match names is a mistake of the family's list.
        matches: of the model's family.

    Returns:
        their name -> contiguous tensor.

    Raises:
        CheckpointError: if a parameter of ours has no match: it would be lost.
    """
    matches = list(matches)
    if lost := sorted(state.keys() - {match.ours for match in matches}):
        raise CheckpointError(f"{', '.join(lost)}: their format has no place for these parameters")
    theirs = {}
    for match in matches:
        theirs |= zip(match.theirs, match.part(state[match.ours].detach()), strict=True)
    return {name: tensor.contiguous() for name, tensor in theirs.items()}


def to_ours(read: Callable[[str], Tensor], matches: Iterable[Match]) -> dict[str, Tensor]:
    """Their tensors as a state_dict of ours.

    Args:
        read: their name -> tensor.
        matches: of the model's family; names and sizes have been checked with `check_tensors`.
    """
    return {match.ours: match.join([read(name) for name in match.theirs]) for match in matches}


def expected_shapes(state: Mapping[str, Tensor], matches: Iterable[Match]) -> dict[str, tuple[int, ...]]:
    """Their name -> the size it must have to fit into our parameters; nothing is computed."""
    shapes: dict[str, tuple[int, ...]] = {}
    for match in matches:
        parts = match.part(state[match.ours].detach().to("meta"))
        shapes |= {name: tuple(part.shape) for name, part in zip(match.theirs, parts, strict=True)}
    return shapes


def check_tensors(
    where: str,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    ignored: Collection[str] = (),
) -> None:
    """Check that a foreign checkpoint has exactly the tensors of a model, in its sizes.

    Args:
        where: what was read, for the message.
        expected: name -> shape.
        found: name -> shape.
        ignored: regular expressions of names that may be there and mean nothing (masks, tables of angles).

    Raises:
        CheckpointError: listing missing and unexpected names, or the sizes expected and found.
    """
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(
        name for name in found.keys() - expected.keys() if not any(re.search(rule, name) for rule in ignored)
    )
    if missing or unexpected:
        raise CheckpointError(
            f"{where} is of another model; missing: {listed(missing)}; unexpected: {listed(unexpected)}"
        )
    wrong = [
        f"{name} expected {shape}, found {found[name]}"
        for name, shape in sorted(expected.items())
        if shape != found[name]
    ]
    if wrong:
        raise CheckpointError(f"{where} has tensors of other sizes: {listed(wrong, '; ')}")


def listed(names: Sequence[str], separator: str = ", ", at_most: int = 20) -> str:
    """Names in one line, the first ones of many.

    Example:
        >>> listed([]), listed(["a", "b"]), listed(["a", "b", "c"], at_most=1)
        ('none', 'a, b', 'a, and 2 more')
    """
    if not names:
        return "none"
    rest = len(names) - at_most
    return separator.join([*names[:at_most], *([f"and {rest} more"] if rest > 0 else [])])
