"""One rank's training from its first line to its last epoch."""

import dataclasses
from collections.abc import Callable, Sequence

import torch

from stepmark.compiling import Compiler
from stepmark.place import Place
from stepmark.preparing import Built, Progress, build, seed
from stepmark.scenario import Plan, Scenario
from stepmark.trainer import checkpoint
from stepmark.trainer.checkpoint import Trained
from stepmark.trainer.epochs import Epochs
from stepmark.trainer.loaders import train_loader, valid_loader
from stepmark.trainer.schedules import Scheduling
from stepmark.trainer.watching import WatchedLoss
from stepmark.training import EndOfTraining, Epoch, Facts, TrainOrder, has_stalled, improves

# So that no epoch draws what another rank's draws.
_MOST_RANKS = 1000

Begun = Callable[[Facts, Sequence[Epoch]], None]


def fit(
    scenario: Scenario,
    plan: Plan,
    order: TrainOrder,
    place: Place,
    progress: Progress,
    on_begin: Begun,
    on_epoch: Callable[[Epoch], None],
) -> tuple[EndOfTraining, tuple[str, ...]]:
    """Train a scenario's model on one rank.

    Args:
        scenario: with its device resolved.
        plan: its timeout.
        order: what to do.
        place: this rank's.
        progress: told the stage; never called while an epoch is timed.
        on_begin: told before the first epoch what is trained on, and which epochs are done.
        on_epoch: told of each epoch as soon as it is finished, and saved if it can be.

    Returns:
        What ended it, and remarks on what came up meanwhile.

    Raises:
        WorkloadError: the workload cannot be found or built, or does not suit the scenario.
        CheckpointError: a checkpoint cannot be read or written.
        UsageError: the optimizer has no parameter to schedule.
    """
    wanted = order.plan
    built = build(scenario, plan, place, progress, own_scheduler=wanted.schedule is None)
    place, workload = built.place, built.workload
    loader = train_loader(workload, scenario, place.rank, drop_last=wanted.drop_last)
    valid = valid_loader(workload, scenario, place.rank) if wanted.validate else None
    watched = WatchedLoss(workload, scenario)
    steps_per_epoch = loader.num_steps(scenario.accumulation)
    scheduling = Scheduling(wanted, built.training, steps_per_epoch)
    epochs = Epochs(scenario, wanted, place, scheduling, watched, loader, valid)
    trained = Trained(
        scenario=scenario, model=workload.model, training=built.training, scheduling=scheduling
    )
    done: list[Epoch] = list(checkpoint.load(trained, order)) if order.resume else []
    on_begin(_facts(built, scenario, steps_per_epoch, order), done)

    while (end := _end(done, order)) is None:
        number = len(done) + 1
        # Whatever it draws depends on the epoch alone, so that one that is gone on with after an
        # interruption is the same.
        seed(number * _MOST_RANKS + place.rank)
        progress(f"epoch {number} of {wanted.epochs}: training", _rate(done))
        epoch = epochs.train(number)
        if valid is not None:
            progress(f"epoch {number} of {wanted.epochs}: validating", _rate(done))
            epoch = epochs.evaluate(epoch)
        scheduling.on_epoch_end(epoch.watched_loss)
        is_best = improves(epoch.watched_loss, [e.watched_loss for e in done])
        epoch = _without_compiler(epoch, built.compiler)
        done.append(dataclasses.replace(epoch, is_best=is_best))
        try:
            if wanted.checkpoint and place.rank == 0:
                done[-1] = _save(trained, done, order, place)
        finally:  # what was measured is told even if it cannot be saved
            on_epoch(done[-1])
    place.barrier()
    known = len(built.switches.notes)
    built.switches.final()
    return end, tuple(built.switches.notes[known:])


def _end(done: Sequence[Epoch], order: TrainOrder) -> EndOfTraining | None:
    if len(done) >= order.plan.epochs:
        return EndOfTraining.EPOCHS
    if has_stalled([epoch.watched_loss for epoch in done], order.plan.patience):
        return EndOfTraining.PATIENCE
    return None


def _without_compiler(epoch: Epoch, compiler: Compiler | None) -> Epoch:
    """End the compiler's processes if it was at work; the epoch, with what that took."""
    if compiler is None:
        return epoch
    if compiler.take_new():
        compiler.rest()
    return dataclasses.replace(epoch, compile_s=compiler.take_s())


def _rate(done: Sequence[Epoch]) -> float | None:
    return done[-1].samples_per_s if done else None


def _save(trained: Trained, done: Sequence[Epoch], order: TrainOrder, place: Place) -> Epoch:
    """Save a training; its last epoch with what that cost."""
    start_s = place.device.now_s()
    num_bytes = checkpoint.save(trained, done, order)
    saved_s = place.device.now_s() - start_s
    if len(done) == 1:
        # A workload's own optimizer or scheduler may keep what cannot be loaded back; it shall
        # not be found out after hours.
        checkpoint.read(order.last_path)
    return dataclasses.replace(done[-1], checkpoint_s=saved_s, checkpoint_bytes=num_bytes)


def _facts(built: Built, scenario: Scenario, steps_per_epoch: int, order: TrainOrder) -> Facts:
    workload = built.workload
    num_samples = len(workload.dataset)  # type: ignore[arg-type]
    evaluates = order.plan.validate and workload.valid_dataset is not None
    settings = built.switches.final()
    notes = list(built.switches.notes)
    uneven = num_samples % scenario.world_size
    if uneven and not order.plan.drop_last:
        notes.append(
            f"{scenario.world_size - uneven} of the samples are trained on twice in an epoch: "
            f"{num_samples} cannot be dealt out evenly to {scenario.world_size} ranks"
        )
    if not built.place.device.marks_steps:
        notes.append(
            f"{built.place.device.name}: no phases, since marking them would make the steps wait"
        )
    if built.compiler is not None:
        notes.append(
            "the first epoch, and the first one after each resumption, includes compiling: "
            "compile_s of each epoch says how much"
        )
    if order.resume and scenario.persistent_workers:
        notes.append(
            "loader workers that live on from epoch to epoch began anew: what they draw is not "
            "what they would have drawn without the interruption"
        )
    if not evaluates:
        notes.append("nothing is validated: best epoch, plateau and patience go by the train loss")
    return Facts(
        device_name=built.place.device.name,
        num_threads=torch.get_num_threads(),
        settings=settings,
        data=workload.data,
        num_parameters=sum(p.numel() for p in workload.model.parameters()),
        num_train_samples=num_samples,
        num_valid_samples=len(workload.valid_dataset) if evaluates else None,  # type: ignore[arg-type]
        steps_per_epoch=steps_per_epoch,
        notes=tuple(notes),
    )
