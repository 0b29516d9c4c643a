"""The training loop of `ppgen.fit`: it prepares the data and the programs, and trains one chain after another."""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ppgen.infer.adversarial import build_critics
from ppgen.infer.compile.building import stop_compiling
from ppgen.infer.distributed import Ranks, launched_ranks
from ppgen.infer.parameter_scope import ParameterScope
from ppgen.infer.parameters import ProgramState, owning_module, restore
from ppgen.infer.svi import SVI
from ppgen.losses.elbo import ELBO
from ppgen.losses.objective import Objective
from ppgen.tracing.sites import Program
from ppgen.training.chain import ChainTrainer
from ppgen.training.checkpoint import SAMPLE_ROWS, Checkpoint
from ppgen.training.checkpoint_files import CheckpointFiles
from ppgen.training.convergence import SCHEDULE_PASSES, SCHEDULE_STEPS
from ppgen.training.loading import AnyBatches, Loading
from ppgen.training.memory import memory_advice
from ppgen.training.options import Loss, TrainingOptions
from ppgen.training.progressive import GrowthController
from ppgen.training.result import Chain, Fitted
from ppgen.training.shares import check_same_on_all_ranks, check_same_position, gather_chains, row_plates
from ppgen.utils.user_warnings import warn_user

__all__ = ["train"]

INITIAL_ROWS = 512  # at most so many rows set what a model initializes from data

logger = logging.getLogger("ppgen")


def train(model: Program, guide: Program, data: Any, options: TrainingOptions) -> Fitted:
    """Trains a model and a guide by SVI; see `ppgen.fit`.

    Args:
        model: a Pyro program.
        guide: a Pyro program.
        data: the training data, see `ppgen.fit`.
        options: the options of the run.

    Returns:
        The fit. The programs hold the weights of its best chain.
    """
    loss = ELBO() if options.loss is None else options.loss
    modules = [module for program in (model, guide) if (module := owning_module(program)) is not None]
    ranks, crew = Ranks(alone=options.distribute != "rows"), Ranks(alone=options.distribute != "chains")
    options = _of_rank(options, crew)
    files = None if options.checkpoint is None else CheckpointFiles.at(options.checkpoint)
    if files is not None:
        files.keep = options.checkpoint_keep
    loading = Loading(model, guide, modules, options, ranks, _global_batch_size(options, files, ranks))
    batches, held_out = loading(data)
    if getattr(loss, "critics", None) and options.converges and held_out is None and options.score is None:
        raise ValueError(
            "fit: a loss with critics does not tell when samples no longer get better, and "
            f"{loading.note or 'there are no rows to hold out'}: give steps, epochs, validation or score"
        )
    length = _announce(options, loading.note, total := options.total_steps(batches))
    _warn_of_selection_by_adversarial_loss(loss, options)
    scheduled = max(SCHEDULE_STEPS, SCHEDULE_PASSES * batches.known_length) if options.converges else total
    begin = max((schedule.ends(scheduled) for schedule in getattr(loss, "schedules", ())), default=0)
    for module in modules if options.device is not None else ():
        module.to(options.device)

    scope = ParameterScope()
    with scope.open(), torch.random.fork_rng():
        torch.manual_seed(options.seed)  # lazy autoguides, and functions in pyro.param, may draw initial values
        example, whole = batches.first(), batches.first(whole=True)
        with memory_advice("a first run of the programs", len(whole[0]) if whole else None):
            ranks.plates = row_plates(model, guide, whole, example)
            critics = build_critics(loss, model, guide, whole)
            for critic in critics.values() if options.device is not None else ():
                critic.to(options.device)
            state = ProgramState.from_programs(model, guide, example, critics=critics)
        growth = None if options.growth is None else GrowthController(options.growth, state.modules, total)
        ranks.buffers = list({id(b): b for b in state.buffers.values() if b.is_floating_point() and b.numel()}.values())
        description = _describe(options, loss, batches, held_out, total)
        if crew.size > 1:
            description["chains"] = f"every {crew.size}, from {crew.rank + 1}"
        if ranks.size > 1:
            check_same_on_all_ranks(ranks, description, list(batches.sample(SAMPLE_ROWS)))
        checkpoint = Checkpoint(
            files,
            description,
            state,
            batches.sample(SAMPLE_ROWS),
            ranks,
            seconds=options.checkpoint_seconds,
            digest=batches.digest,
        )
        check_same_position(ranks, options.checkpoint, (checkpoint.chain, checkpoint.steps))
        trainer = ChainTrainer(options, loss, batches, held_out, total, begin, state, growth, checkpoint, ranks)
        initialize = getattr(_first(modules), "initialize", None)
        if isinstance(loss, Objective):
            loss.total = scheduled
        try:
            chains = _train_chains(trainer, crew, model, guide, initialize)
        finally:
            stop_compiling()
    chains, resumable = gather_chains(crew, chains), any(crew.gather(checkpoint.resumable))
    result = Fitted(model, guide, loss, chains, example, scope=scope, missing_chains=options.num_chains - len(chains))
    if length:
        result.metadata["length"] = length
    if ranks.first and result.complete and not resumable:
        result.checkpoint = checkpoint.files
    restore(state.tensors, chains[result.best].weights)
    scope.publish()
    trainer.interrupt.act()
    return result


def _train_chains(
    trainer: ChainTrainer,
    crew: Ranks,
    model: Program,
    guide: Program,
    initialize: Callable | None,
) -> list[Chain]:
    """Trains the chains that are left, each from a new start; a chain that is interrupted is the last one.

    If chains are spread over a crew of several ranks, they are those of this rank: every so many.
    """
    options, loss, total, checkpoint = trainer.options, trainer.loss, trainer.total, trainer.checkpoint
    optim = partial(torch.optim.Adam, lr=1e-3) if options.optim is None else options.optim
    restarts, chains = options.num_chains, checkpoint.chains
    for number in range(crew.rank, restarts, crew.size):
        if number < checkpoint.chain:
            continue
        torch.manual_seed(options.seed + number)
        if number > checkpoint.chain:
            trainer.state.restart(checkpoint.initial)
        if callable(initialize):
            initialize(*trainer.batches.sample(INITIAL_ROWS))
        trainer.ranks.copy_first(trainer.state.tensors.values())
        if trainer.ranks.size > 1:
            torch.manual_seed(trainer.ranks.seed(options.seed + number))
        if isinstance(loss, Objective):
            loss.step.zero_()
        try:
            svi = SVI(
                model,
                guide,
                optim,
                loss,
                clip_norm=options.clip_norm,
                lr_scheduler=options.scheduler(total),
                compile=options.compile,
                skip_nonfinite=True,
                steps=max(1, trainer.expected_steps * (restarts - number) - checkpoint.steps),
                ranks=trainer.ranks,
            )
            chains.append(trainer.train(number, svi))
        except FloatingPointError as error:
            if not chains and crew.size == 1:
                raise
            warn_user(f"restart {number + 1} of {restarts} is left out: {error}")
        if chains and chains[-1].interrupted:
            break
    return chains


def _of_rank(options: TrainingOptions, crew: Ranks) -> TrainingOptions:
    """The options of a rank that trains chains of its own: its checkpoint, and no progress bar but on the first."""
    if crew.size == 1:
        return options
    checkpoint = options.checkpoint
    if checkpoint is not None and not crew.first:
        checkpoint = f"{os.fspath(checkpoint)}.rank{crew.rank}"
    return replace(options, checkpoint=checkpoint, progress=options.progress and crew.first)


def _global_batch_size(options: TrainingOptions, files: CheckpointFiles | None, ranks: Ranks) -> int | None:
    """The rows of a global batch; a run that continues on another number of ranks keeps its own."""
    ranks.wait()  # until rank 0 has saved an earlier fit, which deletes its checkpoint
    stored = files.read()[1]["ranks"] if files is not None and files.exist() else None
    if stored is not None and stored != ranks.size and ranks.first:
        warn_user(
            f"{files}: written by {stored} ranks, and resumed by {ranks.size}: global batches stay the "
            "same, but not random numbers and rounding, so that the result is not bit for bit that of one run"
        )
    return None if options.batch_size is None else options.batch_size * (stored or ranks.size)


def _first(values: list[Any]) -> Any:
    return values[0] if values else None


def _warn_of_selection_by_adversarial_loss(loss: Loss, options: TrainingOptions) -> None:
    by_samples = options.converges or options.patience is not None
    if getattr(loss, "critics", None) and options.num_chains > 1 and not by_samples:
        warn_user(
            "the best of restarts goes by the loss, which in adversarial training need not fall as samples get better"
        )


def _announce(options: TrainingOptions, note: str, total: int) -> str:
    """How the length of the run is decided, in words, logged and shown on a terminal; empty if it was given."""
    ends = f"training ends when it has converged, at the latest after {total} steps" if options.converges else ""
    text = "; ".join(filter(None, (note, ends)))
    if text:
        logger.info(text)
        if options.progress and sys.stderr.isatty() and launched_ranks() == 1:
            print(text, file=sys.stderr)
    return text


def _describe(
    options: TrainingOptions, loss: Loss, batches: AnyBatches, held_out: AnyBatches | None, total: int
) -> dict[str, Any]:
    """What must be the same when the run continues from its checkpoint, as JSON values."""
    scheduler = options.lr_scheduler
    return {
        "steps": f"until convergence, at most {total}" if options.converges else total,
        "seed": options.seed,
        "restarts": options.num_chains,
        "patience": options.patience,
        **({} if options.score is None else {"score": getattr(options.score, "__qualname__", "a function")}),
        "ema": options.ema,
        "clip_norm": options.clip_norm,
        "batch_size": batches.size if batches.shuffled else None,
        "lr_scheduler": "a function" if callable(scheduler) else scheduler,
        "loss": str(loss) if isinstance(loss, Objective) else getattr(loss, "__qualname__", type(loss).__name__),
        "data": batches.describe(),
        "growth": None if options.growth is None else str(options.growth),
        "validation": [] if held_out is None else held_out.describe(device=False),
    }
