"""One plain training loop: for every recipe, on CPU, on one GPU, and under torchrun on several."""

import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from thinslice.errors import InputRefused, OutputRefused
from thinslice.io.atomic import whole_or_not
from thinslice.networks.contract import Network
from thinslice.training.muon import Muon

logger = logging.getLogger(__name__)

Trained = TypeVar("Trained", bound=Network)
"""The network that learns."""

Batch = TypeVar("Batch")
"""What the loss is computed of."""

GENTLE = 0.5
"""Share of the full rates for weights that are already good: at the full rate they forget first (LOG.md)."""

BATCHES_AHEAD = 4
"""Batches that are made while the ones before them are learnt from."""


LONGEST_SILENCE_SECONDS = 10.0
"""After this time a line is told whatever the number of steps: on a slow machine a step takes seconds."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        steps: of the optimiser.
        minutes: if given, ends the training by the clock instead, and the cosine follows it.
        rate: of AdamW, for all but the convolutions of the trunk.
        muon_rate: of Muon, for these; 0 leaves all to AdamW.
        muon_decay: of Muon. Without normalisation layers only the decay bounds the singular values of the kernels (by
            about its inverse); without it a run diverged (LOG.md).
        batches: gradients of so many batches, each with an acquisition of its own, make one step.
        warm_up: steps until the full rate.
        weight_decay: of AdamW.
        clip: largest norm of a gradient.
        ema: decay of the averaged weights.
        save_every: steps from one checkpoint to the next.
        log_every: steps from one line of the log to the next.
        side_by_side: on a CPU, whether the batches of a step are computed beside each other, each by its share of the
            cores: faster than all cores at work on one, but two equal runs may differ in the last digits.
    """

    steps: int = 20_000
    minutes: float | None = None
    rate: float = 2e-4
    muon_rate: float = 0.01
    muon_decay: float = 0.5
    batches: int = 2
    warm_up: int = 200
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.999
    save_every: int = 500
    log_every: int = 50
    side_by_side: bool = False

    def gentle(self) -> "Schedule":
        """Returns the schedule at the rates for weights that are good already, see `GENTLE`.

        Example:
            >>> Schedule(rate=2e-4).gentle().rate
            0.0001
        """
        return replace(self, rate=GENTLE * self.rate, muon_rate=GENTLE * self.muon_rate)


def fit(
    network: Trained,
    batch_at: Callable[[int], Batch],
    loss_of: Callable[[Trained, Batch, torch.device], Tensor],
    folder: Path,
    schedule: Schedule,
    resume: bool = False,
    report: Callable[[str], None] = print,
    check: Callable[[int, Trained], bool] | None = None,
) -> Trained:
    """Trains a network and returns one with the exponential moving average of its weights.

    Writes ``log.jsonl`` (one line per `Schedule.log_every` steps) and ``checkpoint.pt`` (replaced atomically, every
    `Schedule.save_every` steps) into ``folder``. With ``resume`` it continues from that checkpoint: a batch is a
    function of its number, so a killed run and an undisturbed one see the same data.

    Args:
        network: trained in place; any module that can be built again from its ``settings``.
        batch_at: number of a batch -> whatever the loss expects.
        loss_of: see `thinslice.training.losses`.
        folder: of the checkpoint and the log.
        schedule: for how long and how fast.
        resume: go on from the checkpoint, where there is one.
        report: receives progress lines.
        check: called with the step and the averaged weights before anything is learnt, whenever the checkpoint is
            written, and at the end; the training ends when it answers True.

    Raises:
        InputRefused: the checkpoint is damaged.
        OutputRefused: there is no room for the next one.
    """
    rank, world, device = join_world()
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in torch's stub
    training = _Training(network, copy_of(network), _optimisers(network, schedule), schedule, folder)
    resumed = resume and training.load(device)
    if resumed:
        report(f"resumed at step {training.step} after {training.seconds() / 60:.1f} min")
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(".*.part") if rank == 0 else ():  # of a run that was killed while it saved
        unfinished.unlink()
    # As if begun so long ago: clock and cosine go on where they were.
    training.started, first = time.monotonic() - training.spent_seconds, training.step
    losses: list[Tensor] = []
    check = check if rank == 0 else None
    if check is not None and training.step == 0:
        training.stop = check(0, training.average)
    numbers = _numbers(training.step, rank, world, schedule.batches)
    ahead = _from_processes if device.type == "cuda" else _from_a_thread
    # Closed in any case: whoever makes batches ahead must not outlive the training.
    with closing(ahead(batch_at, numbers)) as batches, _workers(schedule, device) as workers:
        while (progress := _agreed(training.progress(), world, device)) < 1.0:
            rate = _rate(training.step, progress, schedule)
            of_step = [next(batches) for _ in range(schedule.batches)]
            losses.append(_gradients(network, of_step, loss_of, device, workers))
            _average_gradients(network, world)
            training.update(rate)
            if rank == 0 and (training.step % schedule.log_every == 0 or training.is_silent()):
                # Read once a line, not once a step: a GPU has to wait for every number that is read.
                training.log(torch.stack(losses).mean().item(), rate, report)
                losses.clear()
            if rank == 0 and training.step % schedule.save_every == 0:
                training.stop = check is not None and check(training.step, training.average)
                # After the verdict, which is part of it: a run that is killed after it must not train on.
                training.save()
    if rank == 0 and (training.step > first or not resumed):  # else the checkpoint was that of the end
        # At a multiple it was looked at in the loop.
        if check is not None and training.step % schedule.save_every:
            check(training.step, training.average)
        training.save()
    return training.average


@dataclass
class _Training(Generic[Trained]):
    """All that changes while a network is trained, and all that its checkpoint holds."""

    network: Trained
    average: Trained
    optimisers: list[torch.optim.Optimizer]
    schedule: Schedule
    folder: Path
    step: int = 0
    stop: bool = False
    spent_seconds: float = 0.0
    started: float | None = None
    spoken_at: float = 0.0
    steps: int = 0

    def seconds(self) -> float:
        """Returns the time of the training, that before its interruptions included."""
        return self.spent_seconds if self.started is None else time.monotonic() - self.started

    def progress(self) -> float:
        """Returns the share of the training that is done; 1 where it shall end."""
        if self.stop:
            return 1.0
        if self.schedule.minutes is not None:
            seconds = self.seconds()
            # The minutes are kept: a step that would end after them, by the mean of those so far, is not begun.
            next_seconds = (seconds - self.spent_seconds) / self.steps if self.steps else 0.0
            done = seconds / 60 / self.schedule.minutes
            return max(done, 1.0) if (seconds + next_seconds) / 60 >= self.schedule.minutes else done
        return self.step / self.schedule.steps

    def update(self, rate: float) -> None:
        """Makes one step by the gradients at hand, at a share of the full rates; one that is no number is left out."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.schedule.clip)
        # Clipping by a norm that is no number would spread it to every weight, for good.
        for optimiser in self.optimisers if torch.isfinite(norm) else ():
            for group in optimiser.param_groups:
                group["lr"] = rate * optimiser.defaults["lr"]
            optimiser.step()
        # A short memory at first, or the average would long hold the weights it began with.
        _follow(self.average, self.network, min(self.schedule.ema, (self.step + 1) / (self.step + 10)))
        self.step += 1
        self.steps += 1

    def is_silent(self) -> bool:
        """Says whether nothing has been told for so long that one may wonder."""
        return self.seconds() - self.spoken_at > LONGEST_SILENCE_SECONDS

    def log(self, loss: float, rate: float, report: Callable[[str], None]) -> None:
        """Writes and tells one line."""
        seconds = self.spoken_at = self.seconds()
        line = {"step": self.step, "seconds": round(seconds, 1), "loss": loss, "rate": rate}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        report(f"step {self.step}  {seconds / 60:6.1f} min  loss {loss:.5f}")

    def save(self) -> None:
        """Replaces the checkpoint."""
        state = {
            "settings": self.network.settings,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "seconds": self.seconds(),
            "schedule": asdict(self.schedule),
            "stop": self.stop,
        }
        save_whole(state, self.folder / "checkpoint.pt")

    def load(self, device: torch.device) -> bool:
        """Goes on from the checkpoint; returns whether there is one."""
        checkpoint = self.folder / "checkpoint.pt"
        if not checkpoint.exists():
            return False
        state = _load(checkpoint, device)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.spent_seconds, self.stop = state["step"], state["seconds"], state["stop"]
        logger.debug("%s: goes on at step %d", checkpoint, self.step)
        return True


def _optimisers(network: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Returns Muon for the kernels of the trunk, AdamW for everything else; ``muon_rate`` 0 leaves all to AdamW."""
    trunk = [p for p in network.parameters() if p.dim() == 4 and schedule.muon_rate]
    chosen = {id(p) for p in trunk}
    # By identity: `in` would compare the numbers of tensors.
    rest = [p for p in network.parameters() if id(p) not in chosen]
    adam = torch.optim.AdamW(rest, lr=schedule.rate, weight_decay=schedule.weight_decay, betas=(0.9, 0.99))
    return [adam, Muon(trunk, lr=schedule.muon_rate, weight_decay=schedule.muon_decay)] if trunk else [adam]


def _numbers(step: int, rank: int, world: int, batches: int) -> Iterator[int]:
    """Yields the numbers of the batches of one process from a step on; no two processes share any."""
    while True:
        yield from ((step * world + rank) * batches + index for index in range(batches))
        step += 1


def _rate(step: int, progress: float, schedule: Schedule) -> float:
    """Returns the share of the full rate, 0 .. 1: warm-up, then cosine."""
    cosine = 0.5 * (1 + math.cos(min(progress, 1.0) * math.pi))
    return min(1.0, (step + 1) / schedule.warm_up) * max(cosine, 1e-3)


def copy_of(network: Trained) -> Trained:
    """Returns a network with the same weights, on the same device, that does not learn."""
    twin = type(network)(**network.settings).to(next(network.parameters()).device)
    twin.load_state_dict(network.state_dict())
    return twin.requires_grad_(False)


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)


def _load(path: Path, device: torch.device) -> dict[str, Any]:
    """Returns a checkpoint.

    Raises:
        InputRefused: it was damaged since.
    """
    try:
        # `weights_only`: a checkpoint is data, and a pickle may run anything.
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        return state
    except Exception as error:  # zip, pickle and torch raise many kinds
        raise InputRefused(
            got="a damaged checkpoint",
            need="the whole file",
            next="delete its folder to begin that part anew",
            place=path,
            code="damaged-checkpoint",
        ) from error


def save_whole(state: Any, path: Path) -> None:
    """Writes what torch can save, whole or not at all.

    Raises:
        OutputRefused: there is no room for it, which torch says as a RuntimeError.
    """
    try:
        with whole_or_not(path) as temporary:
            torch.save(state, temporary)
    except RuntimeError as error:
        raise OutputRefused(
            got="no room for a checkpoint",
            need="some megabytes",
            next="free some room, and go on",
            place=path.parent,
            code="no-room",
        ) from error


def join_world() -> tuple[int, int, torch.device]:
    """Returns rank, number of processes and device; joins the process group where torchrun started us."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    cuda = torch.cuda.is_available()
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # the sizes of a recipe's batches hardly vary
    return rank, world, device


def training_length(folder: Path) -> dict[str, float]:
    """Returns the steps and minutes behind the checkpoint of a finished stage."""
    state = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    return {"steps": state["step"], "minutes": round(state["seconds"] / 60, 1)}


@contextmanager
def _workers(schedule: Schedule, device: torch.device) -> Iterator[Executor]:
    """Lends the threads that compute the batches of a step, see `Schedule.side_by_side`."""
    beside = schedule.batches if schedule.side_by_side and device.type == "cpu" else 1
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(max(1, threads // beside))
        with ThreadPoolExecutor(max_workers=beside) as workers:
            yield workers
    finally:
        # The setting is the whole process's, and others compute after this.
        torch.set_num_threads(threads)


def _gradients(
    network: Trained,
    batches: Sequence[Batch],
    loss_of: Callable[[Trained, Batch, torch.device], Tensor],
    device: torch.device,
    workers: Executor,
) -> Tensor:
    """Returns the mean loss of some batches; its gradient is left in the network."""
    # Not by backward(), which would add the gradients up in the parameters in whatever order the threads end.
    parameters = list(network.parameters())

    def one(batch: Batch) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        loss = loss_of(network, batch, device) / len(batches)
        return loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)

    answers = list(workers.map(one, batches))
    for number, parameter in enumerate(parameters):
        parts = [part for _, gradients in answers if (part := gradients[number]) is not None]
        parameter.grad = torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0] if parts else None
    return torch.stack([loss for loss, _ in answers]).sum()


def _average_gradients(network: nn.Module, world: int) -> None:
    if world == 1:
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    # One message instead of one for every weight.
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / world).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.reshape(gradient.shape))


def _agreed(progress: float, world: int, device: torch.device) -> float:
    """Returns the progress of the first process, whose clock decides, so that all stop after the same step."""
    if world == 1:
        return progress
    shared = torch.tensor(progress, dtype=torch.float64, device=device)
    torch.distributed.broadcast(shared, src=0)
    return shared.item()


def _from_a_thread(batch_at: Callable[[int], Batch], numbers: Iterator[int]) -> Generator[Batch, None, None]:
    """Yields the batches of some numbers, each made while the ones before it are learnt from."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        jobs = deque(pool.submit(batch_at, next(numbers)) for _ in range(BATCHES_AHEAD))
        try:
            while True:
                batch = jobs.popleft().result()
                jobs.append(pool.submit(batch_at, next(numbers)))
                yield batch
        finally:
            for job in jobs:
                job.cancel()


def _from_processes(batch_at: Callable[[int], Batch], numbers: Iterator[int]) -> Generator[Batch, None, None]:
    """Does as `_from_a_thread`, by all other cores: one thread cannot feed a GPU. Arrays come as shared tensors."""
    loader: DataLoader[Batch] = DataLoader(
        _Batches(batch_at),
        batch_size=None,
        sampler=numbers,
        num_workers=max(1, torch.get_num_threads() - 1),
        collate_fn=_as_tensors,
        multiprocessing_context="fork",  # a corpus need not be copied, nor the batches be importable
    )
    yield from loader


class _Batches(Dataset[Batch], Generic[Batch]):
    def __init__(self, batch_at: Callable[[int], Batch]) -> None:
        self.batch_at = batch_at

    def __getitem__(self, number: int) -> Batch:
        return self.batch_at(number)


def _as_tensors(batch: Any) -> Any:
    """Returns a dataclass with its arrays as tensors, which need not be copied from one process to another."""
    if not is_dataclass(batch) or isinstance(batch, type):
        return batch
    arrays = {f.name: a for f in fields(batch) if isinstance(a := getattr(batch, f.name), np.ndarray)}
    return replace(batch, **{name: torch.from_numpy(array) for name, array in arrays.items()})
