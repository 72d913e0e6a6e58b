"""The ordinary loop of a torch user: one run after the other, each batch padded to its own longest utterance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from benchmarks import torch_heads
from jaxser import train
from jaxser.standards import Standard
from jaxser.store import Frames


@dataclass(frozen=True)
class Learner:
    """What one run needs in torch."""

    model: torch.nn.Module
    optimiser: torch.optim.Optimizer
    inputs: list[list[torch.Tensor] | torch.Tensor]
    """For each kind of input the valid frames f32[t, d] of every utterance; one tensor f32[n, t, d] where all have as many."""
    labels: torch.Tensor


def learners(
    make: Callable[[], torch.nn.Module],
    inputs: tuple[Frames, ...],
    labels: np.ndarray,
    standards: Sequence[tuple[Standard, ...]],
    compiled: bool = False,
) -> list[Learner]:
    """A model and an optimiser for every run, and its inputs, standardised once."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    found = []
    for own in standards:
        model = make().to(device).train()
        optimiser = torch.optim.Adam(model.parameters(), train.LEARNING_RATE, fused=True)
        forward = torch.compile(model, dynamic=True) if compiled else model
        of_all = torch.from_numpy(labels.astype(np.int64)).to(device)
        found.append(Learner(forward, optimiser, standardised(inputs, own, device), of_all))
    return found


def advance(learner: Learner, plan: np.ndarray) -> list[float]:
    """Train one run through `plan`, i32[steps, b], as `train.advance` does. The losses, which only leave a GPU at the end."""
    device, losses = learner.labels.device, []
    # Once for all updates: on a GPU each copy waits for all that is underway.
    placed = torch.from_numpy(plan.astype(np.int64)).to(device)
    counts = [None if device.type == "cpu" else counts_of(utterances).to(device) for utterances in learner.inputs]
    for planned, rows in zip(plan, placed, strict=True):
        numbers = planned[planned >= 0].tolist()
        rows = rows[: len(numbers)]  # a short batch is filled up at its end
        batch = (batch_of(*of, numbers, rows) for of in zip(learner.inputs, counts, strict=True))
        loss = functional.cross_entropy(learner.model(*batch), learner.labels[rows])
        learner.optimiser.zero_grad()
        loss.backward()
        learner.optimiser.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def batch_of(
    utterances: list[torch.Tensor] | torch.Tensor, counts: torch.Tensor | None, numbers: list[int], rows: torch.Tensor
) -> torch_heads.Ragged:
    """Some of the utterances, padded to their own longest. `rows` are their `numbers` where the utterances lie, `counts` how
    many frames all have, there too; None on a CPU."""
    if isinstance(utterances, torch.Tensor):  # pooled: nothing to pad
        return torch_heads.Ragged(utterances[rows], torch.full((len(rows),), utterances.shape[1]))
    some = [utterances[number] for number in numbers]
    there = None if counts is None else counts[rows]
    return torch_heads.Ragged(pad_sequence(some, batch_first=True), counts_of(some), there)


def counts_of(utterances: list[torch.Tensor] | torch.Tensor) -> torch.Tensor:
    """The frames of each, i64[n], on the CPU."""
    return torch.tensor([len(x) for x in utterances])


def standardised(
    inputs: tuple[Frames, ...], standards: tuple[Standard, ...], device: str = "cpu"
) -> list[list[torch.Tensor] | torch.Tensor]:
    """The valid frames of every utterance for torch, in the scale of a run's training rows."""
    found = []
    for frames, of in zip(inputs, standards, strict=True):
        each = [
            torch.from_numpy((x[mask] - of.mean) / of.scale).to(device) for x, mask in zip(frames.x, frames.mask, strict=True)
        ]
        found.append(torch.stack(each) if frames.mask.all() else each)
    return found
