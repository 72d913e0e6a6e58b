"""What the comparisons with the original code share. They need torch and fairseq, and say so where those are absent."""

import argparse
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def twins():
    """benchmarks/torch_twins.py: fairseq's own wav2vec, and the masked twin that the benchmarks time."""
    pytest.importorskip("torch", reason="torch is not installed: pip install '.[convert]'")
    from benchmarks import torch_twins

    if torch_twins.installed() is None:
        pytest.skip("fairseq is not installed: READTHEDOCS=1 pip install --no-deps fairseq==0.12.2")
    return torch_twins


def save_as_of_2019(path: Path, model, args: argparse.Namespace, **changes) -> Path:
    """A checkpoint as fairseq wrote them in 2019: options in an argparse.Namespace beside the weights."""
    import torch

    later = ("activation", "vq_type", "infonce")  # options that fairseq did not have then
    stated = {name: value for name, value in vars(args).items() if name not in later}
    content = {
        "args": argparse.Namespace(arch="wav2vec", task="speech_pretraining", **stated),
        "model": model.state_dict(),
        "optimizer_history": [{"criterion_name": "BinaryCrossEntropyCriterion", "num_updates": 400_000}],
        "extra_state": {"epoch": 15, "val_loss": 1.25},
        "last_optimizer_state": {"state": {}, "param_groups": []},
    }
    torch.save({**content, **changes}, path)
    return path
