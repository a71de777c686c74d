"""Wrong answers of chapter 21: each must lose the points of exactly the task it names. Parsed, never run."""

from minillm.course.wrong_answers import wrong


@wrong("21.1", "backward in rising order: the last micro-batch waits at the end")
def gpipe(rank, n_ranks, n_microbatches):
    numbers = range(n_microbatches)
    return [Action(FORWARD, number) for number in numbers] + [Action(BACKWARD, number) for number in numbers]


@wrong("21.1", "one micro-batch after another is the naive split")
def gpipe(rank, n_ranks, n_microbatches):
    return [Action(kind, number) for number in range(n_microbatches) for kind in (FORWARD, BACKWARD)]


@wrong("21.1", "forward passes in reverse too")
def gpipe(rank, n_ranks, n_microbatches):
    numbers = list(reversed(range(n_microbatches)))
    return [Action(FORWARD, number) for number in numbers] + [Action(BACKWARD, number) for number in numbers]


@wrong("21.1", "one micro-batch too many")
def gpipe(rank, n_ranks, n_microbatches):
    forward = [Action(FORWARD, number) for number in range(n_microbatches + 1)]
    return forward + [Action(BACKWARD, action.microbatch) for action in reversed(forward)]


@wrong("21.1", "the last one is forgotten on the way back")
def gpipe(rank, n_ranks, n_microbatches):
    forward = [Action(FORWARD, number) for number in range(n_microbatches)]
    return forward + [Action(BACKWARD, number) for number in reversed(range(n_microbatches - 1))]


@wrong("21.1", "as many as there are ranks, not micro-batches")
def gpipe(rank, n_ranks, n_microbatches):
    forward = [Action(FORWARD, number) for number in range(n_ranks)]
    return forward + [Action(BACKWARD, number) for number in reversed(range(n_ranks))]


@wrong("21.1", "the rank stands where the chunk belongs")
def gpipe(rank, n_ranks, n_microbatches):
    forward = [Action(FORWARD, number, rank) for number in range(n_microbatches)]
    return forward + [Action(BACKWARD, number, rank) for number in reversed(range(n_microbatches))]


@wrong("21.2", "every rank warms up as the first one does")
def one_f_one_b(rank, n_ranks, n_microbatches):
    order = naive_order(n_microbatches)
    return in_turns(order, order, min(n_ranks - 1, n_microbatches))


@wrong("21.2", "one forward pass too many in the warm-up: one more in flight than needed")
def one_f_one_b(rank, n_ranks, n_microbatches):
    order = naive_order(n_microbatches)
    return in_turns(order, order, min(n_ranks - rank, n_microbatches))


@wrong("21.2", "one too few: the pipeline never fills")
def one_f_one_b(rank, n_ranks, n_microbatches):
    order = naive_order(n_microbatches)
    return in_turns(order, order, max(0, min(n_ranks - 2 - rank, n_microbatches)))


@wrong("21.2", "the ranks are counted from the wrong end")
def one_f_one_b(rank, n_ranks, n_microbatches):
    order = naive_order(n_microbatches)
    return in_turns(order, order, min(rank, n_microbatches))


@wrong("21.2", "no limit when there are fewer micro-batches than ranks")
def one_f_one_b(rank, n_ranks, n_microbatches):
    order = naive_order(n_microbatches)
    return in_turns(order, order, n_ranks - 1 - rank)


@wrong("21.2", "backward with the newest first, as in GPipe")
def one_f_one_b(rank, n_ranks, n_microbatches):
    order = naive_order(n_microbatches)
    return in_turns(order, order[::-1], min(n_ranks - 1 - rank, n_microbatches))


@wrong("21.2", "there and back: twice the warm-up, which is for several chunks")
def one_f_one_b(rank, n_ranks, n_microbatches):
    order = naive_order(n_microbatches)
    return in_turns(order, order, min(2 * (n_ranks - 1 - rank), n_microbatches))


@wrong("21.2", "the backward passes after the turns are missing")
def one_f_one_b(rank, n_ranks, n_microbatches):
    order = naive_order(n_microbatches)
    n_warmup = min(n_ranks - 1 - rank, n_microbatches)
    return in_turns(order, order, n_warmup)[: 2 * n_microbatches - n_warmup]


@wrong("21.2", "no warm-up at all is the naive split")
def one_f_one_b(rank, n_ranks, n_microbatches):
    order = naive_order(n_microbatches)
    return in_turns(order, order, 0)


@wrong("21.3", "the own forward pass is forgotten")
def must_come_before(schedule, rank, action):
    stage = schedule.stage(rank, action.chunk)
    neighbour = stage - 1 if action.kind == FORWARD else stage + 1
    if not 0 <= neighbour < schedule.n_stages:
        return []
    other, chunk = schedule.place(neighbour)
    return [(other, Action(action.kind, action.microbatch, chunk))]


@wrong("21.3", "backward waits for the stage before instead of the one after")
def must_come_before(schedule, rank, action):
    stage = schedule.stage(rank, action.chunk)
    before = [(rank, Action(FORWARD, action.microbatch, action.chunk))] if action.kind == BACKWARD else []
    if stage > 0:
        other, chunk = schedule.place(stage - 1)
        before.append((other, Action(action.kind, action.microbatch, chunk)))
    return before


@wrong("21.3", "neighbouring ranks, the same chunk: right only without chunks")
def must_come_before(schedule, rank, action):
    before = [(rank, Action(FORWARD, action.microbatch, action.chunk))] if action.kind == BACKWARD else []
    other = rank - 1 if action.kind == FORWARD else rank + 1
    if 0 <= other < schedule.n_ranks:
        before.append((other, Action(action.kind, action.microbatch, action.chunk)))
    return before


@wrong("21.3", "a ring: the first stage waits for the last")
def must_come_before(schedule, rank, action):
    stage = schedule.stage(rank, action.chunk)
    before = [(rank, Action(FORWARD, action.microbatch, action.chunk))] if action.kind == BACKWARD else []
    neighbour = (stage - 1 if action.kind == FORWARD else stage + 1) % schedule.n_stages
    other, chunk = schedule.place(neighbour)
    return [*before, (other, Action(action.kind, action.microbatch, chunk))]


@wrong("21.3", "the stages of a rank are taken to be neighbours: rank * v + chunk")
def must_come_before(schedule, rank, action):
    stage = rank * schedule.n_chunks + action.chunk
    before = [(rank, Action(FORWARD, action.microbatch, action.chunk))] if action.kind == BACKWARD else []
    neighbour = stage - 1 if action.kind == FORWARD else stage + 1
    if 0 <= neighbour < schedule.n_stages:
        other, chunk = divmod(neighbour, schedule.n_chunks)
        before.append((other, Action(action.kind, action.microbatch, chunk)))
    return before


@wrong("21.3", "a backward pass waits for the forward pass of its neighbour")
def must_come_before(schedule, rank, action):
    stage = schedule.stage(rank, action.chunk)
    before = [(rank, Action(FORWARD, action.microbatch, action.chunk))] if action.kind == BACKWARD else []
    neighbour = stage - 1 if action.kind == FORWARD else stage + 1
    if 0 <= neighbour < schedule.n_stages:
        other, chunk = schedule.place(neighbour)
        before.append((other, Action(FORWARD, action.microbatch, chunk)))
    return before


@wrong("21.3", "a forward pass waits for the same rank's micro-batch before: that is the order, not a need")
def must_come_before(schedule, rank, action):
    stage = schedule.stage(rank, action.chunk)
    before = [(rank, Action(FORWARD, action.microbatch, action.chunk))] if action.kind == BACKWARD else []
    if action.kind == FORWARD and action.microbatch > 0:
        before.append((rank, Action(FORWARD, action.microbatch - 1, action.chunk)))
    neighbour = stage - 1 if action.kind == FORWARD else stage + 1
    if 0 <= neighbour < schedule.n_stages:
        other, chunk = schedule.place(neighbour)
        before.append((other, Action(action.kind, action.microbatch, chunk)))
    return before


@wrong("21.3", "the number of ranks is taken for the number of stages: a gradient is never waited for across chunks")
def must_come_before(schedule, rank, action):
    stage = schedule.stage(rank, action.chunk)
    before = [(rank, Action(FORWARD, action.microbatch, action.chunk))] if action.kind == BACKWARD else []
    neighbour = stage - 1 if action.kind == FORWARD else stage + 1
    if 0 <= neighbour < schedule.n_ranks:
        other, chunk = schedule.place(neighbour)
        before.append((other, Action(action.kind, action.microbatch, chunk)))
    return before


@wrong("21.4", "a rank that waits for nothing: each action starts when the rank is free")
def simulate(schedule, forward=1, backward=2, transfer=0):
    durations = {
        kind: [Fraction(time) / schedule.n_chunks for time in per_rank(times, schedule.n_ranks)]
        for kind, times in (("F", forward), ("B", backward))
    }
    ends = {}
    free = [0] * schedule.n_ranks
    position = [0] * schedule.n_ranks
    events = []
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule.actions):
            while position[rank] < len(actions):
                action = actions[position[rank]]
                before = must_come_before(schedule, rank, action)
                if not all(needed in ends for needed in before):
                    break
                arrivals = [ends[needed] + transfer for needed in before if needed[0] != rank]
                start = free[rank]
                free[rank] = ends[rank, action] = start + durations[action.kind][rank]
                events.append(Event(rank, action, start, free[rank]))
                position[rank], moved = position[rank] + 1, True
    for rank, actions in enumerate(schedule.actions):
        if position[rank] < len(actions):
            raise ConfigError(
                f"schedule {schedule.name} would wait for ever: rank {rank} before {actions[position[rank]]}"
            )
    return Timeline(schedule.n_ranks, tuple(events))


@wrong("21.4", "starts when its inputs are there, although the rank is still busy")
def simulate(schedule, forward=1, backward=2, transfer=0):
    durations = {
        kind: [Fraction(time) / schedule.n_chunks for time in per_rank(times, schedule.n_ranks)]
        for kind, times in (("F", forward), ("B", backward))
    }
    ends = {}
    free = [0] * schedule.n_ranks
    position = [0] * schedule.n_ranks
    events = []
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule.actions):
            while position[rank] < len(actions):
                action = actions[position[rank]]
                before = must_come_before(schedule, rank, action)
                if not all(needed in ends for needed in before):
                    break
                arrivals = [ends[needed] + transfer for needed in before if needed[0] != rank]
                start = max([Fraction(0), *arrivals])
                free[rank] = ends[rank, action] = start + durations[action.kind][rank]
                events.append(Event(rank, action, start, free[rank]))
                position[rank], moved = position[rank] + 1, True
    for rank, actions in enumerate(schedule.actions):
        if position[rank] < len(actions):
            raise ConfigError(
                f"schedule {schedule.name} would wait for ever: rank {rank} before {actions[position[rank]]}"
            )
    return Timeline(schedule.n_ranks, tuple(events))


@wrong("21.4", "a backward pass waits for its own forward pass only")
def simulate(schedule, forward=1, backward=2, transfer=0):
    durations = {
        kind: [Fraction(time) / schedule.n_chunks for time in per_rank(times, schedule.n_ranks)]
        for kind, times in (("F", forward), ("B", backward))
    }
    ends = {}
    free = [0] * schedule.n_ranks
    position = [0] * schedule.n_ranks
    events = []
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule.actions):
            while position[rank] < len(actions):
                action = actions[position[rank]]
                before = must_come_before(schedule, rank, action)
                if not all(needed in ends for needed in before):
                    break
                arrivals = [ends[needed] + transfer for needed in before[:1] if needed[0] != rank]
                start = max([free[rank], *arrivals])
                free[rank] = ends[rank, action] = start + durations[action.kind][rank]
                events.append(Event(rank, action, start, free[rank]))
                position[rank], moved = position[rank] + 1, True
    for rank, actions in enumerate(schedule.actions):
        if position[rank] < len(actions):
            raise ConfigError(
                f"schedule {schedule.name} would wait for ever: rank {rank} before {actions[position[rank]]}"
            )
    return Timeline(schedule.n_ranks, tuple(events))


@wrong("21.4", "a transfer to oneself costs as much as one to another rank")
def simulate(schedule, forward=1, backward=2, transfer=0):
    durations = {
        kind: [Fraction(time) / schedule.n_chunks for time in per_rank(times, schedule.n_ranks)]
        for kind, times in (("F", forward), ("B", backward))
    }
    ends = {}
    free = [0] * schedule.n_ranks
    position = [0] * schedule.n_ranks
    events = []
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule.actions):
            while position[rank] < len(actions):
                action = actions[position[rank]]
                before = must_come_before(schedule, rank, action)
                if not all(needed in ends for needed in before):
                    break
                arrivals = [ends[needed] + transfer for needed in before]
                start = max([free[rank], *arrivals])
                free[rank] = ends[rank, action] = start + durations[action.kind][rank]
                events.append(Event(rank, action, start, free[rank]))
                position[rank], moved = position[rank] + 1, True
    for rank, actions in enumerate(schedule.actions):
        if position[rank] < len(actions):
            raise ConfigError(
                f"schedule {schedule.name} would wait for ever: rank {rank} before {actions[position[rank]]}"
            )
    return Timeline(schedule.n_ranks, tuple(events))


@wrong("21.4", "transfers cost nothing")
def simulate(schedule, forward=1, backward=2, transfer=0):
    durations = {
        kind: [Fraction(time) / schedule.n_chunks for time in per_rank(times, schedule.n_ranks)]
        for kind, times in (("F", forward), ("B", backward))
    }
    ends = {}
    free = [0] * schedule.n_ranks
    position = [0] * schedule.n_ranks
    events = []
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule.actions):
            while position[rank] < len(actions):
                action = actions[position[rank]]
                before = must_come_before(schedule, rank, action)
                if not all(needed in ends for needed in before):
                    break
                arrivals = [ends[needed] for needed in before]
                start = max([free[rank], *arrivals])
                free[rank] = ends[rank, action] = start + durations[action.kind][rank]
                events.append(Event(rank, action, start, free[rank]))
                position[rank], moved = position[rank] + 1, True
    for rank, actions in enumerate(schedule.actions):
        if position[rank] < len(actions):
            raise ConfigError(
                f"schedule {schedule.name} would wait for ever: rank {rank} before {actions[position[rank]]}"
            )
    return Timeline(schedule.n_ranks, tuple(events))


@wrong("21.4", "the transfer keeps the receiver busy: it begins when the rank is free")
def simulate(schedule, forward=1, backward=2, transfer=0):
    durations = {
        kind: [Fraction(time) / schedule.n_chunks for time in per_rank(times, schedule.n_ranks)]
        for kind, times in (("F", forward), ("B", backward))
    }
    ends = {}
    free = [0] * schedule.n_ranks
    position = [0] * schedule.n_ranks
    events = []
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule.actions):
            while position[rank] < len(actions):
                action = actions[position[rank]]
                before = must_come_before(schedule, rank, action)
                if not all(needed in ends for needed in before):
                    break
                arrivals = [ends[needed] + transfer for needed in before if needed[0] != rank]
                start = max([free[rank], *(ends[needed] for needed in before)])
                start += transfer if any(needed[0] != rank for needed in before) else 0
                free[rank] = ends[rank, action] = start + durations[action.kind][rank]
                events.append(Event(rank, action, start, free[rank]))
                position[rank], moved = position[rank] + 1, True
    for rank, actions in enumerate(schedule.actions):
        if position[rank] < len(actions):
            raise ConfigError(
                f"schedule {schedule.name} would wait for ever: rank {rank} before {actions[position[rank]]}"
            )
    return Timeline(schedule.n_ranks, tuple(events))


@wrong("21.4", "a chunk takes as long as all chunks of the rank together")
def simulate(schedule, forward=1, backward=2, transfer=0):
    durations = {
        kind: [Fraction(time) for time in per_rank(times, schedule.n_ranks)]
        for kind, times in (("F", forward), ("B", backward))
    }
    ends = {}
    free = [0] * schedule.n_ranks
    position = [0] * schedule.n_ranks
    events = []
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule.actions):
            while position[rank] < len(actions):
                action = actions[position[rank]]
                before = must_come_before(schedule, rank, action)
                if not all(needed in ends for needed in before):
                    break
                arrivals = [ends[needed] + transfer for needed in before if needed[0] != rank]
                start = max([free[rank], *arrivals])
                free[rank] = ends[rank, action] = start + durations[action.kind][rank]
                events.append(Event(rank, action, start, free[rank]))
                position[rank], moved = position[rank] + 1, True
    for rank, actions in enumerate(schedule.actions):
        if position[rank] < len(actions):
            raise ConfigError(
                f"schedule {schedule.name} would wait for ever: rank {rank} before {actions[position[rank]]}"
            )
    return Timeline(schedule.n_ranks, tuple(events))


@wrong("21.4", "floats instead of fractions")
def simulate(schedule, forward=1, backward=2, transfer=0):
    durations = {
        kind: [float(time) / schedule.n_chunks for time in per_rank(times, schedule.n_ranks)]
        for kind, times in (("F", forward), ("B", backward))
    }
    ends = {}
    free = [0] * schedule.n_ranks
    position = [0] * schedule.n_ranks
    events = []
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule.actions):
            while position[rank] < len(actions):
                action = actions[position[rank]]
                before = must_come_before(schedule, rank, action)
                if not all(needed in ends for needed in before):
                    break
                arrivals = [ends[needed] + transfer for needed in before if needed[0] != rank]
                start = max([free[rank], *arrivals])
                free[rank] = ends[rank, action] = start + durations[action.kind][rank]
                events.append(Event(rank, action, start, free[rank]))
                position[rank], moved = position[rank] + 1, True
    for rank, actions in enumerate(schedule.actions):
        if position[rank] < len(actions):
            raise ConfigError(
                f"schedule {schedule.name} would wait for ever: rank {rank} before {actions[position[rank]]}"
            )
    return Timeline(schedule.n_ranks, tuple(events))


@wrong("21.4", "backward takes as long as forward")
def simulate(schedule, forward=1, backward=2, transfer=0):
    durations = {
        kind: [Fraction(time) / schedule.n_chunks for time in per_rank(times, schedule.n_ranks)]
        for kind, times in (("F", forward), ("B", forward))
    }
    ends = {}
    free = [0] * schedule.n_ranks
    position = [0] * schedule.n_ranks
    events = []
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule.actions):
            while position[rank] < len(actions):
                action = actions[position[rank]]
                before = must_come_before(schedule, rank, action)
                if not all(needed in ends for needed in before):
                    break
                arrivals = [ends[needed] + transfer for needed in before if needed[0] != rank]
                start = max([free[rank], *arrivals])
                free[rank] = ends[rank, action] = start + durations[action.kind][rank]
                events.append(Event(rank, action, start, free[rank]))
                position[rank], moved = position[rank] + 1, True
    for rank, actions in enumerate(schedule.actions):
        if position[rank] < len(actions):
            raise ConfigError(
                f"schedule {schedule.name} would wait for ever: rank {rank} before {actions[position[rank]]}"
            )
    return Timeline(schedule.n_ranks, tuple(events))


@wrong("21.4", "the first rank's times for all")
def simulate(schedule, forward=1, backward=2, transfer=0):
    durations = {
        kind: [Fraction(time) / schedule.n_chunks for time in per_rank(times, schedule.n_ranks)]
        for kind, times in (("F", forward), ("B", backward))
    }
    ends = {}
    free = [0] * schedule.n_ranks
    position = [0] * schedule.n_ranks
    events = []
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule.actions):
            while position[rank] < len(actions):
                action = actions[position[rank]]
                before = must_come_before(schedule, rank, action)
                if not all(needed in ends for needed in before):
                    break
                arrivals = [ends[needed] + transfer for needed in before if needed[0] != rank]
                start = max([free[rank], *arrivals])
                free[rank] = ends[rank, action] = start + durations[action.kind][0]
                events.append(Event(rank, action, start, free[rank]))
                position[rank], moved = position[rank] + 1, True
    for rank, actions in enumerate(schedule.actions):
        if position[rank] < len(actions):
            raise ConfigError(
                f"schedule {schedule.name} would wait for ever: rank {rank} before {actions[position[rank]]}"
            )
    return Timeline(schedule.n_ranks, tuple(events))


@wrong("21.4", "one round over the ranks only")
def simulate(schedule, forward=1, backward=2, transfer=0):
    durations = {
        kind: [Fraction(time) / schedule.n_chunks for time in per_rank(times, schedule.n_ranks)]
        for kind, times in (("F", forward), ("B", backward))
    }
    ends = {}
    free = [0] * schedule.n_ranks
    position = [0] * schedule.n_ranks
    events = []
    moved = True
    for _ in range(1):
        for rank, actions in enumerate(schedule.actions):
            while position[rank] < len(actions):
                action = actions[position[rank]]
                before = must_come_before(schedule, rank, action)
                if not all(needed in ends for needed in before):
                    break
                arrivals = [ends[needed] + transfer for needed in before if needed[0] != rank]
                start = max([free[rank], *arrivals])
                free[rank] = ends[rank, action] = start + durations[action.kind][rank]
                events.append(Event(rank, action, start, free[rank]))
                position[rank], moved = position[rank] + 1, True
    for rank, actions in enumerate(schedule.actions):
        if position[rank] < len(actions):
            raise ConfigError(
                f"schedule {schedule.name} would wait for ever: rank {rank} before {actions[position[rank]]}"
            )
    return Timeline(schedule.n_ranks, tuple(events))


@wrong("21.4", "ranks that wait for ever are not noticed")
def simulate(schedule, forward=1, backward=2, transfer=0):
    durations = {
        kind: [Fraction(time) / schedule.n_chunks for time in per_rank(times, schedule.n_ranks)]
        for kind, times in (("F", forward), ("B", backward))
    }
    ends = {}
    free = [0] * schedule.n_ranks
    position = [0] * schedule.n_ranks
    events = []
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule.actions):
            while position[rank] < len(actions):
                action = actions[position[rank]]
                before = must_come_before(schedule, rank, action)
                if not all(needed in ends for needed in before):
                    break
                arrivals = [ends[needed] + transfer for needed in before if needed[0] != rank]
                start = max([free[rank], *arrivals])
                free[rank] = ends[rank, action] = start + durations[action.kind][rank]
                events.append(Event(rank, action, start, free[rank]))
                position[rank], moved = position[rank] + 1, True
    for rank, actions in enumerate(schedule.actions):
        if position[rank] > len(actions):
            raise ConfigError(
                f"schedule {schedule.name} would wait for ever: rank {rank} before {actions[position[rank]]}"
            )
    return Timeline(schedule.n_ranks, tuple(events))


@wrong("21.4", "an action is skipped when its inputs are not there yet")
def simulate(schedule, forward=1, backward=2, transfer=0):
    durations = {
        kind: [Fraction(time) / schedule.n_chunks for time in per_rank(times, schedule.n_ranks)]
        for kind, times in (("F", forward), ("B", backward))
    }
    ends = {}
    free = [0] * schedule.n_ranks
    position = [0] * schedule.n_ranks
    events = []
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule.actions):
            while position[rank] < len(actions):
                action = actions[position[rank]]
                before = must_come_before(schedule, rank, action)
                if not all(needed in ends for needed in before):
                    position[rank] += 1
                    continue
                arrivals = [ends[needed] + transfer for needed in before if needed[0] != rank]
                start = max([free[rank], *arrivals])
                free[rank] = ends[rank, action] = start + durations[action.kind][rank]
                events.append(Event(rank, action, start, free[rank]))
                position[rank], moved = position[rank] + 1, True
    for rank, actions in enumerate(schedule.actions):
        if position[rank] < len(actions):
            raise ConfigError(
                f"schedule {schedule.name} would wait for ever: rank {rank} before {actions[position[rank]]}"
            )
    return Timeline(schedule.n_ranks, tuple(events))


@wrong("21.5", "the warm-up of 1F1B: too short for a way through several chunks")
def interleaved(rank, n_ranks, n_microbatches, n_chunks):
    if n_chunks == 1:
        return one_f_one_b(rank, n_ranks, n_microbatches)
    if n_microbatches % n_ranks:
        raise ConfigError("not a multiple")
    firsts = range(0, n_microbatches, n_ranks)
    ahead = [(first + number, chunk) for first in firsts for chunk in range(n_chunks) for number in range(n_ranks)]
    back = [(number, n_chunks - 1 - chunk) for number, chunk in ahead]
    return in_turns(ahead, back, min(n_ranks - 1 - rank, len(ahead)))


@wrong("21.5", "one forward pass for each later rank, not two: the way back is forgotten")
def interleaved(rank, n_ranks, n_microbatches, n_chunks):
    if n_chunks == 1:
        return one_f_one_b(rank, n_ranks, n_microbatches)
    if n_microbatches % n_ranks:
        raise ConfigError("not a multiple")
    firsts = range(0, n_microbatches, n_ranks)
    ahead = [(first + number, chunk) for first in firsts for chunk in range(n_chunks) for number in range(n_ranks)]
    back = [(number, n_chunks - 1 - chunk) for number, chunk in ahead]
    return in_turns(ahead, back, min((n_chunks - 1) * n_ranks + n_ranks - 1 - rank, len(ahead)))


@wrong("21.5", "the whole group through all chunks before the first turn")
def interleaved(rank, n_ranks, n_microbatches, n_chunks):
    if n_chunks == 1:
        return one_f_one_b(rank, n_ranks, n_microbatches)
    if n_microbatches % n_ranks:
        raise ConfigError("not a multiple")
    firsts = range(0, n_microbatches, n_ranks)
    ahead = [(first + number, chunk) for first in firsts for chunk in range(n_chunks) for number in range(n_ranks)]
    back = [(number, n_chunks - 1 - chunk) for number, chunk in ahead]
    return in_turns(ahead, back, min(n_chunks * n_ranks + 2 * (n_ranks - 1 - rank), len(ahead)))


@wrong("21.5", "backward through the chunks in the same order as forward")
def interleaved(rank, n_ranks, n_microbatches, n_chunks):
    if n_chunks == 1:
        return one_f_one_b(rank, n_ranks, n_microbatches)
    if n_microbatches % n_ranks:
        raise ConfigError("not a multiple")
    firsts = range(0, n_microbatches, n_ranks)
    ahead = [(first + number, chunk) for first in firsts for chunk in range(n_chunks) for number in range(n_ranks)]
    return in_turns(ahead, ahead, min((n_chunks - 1) * n_ranks + 2 * (n_ranks - 1 - rank), len(ahead)))


@wrong("21.5", "all micro-batches through a chunk before the next chunk: no groups")
def interleaved(rank, n_ranks, n_microbatches, n_chunks):
    if n_chunks == 1:
        return one_f_one_b(rank, n_ranks, n_microbatches)
    if n_microbatches % n_ranks:
        raise ConfigError("not a multiple")
    ahead = [(number, chunk) for chunk in range(n_chunks) for number in range(n_microbatches)]
    back = [(number, n_chunks - 1 - chunk) for number, chunk in ahead]
    return in_turns(ahead, back, min((n_chunks - 1) * n_ranks + 2 * (n_ranks - 1 - rank), len(ahead)))


@wrong("21.5", "each micro-batch through all chunks before the next one: the rank waits for itself")
def interleaved(rank, n_ranks, n_microbatches, n_chunks):
    if n_chunks == 1:
        return one_f_one_b(rank, n_ranks, n_microbatches)
    if n_microbatches % n_ranks:
        raise ConfigError("not a multiple")
    ahead = [(number, chunk) for number in range(n_microbatches) for chunk in range(n_chunks)]
    back = [(number, n_chunks - 1 - chunk) for number, chunk in ahead]
    return in_turns(ahead, back, min((n_chunks - 1) * n_ranks + 2 * (n_ranks - 1 - rank), len(ahead)))


@wrong("21.5", "the warm-up has no limit")
def interleaved(rank, n_ranks, n_microbatches, n_chunks):
    if n_chunks == 1:
        return one_f_one_b(rank, n_ranks, n_microbatches)
    if n_microbatches % n_ranks:
        raise ConfigError("not a multiple")
    firsts = range(0, n_microbatches, n_ranks)
    ahead = [(first + number, chunk) for first in firsts for chunk in range(n_chunks) for number in range(n_ranks)]
    back = [(number, n_chunks - 1 - chunk) for number, chunk in ahead]
    return in_turns(ahead, back, (n_chunks - 1) * n_ranks + 2 * (n_ranks - 1 - rank))


@wrong("21.5", "one chunk is treated as several: twice the warm-up of 1F1B")
def interleaved(rank, n_ranks, n_microbatches, n_chunks):
    if n_microbatches % n_ranks and n_chunks > 1:
        raise ConfigError("not a multiple")
    firsts = range(0, n_microbatches, n_ranks)
    ahead = [(first + number, chunk) for first in firsts for chunk in range(n_chunks) for number in range(n_ranks)]
    back = [(number, n_chunks - 1 - chunk) for number, chunk in ahead]
    return in_turns(ahead, back, min((n_chunks - 1) * n_ranks + 2 * (n_ranks - 1 - rank), len(ahead)))


@wrong("21.5", "any number of micro-batches is accepted, and the last group is too large")
def interleaved(rank, n_ranks, n_microbatches, n_chunks):
    if n_chunks == 1:
        return one_f_one_b(rank, n_ranks, n_microbatches)
    firsts = range(0, n_microbatches, n_ranks)
    ahead = [(first + number, chunk) for first in firsts for chunk in range(n_chunks) for number in range(n_ranks)]
    back = [(number, n_chunks - 1 - chunk) for number, chunk in ahead]
    return in_turns(ahead, back, min((n_chunks - 1) * n_ranks + 2 * (n_ranks - 1 - rank), len(ahead)))


@wrong("21.6", "the ranks are counted from the wrong end")
def weights_seen(microbatch, rank, n_ranks, mode="stashed"):
    if mode not in MODES:
        raise ConfigError(mode)
    delay = {"vertical": n_ranks - 1, "flushed": 0}.get(mode, rank)
    return max(0, microbatch - delay)


@wrong("21.6", "one update too old: P - rank passes are in flight, but one of them is this one")
def weights_seen(microbatch, rank, n_ranks, mode="stashed"):
    if mode not in MODES:
        raise ConfigError(mode)
    delay = {"vertical": n_ranks, "flushed": 0}.get(mode, n_ranks - rank)
    return max(0, microbatch - delay)


@wrong("21.6", "the first micro-batches meet weights from before the beginning")
def weights_seen(microbatch, rank, n_ranks, mode="stashed"):
    if mode not in MODES:
        raise ConfigError(mode)
    return microbatch - {"vertical": n_ranks - 1, "flushed": 0}.get(mode, n_ranks - 1 - rank)


@wrong("21.6", "the delay itself instead of the number of updates")
def weights_seen(microbatch, rank, n_ranks, mode="stashed"):
    if mode not in MODES:
        raise ConfigError(mode)
    return min(microbatch, {"vertical": n_ranks - 1, "flushed": 0}.get(mode, n_ranks - 1 - rank))


@wrong("21.6", "vertical as the last rank, which is always up to date")
def weights_seen(microbatch, rank, n_ranks, mode="stashed"):
    if mode not in MODES:
        raise ConfigError(mode)
    delay = {"vertical": 0, "flushed": 0}.get(mode, n_ranks - 1 - rank)
    return max(0, microbatch - delay)


@wrong("21.6", "vertical is treated as stashed")
def weights_seen(microbatch, rank, n_ranks, mode="stashed"):
    if mode not in MODES:
        raise ConfigError(mode)
    return max(0, microbatch - {"flushed": 0}.get(mode, n_ranks - 1 - rank))


@wrong("21.6", "without a stash the newest weights are met: they are used on the way back, not there")
def weights_seen(microbatch, rank, n_ranks, mode="stashed"):
    if mode not in MODES:
        raise ConfigError(mode)
    delay = {"vertical": n_ranks - 1, "flushed": 0, "unstashed": 0}.get(mode, n_ranks - 1 - rank)
    return max(0, microbatch - delay)


@wrong("21.6", "as if updates came once for each round of P micro-batches")
def weights_seen(microbatch, rank, n_ranks, mode="stashed"):
    if mode not in MODES:
        raise ConfigError(mode)
    if mode == "flushed":
        return microbatch
    first = 0 if mode == "vertical" else rank
    return max(0, microbatch - (n_ranks - 1 - first)) // n_ranks * n_ranks


@wrong("21.6", "unknown modes are taken for stashed")
def weights_seen(microbatch, rank, n_ranks, mode="stashed"):
    delay = {"vertical": n_ranks - 1, "flushed": 0}.get(mode, n_ranks - 1 - rank)
    return max(0, microbatch - delay)
