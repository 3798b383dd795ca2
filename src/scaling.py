"""What many GPUs tell one another in a training step, on paper: bytes, time on a link, and when it no longer pays.

The model, with n processes, g of them in a machine (node), S bytes of float32 gradients and as many of weights:

- DistributedDataParallel sums gradients in a ring: each process sends and receives 2 (n - 1) / n S bytes (Patarasuk & Yuan
  2009). A ring that visits a machine once crosses its border once in each direction, so all these bytes go through the
  network cards of a machine together, and inside through the links of each GPU: the slower of both counts.
- fully_shard gathers the weights for the forward and again for the backward pass, and scatters the gradients' sums:
  3 (n - 1) / n S bytes, in each micro-step.
- Gradients are sent in buckets while the backward pass goes on (Li et al., VLDB 2020): hidden is what fits into its time; the
  last bucket, full when it ends, never is. Gathers hide behind the pass that needs them, the first one never.
- Every bucket waits for 2 ceil(log2 n) messages one after another (NCCL's double trees, from version 2.4 on).
- Loading, optimiser and jitter are left out: a bound from above, not a forecast.

Public: Link, LINKS, Work, ddp_bytes, fsdp_bytes, step_seconds, efficiency, worthwhile, talk, Counts, count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .cost import StepOnPaper
from .gpus import Gpu
from .settings import RunConfig, Training

GPUS_PER_NODE = 8

BUCKET_BYTES = 25 * 2**20
"""Of DistributedDataParallel, its default."""


@dataclass(frozen=True)
class Link:
    """inside: bytes/s of one GPU to the others of its machine, one direction. between: bytes/s of one machine to others,
    all its cards together, one direction. latency: seconds of a message between machines, or inside one if there is no
    other. share: part of these rates that large messages reach; assumed.
    """

    name: str
    inside: float
    between: float
    latency: float = 1e-5
    share: float = 0.8

    def seconds(self, size: float, messages: int, processes: int) -> float:
        """To move so many bytes per process, in so many rounds of messages."""
        slowest = min(self.inside, self.between) if processes > GPUS_PER_NODE else self.inside
        hops = 2 * math.ceil(math.log2(processes)) if processes > 1 else 0
        return size / (slowest * self.share) + messages * hops * self.latency


NVLINK = 450e9
"""NVLink 4 of an H100: 900 GB/s, both directions together (data sheet)."""

LINKS = (
    Link("8 x 400 Gb/s InfiniBand", NVLINK, 400e9),
    Link("400 Gb/s InfiniBand", NVLINK, 50e9),
    Link("200 Gb/s InfiniBand", NVLINK, 25e9),
    Link("25 Gb/s Ethernet", NVLINK, 3.125e9, latency=5e-5),
)
"""Between machines of eight GPUs with NVLink. 8 x 400 Gb/s: a card for each GPU, as in DGX H100 (data sheet)."""


@dataclass(frozen=True)
class Work:
    """A step of one process alone.

    forward_s, backward_s: seconds of one micro-step; recomputation belongs to the backward pass.
    micro_steps: training.grad_accum_steps. size: bytes of the gradients, float32.
    """

    forward_s: float
    backward_s: float
    micro_steps: int
    size: int

    @property
    def seconds(self) -> float:
        return self.micro_steps * (self.forward_s + self.backward_s)


def ddp_bytes(size: float, processes: int) -> float:
    """That each process sends in a step, and receives."""
    return 2 * (processes - 1) / processes * size


def fsdp_bytes(size: float, processes: int, micro_steps: int = 1) -> float:
    """The same with sharded weights."""
    return 3 * micro_steps * (processes - 1) / processes * size


def step_seconds(work: Work, link: Link, processes: int, parallel: str = "ddp") -> float:
    """Of one optimiser step. parallel: `ddp` or `fsdp`."""
    if processes == 1:
        return work.seconds
    buckets = math.ceil(work.size / BUCKET_BYTES)
    if parallel == "fsdp":
        gather = link.seconds(fsdp_bytes(work.size, processes) / 3, buckets, processes)
        exposed = _exposed(gather, work.forward_s, buckets) + _exposed(2 * gather, work.backward_s, buckets)
        return work.seconds + work.micro_steps * exposed
    talk = link.seconds(ddp_bytes(work.size, processes), buckets, processes)
    return work.seconds + _exposed(talk, work.backward_s, buckets)


def _exposed(talk: float, behind: float, buckets: int) -> float:
    """Seconds of talk that a pass does not hide: at least one bucket's."""
    return max(talk / buckets, talk - behind)


def efficiency(work: Work, link: Link, processes: int, parallel: str = "ddp") -> float:
    """Work of a process per time, against that of one alone; each has the same work."""
    return work.seconds / step_seconds(work, link, processes, parallel)


def worthwhile(works: dict[int, Work], link: Link, least: float = 0.8) -> int:
    """The most processes, counted upwards, up to which each does at least this part of what it does alone.

    Args:
        works: number of processes, upwards -> work of one of them; as when a fixed batch is split among them.
    """
    reached = 1
    for processes, work in works.items():
        if efficiency(work, link, processes) < least:
            break
        reached = processes
    return reached


def talk(training: Training, size: int, processes: int) -> str:
    """What each process sends and receives in a step, in words. size: bytes of the gradients."""
    if training.parallel == "fsdp":
        total = fsdp_bytes(size, processes, training.grad_accum_steps)
    else:
        total = ddp_bytes(size, processes)
    buckets = math.ceil(size / BUCKET_BYTES)
    ways = {link.name: link for link in LINKS} if processes > GPUS_PER_NODE else {"NVLink": LINKS[0]}
    times = ", ".join(
        f"{link.seconds(total, buckets, processes):.2g} s by {name}" for name, link in ways.items()
    )
    return f"{total / 1e9:.3g} GB a step to and from each process, less what the passes hide: {times}"


# ----------------------------------------------------------------------------------------------- of a config


@dataclass(frozen=True)
class Counts:
    """FLOPs of one sample: forward and backward pass, what is computed again, networks of the loss. size: bytes of the
    gradients.
    """

    work: int
    recomputed: int
    loss_work: int
    size: int

    def work_of(self, samples: float, gpu: Gpu, training: Training, utilisation: float) -> Work:
        """A step of so many samples on one GPU that reaches this part of its peak.

        A third of the counted work is the forward pass; the loss, over before the first gradient of the model is there,
        hides no talk and is counted with it.
        """
        speed, outside = (
            tera * 1e12 * utilisation for tera in (gpu.speed(training), gpu.float_speed(training))
        )
        forward = self.work / 3 / speed + self.loss_work / outside
        backward = (2 / 3 * self.work + self.recomputed) / speed
        return Work(samples * forward, samples * backward, 1, self.size)


def count(config: RunConfig) -> Counts:
    """Counted on the meta device."""
    step = StepOnPaper(config)
    work = step.flops()
    return Counts(work, step.flops(step.plan) - work, step.loss_flops(), 4 * step.trained)
