"""The heads that the training benchmark times, as a torch user would write them, and the way of our weights into them.

Their submodules bear the names of our parameters, so that one walk over the names copies a whole tree. Sequences are packed:
torch's LSTM then sees valid frames only, and both its directions begin where an utterance begins and ends.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from jaxser.aligned import DENSE, WIDTH
from jaxser.heads import mlp_width


class Ragged(NamedTuple):
    """A batch of sequences, padded to the longest: what `store.Frames` is to ours."""

    x: torch.Tensor
    """f32[b, t, d]"""
    lengths: torch.Tensor
    """i64[b], on the CPU, where packing wants them."""
    there: torch.Tensor | None = None
    """The same where x is. Without it they are copied there, which on a GPU waits for all that is underway."""

    def counts(self) -> torch.Tensor:
        """i64[b], where x is."""
        return (self.lengths if self.there is None else self.there).to(self.x.device)

    def mask(self) -> torch.Tensor:
        """bool[b, t], where x is."""
        return torch.arange(self.x.shape[1], device=self.x.device) < self.counts()[:, None]


class Linear(nn.Module):
    """`mean` and `meanmax`, on what was pooled once for all updates."""

    def __init__(self, features: int, classes: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.Dense_0 = nn.Linear(features, classes)

    def forward(self, audio: Ragged) -> torch.Tensor:
        """Logits f32[b, c]."""
        return self.Dense_0(functional.dropout(audio.x.flatten(1), self.dropout, self.training))


class Attention(nn.Module):
    """`attention`."""

    def __init__(self, features: int, classes: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.Dense_0 = nn.Linear(features, 1, bias=False)
        self.Dense_1 = nn.Linear(features, classes)

    def forward(self, audio: Ragged) -> torch.Tensor:
        """Logits f32[b, c]."""
        weights = _softmax_over(self.Dense_0(audio.x)[..., 0], audio.mask())
        pooled = (weights[:, None] @ audio.x)[:, 0]
        return self.Dense_1(functional.dropout(pooled, self.dropout, self.training))


class MLP(nn.Module):
    """`mlp`. Like ours it averages before the linear layer and drops once for all frames."""

    def __init__(self, features: int, classes: int, dropout: float, width: int | None = None):
        super().__init__()
        width = width or mlp_width(features, classes)
        self.dropout = dropout
        self.Dense_0 = nn.Linear(features, width)
        self.Dense_1 = nn.Linear(width, width)
        self.Dense_2 = nn.Linear(width, classes)

    def forward(self, audio: Ragged) -> torch.Tensor:
        """Logits f32[b, c]."""
        x = _dropped(functional.relu(self.Dense_0(audio.x)), self.dropout, self.training)
        x = functional.relu(self.Dense_1(x))
        pooled = (x * audio.mask()[..., None]).sum(1) / audio.counts()[:, None]
        return self.Dense_2(functional.dropout(pooled, self.dropout, self.training))


class Voice(nn.Module):
    """`bilstm`."""

    def __init__(self, features: int, classes: int, dropout: float, width: int = WIDTH, dense: int = DENSE):
        super().__init__()
        self.dropout = dropout
        self.first = nn.Linear(features, dense)
        self.second = nn.Linear(dense, dense)
        self.audio = nn.LSTM(dense, width, batch_first=True, bidirectional=True)
        self.attention = nn.Linear(2 * width, 1, bias=False)
        self.classes = nn.Linear(2 * width, classes)

    def forward(self, audio: Ragged) -> torch.Tensor:
        """Logits f32[b, c]."""
        x = audio.x
        for layer in (self.first, self.second):
            x = _dropped(functional.relu(layer(x)), self.dropout, self.training)
        x = states_of(self.audio, x, audio.lengths)
        weights = _softmax_over(self.attention(x)[..., 0], audio.mask())
        return self.classes(functional.dropout((weights[:, None] @ x)[:, 0], self.dropout, self.training))


class Text(nn.Module):
    """`text`."""

    def __init__(self, features: int, classes: int, dropout: float, width: int = WIDTH):
        super().__init__()
        self.dropout = dropout
        self.text = nn.LSTM(features, width, batch_first=True, bidirectional=True)
        self.classes = nn.Linear(2 * width, classes)

    def forward(self, text: Ragged) -> torch.Tensor:
        """Logits f32[b, c]."""
        pooled = _highest(states_of(self.text, text.x, text.lengths), text.mask())
        return self.classes(functional.dropout(pooled, self.dropout, self.training))


class Alignment(nn.Module):
    """The weights f32[b, k, t] with which each word looks at each frame."""

    def __init__(self, states: int):
        super().__init__()
        self.frame = nn.Linear(states, 1, bias=False)
        self.word = nn.Linear(states, 1)

    def forward(self, frames: torch.Tensor, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """From states f32[b, t, e] and f32[b, k, e] and which frames there are, bool[b, t]."""
        scores = torch.tanh(self.word(words) + self.frame(frames).transpose(1, 2))
        return _softmax_over(scores, mask[:, None])


class Aligned(nn.Module):
    """`aligned`."""

    def __init__(self, audio: int, text: int, classes: int, dropout: float, width: int = WIDTH):
        super().__init__()
        self.dropout = dropout
        self.audio = nn.LSTM(audio, width, batch_first=True, bidirectional=True)
        self.text = nn.LSTM(text, width, batch_first=True, bidirectional=True)
        self.alignment = Alignment(2 * width)
        self.both = nn.LSTM(4 * width, width, batch_first=True, bidirectional=True)
        self.classes = nn.Linear(2 * width, classes)

    def forward(self, audio: Ragged, text: Ragged) -> torch.Tensor:
        """Logits f32[b, c]."""
        heard = _dropped(states_of(self.audio, audio.x, audio.lengths), self.dropout, self.training)
        words = _dropped(states_of(self.text, text.x, text.lengths), self.dropout, self.training)
        weights = self.alignment(heard, words, audio.mask())
        both = states_of(self.both, torch.cat([weights @ heard, words], -1), text.lengths)
        pooled = _highest(both, text.mask())
        return self.classes(functional.dropout(pooled, self.dropout, self.training))


TWINS = {
    "mean": Linear,
    "meanmax": Linear,
    "attention": Attention,
    "mlp": MLP,
    "bilstm": Voice,
    "text": Text,
    "aligned": Aligned,
}
"""By the name of the head."""


def states_of(lstm: nn.LSTM, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """f32[b, t, d] -> f32[b, t, 2 h], zero where a frame is padding."""
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=x.shape[1])[0]


def _softmax_over(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.softmax(scores.masked_fill(~mask, -torch.inf), -1)


def _highest(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x.masked_fill(~mask[..., None], -torch.inf).max(1).values


def _dropped(x: torch.Tensor, rate: float, train: bool) -> torch.Tensor:
    return x * functional.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), rate, train)


DIRECTIONS = ("", "_reverse")
"""What torch appends to the names of an LSTM's forward and backward parameters."""


def copy_weights(params: Mapping[str, Any], module: nn.Module) -> None:
    """Give a twin the values of our parameter tree. torch's second bias becomes zero: the two only act as their sum."""
    with torch.no_grad():
        for name, below in params.items():
            child = module.get_submodule(name)
            if isinstance(child, nn.LSTM):
                copy_lstm(below, child)
            elif isinstance(child, nn.Linear):
                child.weight.copy_(_tensor(below["kernel"]).T)
                if child.bias is not None:
                    child.bias.copy_(_tensor(below["bias"]))
            else:
                copy_weights(below, child)


def copy_lstm(params: Mapping[str, Any], lstm: nn.LSTM) -> None:
    """The same for the parameters of one `lstm.BiLSTM`."""
    with torch.no_grad():
        for way, suffix in enumerate(DIRECTIONS):
            getattr(lstm, f"weight_ih_l0{suffix}").copy_(_tensor(params["input"])[way].T)
            getattr(lstm, f"weight_hh_l0{suffix}").copy_(_tensor(params["recurrent"])[way].T)
            getattr(lstm, f"bias_ih_l0{suffix}").copy_(_tensor(params["bias"])[way])
            getattr(lstm, f"bias_hh_l0{suffix}").zero_()


def _tensor(leaf: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(leaf))  # a copy: arrays of jax cannot be written, of which torch warns


def gradients_of(module: nn.Module) -> dict[str, Any]:
    """A twin's gradients, named and laid out as our parameters; that of our one bias is that of either of torch's two."""
    if isinstance(module, nn.LSTM):
        named = {"input": "weight_ih_l0", "recurrent": "weight_hh_l0", "bias": "bias_ih_l0"}
        return {
            ours: np.stack([getattr(module, theirs + suffix).grad.numpy().T for suffix in DIRECTIONS])
            for ours, theirs in named.items()
        }
    if isinstance(module, nn.Linear):
        bias = {} if module.bias is None else {"bias": module.bias.grad.numpy()}
        return {"kernel": module.weight.grad.numpy().T, **bias}
    return {name: gradients_of(child) for name, child in module.named_children()}
