"""Eight puzzles on one training step: who computes what when, within so much time and so much memory?

A model is a stack of equal layers, a batch is four parts, and nothing has numbers: a rank holds weights, optimizer
states, activations, gradients, or shards of them, and its program is a list of operations that need some of these and
leave others. `play` works through all programs at once, refuses what cannot be, and tells the time and the memory.

The idea, the costs and the sizes are those of Rush 2023, "LLM Training Puzzles"
(github.com/srush/LLM-Training-Puzzles); programs as data, their execution and the solutions are ours. Times are in
units of one layer and one part of the batch. Gradients add up in place, and what is sent away or used up is gone.

Dimensions: L layers, P ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from minillm.errors import ConfigError

PARTS = frozenset(range(4))
WIDTH, LENGTH = 512, 256
WEIGHT_SIZE, ACTIVATION_SIZE = WIDTH * WIDTH, WIDTH * LENGTH
TIMES = {"update": Fraction(1, 2), "send": Fraction(1, 5), "receive": Fraction(1, 5)}
COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather")
COLLECTIVE_TIME = Fraction(3, 10)


@dataclass(frozen=True)
class Operation:
    """One line of a rank's program.

    Args:
        kind: "load" the input of the first layer; "forward", "backward" through a layer; "loss" after the last;
            "update" a layer's weights; "drop" gathered shards of others; "send" to a peer and "receive" from it the
            output of layer - 1, or, with `back`, the gradient of the input of a layer; and with all ranks together
            "all_reduce" or "reduce_scatter" a layer's gradient, "all_gather" its weights.
        layer: 0 to L - 1; L for what comes out of the last one.
        parts: of the batch.
        peer: the other rank.
        back: whether it is a gradient that is sent.
    """

    kind: str
    layer: int = 0
    parts: frozenset[int] = frozenset()
    peer: int = -1
    back: bool = False


@dataclass(frozen=True)
class Puzzle:
    """A puzzle and what the published solution of it takes.

    Args:
        name: what is asked for.
        n_layers: L.
        n_ranks: P.
        placement: for each rank the layers whose weights and optimizer states it has at the beginning.
        n_shards: 1 if it has them whole; else rank r has shard r of so many.
        time: at which the reference ends.
        memory: its largest, in numbers on one rank.

    Source:
        Time and memory were measured by running the solutions in the repository of the puzzles; the targets printed
        there are rounded, and some are below what its solutions reach.
    """

    name: str
    n_layers: int
    n_ranks: int
    placement: tuple[tuple[int, ...], ...]
    n_shards: int
    time: Fraction
    memory: int


def everywhere(n_layers: int, n_ranks: int) -> tuple[tuple[int, ...], ...]:
    """All layers on all ranks."""
    return (tuple(range(n_layers)),) * n_ranks


def in_stages(n_layers: int, n_ranks: int) -> tuple[tuple[int, ...], ...]:
    """L / P consecutive layers on each rank."""
    size = n_layers // n_ranks
    return tuple(tuple(range(rank * size, (rank + 1) * size)) for rank in range(n_ranks))


PUZZLES = (
    Puzzle("one machine", 2, 1, everywhere(2, 1), 1, Fraction(17), 2_621_440),
    Puzzle("gradient accumulation", 2, 1, everywhere(2, 1), 1, Fraction(17), 1_966_080),
    Puzzle("data parallel", 2, 4, everywhere(2, 4), 1, Fraction(56, 10), 1_835_008),
    Puzzle("weight-sharded data parallel", 6, 4, everywhere(6, 4), 4, Fraction(204, 10), 2_752_512),
    Puzzle("fully sharded data parallel", 6, 4, everywhere(6, 4), 4, Fraction(204, 10), 2_359_296),
    Puzzle("pipeline", 8, 4, in_stages(8, 4), 1, Fraction(674, 10), 3_145_728),
    Puzzle("GPipe", 8, 4, in_stages(8, 4), 1, Fraction(338, 10), 4_194_304),
    Puzzle("pipeline and fully sharded", 4, 16, everywhere(4, 16), 16, Fraction(16), 966_656),
)


@dataclass
class Share:
    """Some shards of a layer's weights, optimizer state or gradient; of weights, how often they were updated."""

    shards: frozenset[int]
    n_updates: int = 0
    parts: frozenset[int] = frozenset()


@dataclass
class Rank:
    """What a rank holds, and its clock."""

    number: int
    weights: dict[int, Share]
    states: dict[int, Share]
    own: frozenset[int]
    gradients: dict[int, Share] = field(default_factory=dict)
    activations: dict[int, frozenset[int]] = field(default_factory=dict)
    backs: dict[int, frozenset[int]] = field(default_factory=dict)
    clock: Fraction = Fraction(0)

    def memory(self, n_shards: int) -> int:
        """Numbers held now."""
        shares = [*self.weights.values(), *self.states.values(), *self.gradients.values()]
        parts = [*self.activations.values(), *self.backs.values()]
        n_weights = sum(len(share.shards) for share in shares) * WEIGHT_SIZE // n_shards
        return n_weights + sum(map(len, parts)) * ACTIVATION_SIZE


@dataclass(frozen=True)
class Done:
    """An operation with its time and with what its rank held while it went on."""

    rank: int
    operation: Operation
    start: Fraction
    end: Fraction
    memory: int


@dataclass(frozen=True)
class Outcome:
    """What all programs together took."""

    time: Fraction
    memory: int
    log: tuple[Done, ...]


def play(puzzle: Puzzle, programs: Sequence[Sequence[Operation]]) -> Outcome:
    """Work through the programs of all ranks.

    A send goes on at once when it is done, a receive waits for it; a collective begins when the last rank has come to
    it. Memory is counted before and after each operation.

    Args:
        puzzle: says who has which weights at the beginning.
        programs: for each rank its operations in order.

    Returns:
        Time, memory, and the log.

    Raises:
        ConfigError: at the first operation whose inputs are not there, when ranks wait for ever, or if at the end not
            every layer has been updated once with the gradient of the whole batch.

    Example:
        >>> kinds = [("load", 0), ("forward", 0), ("forward", 1), ("loss", 2), ("backward", 1), ("update", 1)]
        >>> program = [Operation(kind, layer, PARTS) for kind, layer in [*kinds, ("backward", 0), ("update", 0)]]
        >>> outcome = play(PUZZLES[0], [program])
        >>> outcome.time, outcome.memory
        (Fraction(17, 1), 2621440)
    """
    if len(programs) != puzzle.n_ranks:
        raise ConfigError(f"{len(programs)} programs, the puzzle has {puzzle.n_ranks} ranks: write one for each")
    ranks = [starting_rank(puzzle, number) for number in range(puzzle.n_ranks)]
    left = [list(program)[::-1] for program in programs]  # the next operation is the last item
    mail: dict[tuple[int, int, Operation], Fraction] = {}
    log: list[Done] = []
    moved = True
    while moved:
        moved = False
        for rank, program in zip(ranks, left, strict=True):
            while program and can_begin(rank, program[-1], mail):
                log.append(work(puzzle, rank, program.pop(), mail))
                moved = True
        heads = [program[-1] if program else None for program in left]
        if heads[0] is not None and heads[0].kind in COLLECTIVES and len(set(heads)) == 1:
            log += together(puzzle, ranks, heads[0])
            for program in left:
                program.pop()
            moved = True
    check_end(puzzle, ranks, left)
    return Outcome(max(rank.clock for rank in ranks), max(done.memory for done in log), tuple(log))


def starting_rank(puzzle: Puzzle, number: int) -> Rank:
    """A rank with the weights and states of its placement."""
    own = frozenset([0]) if puzzle.n_shards == 1 else frozenset([number])
    layers = puzzle.placement[number]
    return Rank(number, {n: Share(own) for n in layers}, {n: Share(own) for n in layers}, own)


def can_begin(rank: Rank, operation: Operation, mail: dict[tuple[int, int, Operation], Fraction]) -> bool:
    """Whether a rank can do this alone and now."""
    if operation.kind == "receive":
        return letter(operation.peer, rank.number, operation) in mail
    return operation.kind not in COLLECTIVES


def letter(source: int, target: int, operation: Operation) -> tuple[int, int, Operation]:
    """The name under which something sent lies ready."""
    return source, target, Operation("letter", operation.layer, operation.parts, back=operation.back)


def work(
    puzzle: Puzzle, rank: Rank, operation: Operation, mail: dict[tuple[int, int, Operation], Fraction]
) -> Done:
    """Let a rank do one operation: check, change what it holds, move its clock."""
    before, start = rank.memory(puzzle.n_shards), rank.clock
    if operation.kind == "receive":
        start = max(start, mail.pop(letter(operation.peer, rank.number, operation)))
        add(rank.backs if operation.back else rank.activations, operation)
    elif operation.kind == "send":
        remove(rank, rank.backs if operation.back else rank.activations, operation)
        mail[letter(rank.number, operation.peer, operation)] = start + TIMES["send"]
    elif operation.kind in LOCAL:
        LOCAL[operation.kind](puzzle, rank, operation)
    else:
        known = ", ".join((*LOCAL, *COLLECTIVES))
        raise ConfigError(f"operation {operation.kind!r} is unknown; known are {known}, send and receive")
    takes = len(operation.parts) if operation.kind in ("forward", "backward") else TIMES.get(operation.kind, 0)
    rank.clock = start + takes
    return Done(rank.number, operation, start, rank.clock, max(before, rank.memory(puzzle.n_shards)))


def add(shelf: dict[int, frozenset[int]], operation: Operation) -> None:
    """Put parts of a layer's activations or their gradients to those that are there."""
    shelf[operation.layer] = shelf.get(operation.layer, frozenset()) | operation.parts


def remove(rank: Rank, shelf: dict[int, frozenset[int]], operation: Operation, layer: int = -1) -> None:
    """Take parts away.

    Raises:
        ConfigError: if they are not there.
    """
    layer = operation.layer if layer < 0 else layer
    there = shelf.get(layer, frozenset())
    if not operation.parts <= there:
        refuse(rank, operation, f"parts {sorted(operation.parts - there)} at layer {layer} are not there")
    shelf[layer] = there - operation.parts


def refuse(rank: Rank, operation: Operation, reason: str) -> None:
    """Say who cannot do what."""
    raise ConfigError(f"rank {rank.number}, {operation.kind} of layer {operation.layer}: {reason}")


def add_input(puzzle: Puzzle, rank: Rank, operation: Operation) -> None:
    """The batch lies ready for everybody."""
    add(rank.activations, Operation("load", 0, operation.parts))


def whole_weights(puzzle: Puzzle, rank: Rank, operation: Operation) -> None:
    """Computing needs all shards of a layer, as they were before the update."""
    share = rank.weights.get(operation.layer)
    if share is None or len(share.shards) < puzzle.n_shards:
        refuse(rank, operation, f"its weights are not whole here (shards {sorted(share.shards) if share else []})")
    if share.n_updates:
        refuse(rank, operation, "its weights were updated before the batch was through")


def forward(puzzle: Puzzle, rank: Rank, operation: Operation) -> None:
    """Needs the layer's input, which stays for the way back, and makes the next one's."""
    whole_weights(puzzle, rank, operation)
    there = rank.activations.get(operation.layer, frozenset())
    if not operation.parts or not operation.parts <= there:
        refuse(rank, operation, f"its input for parts {sorted(operation.parts)} is not there, only {sorted(there)}")
    add(rank.activations, Operation("forward", operation.layer + 1, operation.parts))


def loss(puzzle: Puzzle, rank: Rank, operation: Operation) -> None:
    """Turns the model's output into its gradient."""
    remove(rank, rank.activations, operation, puzzle.n_layers)
    add(rank.backs, Operation("loss", puzzle.n_layers, operation.parts))


def backward(puzzle: Puzzle, rank: Rank, operation: Operation) -> None:
    """Uses up the layer's input and the gradient of its output, adds to the layer's gradient, and goes one back."""
    whole_weights(puzzle, rank, operation)
    remove(rank, rank.activations, operation)
    remove(rank, rank.backs, operation, operation.layer + 1)
    if operation.layer:
        add(rank.backs, operation)
    all_shards = frozenset(range(puzzle.n_shards))
    share = rank.gradients.setdefault(operation.layer, Share(all_shards))
    if share.parts & operation.parts or share.shards != all_shards:
        refuse(rank, operation, f"the gradient there has parts {sorted(share.parts)} already, or is cut up")
    share.parts = share.parts | operation.parts


def update(puzzle: Puzzle, rank: Rank, operation: Operation) -> None:
    """Uses up a layer's gradient of the whole batch; needs weights, state and gradient of the same shards."""
    gradient = rank.gradients.pop(operation.layer, Share(frozenset()))
    weights, state = rank.weights.get(operation.layer), rank.states.get(operation.layer)
    if gradient.parts != PARTS:
        refuse(rank, operation, f"its gradient has the parts {sorted(gradient.parts)} of the batch, expected all four")
    if weights is None or state is None or weights.shards != state.shards or not weights.shards <= gradient.shards:
        refuse(rank, operation, "weights, optimizer state and gradient are not of the same shards here")
    weights.n_updates += 1
    state.n_updates += 1


def drop(puzzle: Puzzle, rank: Rank, operation: Operation) -> None:
    """Keep only the own shard of a layer's weights."""
    rank.weights[operation.layer].shards = rank.own


LOCAL = {"load": add_input, "forward": forward, "loss": loss, "backward": backward, "update": update, "drop": drop}


def together(puzzle: Puzzle, ranks: list[Rank], operation: Operation) -> list[Done]:
    """A collective of all ranks: it begins when the last one has come, and changes what all hold."""
    start = max(rank.clock for rank in ranks)
    before = [rank.memory(puzzle.n_shards) for rank in ranks]
    gather(ranks, operation) if operation.kind == "all_gather" else reduce(puzzle, ranks, operation)
    for rank in ranks:
        rank.clock = start + COLLECTIVE_TIME
    return [
        Done(rank.number, operation, start, rank.clock, max(held, rank.memory(puzzle.n_shards)))
        for rank, held in zip(ranks, before, strict=True)
    ]


def gather(ranks: list[Rank], operation: Operation) -> None:
    """All shards of a layer's weights to all ranks."""
    shards = frozenset().union(*(rank.weights[operation.layer].shards for rank in ranks))
    for rank in ranks:
        rank.weights[operation.layer].shards = shards


def reduce(puzzle: Puzzle, ranks: list[Rank], operation: Operation) -> None:
    """The sum of a layer's gradients over the ranks, whole on all of them or in shards; who has none adds nothing."""
    shares = [rank.gradients.get(operation.layer, Share(frozenset())) for rank in ranks]
    if sum(len(share.parts) for share in shares) != len(frozenset().union(*(share.parts for share in shares))):
        refuse(ranks[0], operation, "a part of the batch is in the gradients of two ranks and would count twice")
    parts = frozenset().union(*(share.parts for share in shares))
    whole = frozenset(range(puzzle.n_shards))
    for rank in ranks:
        rank.gradients[operation.layer] = Share(rank.own if operation.kind == "reduce_scatter" else whole, parts=parts)


def check_end(puzzle: Puzzle, ranks: list[Rank], left: list[list[Operation]]) -> None:
    """Everybody has finished, and every shard of every layer was updated once.

    Raises:
        ConfigError: if not.
    """
    waiting = {rank.number: program[-1].kind for rank, program in zip(ranks, left, strict=True) if program}
    if waiting:
        raise ConfigError(f"ranks wait for ever: {', '.join(f'rank {r} in {kind}' for r, kind in waiting.items())}")
    for rank in ranks:
        for layer, share in rank.weights.items():
            if share.n_updates != 1:
                raise ConfigError(f"rank {rank.number}, layer {layer}: updated {share.n_updates} times, expected once")
