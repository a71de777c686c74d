"""Solutions of the puzzles, as programs made by a few loops; none takes more time or memory than the reference.

Dimensions: L layers, P ranks.
"""

from minillm.parallel.puzzles import PARTS, PUZZLES, Operation, Puzzle
from minillm.parallel.schedules import FORWARD, make_schedule


def part(*numbers: int) -> frozenset[int]:
    """Some parts of the batch."""
    return frozenset(numbers)


def one_machine(puzzle: Puzzle) -> list[list[Operation]]:
    """The whole batch forward and back; each layer is updated as soon as its gradient is there, which frees it."""
    layers = range(puzzle.n_layers)
    ahead = [Operation("load", 0, PARTS), *(Operation("forward", layer, PARTS) for layer in layers)]
    back = [Operation(kind, layer, PARTS) for layer in reversed(layers) for kind in ("backward", "update")]
    return [[*ahead, Operation("loss", puzzle.n_layers, PARTS), *back]]


def accumulation(puzzle: Puzzle) -> list[list[Operation]]:
    """One part of the batch after the other; the gradients add up, the activations of one part only are there."""
    layers, program = range(puzzle.n_layers), []
    for number in sorted(PARTS):
        mine = part(number)
        program += [Operation("load", 0, mine), *(Operation("forward", layer, mine) for layer in layers)]
        program.append(Operation("loss", puzzle.n_layers, mine))
        for layer in reversed(layers):
            program.append(Operation("backward", layer, mine))
            program += [Operation("update", layer)] if number == max(PARTS) else []
    return [program]


def data_parallel(puzzle: Puzzle) -> list[list[Operation]]:
    """One part on each rank; each layer's gradients are added up and used at once."""
    layers, programs = range(puzzle.n_layers), []
    for rank in range(puzzle.n_ranks):
        mine = part(rank)
        program = [Operation("load", 0, mine), *(Operation("forward", layer, mine) for layer in layers)]
        program.append(Operation("loss", puzzle.n_layers, mine))
        for layer in reversed(layers):
            program.append(Operation("backward", layer, mine))
            program += [Operation("all_reduce", layer), Operation("update", layer)]
        programs.append(program)
    return programs


def sharded(puzzle: Puzzle, reduction: str) -> list[list[Operation]]:
    """As data parallel, with weights that are gathered when they are wanted; the last layer's stay for the way back."""
    last, programs = puzzle.n_layers - 1, []
    for rank in range(puzzle.n_ranks):
        mine = part(rank)
        program = [Operation("load", 0, mine)]
        for layer in range(puzzle.n_layers):
            program += [Operation("all_gather", layer), Operation("forward", layer, mine)]
            program += [Operation("drop", layer)] if layer < last else []
        program.append(Operation("loss", puzzle.n_layers, mine))
        for layer in range(last, -1, -1):
            program += [Operation("all_gather", layer)] if layer < last else []
            program += [Operation("backward", layer, mine), Operation("drop", layer)]
            program += [Operation(reduction, layer), Operation("update", layer)]
        programs.append(program)
    return programs


def weight_sharded(puzzle: Puzzle) -> list[list[Operation]]:
    """Gradients are added up whole."""
    return sharded(puzzle, "all_reduce")


def fully_sharded(puzzle: Puzzle) -> list[list[Operation]]:
    """Each rank gets only its shard of the sum."""
    return sharded(puzzle, "reduce_scatter")


def pipeline(puzzle: Puzzle, schedule: str = "naive", size: int = len(PARTS)) -> list[list[Operation]]:
    """Consecutive layers on each rank, micro-batches of `size` parts in the order of a schedule.

    A layer is updated as soon as the last micro-batch has come back through it.
    """
    n_microbatches, programs = len(PARTS) // size, []
    for rank, actions in enumerate(make_schedule(schedule, puzzle.n_ranks, n_microbatches).actions):
        program, is_last, layers = [], rank == puzzle.n_ranks - 1, puzzle.placement[rank]
        for action in actions:
            mine = part(*range(action.microbatch * size, (action.microbatch + 1) * size))
            if action.kind == FORWARD:
                entry = Operation("receive", layers[0], mine, rank - 1) if rank else Operation("load", 0, mine)
                program += [entry, *(Operation("forward", layer, mine) for layer in layers)]
                program += [] if is_last else [Operation("send", layers[-1] + 1, mine, rank + 1)]
            else:
                end = layers[-1] + 1
                answer = Operation("receive", end, mine, rank + 1, back=True)
                program.append(Operation("loss", end, mine) if is_last else answer)
                for layer in reversed(layers):
                    program.append(Operation("backward", layer, mine))
                    program += [Operation("update", layer)] if action == actions[-1] and rank == 0 else []
                program += [Operation("send", layers[0], mine, rank - 1, back=True)] if rank else []
        program += [Operation("update", layer) for layer in layers] if rank else []
        programs.append(program)
    return programs


def gpipe(puzzle: Puzzle) -> list[list[Operation]]:
    """Four micro-batches of one part."""
    return pipeline(puzzle, "gpipe", size=1)


def pipeline_and_sharded(puzzle: Puzzle) -> list[list[Operation]]:
    """Four pipelines of four ranks, one part of the batch through each; every weight in 16 shards on all ranks.

    Rank r computes layer r % 4 for part r // 4. All ranks gather a layer's weights before its turn, and only those who
    compute it keep them until they have come back.
    """
    programs = []
    for rank in range(puzzle.n_ranks):
        mine, stage = part(rank // 4), rank % 4
        program = [Operation("load", 0, mine)] if stage == 0 else []
        for layer in range(puzzle.n_layers):
            program.append(Operation("all_gather", layer))
            if layer != stage:
                program.append(Operation("drop", layer))
                continue
            program += [Operation("receive", layer, mine, rank - 1)] if stage else []
            program.append(Operation("forward", layer, mine))
            is_last = stage == puzzle.n_layers - 1
            program.append(
                Operation("loss", layer + 1, mine) if is_last else Operation("send", layer + 1, mine, rank + 1)
            )
        for layer in range(puzzle.n_layers - 1, -1, -1):
            if layer == stage:
                if stage < puzzle.n_layers - 1:
                    program.append(Operation("receive", layer + 1, mine, rank + 1, back=True))
                program += [Operation("backward", layer, mine), Operation("drop", layer)]
                program += [Operation("send", layer, mine, rank - 1, back=True)] if stage else []
            program += [Operation("reduce_scatter", layer), Operation("update", layer)]
        programs.append(program)
    return programs


SOLUTIONS = dict(
    zip(
        (puzzle.name for puzzle in PUZZLES),
        (
            *(one_machine, accumulation, data_parallel, weight_sharded, fully_sharded),
            *(pipeline, gpipe, pipeline_and_sharded),
        ),
        strict=True,
    )
)
