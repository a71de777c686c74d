"""Wrong answers to chapter 22: the mistakes that are really made, each of which must cost exactly its task."""

import math
import signal

import torch

from minillm.course.wrong_answers import wrong
from minillm.errors import CheckpointError, ConfigError
from minillm.parallel.checkpoint_interval import check_not_negative, check_positive, cut_into_segments
from minillm.parallel.pieces import check_shape_of, cut_along
from minillm.parallel.rings import part_bounds
from minillm.parallel.sharded_checkpoint import check_claims

# --- 22.1 a part to its place


@wrong("22.1", "several ranges: the numbers go into a copy, which the whole never sees")
def put_piece(whole, part, piece):
    check_shape_of(whole, piece.shape, "whole tensor")
    check_shape_of(part, piece.part_shape, "part")
    cut = cut_along(whole, piece)
    if piece.flat is None:
        cut.copy_(part)
    else:
        cut.reshape(-1)[piece.flat[0] : piece.flat[1]] = part


@wrong("22.1", "the ranges are taken for one range from the first begin on")
def put_piece(whole, part, piece):
    check_shape_of(whole, piece.shape, "whole tensor")
    check_shape_of(part, piece.part_shape, "part")
    cut = cut_along(whole, piece).clone(memory_format=torch.contiguous_format)
    begin, end = piece.flat or (0, cut.numel())
    cut.view(-1)[begin:end] = part.reshape(-1)
    if piece.ranges is None:
        whole.copy_(cut)
        return
    first = piece.ranges[0][0]
    length = min(cut.shape[piece.dim], whole.shape[piece.dim] - first)
    whole.narrow(piece.dim, first, length).copy_(cut.narrow(piece.dim, 0, length))


@wrong("22.1", "every range gets the first rows of the part")
def put_piece(whole, part, piece):
    check_shape_of(whole, piece.shape, "whole tensor")
    check_shape_of(part, piece.part_shape, "part")
    cut = cut_along(whole, piece).clone(memory_format=torch.contiguous_format)
    begin, end = piece.flat or (0, cut.numel())
    cut.view(-1)[begin:end] = part.reshape(-1)
    if piece.ranges is None:
        whole.copy_(cut)
        return
    for begin, end in piece.ranges:
        whole.narrow(piece.dim, begin, end - begin).copy_(cut.narrow(piece.dim, 0, end - begin))


@wrong("22.1", "the flat range is counted in the whole and not in what was cut out of it")
def put_piece(whole, part, piece):
    check_shape_of(whole, piece.shape, "whole tensor")
    check_shape_of(part, piece.part_shape, "part")
    if piece.flat is not None:
        whole.view(-1)[piece.flat[0] : piece.flat[1]] = part
        return
    at = 0
    for begin, end in piece.ranges if piece.ranges is not None else ():
        whole.narrow(piece.dim, begin, end - begin).copy_(part.narrow(piece.dim, at, end - begin))
        at += end - begin
    if piece.ranges is None:
        whole.copy_(part)


@wrong("22.1", "what this rank does not hold becomes 0")
def put_piece(whole, part, piece):
    check_shape_of(whole, piece.shape, "whole tensor")
    check_shape_of(part, piece.part_shape, "part")
    whole.zero_()
    numbers = cut_along(torch.arange(whole.numel()).view(whole.shape), piece).reshape(-1)
    begin, end = piece.flat or (0, numbers.numel())
    whole.view(-1)[numbers[begin:end]] = part.reshape(-1)


@wrong("22.1", "the flat part lands at the beginning of the cut")
def put_piece(whole, part, piece):
    check_shape_of(whole, piece.shape, "whole tensor")
    check_shape_of(part, piece.part_shape, "part")
    numbers = cut_along(torch.arange(whole.numel()).view(whole.shape), piece).reshape(-1)
    whole.view(-1)[numbers[: part.numel()]] = part.reshape(-1)


@wrong("22.1", "always along the rows")
def put_piece(whole, part, piece):
    check_shape_of(whole, piece.shape, "whole tensor")
    check_shape_of(part, piece.part_shape, "part")
    numbers = torch.arange(whole.numel()).view(whole.shape)
    if piece.ranges is not None:
        numbers = torch.cat([numbers[begin:end] for begin, end in piece.ranges])
    begin, end = piece.flat or (0, numbers.numel())
    numbers = numbers.reshape(-1)[begin:end]
    whole.view(-1)[numbers] = part.reshape(-1)[: numbers.numel()]


@wrong("22.1", "a new tensor, where the whole should change")
def put_piece(whole, part, piece):
    check_shape_of(whole, piece.shape, "whole tensor")
    check_shape_of(part, piece.part_shape, "part")
    new = whole.clone()
    numbers = cut_along(torch.arange(whole.numel()).view(whole.shape), piece).reshape(-1)
    begin, end = piece.flat or (0, numbers.numel())
    new.view(-1)[numbers[begin:end]] = part.reshape(-1)
    return new


@wrong("22.1", "a part of another shape with as many numbers is taken")
def put_piece(whole, part, piece):
    check_shape_of(whole, piece.shape, "whole tensor")
    numbers = cut_along(torch.arange(whole.numel()).view(whole.shape), piece).reshape(-1)
    begin, end = piece.flat or (0, numbers.numel())
    whole.view(-1)[numbers[begin:end]] = part.reshape(-1)


# --- 22.2 who writes what


@wrong("22.2", "the lowest rank that holds a part writes it: rank 0 writes everything that all hold")
def assign_writers(claims):
    holders = {}
    for rank, claimed in enumerate(claims):
        for name, claim in claimed.items():
            holders.setdefault((name, claim.piece), []).append(rank)
    check_claims(claims)
    written = [[] for _ in claims]
    for (name, _), ranks in holders.items():
        written[ranks[0]].append(name)
    return written


@wrong("22.2", "tensors are counted, not bytes")
def assign_writers(claims):
    holders = {}
    for rank, claimed in enumerate(claims):
        for name, claim in claimed.items():
            holders.setdefault((name, claim.piece), []).append(rank)
    check_claims(claims)
    written = [[] for _ in claims]
    for (name, _), ranks in holders.items():
        written[min(ranks, key=lambda rank: len(written[rank]))].append(name)
    return written


@wrong("22.2", "numbers are counted, not bytes: half precision weighs as much as double")
def assign_writers(claims):
    holders = {}
    for rank, claimed in enumerate(claims):
        for name, claim in claimed.items():
            holders.setdefault((name, claim.piece), []).append(rank)
    check_claims(claims)
    written, load = [[] for _ in claims], [0] * len(claims)
    for (name, piece), ranks in holders.items():
        rank = min(ranks, key=lambda each: load[each])
        written[rank].append(name)
        load[rank] += piece.n_numbers
    return written


@wrong("22.2", "every rank writes all that it holds")
def assign_writers(claims):
    check_claims(claims)
    return [list(claimed) for claimed in claims]


@wrong("22.2", "one writer for each name: the other half of a split tensor is written by nobody")
def assign_writers(claims):
    check_claims(claims)
    holders, written, load = {}, [[] for _ in claims], [0] * len(claims)
    for rank, claimed in enumerate(claims):
        for name in claimed:
            holders.setdefault(name, []).append(rank)
    for name, ranks in holders.items():
        rank = min(ranks, key=lambda each: load[each])
        written[rank].append(name)
        load[rank] += claims[rank][name].n_bytes
    return written


@wrong("22.2", "in turn, whether the rank holds the part or not")
def assign_writers(claims):
    holders = {}
    for rank, claimed in enumerate(claims):
        for name, claim in claimed.items():
            holders.setdefault((name, claim.piece), []).append(rank)
    check_claims(claims)
    written = [[] for _ in claims]
    for number, (name, _) in enumerate(holders):
        written[number % len(claims)].append(name)
    return written


@wrong("22.2", "the highest of several ranks with equally much to do")
def assign_writers(claims):
    holders = {}
    for rank, claimed in enumerate(claims):
        for name, claim in claimed.items():
            holders.setdefault((name, claim.piece), []).append(rank)
    check_claims(claims)
    written, load = [[] for _ in claims], [0] * len(claims)
    for (name, _), ranks in holders.items():
        rank = min(ranks, key=lambda each: (load[each], -each))
        written[rank].append(name)
        load[rank] += claims[rank][name].n_bytes
    return written


@wrong("22.2", "largest tensors first, which the contract does not say: ranks that sort otherwise would disagree")
def assign_writers(claims):
    holders = {}
    for rank, claimed in enumerate(claims):
        for name, claim in claimed.items():
            holders.setdefault((name, claim.piece), []).append(rank)
    check_claims(claims)
    written, load = [[] for _ in claims], [0] * len(claims)
    for name, piece in sorted(holders, key=lambda part: -claims[holders[part][0]][part[0]].n_bytes):
        rank = min(holders[name, piece], key=lambda each: load[each])
        written[rank].append(name)
        load[rank] += claims[rank][name].n_bytes
    return written


@wrong("22.2", "nobody looks whether all numbers are there")
def assign_writers(claims):
    holders, written, load = {}, [[] for _ in claims], [0] * len(claims)
    for rank, claimed in enumerate(claims):
        for name, claim in claimed.items():
            holders.setdefault((name, claim.piece), []).append(rank)
    for (name, _), ranks in holders.items():
        rank = min(ranks, key=lambda each: load[each])
        written[rank].append(name)
        load[rank] += claims[rank][name].n_bytes
    return written


# --- 22.3 all or none


@wrong("22.3", "the failing rank raises before the vote; the others wait for it")
def all_or_none(comm, action):
    votes = comm.all_objects((None, action()))
    return [value for _, value in votes]


@wrong("22.3", "only errors of checkpoints are caught, not those of the disk")
def all_or_none(comm, action):
    own_error, result = None, None
    try:
        result = action()
    except CheckpointError as error:
        own_error = error
    votes = comm.all_objects((None if own_error is None else f"{type(own_error).__name__}: {own_error}", result))
    if own_error is not None:
        raise own_error
    if failed := [f"rank {rank} failed with {text}" for rank, (text, _) in enumerate(votes) if text is not None]:
        raise CheckpointError("; ".join(failed))
    return [value for _, value in votes]


@wrong("22.3", "the ranks that did well go on without the one that did not")
def all_or_none(comm, action):
    own_error, result = None, None
    try:
        result = action()
    except Exception as error:
        own_error = error
    votes = comm.all_objects(result)
    if own_error is not None:
        raise own_error
    return votes


@wrong("22.3", "only the vote of rank 0 is looked at")
def all_or_none(comm, action):
    own_error, result = None, None
    try:
        result = action()
    except Exception as error:
        own_error = error
    votes = comm.all_objects((None if own_error is None else f"{type(own_error).__name__}: {own_error}", result))
    if own_error is not None:
        raise own_error
    if votes[0][0] is not None:
        raise CheckpointError(f"rank 0 failed with {votes[0][0]}")
    return [value for _, value in votes]


@wrong("22.3", "the failing rank is told what the others are told, and its own error is lost")
def all_or_none(comm, action):
    failure, result = None, None
    try:
        result = action()
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    votes = comm.all_objects((failure, result))
    if failed := [f"rank {rank} failed with {text}" for rank, (text, _) in enumerate(votes) if text is not None]:
        raise CheckpointError("; ".join(failed))
    return [value for _, value in votes]


@wrong("22.3", "the first failing rank is named, the others are not")
def all_or_none(comm, action):
    own_error, result = None, None
    try:
        result = action()
    except Exception as error:
        own_error = error
    votes = comm.all_objects((None if own_error is None else f"{type(own_error).__name__}: {own_error}", result))
    if own_error is not None:
        raise own_error
    if failed := [f"rank {rank} failed with {text}" for rank, (text, _) in enumerate(votes) if text is not None]:
        raise CheckpointError(failed[0])
    return [value for _, value in votes]


@wrong("22.3", "that something failed is said, but not what")
def all_or_none(comm, action):
    own_error, result = None, None
    try:
        result = action()
    except Exception as error:
        own_error = error
    votes = comm.all_objects((own_error is not None, result))
    if own_error is not None:
        raise own_error
    if failed := [f"rank {rank}" for rank, (has_failed, _) in enumerate(votes) if has_failed]:
        raise CheckpointError(f"failed: {', '.join(failed)}")
    return [value for _, value in votes]


@wrong("22.3", "each rank gets its own result only")
def all_or_none(comm, action):
    own_error, result = None, None
    try:
        result = action()
    except Exception as error:
        own_error = error
    votes = comm.all_objects((None if own_error is None else f"{type(own_error).__name__}: {own_error}", result))
    if own_error is not None:
        raise own_error
    if failed := [f"rank {rank} failed with {text}" for rank, (text, _) in enumerate(votes) if text is not None]:
        raise CheckpointError("; ".join(failed))
    return [result]


@wrong("22.3", "rank by rank: after a failure the later ranks do not even try")
def all_or_none(comm, action):
    results = []
    for rank in range(comm.size):
        own_error, result = None, None
        if rank == comm.rank:
            try:
                result = action()
            except Exception as error:
                own_error = error
        text = None if own_error is None else f"{type(own_error).__name__}: {own_error}"
        failure, value = comm.all_objects((text, result))[rank]
        if own_error is not None:
            raise own_error
        if failure is not None:
            raise CheckpointError(f"rank {rank} failed with {failure}")
        results.append(value)
    return results


# --- 22.4 rows


@wrong("22.4", "the remainder is nobody's")
def rows_of_rank(step, global_batch, rank, world_size):
    if step < 0 or not 0 <= rank < world_size or global_batch < world_size:
        raise ConfigError("no such rows")
    share = global_batch // world_size
    return step * global_batch + rank * share, step * global_batch + (rank + 1) * share


@wrong("22.4", "every step has rows of its own only as long as the number of ranks stays the same")
def rows_of_rank(step, global_batch, rank, world_size):
    if step < 0 or not 0 <= rank < world_size or global_batch < world_size:
        raise ConfigError("no such rows")
    begin, end = part_bounds(global_batch, world_size)[rank]
    return step * (end - begin) * world_size + begin, step * (end - begin) * world_size + end


@wrong("22.4", "the rows of step 0 again and again")
def rows_of_rank(step, global_batch, rank, world_size):
    if step < 0 or not 0 <= rank < world_size or global_batch < world_size:
        raise ConfigError("no such rows")
    return part_bounds(global_batch, world_size)[rank]


@wrong("22.4", "the last rank takes all of the remainder")
def rows_of_rank(step, global_batch, rank, world_size):
    if step < 0 or not 0 <= rank < world_size or global_batch < world_size:
        raise ConfigError("no such rows")
    share = global_batch // world_size
    end = global_batch if rank == world_size - 1 else (rank + 1) * share
    return step * global_batch + rank * share, step * global_batch + end


@wrong("22.4", "shares rounded up: the last ranks have little or nothing")
def rows_of_rank(step, global_batch, rank, world_size):
    if step < 0 or not 0 <= rank < world_size or global_batch < world_size:
        raise ConfigError("no such rows")
    share = -(-global_batch // world_size)
    begin, end = min(rank * share, global_batch), min((rank + 1) * share, global_batch)
    return step * global_batch + begin, step * global_batch + end


@wrong("22.4", "the end is the last row, not the one behind it")
def rows_of_rank(step, global_batch, rank, world_size):
    if step < 0 or not 0 <= rank < world_size or global_batch < world_size:
        raise ConfigError("no such rows")
    begin, end = part_bounds(global_batch, world_size)[rank]
    return step * global_batch + begin, step * global_batch + end - 1


@wrong("22.4", "all ranks get all rows, so that each row counts as often as there are ranks")
def rows_of_rank(step, global_batch, rank, world_size):
    if step < 0 or not 0 <= rank < world_size or global_batch < world_size:
        raise ConfigError("no such rows")
    return step * global_batch, (step + 1) * global_batch


@wrong("22.4", "a rank without rows is not noticed")
def rows_of_rank(step, global_batch, rank, world_size):
    if step < 0 or not 0 <= rank < world_size:
        raise ConfigError("no such rows")
    begin, end = part_bounds(global_batch, world_size)[rank]
    return step * global_batch + begin, step * global_batch + end


@wrong("22.4", "rank -1 is the last one, as Python has it")
def rows_of_rank(step, global_batch, rank, world_size):
    if step < 0 or rank >= world_size or global_batch < world_size:
        raise ConfigError("no such rows")
    begin, end = part_bounds(global_batch, world_size)[rank]
    return step * global_batch + begin, step * global_batch + end


# --- 22.5 one signal for all


@wrong("22.5", "every rank listens to itself")
def agree_on_signal(comm, received):
    if received is not None and received not in signal.Signals.__members__:
        raise ConfigError(f"there is no signal {received!r}")
    return received


@wrong("22.5", "only who has something to say speaks; it waits for the others for ever")
def agree_on_signal(comm, received):
    if received is not None and received not in signal.Signals.__members__:
        raise ConfigError(f"there is no signal {received!r}")
    mine = signal.Signals[received].value if received is not None else 0
    if received is None:
        return None
    return signal.Signals(int(comm.all_numbers(mine, "max"))).name


@wrong("22.5", "what rank 0 received counts")
def agree_on_signal(comm, received):
    if received is not None and received not in signal.Signals.__members__:
        raise ConfigError(f"there is no signal {received!r}")
    return comm.all_objects(received)[0]


@wrong("22.5", "numbers are added up: SIGTERM to two ranks becomes signal 30")
def agree_on_signal(comm, received):
    if received is not None and received not in signal.Signals.__members__:
        raise ConfigError(f"there is no signal {received!r}")
    mine = signal.Signals[received].value if received is not None else 0
    number = int(comm.all_numbers(mine, "sum"))
    return signal.Signals(number).name if number else None


@wrong("22.5", "they stop when all ranks were told")
def agree_on_signal(comm, received):
    if received is not None and received not in signal.Signals.__members__:
        raise ConfigError(f"there is no signal {received!r}")
    mine = signal.Signals[received].value if received is not None else 0
    number = int(comm.all_numbers(mine, "min"))
    return signal.Signals(number).name if number else None


@wrong("22.5", "each rank that was told something keeps to that")
def agree_on_signal(comm, received):
    if received is not None and received not in signal.Signals.__members__:
        raise ConfigError(f"there is no signal {received!r}")
    mine = signal.Signals[received].value if received is not None else 0
    number = int(comm.all_numbers(mine, "max"))
    return received or (signal.Signals(number).name if number else None)


@wrong("22.5", "whatever it was, SIGTERM is reported")
def agree_on_signal(comm, received):
    if received is not None and received not in signal.Signals.__members__:
        raise ConfigError(f"there is no signal {received!r}")
    mine = signal.Signals[received].value if received is not None else 0
    return "SIGTERM" if comm.all_numbers(mine, "max") else None


@wrong("22.5", "the number, not the name")
def agree_on_signal(comm, received):
    if received is not None and received not in signal.Signals.__members__:
        raise ConfigError(f"there is no signal {received!r}")
    mine = signal.Signals[received].value if received is not None else 0
    number = int(comm.all_numbers(mine, "max"))
    return str(number) if number else None


@wrong("22.5", "the first rank that was told something decides")
def agree_on_signal(comm, received):
    if received is not None and received not in signal.Signals.__members__:
        raise ConfigError(f"there is no signal {received!r}")
    return next((name for name in comm.all_objects(received) if name is not None), None)


@wrong("22.5", "a name that is no signal passes for silence")
def agree_on_signal(comm, received):
    mine = signal.Signals[received].value if received in signal.Signals.__members__ else 0
    number = int(comm.all_numbers(mine, "max"))
    return signal.Signals(number).name if number else None


# --- 22.6 expected time


@wrong("22.6", "Young's first order: right only while failures are rare")
def expected_run_seconds(work_seconds, interval, save_seconds, failure_seconds, restart_seconds):
    check_positive(work_seconds=work_seconds, interval=interval, failure_seconds=failure_seconds)
    check_not_negative(save_seconds=save_seconds, restart_seconds=restart_seconds)
    lost = save_seconds / interval + (interval / 2 + restart_seconds) / failure_seconds
    return work_seconds * (1 + lost)


@wrong("22.6", "failures never come during a save")
def expected_run_seconds(work_seconds, interval, save_seconds, failure_seconds, restart_seconds):
    check_positive(work_seconds=work_seconds, interval=interval, failure_seconds=failure_seconds)
    check_not_negative(save_seconds=save_seconds, restart_seconds=restart_seconds)
    n_full, rest = cut_into_segments(work_seconds, interval)
    cost = failure_seconds + restart_seconds
    total = n_full * (cost * math.expm1(interval / failure_seconds) + save_seconds)
    return total + (cost * math.expm1(rest / failure_seconds) + save_seconds if rest else 0.0)


@wrong("22.6", "exp without the -1")
def expected_run_seconds(work_seconds, interval, save_seconds, failure_seconds, restart_seconds):
    check_positive(work_seconds=work_seconds, interval=interval, failure_seconds=failure_seconds)
    check_not_negative(save_seconds=save_seconds, restart_seconds=restart_seconds)
    n_full, rest = cut_into_segments(work_seconds, interval)
    cost = failure_seconds + restart_seconds
    total = n_full * cost * math.exp((interval + save_seconds) / failure_seconds)
    return total + (cost * math.exp((rest + save_seconds) / failure_seconds) if rest else 0.0)


@wrong("22.6", "restarting costs nothing")
def expected_run_seconds(work_seconds, interval, save_seconds, failure_seconds, restart_seconds):
    check_positive(work_seconds=work_seconds, interval=interval, failure_seconds=failure_seconds)
    check_not_negative(save_seconds=save_seconds, restart_seconds=restart_seconds)
    n_full, rest = cut_into_segments(work_seconds, interval)
    total = n_full * failure_seconds * math.expm1((interval + save_seconds) / failure_seconds)
    return total + (failure_seconds * math.expm1((rest + save_seconds) / failure_seconds) if rest else 0.0)


@wrong("22.6", "one restart for each segment")
def expected_run_seconds(work_seconds, interval, save_seconds, failure_seconds, restart_seconds):
    check_positive(work_seconds=work_seconds, interval=interval, failure_seconds=failure_seconds)
    check_not_negative(save_seconds=save_seconds, restart_seconds=restart_seconds)
    n_full, rest = cut_into_segments(work_seconds, interval)
    total = n_full * (failure_seconds * math.expm1((interval + save_seconds) / failure_seconds) + restart_seconds)
    last = failure_seconds * math.expm1((rest + save_seconds) / failure_seconds) + restart_seconds
    return total + (last if rest else 0.0)


@wrong("22.6", "restarts can fail, as in Daly's model")
def expected_run_seconds(work_seconds, interval, save_seconds, failure_seconds, restart_seconds):
    check_positive(work_seconds=work_seconds, interval=interval, failure_seconds=failure_seconds)
    check_not_negative(save_seconds=save_seconds, restart_seconds=restart_seconds)
    n_full, rest = cut_into_segments(work_seconds, interval)
    cost = failure_seconds * math.exp(restart_seconds / failure_seconds)
    total = n_full * cost * math.expm1((interval + save_seconds) / failure_seconds)
    return total + (cost * math.expm1((rest + save_seconds) / failure_seconds) if rest else 0.0)


@wrong("22.6", "the rest counts as a full segment")
def expected_run_seconds(work_seconds, interval, save_seconds, failure_seconds, restart_seconds):
    check_positive(work_seconds=work_seconds, interval=interval, failure_seconds=failure_seconds)
    check_not_negative(save_seconds=save_seconds, restart_seconds=restart_seconds)
    n_full, rest = cut_into_segments(work_seconds, interval)
    segment = (failure_seconds + restart_seconds) * math.expm1((interval + save_seconds) / failure_seconds)
    return (n_full + bool(rest)) * segment


@wrong("22.6", "the rest of the work is forgotten")
def expected_run_seconds(work_seconds, interval, save_seconds, failure_seconds, restart_seconds):
    check_positive(work_seconds=work_seconds, interval=interval, failure_seconds=failure_seconds)
    check_not_negative(save_seconds=save_seconds, restart_seconds=restart_seconds)
    n_full, _ = cut_into_segments(work_seconds, interval)
    return n_full * (failure_seconds + restart_seconds) * math.expm1((interval + save_seconds) / failure_seconds)


@wrong("22.6", "a save of its own where no work is left")
def expected_run_seconds(work_seconds, interval, save_seconds, failure_seconds, restart_seconds):
    check_positive(work_seconds=work_seconds, interval=interval, failure_seconds=failure_seconds)
    check_not_negative(save_seconds=save_seconds, restart_seconds=restart_seconds)
    n_full, rest = cut_into_segments(work_seconds, interval)
    cost = failure_seconds + restart_seconds
    total = n_full * cost * math.expm1((interval + save_seconds) / failure_seconds)
    return total + cost * math.expm1((rest + save_seconds) / failure_seconds)


@wrong("22.6", "times below 0 are calculated with")
def expected_run_seconds(work_seconds, interval, save_seconds, failure_seconds, restart_seconds):
    check_positive(work_seconds=work_seconds, interval=interval, failure_seconds=failure_seconds)
    n_full, rest = cut_into_segments(work_seconds, interval)
    cost = failure_seconds + restart_seconds
    total = n_full * cost * math.expm1((interval + save_seconds) / failure_seconds)
    return total + (cost * math.expm1((rest + save_seconds) / failure_seconds) if rest else 0.0)
