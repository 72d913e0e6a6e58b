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
    losses = []
    for planned in plan:
        rows = torch.from_numpy(planned[planned >= 0].astype(np.int64)).to(learner.labels.device)
        logits = learner.model(*(batch_of(utterances, rows) for utterances in learner.inputs))
        loss = functional.cross_entropy(logits, learner.labels[rows])
        learner.optimiser.zero_grad()
        loss.backward()
        learner.optimiser.step()
        losses.append(loss.detach())
    return [float(loss) for loss in losses]


def batch_of(utterances: list[torch.Tensor] | torch.Tensor, rows: torch.Tensor) -> torch_heads.Ragged:
    """Some of the utterances, padded to their own longest."""
    if isinstance(utterances, torch.Tensor):  # pooled: nothing to pad
        return torch_heads.Ragged(utterances[rows], torch.full((len(rows),), utterances.shape[1]))
    return ragged([utterances[row] for row in rows.tolist()])


def ragged(utterances: list[torch.Tensor]) -> torch_heads.Ragged:
    """A batch, padded to its own longest."""
    return torch_heads.Ragged(pad_sequence(utterances, batch_first=True), torch.tensor([len(x) for x in utterances]))


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
