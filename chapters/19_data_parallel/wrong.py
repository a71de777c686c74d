"""Wrong answers to chapter 19: the mistakes that are really made, each of which must cost exactly its task."""

import torch

from minillm.course.wrong_answers import wrong
from minillm.errors import ConfigError
from minillm.parallel.buckets import used_by_any
from minillm.parallel.flat import FlatPiece
from minillm.parallel.memory import StateBytes
from minillm.parallel.rings import exchange, parts_of

# --- 19.1 reduce-scatter


@wrong("19.1", "begins with its own part, as the all-gather does: the sum of part r ends at rank r - 1")
def ring_reduce_scatter(tensor, comm):
    parts = parts_of(tensor, comm)
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size - 1):
        sent, added = parts[(comm.rank - step) % comm.size], parts[(comm.rank - 1 - step) % comm.size]
        received = torch.empty_like(added)
        exchange(comm, sent, received, target, source)
        added += received
    return parts[(comm.rank + 1) % comm.size]


@wrong("19.1", "the right sums, but the caller is given the wrong part of them")
def ring_reduce_scatter(tensor, comm):
    parts = parts_of(tensor, comm)
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size - 1):
        sent, added = parts[(comm.rank - step) % comm.size], parts[(comm.rank - 1 - step) % comm.size]
        received = torch.empty_like(added)
        exchange(comm, sent, received, target, source)
        added += received
    return parts[comm.rank]


@wrong("19.1", "receives into the part instead of adding to it")
def ring_reduce_scatter(tensor, comm):
    parts = parts_of(tensor, comm)
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size - 1):
        sent, added = parts[(comm.rank - 1 - step) % comm.size], parts[(comm.rank - 2 - step) % comm.size]
        exchange(comm, sent, added, target, source)
    return parts[comm.rank]


@wrong("19.1", "P rounds: the sum goes once around too often")
def ring_reduce_scatter(tensor, comm):
    parts = parts_of(tensor, comm)
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size):
        sent, added = parts[(comm.rank - 1 - step) % comm.size], parts[(comm.rank - 2 - step) % comm.size]
        received = torch.empty_like(added)
        exchange(comm, sent, received, target, source)
        added += received
    return parts[comm.rank]


@wrong("19.1", "one round too few: the sum misses a rank")
def ring_reduce_scatter(tensor, comm):
    parts = parts_of(tensor, comm)
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size - 2):
        sent, added = parts[(comm.rank - 1 - step) % comm.size], parts[(comm.rank - 2 - step) % comm.size]
        received = torch.empty_like(added)
        exchange(comm, sent, received, target, source)
        added += received
    return parts[comm.rank]


@wrong("19.1", "the right sum, but the whole tensor goes around: P times the bytes")
def ring_reduce_scatter(tensor, comm):
    parts = parts_of(tensor, comm)
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    passing, total = tensor.clone(), tensor.clone()
    for _ in range(comm.size - 1):
        received = torch.empty_like(passing)
        exchange(comm, passing, received, target, source)
        total += received
        passing = received
    begin = sum(len(part) for part in parts[: comm.rank])
    return total[begin : begin + len(parts[comm.rank])]


@wrong("19.1", "the mean instead of the sum")
def ring_reduce_scatter(tensor, comm):
    parts = parts_of(tensor, comm)
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size - 1):
        sent, added = parts[(comm.rank - 1 - step) % comm.size], parts[(comm.rank - 2 - step) % comm.size]
        received = torch.empty_like(added)
        exchange(comm, sent, received, target, source)
        added += received
    return parts[comm.rank] / comm.size


@wrong("19.1", "parts of equal length, rounded down: the last numbers belong to nobody")
def ring_reduce_scatter(tensor, comm):
    length = tensor.numel() // comm.size
    parts = [tensor[rank * length : (rank + 1) * length] for rank in range(comm.size)]
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size - 1):
        sent, added = parts[(comm.rank - 1 - step) % comm.size], parts[(comm.rank - 2 - step) % comm.size]
        received = torch.empty_like(added)
        exchange(comm, sent, received, target, source)
        added += received
    return parts[comm.rank]


@wrong("19.1", "everyone sends before anyone receives: the ranks wait for each other for ever")
def ring_reduce_scatter(tensor, comm):
    parts = parts_of(tensor, comm)
    for step in range(comm.size - 1):
        sent, added = parts[(comm.rank - 1 - step) % comm.size], parts[(comm.rank - 2 - step) % comm.size]
        received = torch.empty_like(added)
        comm.send(sent, (comm.rank + 1) % comm.size)
        comm.recv(received, (comm.rank - 1) % comm.size)
        added += received
    return parts[comm.rank]


# --- 19.2 all-gather


@wrong("19.2", "one round too few: the part of the next rank is missing")
def ring_all_gather(tensor, comm):
    parts = parts_of(tensor, comm)
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size - 2):
        sent, received = parts[(comm.rank - step) % comm.size], parts[(comm.rank - 1 - step) % comm.size]
        exchange(comm, sent, received, target, source)


@wrong("19.2", "sends its own part in every round")
def ring_all_gather(tensor, comm):
    parts = parts_of(tensor, comm)
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size - 1):
        received = torch.empty_like(parts[source])
        exchange(comm, parts[comm.rank], received, target, source)
        parts[(comm.rank - 1 - step) % comm.size][: len(received)] = received[: len(parts[(comm.rank - 1 - step) % comm.size])]


@wrong("19.2", "begins with the part before its own, which it does not have yet")
def ring_all_gather(tensor, comm):
    parts = parts_of(tensor, comm)
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size - 1):
        sent, received = parts[(comm.rank - 1 - step) % comm.size], parts[(comm.rank - 2 - step) % comm.size]
        exchange(comm, sent, received, target, source)


@wrong("19.2", "adds what it receives to what is there")
def ring_all_gather(tensor, comm):
    parts = parts_of(tensor, comm)
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size - 1):
        sent, place = parts[(comm.rank - step) % comm.size], parts[(comm.rank - 1 - step) % comm.size]
        received = torch.empty_like(place)
        exchange(comm, sent, received, target, source)
        place += received


@wrong("19.2", "receives into a copy that is thrown away")
def ring_all_gather(tensor, comm):
    parts = parts_of(tensor, comm)
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size - 1):
        sent, received = parts[(comm.rank - step) % comm.size], parts[(comm.rank - 1 - step) % comm.size].clone()
        exchange(comm, sent, received, target, source)


@wrong("19.2", "right everywhere, but the whole tensor is sent in each round")
def ring_all_gather(tensor, comm):
    parts = parts_of(tensor, comm)
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    begins = [sum(len(part) for part in parts[:rank]) for rank in range(comm.size)]
    for step in range(comm.size - 1):
        place = (comm.rank - 1 - step) % comm.size
        received = torch.empty_like(tensor)
        exchange(comm, tensor, received, target, source)
        parts[place].copy_(received[begins[place] : begins[place] + len(parts[place])])


@wrong("19.2", "goes around once too often")
def ring_all_gather(tensor, comm):
    parts = parts_of(tensor, comm)
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size):
        sent, received = parts[(comm.rank - step) % comm.size], parts[(comm.rank - 1 - step) % comm.size]
        exchange(comm, sent, received, target, source)


# --- 19.3 buckets


@wrong("19.3", "from the first parameter to the last: the first bucket to be sent is the last to be ready")
def assign_buckets(sizes, bucket_bytes):
    if bucket_bytes < 1:
        raise ConfigError("bucket_bytes")
    buckets, filled = [], 0
    for index in range(len(sizes)):
        if not buckets or filled + sizes[index] > bucket_bytes:
            buckets.append([])
            filled = 0
        buckets[-1].append(index)
        filled += sizes[index]
    return buckets


@wrong("19.3", "the right buckets, in the order in which the model uses them")
def assign_buckets(sizes, bucket_bytes):
    if bucket_bytes < 1:
        raise ConfigError("bucket_bytes")
    buckets, filled = [], 0
    for index in reversed(range(len(sizes))):
        if not buckets or filled + sizes[index] > bucket_bytes:
            buckets.append([])
            filled = 0
        buckets[-1].append(index)
        filled += sizes[index]
    return buckets[::-1]


@wrong("19.3", "indices within a bucket in the order of the model")
def assign_buckets(sizes, bucket_bytes):
    if bucket_bytes < 1:
        raise ConfigError("bucket_bytes")
    buckets, filled = [], 0
    for index in reversed(range(len(sizes))):
        if not buckets or filled + sizes[index] > bucket_bytes:
            buckets.append([])
            filled = 0
        buckets[-1].insert(0, index)
        filled += sizes[index]
    return buckets


@wrong("19.3", "closes a bucket only when it is too large already")
def assign_buckets(sizes, bucket_bytes):
    if bucket_bytes < 1:
        raise ConfigError("bucket_bytes")
    buckets, filled = [], 0
    for index in reversed(range(len(sizes))):
        if not buckets or filled > bucket_bytes:
            buckets.append([])
            filled = 0
        buckets[-1].append(index)
        filled += sizes[index]
    return buckets


@wrong("19.3", "a bucket that is exactly full is not allowed")
def assign_buckets(sizes, bucket_bytes):
    if bucket_bytes < 1:
        raise ConfigError("bucket_bytes")
    buckets, filled = [], 0
    for index in reversed(range(len(sizes))):
        if not buckets or filled + sizes[index] >= bucket_bytes:
            buckets.append([])
            filled = 0
        buckets[-1].append(index)
        filled += sizes[index]
    return buckets


@wrong("19.3", "begins with an empty bucket, which stays if the first gradient is too large for it")
def assign_buckets(sizes, bucket_bytes):
    if bucket_bytes < 1:
        raise ConfigError("bucket_bytes")
    buckets, filled = [[]], 0
    for index in reversed(range(len(sizes))):
        if filled + sizes[index] > bucket_bytes:
            buckets.append([])
            filled = 0
        buckets[-1].append(index)
        filled += sizes[index]
    return buckets


@wrong("19.3", "the filled bytes are never set back: every bucket after the first holds one gradient")
def assign_buckets(sizes, bucket_bytes):
    if bucket_bytes < 1:
        raise ConfigError("bucket_bytes")
    buckets, filled = [], 0
    for index in reversed(range(len(sizes))):
        if not buckets or filled + sizes[index] > bucket_bytes:
            buckets.append([])
        buckets[-1].append(index)
        filled += sizes[index]
    return buckets


@wrong("19.3", "sorted by size, to fill the buckets better: no longer in the order of backward")
def assign_buckets(sizes, bucket_bytes):
    if bucket_bytes < 1:
        raise ConfigError("bucket_bytes")
    buckets, filled = [], 0
    for index in sorted(reversed(range(len(sizes))), key=lambda index: -sizes[index]):
        if not buckets or filled + sizes[index] > bucket_bytes:
            buckets.append([])
            filled = 0
        buckets[-1].append(index)
        filled += sizes[index]
    return buckets


@wrong("19.3", "accepts buckets that can hold nothing")
def assign_buckets(sizes, bucket_bytes):
    buckets, filled = [], 0
    for index in reversed(range(len(sizes))):
        if not buckets or filled + sizes[index] > bucket_bytes:
            buckets.append([])
            filled = 0
        buckets[-1].append(index)
        filled += sizes[index]
    return buckets


# --- 19.4 in turn


@wrong("19.4", "sends one bucket at most: full ones behind it wait for the next gradient")
def launch_full(self):
    if self.n_launched < len(self.buckets) and not self.buckets[self.n_launched].missing:
        self.launch(self.buckets[self.n_launched])


@wrong("19.4", "sends whichever bucket is full: another rank may send another one at that time")
def launch_full(self):
    for bucket in self.buckets:
        if not bucket.missing and bucket.pending is None:
            self.launch(bucket)


@wrong("19.4", "skips a bucket that is not full")
def launch_full(self):
    for bucket in self.buckets[self.n_launched :]:
        if not bucket.missing:
            self.launch(bucket)


@wrong("19.4", "sends a bucket when its first gradient is there")
def launch_full(self):
    while self.n_launched < len(self.buckets):
        bucket = self.buckets[self.n_launched]
        if len(bucket.missing) == len(bucket.parameters):
            break
        self.launch(bucket)


@wrong("19.4", "waits until every gradient is there: nothing is hidden behind backward")
def launch_full(self):
    if not any(bucket.missing for bucket in self.buckets):
        for bucket in self.buckets:
            self.launch(bucket)


@wrong("19.4", "never sends anything: all of it happens after backward")
def launch_full(self):
    return None


@wrong("19.4", "keeps the last bucket back")
def launch_full(self):
    while self.n_launched < len(self.buckets) - 1 and not self.buckets[self.n_launched].missing:
        self.launch(self.buckets[self.n_launched])


# --- 19.5 sums of gradients


@wrong("19.5", "no scale: the learning rate grows with the number of ranks")
def reduce_gradients(parameters, comm, scale):
    for parameter, is_used in zip(parameters, used_by_any(parameters, comm), strict=True):
        if is_used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = parameter.grad.contiguous()
            comm.all_reduce(parameter.grad)


@wrong("19.5", "always the mean, whatever scale is asked for")
def reduce_gradients(parameters, comm, scale):
    for parameter, is_used in zip(parameters, used_by_any(parameters, comm), strict=True):
        if is_used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = parameter.grad.contiguous()
            comm.all_reduce(parameter.grad, "mean")


@wrong("19.5", "averages and scales")
def reduce_gradients(parameters, comm, scale):
    for parameter, is_used in zip(parameters, used_by_any(parameters, comm), strict=True):
        if is_used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = parameter.grad.contiguous()
            comm.all_reduce(parameter.grad, "mean")
            parameter.grad.mul_(scale)


@wrong("19.5", "who has no gradient skips the sum: the others wait, or add it to another parameter's")
def reduce_gradients(parameters, comm, scale):
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad.contiguous()
            comm.all_reduce(parameter.grad)
            parameter.grad.mul_(scale)


@wrong("19.5", "a parameter that nobody used gets a gradient of zeros, and weight decay with it")
def reduce_gradients(parameters, comm, scale):
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad = parameter.grad.contiguous()
        comm.all_reduce(parameter.grad)
        parameter.grad.mul_(scale)


@wrong("19.5", "who had no gradient does not keep the sum: the copies drift apart")
def reduce_gradients(parameters, comm, scale):
    for parameter, is_used in zip(parameters, used_by_any(parameters, comm), strict=True):
        if is_used:
            mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
            comm.all_reduce(mine)
            if parameter.grad is not None:
                parameter.grad = mine * scale


@wrong("19.5", "reduces the weights: what a hook after accumulation is handed is the parameter")
def reduce_gradients(parameters, comm, scale):
    used_by_any(parameters, comm)
    for parameter in parameters:
        comm.all_reduce(parameter.data)
        parameter.data.mul_(scale)


@wrong("19.5", "each rank keeps its own gradient, only scaled")
def reduce_gradients(parameters, comm, scale):
    for parameter, is_used in zip(parameters, used_by_any(parameters, comm), strict=True):
        if is_used and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if is_used:
            parameter.grad.mul_(scale * comm.size)


@wrong("19.5", "the sum goes into a copy, where the gradient is not contiguous")
def reduce_gradients(parameters, comm, scale):
    for parameter, is_used in zip(parameters, used_by_any(parameters, comm), strict=True):
        if is_used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            comm.all_reduce(parameter.grad.contiguous())
            parameter.grad.mul_(scale)


@wrong("19.5", "reduced twice")
def reduce_gradients(parameters, comm, scale):
    for parameter, is_used in zip(parameters, used_by_any(parameters, comm), strict=True):
        if is_used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = parameter.grad.contiguous()
            comm.all_reduce(parameter.grad)
            comm.all_reduce(parameter.grad)
            parameter.grad.mul_(scale)


# --- 19.6 who may go on


@wrong("19.6", "looks only at the worker that has just come: who waits is never set free")
def finish_step(self, worker):
    self.n_steps[worker] += 1
    if self.lead(worker) <= self.max_lead:
        return [worker]
    self.waiting.append(worker)
    return []


@wrong("19.6", "whom it sets free stays on the list, and is sent weights again and again")
def finish_step(self, worker):
    self.n_steps[worker] += 1
    self.waiting.append(worker)
    return [waiting for waiting in self.waiting if self.lead(waiting) <= self.max_lead]


@wrong("19.6", "one step less of a lead than allowed")
def finish_step(self, worker):
    self.n_steps[worker] += 1
    self.waiting.append(worker)
    released = [waiting for waiting in self.waiting if self.lead(waiting) < self.max_lead]
    self.waiting = [waiting for waiting in self.waiting if waiting not in released]
    return released


@wrong("19.6", "one step more of a lead than allowed: decides before the step is counted")
def finish_step(self, worker):
    self.waiting.append(worker)
    released = [waiting for waiting in self.waiting if self.lead(waiting) <= self.max_lead]
    self.waiting = [waiting for waiting in self.waiting if waiting not in released]
    self.n_steps[worker] += 1
    return released


@wrong("19.6", "nobody ever waits: asynchronous without a bound")
def finish_step(self, worker):
    self.n_steps[worker] += 1
    return [worker]


@wrong("19.6", "in the order of ranks, not of arrival")
def finish_step(self, worker):
    self.n_steps[worker] += 1
    self.waiting.append(worker)
    released = sorted(waiting for waiting in self.waiting if self.lead(waiting) <= self.max_lead)
    self.waiting = [waiting for waiting in self.waiting if waiting not in released]
    return released


@wrong("19.6", "who has just come goes first")
def finish_step(self, worker):
    self.n_steps[worker] += 1
    self.waiting.insert(0, worker)
    released = [waiting for waiting in self.waiting if self.lead(waiting) <= self.max_lead]
    self.waiting = [waiting for waiting in self.waiting if waiting not in released]
    return released


@wrong("19.6", "compares with the fastest instead of the slowest")
def finish_step(self, worker):
    self.n_steps[worker] += 1
    self.waiting.append(worker)
    fastest = max(self.n_steps.values())
    released = [waiting for waiting in self.waiting if fastest - self.n_steps[waiting] <= self.max_lead]
    self.waiting = [waiting for waiting in self.waiting if waiting not in released]
    return released


@wrong("19.6", "sets free one worker at a time")
def finish_step(self, worker):
    self.n_steps[worker] += 1
    self.waiting.append(worker)
    released = [waiting for waiting in self.waiting if self.lead(waiting) <= self.max_lead][:1]
    self.waiting = [waiting for waiting in self.waiting if waiting not in released]
    return released


# --- 19.7 what a rank owns


@wrong("19.7", "begin and end counted from the start of the buffer")
def pieces(self, rank):
    start, stop = rank * self.shard_numbers, (rank + 1) * self.shard_numbers
    owned = []
    for index, (offset, number) in enumerate(zip(self.offsets, self.numbers, strict=True)):
        begin, end = max(start, offset), min(stop, offset + number)
        if begin < end:
            owned.append(FlatPiece(index, begin, end, begin - start))
    return owned


@wrong("19.7", "the offset counted from the start of the buffer, not of the rank's share")
def pieces(self, rank):
    start, stop = rank * self.shard_numbers, (rank + 1) * self.shard_numbers
    owned = []
    for index, (offset, number) in enumerate(zip(self.offsets, self.numbers, strict=True)):
        begin, end = max(start, offset), min(stop, offset + number)
        if begin < end:
            owned.append(FlatPiece(index, begin - offset, end - offset, begin))
    return owned


@wrong("19.7", "empty pieces of tensors that it owns nothing of")
def pieces(self, rank):
    start, stop = rank * self.shard_numbers, (rank + 1) * self.shard_numbers
    owned = []
    for index, (offset, number) in enumerate(zip(self.offsets, self.numbers, strict=True)):
        begin, end = max(start, offset), min(stop, offset + number)
        if begin <= end:
            owned.append(FlatPiece(index, begin - offset, end - offset, begin - start))
    return owned


@wrong("19.7", "whole tensors only: who owns the first number owns all of it")
def pieces(self, rank):
    start, stop = rank * self.shard_numbers, (rank + 1) * self.shard_numbers
    owned = []
    for index, (offset, number) in enumerate(zip(self.offsets, self.numbers, strict=True)):
        if start <= offset < stop and number:
            owned.append(FlatPiece(index, 0, number, offset - start))
    return owned


@wrong("19.7", "a tensor that goes on beyond the share is taken to its end")
def pieces(self, rank):
    start, stop = rank * self.shard_numbers, (rank + 1) * self.shard_numbers
    owned = []
    for index, (offset, number) in enumerate(zip(self.offsets, self.numbers, strict=True)):
        begin, end = max(start, offset), offset + number
        if begin < min(end, stop):
            owned.append(FlatPiece(index, begin - offset, end - offset, begin - start))
    return owned


@wrong("19.7", "the share rounded down: the last numbers belong to nobody")
def pieces(self, rank):
    length = self.n_numbers // self.size
    start, stop = rank * length, (rank + 1) * length
    owned = []
    for index, (offset, number) in enumerate(zip(self.offsets, self.numbers, strict=True)):
        begin, end = max(start, offset), min(stop, offset + number)
        if begin < end:
            owned.append(FlatPiece(index, begin - offset, end - offset, begin - start))
    return owned


@wrong("19.7", "each tensor cut evenly on its own instead of the buffer")
def pieces(self, rank):
    owned, filled = [], 0
    for index, number in enumerate(self.numbers):
        length = -(-number // self.size)
        begin, end = min(rank * length, number), min((rank + 1) * length, number)
        if begin < end:
            owned.append(FlatPiece(index, begin, end, filled))
            filled += end - begin
    return owned


@wrong("19.7", "both borders belong to a share: one number has two owners")
def pieces(self, rank):
    start, stop = rank * self.shard_numbers, (rank + 1) * self.shard_numbers
    owned = []
    for index, (offset, number) in enumerate(zip(self.offsets, self.numbers, strict=True)):
        begin, end = max(start, offset), min(stop + 1, offset + number)
        if begin < end:
            owned.append(FlatPiece(index, begin - offset, end - offset, begin - start))
    return owned


# --- 19.8 memory


@wrong("19.8", "stage 1 divides the gradients and stage 2 the optimizer's state")
def model_state_bytes(n_parameters, world_size, stage, parameter_bytes=2, gradient_bytes=2, optimizer_bytes=12):
    if stage not in (0, 1, 2, 3) or world_size < 1 or n_parameters < 0:
        raise ConfigError("no such stage")
    share = -(-n_parameters // world_size)
    return StateBytes(
        parameter_bytes * (share if stage >= 3 else n_parameters),
        gradient_bytes * (share if stage >= 1 else n_parameters),
        optimizer_bytes * (share if stage >= 2 else n_parameters),
    )


@wrong("19.8", "each stage divides one part only: stage 3 has whole gradients again")
def model_state_bytes(n_parameters, world_size, stage, parameter_bytes=2, gradient_bytes=2, optimizer_bytes=12):
    if stage not in (0, 1, 2, 3) or world_size < 1 or n_parameters < 0:
        raise ConfigError("no such stage")
    share = -(-n_parameters // world_size)
    return StateBytes(
        parameter_bytes * (share if stage == 3 else n_parameters),
        gradient_bytes * (share if stage == 2 else n_parameters),
        optimizer_bytes * (share if stage == 1 else n_parameters),
    )


@wrong("19.8", "the share rounded down")
def model_state_bytes(n_parameters, world_size, stage, parameter_bytes=2, gradient_bytes=2, optimizer_bytes=12):
    if stage not in (0, 1, 2, 3) or world_size < 1 or n_parameters < 0:
        raise ConfigError("no such stage")
    share = n_parameters // world_size
    return StateBytes(
        parameter_bytes * (share if stage >= 3 else n_parameters),
        gradient_bytes * (share if stage >= 2 else n_parameters),
        optimizer_bytes * (share if stage >= 1 else n_parameters),
    )


@wrong("19.8", "rounds bytes up, not parameters: half a number on each rank")
def model_state_bytes(n_parameters, world_size, stage, parameter_bytes=2, gradient_bytes=2, optimizer_bytes=12):
    if stage not in (0, 1, 2, 3) or world_size < 1 or n_parameters < 0:
        raise ConfigError("no such stage")
    sizes = [n_parameters * n_bytes for n_bytes in (parameter_bytes, gradient_bytes, optimizer_bytes)]
    first = (3, 2, 1)
    return StateBytes(
        *(-(-size // world_size) if stage >= begin else size for size, begin in zip(sizes, first, strict=True))
    )


@wrong("19.8", "2, 2 and 12 written into the code")
def model_state_bytes(n_parameters, world_size, stage, parameter_bytes=2, gradient_bytes=2, optimizer_bytes=12):
    if stage not in (0, 1, 2, 3) or world_size < 1 or n_parameters < 0:
        raise ConfigError("no such stage")
    share = -(-n_parameters // world_size)
    return StateBytes(
        2 * (share if stage >= 3 else n_parameters),
        2 * (share if stage >= 2 else n_parameters),
        12 * (share if stage >= 1 else n_parameters),
    )


@wrong("19.8", "forgets the master copy and the second moment: 4 bytes of optimizer")
def model_state_bytes(n_parameters, world_size, stage, parameter_bytes=2, gradient_bytes=2, optimizer_bytes=4):
    if stage not in (0, 1, 2, 3) or world_size < 1 or n_parameters < 0:
        raise ConfigError("no such stage")
    share = -(-n_parameters // world_size)
    return StateBytes(
        parameter_bytes * (share if stage >= 3 else n_parameters),
        gradient_bytes * (share if stage >= 2 else n_parameters),
        optimizer_bytes * (share if stage >= 1 else n_parameters),
    )


@wrong("19.8", "accepts stages that do not exist")
def model_state_bytes(n_parameters, world_size, stage, parameter_bytes=2, gradient_bytes=2, optimizer_bytes=12):
    share = -(-n_parameters // world_size)
    return StateBytes(
        parameter_bytes * (share if stage >= 3 else n_parameters),
        gradient_bytes * (share if stage >= 2 else n_parameters),
        optimizer_bytes * (share if stage >= 1 else n_parameters),
    )
