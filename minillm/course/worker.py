"""The untrusted side of grading: a script that imports torch once and forks a child without rights for every order.

Started by `remote.py` as `python -P -s -S worker.py FD SITE_PACKAGES FOLDER isolate HIDDEN...`: no `.pth` file and no
folder of the repository is on its path. The child gets a library with holes, one socket, and limits.

Where Linux allows it, everything below happens in namespaces of its own: no network, no view of other processes, all
files read-only but for a small temporary folder, empty folders where the repository's answers are. Where that is
forbidden but the worker is root, as in most containers, the child becomes `nobody`, who can read only what is open to
all. Elsewhere the limits, the closed descriptors and the deadline remain: they stop accidents, not attackers.
"""

import contextlib
import ctypes
import importlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time

CLONE_FLAGS = {"user": 0x10000000, "mount": 0x00020000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x08000000}
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_MOVE = 1, 2, 4, 8, 32, 4096, 8192
MS_REC, MS_PRIVATE, MS_NOATIME, MS_NODIRATIME, MS_RELATIME = 16384, 1 << 18, 1024, 2048, 1 << 21
MOUNT_OPTIONS = {
    **{"ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC},
    **{"noatime": MS_NOATIME, "nodiratime": MS_NODIRATIME, "relatime": MS_RELATIME},
}
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 36, 38
CAPSET_NUMBERS = {"x86_64": 126, "aarch64": 91}
DEVICES = ("null", "zero", "random", "urandom")
# What torch imports at the first backward pass and the first optimizer: here once, not in every child.
SLOW_IMPORTS = (
    *("torch.fx.experimental.symbolic_shapes", "torch._dynamo", "torch.utils.checkpoint"),
    *("regex", "safetensors.torch"),
)
PATIENCE_SECONDS = 1.0
NOBODY = 65534
CHANNEL = 3  # the child's one open descriptor beside stdin, stdout and stderr


def main() -> None:
    """Find protection, import torch, obey orders until the other side hangs up."""
    control = socket.socket(fileno=int(sys.argv[1]))
    site_packages, work, isolate, *hidden = sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    protection = enter_namespaces(work, hidden) if sys.platform == "linux" and isolate == "isolate" else []
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # nobody may look into our memory or descriptors
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not protection and isolate != "share" and can_be_nobody(site_packages, work):
        protection = ["user"]
    os.chdir(work)
    os.environ["TMPDIR"] = work
    sys.path.append(site_packages)
    import torch

    for name in SLOW_IMPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    torch.set_num_threads(1)  # threads do not survive a fork
    reply(control, {"protection": protection})
    serve(control, work, alone="pid" in protection, nobody="user" in protection)
    os._exit(0)  # taking torch down properly takes a second


def reply(control: socket.socket, content: dict) -> None:
    """One line of JSON."""
    control.sendall(json.dumps(content).encode() + b"\n")


def serve(control: socket.socket, work: str, alone: bool, nobody: bool) -> None:
    """Obey orders: {"start": ...} with two descriptors forks a child, {"stop": why} ends it and its offspring."""
    child = 0
    while True:
        line, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 2)
        order = json.loads(line) if line else None
        if order is not None and "start" in order:
            child = os.fork()
            if child == 0:
                be_child(order["start"], *descriptors, work, nobody)
            for descriptor in descriptors:
                os.close(descriptor)
            reply(control, {"started": child})
        else:
            ending = end_children(child, alone, patient=bool(order) and order["stop"] == "ended")
            child = 0
            for name in os.listdir(work):
                shutil.rmtree(os.path.join(work, name), ignore_errors=True)
            if order is None:
                return
            reply(control, ending)


def end_children(child: int, alone: bool, patient: bool) -> dict:
    """Kill every descendant and wait for all; say how `child` ended: its exit code, or minus the number of a signal.

    `patient` waits a moment for a child that has hung up, so that its own end is what is reported.
    """
    code, reaped, deadline = None, 0, time.monotonic() + (PATIENCE_SECONDS if patient else 0.0)
    while child and code is None:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > deadline:
            break
        else:
            time.sleep(0.002)
    last = [child] if child and code is None else []  # where there is no /proc it is not among the descendants
    while reaped < 100_000:
        for process in [-1] if alone else last + descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        try:
            ended, _ = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        last = []
        reaped += 1
    return {"code": code}


def descendants(process: int) -> list[int]:
    """All processes below this one; those whose parent has died hang below the worker, which asked for that."""
    found, pending = [], [process]
    while pending:
        try:
            with open(f"/proc/{pending[0]}/task/{pending[0]}/children", encoding="ascii") as file:
                below = [int(word) for word in file.read().split()]
        except OSError:
            below = []
        found += below
        pending = pending[1:] + below
    return found


def be_child(order: dict, channel: int, output: int, work: str, nobody: bool) -> None:
    """Give up everything, then answer requests; never returns."""
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(channel, CHANNEL)
        os.closerange(CHANNEL + 1, os.sysconf("SC_OPEN_MAX"))
        folder = os.path.join(work, str(os.getpid()))
        os.mkdir(folder)
        os.chdir(folder)
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        set_limits(order)
        if nobody:
            become_nobody(folder)
        drop_capabilities()
        answer_requests(order["library"])
        code = 0
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(code)


def answer_requests(library: str) -> None:
    """Load the learner's file, then one answer for each request until the other side closes."""
    sys.path.insert(0, library)
    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    from minillm.course import session, substitution, wire

    channel = socket.socket(fileno=CHANNEL)
    request = wire.loads(wire.receive(channel), importing=True)
    with open(substitution.FILE_NAME, "w", encoding="utf-8") as file:
        file.write(request["source"])
    try:
        graded = substitution.graded_session(request)
    except BaseException as error:
        channel.sendall(wire.dumps({"raised": session.describe_exception(error, (substitution.FILE_NAME,))}))
        return
    channel.sendall(wire.dumps({"value": None}))
    while True:
        answer = graded.answer(wire.receive(channel))
        with contextlib.suppress(BaseException):
            sys.stdout.flush()  # what was printed counts, however the program ends
        channel.sendall(answer)


def set_limits(order: dict) -> None:
    """Limits that the kernel keeps: address space, computing time, file size, no core files."""
    cpu = order["cpu_seconds"]
    limit(resource.RLIMIT_CPU, cpu, cpu + 1)
    limit(resource.RLIMIT_FSIZE, order["file_bytes"], order["file_bytes"])
    limit(resource.RLIMIT_CORE, 0, 0)
    limit(resource.RLIMIT_NOFILE, 64, 64)
    with contextlib.suppress(OSError):
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        limit(resource.RLIMIT_AS, used + order["memory_bytes"], used + order["memory_bytes"])
    if "processes" in order:
        limit(resource.RLIMIT_NPROC, order["processes"], order["processes"])


def limit(which: int, soft: int, hard: int) -> None:
    """Set a limit, at most to what is allowed; systems that lack one go without."""
    with contextlib.suppress(ValueError, OSError):
        allowed = resource.getrlimit(which)[1]
        hard = hard if allowed == resource.RLIM_INFINITY else min(hard, allowed)
        resource.setrlimit(which, (min(soft, hard), hard))


def can_be_nobody(site_packages: str, work: str) -> bool:
    """Whether this is root, and Python, the packages and the temporary folder can be reached by everybody."""
    if os.geteuid() != 0:
        return False
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            for folder in (site_packages, os.path.dirname(os.__file__)):
                os.listdir(folder)
            os.stat(os.path.join(work, "."))
            code = 0
        os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def become_nobody(folder: str) -> None:
    """Give up root for good; the working folder comes along."""
    os.chown(folder, NOBODY, NOBODY)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def drop_capabilities() -> None:
    """No rights over the namespaces (nor, for root, over the machine), none by exec either; die with the worker."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    number = CAPSET_NUMBERS.get(os.uname().machine)
    if number is not None:
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        libc.syscall(number, header, nothing)


def enter_namespaces(work: str, hidden: list[str]) -> list[str]:
    """Move to namespaces of our own; returns what was possible, an empty list if the system forbids it."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(sum(CLONE_FLAGS.values())) != 0:
        return []
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"{user} {user} 1")
    write("/proc/self/gid_map", f"{group} {group} 1")
    inside = os.fork()  # the first process of the new process namespace
    if inside:
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os._exit(os.waitstatus_to_exitcode(os.waitpid(inside, 0)[1]) & 0xFF)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return ["pid", "net", *protect_files(libc, work, hidden)]


def write(path: str, text: str) -> None:
    """Write to a file of the kernel's."""
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def protect_files(libc: ctypes.CDLL, work: str, hidden: list[str]) -> list[str]:
    """Read-only everywhere, an own /proc and /dev, empty folders over `hidden`, a small writable `work`."""

    def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> bool:
        words = [word.encode() if word is not None else None for word in (source, target, kind, options)]
        return libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]) == 0

    if not mount(None, "/", None, MS_REC | MS_PRIVATE):
        return []
    done = ["work"] if mount("tmpfs", work, "tmpfs", MS_NOSUID | MS_NODEV, "size=256m,mode=700") else []
    devices = os.path.join(work, "dev")
    os.mkdir(devices)
    own_devices = mount("tmpfs", devices, "tmpfs", MS_NOSUID, "size=64k,mode=755")
    for name in DEVICES if own_devices else ():
        write(os.path.join(devices, name), "")
        mount(f"/dev/{name}", os.path.join(devices, name), None, MS_BIND)
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        rows = [line.split() for line in file]
    kept = (work, devices)
    others = [row for row in rows if not row[4].startswith(kept)]
    flags = {row[4]: sum(MOUNT_OPTIONS.get(word, 0) for word in row[5].split(",")) for row in others}
    read_only = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID
    closed = [mount(None, path, None, read_only | flags[path]) for path in flags]
    done += ["read-only"] if all(closed) else []
    done += ["processes"] if mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC) else []
    if "processes" not in done:
        mount("tmpfs", "/proc", "tmpfs", MS_RDONLY, "size=4k")
    done += ["devices"] if own_devices and mount(devices, "/dev", None, MS_MOVE) else []
    mount(None, "/dev", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)
    covered = [mount("tmpfs", path, "tmpfs", MS_RDONLY | MS_NOSUID, "size=4k,mode=755") for path in hidden]
    return [*done, "hidden"] if all(covered) else done


if __name__ == "__main__":
    main()
