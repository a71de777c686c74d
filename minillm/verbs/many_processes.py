"""`minillm train --mesh dp=2,tp=2`: the same run on many processes, started by torchrun or, without it, from here."""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import NoReturn

import torch
from torch import nn
from torch.optim import Optimizer

from minillm.errors import ConfigError, MinillmError
from minillm.models.gpt import GPT, GPTConfig
from minillm.nn.onednn_linear import use_onednn
from minillm.parallel.agreement import AgreedStop, first_rank_alone
from minillm.parallel.comm import Comm
from minillm.parallel.engine import EngineModel, check_engine
from minillm.parallel.grid import Parallel3D, PipelineConfig
from minillm.parallel.mesh import Mesh, MeshSize
from minillm.parallel.processes import join_torchrun, leave
from minillm.parallel.run_checkpoints import RanksCheckpoints
from minillm.parallel.training import (
    CutModel,
    MeshModel,
    check_mesh,
    gradients_on_mesh,
    shared_validation_loss,
    whole_model,
)
from minillm.runtime import DtypeChoice, choose_dtype, generator
from minillm.tokenizers.loading import load_tokenizer
from minillm.train.hooks import Hook, MetricsLog, ProgressLine
from minillm.train.loop import LoopConfig, TrainResult, train
from minillm.train.mixture import MixtureLoss
from minillm.train.precision import Precision
from minillm.train.recipes import Recipe, choose_recipe, make_optimizer, make_schedule
from minillm.train.signals import exit_code
from minillm.verbs.run_folder import RunFolder
from minillm.verbs.train import Settings, identity, say_how_it_ended
from minillm.verbs.training import (
    Texts,
    batches_of,
    prepare,
    read_texts,
    sampler,
    save_settings,
    shape_of,
    utilisation,
    validation,
    whole_or_nothing,
    write_results,
)


def run_on_mesh(settings: Settings) -> int:
    """Be one of the processes that torchrun started; where there are none, start them and wait for them.

    Returns:
        the program's exit code.
    """
    size = MeshSize.parse(settings.mesh)
    if "RANK" not in os.environ:
        check_settings(settings, size)
        return start_processes(settings, size)
    rank = int(os.environ["RANK"])
    try:
        check_settings(settings, size, int(os.environ["WORLD_SIZE"]))
    except MinillmError:
        if rank:
            return 2                                               # rank 0 says it
        raise
    try:
        world = join_torchrun(backend_of(settings), settings.timeout_seconds)
        result, folder = train_on_mesh(world, settings)
    except MinillmError as error:
        leave()
        if getattr(error, "told", False):
            return 2
        raise
    if rank == 0:
        say_how_it_ended(result, folder)
    world.barrier()
    leave()
    end_process(exit_code(result.stopped_by))


def end_process(code: int) -> NoReturn:
    """Leave at once: in 2 of 24 runs torch's threads (2.13, gloo) aborted a process that ended in the usual way."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def check_settings(settings: Settings, size: MeshSize, n_started: int = 0) -> None:
    """Refuse what cannot work, as far as it can be known before a text is read.

    Args:
        settings: resolved.
        size: of the mesh.
        n_started: number of processes that there are; 0 if they are yet to be started.

    Raises:
        ConfigError: naming what contradicts what.
    """
    if n_started and n_started != size.world_size:
        raise ConfigError(
            f"--mesh {size} has {size.world_size} places, torchrun started {n_started} processes; change one of them"
        )
    if settings.with_my:
        raise ConfigError("--with-my is for one process: what a learner wrote has no parallel twin; leave --mesh out")
    if settings.compile:
        raise ConfigError("--compile with --mesh: messages between processes cannot be compiled; give --no-compile")
    recipe = recipe_of(settings)
    if settings.engine != "ours" and recipe.optimizer != "adamw":
        raise ConfigError(f"engine {settings.engine} steps with AdamW, not {recipe.optimizer}: give --optimizer adamw")
    check_cut(settings, size, shape_of(settings, 120 * size.tp))    # the size of the vocabulary is not known yet


def check_cut(settings: Settings, size: MeshSize, config: GPTConfig) -> None:
    """Refuse a mesh that does not divide model or batch."""
    check_mesh(size, config, settings.batch_size, settings.microbatches)
    if settings.engine != "ours":
        check_engine(settings.engine, size, config)
    n_rows = settings.batch_size // size.dp
    if settings.engine == "pp" and (settings.rows == "documents" or n_rows % settings.microbatches):
        raise ConfigError(
            "engine pp takes micro-batches of one shape only: give --rows windows, and --microbatches that divide the "
            f"{n_rows} rows of a copy; or --engine ours"
        )


def backend_of(settings: Settings) -> str:
    """gloo for processors, NCCL for cards.

    Raises:
        ConfigError: if device and backend do not go together.
    """
    cards = settings.device.startswith("cuda") or (settings.device == "auto" and torch.cuda.is_available())
    if settings.device == "mps":
        raise ConfigError("device mps cannot talk to other processes; give --device cpu")
    if settings.backend == "auto":
        return "nccl" if cards else "gloo"
    if settings.backend == "gloo" and settings.device.startswith("cuda"):
        raise ConfigError("backend gloo talks between processors; give --backend nccl, or --device cpu")
    return settings.backend


def start_processes(settings: Settings, size: MeshSize) -> int:
    """Let torchrun start one process per place of the mesh on this machine; returns their exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size.world_size)))
    words = ["--standalone", "--nproc-per-node", str(size.world_size), "-m", "minillm", "train", *words_of(settings)]
    try:
        run(parse_args(words))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException as error:
        return 128 + error.sigval.value
    return 0


def words_of(settings: Settings) -> list[str]:
    """The command line that gives these settings, without those that have their usual value.

    Example:
        >>> words_of(Settings(steps=5, mesh="dp=2", resume=True))
        ['--steps', '5', '--resume', '--mesh', 'dp=2']
    """
    words: list[str] = []
    usual = Settings()
    for name, value in vars(settings).items():
        flag = "--" + name.replace("_", "-")
        if value == getattr(usual, name):
            continue
        if isinstance(value, bool):
            words.append(flag)                                     # all are off by default
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return words


def recipe_of(settings: Settings) -> Recipe:
    """Optimizer, rates and decay that the settings mean."""
    return choose_recipe(
        settings.model, settings.optimizer, settings.learning_rate, settings.warmup_steps, settings.weight_decay
    )


def train_on_mesh(world: Comm, settings: Settings, hooks: tuple[Hook, ...] = ()) -> tuple[TrainResult, RunFolder]:
    """Train a model on all ranks and leave everything in its folder; every rank calls it.

    What is written, and by which numbers the run can be told from that of one process, is nothing but rounding: the
    same batches, metrics, checkpoints. Rank 0 writes; all must see the folder.

    Args:
        world: all ranks.
        settings: resolved.
        hooks: more listeners of the loop on rank 0.

    Returns:
        How the loop ended, and the folder.
    """
    mesh, folder = Mesh(MeshSize.parse(settings.mesh), world), RunFolder(settings.out)
    device = world.device
    number_format = first_rank_alone(world, lambda: choose_dtype(settings.precision, device))
    torch.manual_seed(settings.seed + 7919 * mesh.place["dp"] + 104729 * mesh.place["pp"])  # tp ranks drop the same
    with whole_or_nothing(folder) if world.rank == 0 else nullcontext():
        first_rank_alone(world, lambda: prepare_alone(settings, mesh.size, folder))
        tokenizer = load_tokenizer(folder.tokenizer)
        tokens, held_out = (folder.open_text(part, tokenizer) for part in ("train", "validation"))
        batches = batches_of(settings, tokens, rank=mesh.dp.rank, world_size=mesh.dp.size)
        config = shape_of(settings, tokenizer.vocab_size)
        cut, single = cut_model(settings, mesh, config, number_format)

        def whole() -> GPT:
            model = whole_model(cut, config, device)
            use_onednn(model)
            return model

        def measure(_: None, *arguments: object, precision: Precision) -> Mapping[str, float] | None:
            return shared_validation_loss(whole(), world, *arguments, precision=precision)

        def sample(should_stop: Callable[[], bool]) -> str:
            model = whole()
            return first_rank_alone(world, lambda: sampler(model, tokenizer, settings)(lambda: False))

        validate = validation(None, held_out, settings, Precision(number_format.name), measure)
        where = f"{mesh.size} {settings.engine}"
        checkpoints = RanksCheckpoints(folder.checkpoints, settings.keep_last, world, cut, single, where)
        first_rank_alone(world, lambda: save_settings(settings, folder))
    loop = LoopConfig(
        settings.steps, number_format.name, settings.microbatches, settings.max_norm, settings.log_every,
        settings.validate_every, settings.sample_every, settings.checkpoint_every,
    )  # fmt: skip
    recipe = recipe_of(settings)
    if world.rank == 0:
        n_parameters = sum(p.numel() for p in single()[0].parameters())
        print(
            f"{folder.path}: {n_parameters:,} parameters, {len(tokens):,} tokens of training text "
            f"({batches.batches_per_epoch} steps an epoch), {number_format.name} on {device} ({number_format.reason}), "
            f"{recipe.optimizer} {recipe.learning_rate:g}, {world.size} processes: {mesh.size}, engine "
            f"{settings.engine}",
            flush=True,
        )
    with AgreedStop(world) as stop:
        result = train(
            cut.model,
            cut.optimizer,
            batches.batch,
            loop,
            schedule=make_schedule(recipe, settings.steps),
            validate=validate,
            sample=sample,
            hooks=[MetricsLog(folder.metrics), ProgressLine(), *hooks] if world.rank == 0 else [],
            checkpoints=checkpoints,
            resume=settings.resume,
            run_config={"model": asdict(config), "settings": identity(settings)},
            tokenizer_fingerprint=tokenizer.fingerprint(),
            stop=stop,
            gradients=gradients_on_mesh(cut),
        )
    first_rank_alone(world, lambda: finish(result, folder, config, device, number_format, world.size))
    return result, folder


def prepare_alone(settings: Settings, size: MeshSize, folder: RunFolder) -> None:
    """What rank 0 does for all: read the texts, learn the tokenizer, write the ids; then the vocabulary is known."""
    tokenizer = prepare(settings, Texts([], []) if settings.resume else read_texts(settings), folder)
    check_cut(settings, size, shape_of(settings, tokenizer.vocab_size))


def cut_model(
    settings: Settings, mesh: Mesh, config: GPTConfig, number_format: DtypeChoice
) -> tuple[CutModel, Callable[[], tuple[nn.Module, Optimizer]]]:
    """This rank's part of the model, and a function that makes the model and optimizer of one process."""
    recipe, precision = recipe_of(settings), Precision(number_format.name)
    ns_dtype = "bf16" if number_format.name == "bf16" else "fp32"
    device = mesh.world.device

    def optimizer_of(part: nn.Module, part_config: GPTConfig) -> Optimizer:
        return make_optimizer(recipe, part, part_config, ns_dtype)

    def single() -> tuple[nn.Module, Optimizer]:
        model = GPT(config, generator(settings.seed))
        return model, optimizer_of(model, config)

    def autocast():
        return precision.autocast(device.type)

    model = GPT(config, generator(settings.seed)).to(device)
    if settings.engine != "ours":
        return EngineModel(settings.engine, model, mesh, optimizer_of, settings.microbatches, autocast), single
    use_onednn(model)
    grid = Parallel3D(model, mesh, PipelineConfig(n_microbatches=settings.microbatches), autocast=autocast)
    return MeshModel(grid, optimizer_of, MixtureLoss() if config.n_experts else None), single


def finish(
    result: TrainResult,
    folder: RunFolder,
    config: GPTConfig,
    device: torch.device,
    number_format: DtypeChoice,
    n_processes: int,
) -> None:
    """Pictures and samples; how busy the processors were."""
    write_results(folder)
    if not result.stopped_by:
        n_devices = min(n_processes, max(1, (os.cpu_count() or 1) // torch.get_num_threads()))
        n_devices = n_devices if device.type == "cpu" else n_processes
        print(utilisation(folder, config, device, number_format.dtype, n_devices), flush=True)
