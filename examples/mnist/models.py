"""Three MLPs for MNIST, 784-2048-2048-10: dense, pruned to 95 %, and a RadiX-Net from scratch.

    python examples/mnist/models.py --output models    # minutes on two cores

Nothing here needs teraedge but the digits and the RadiX-Net's pattern: it is plain PyTorch, and
what comes out are plain `nn.Sequential` modules, with zeros where there is no edge.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from teraedge.datasets import mnist, radixnet

DENSITY = 0.05
"""Of all weights of the pruned model; its last layer, 0.35 % of them, stays dense."""
BATCH = 256
EPOCHS = 2, 2, 4
"""Of the dense model, of the pruned one on top of it, and of the RadiX-Net."""


@dataclass(frozen=True)
class Digits:
    """Images as rows of 784 pixels from 0 to 1, and their labels."""

    x: torch.Tensor
    y: torch.Tensor

    @classmethod
    def load(cls, split: str, count: int | None = None, source: str | None = None) -> "Digits":
        """Read the first `count` images of a split, from the folder `source` where it is given."""
        images = mnist.images(split, source=source)[:count]
        x = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32) / 255)
        labels = mnist.labels(split, source=source)[:count]
        return cls(x, torch.from_numpy(labels.astype(np.int64)))


def mlp(hidden: int = 2048) -> nn.Sequential:
    """Return an MLP with two hidden layers."""
    return nn.Sequential(
        nn.Linear(784, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


def linears(model: nn.Sequential) -> list[nn.Linear]:
    """Return the layers that have weights."""
    return [layer for layer in model if isinstance(layer, nn.Linear)]


def train(
    model: nn.Sequential,
    digits: Digits,
    epochs: int,
    rate: float = 1e-3,
    after_step: Callable[[float], None] | None = None,
) -> None:
    """Train with Adam and a one-cycle rate; `after_step` is told the share of steps done."""
    steps = epochs * (len(digits.y) // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for step in range(steps):
        place = step % (steps // epochs) * BATCH
        if place == 0:
            order = torch.randperm(len(digits.y))
        some = order[place : place + BATCH]
        loss = nn.functional.cross_entropy(model(digits.x[some]), digits.y[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if after_step is not None:
            after_step((step + 1) / steps)
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, digits: Digits) -> float:
    """Return the share of digits that are told right."""
    return float((model(digits.x).argmax(dim=1) == digits.y).float().mean())


def pruned(model: nn.Sequential, digits: Digits, epochs: int) -> nn.Sequential:
    """Prune a trained model by magnitude, gradually, while it is trained on.

    The sparsity rises as in Zhu and Gupta, "To prune, or not to prune" (arXiv 1710.01878), over the
    first two thirds of the steps: s (1 - (1 - t)^3).
    """
    model = copy.deepcopy(model)
    *hidden, last = linears(model)
    total = sum(layer.weight.numel() for layer in hidden)
    keep = (DENSITY * (total + last.weight.numel()) - last.weight.numel()) / total
    masks = [torch.ones_like(layer.weight) for layer in hidden]
    done = -1

    @torch.no_grad()
    def after_step(share: float) -> None:
        nonlocal done
        t = min(share * 1.5, 1.0)
        if int(t * 40) > done:  # the smallest weights go 40 times
            done = int(t * 40)
            density = 1 - (1 - keep) * (1 - (1 - t) ** 3)
            for layer, mask in zip(hidden, masks, strict=True):
                size = layer.weight.abs().flatten()
                smallest = size.kthvalue(max(1, round((1 - density) * len(size)))).values
                mask.copy_(layer.weight.abs() > smallest)
        for layer, mask in zip(hidden, masks, strict=True):
            layer.weight *= mask

    train(model, digits, epochs, after_step=after_step)
    return model


def radix_masks(hidden: int = 2048) -> list[torch.Tensor]:
    """Return which weights the two hidden layers of a RadiX-Net have, as `nn.Linear` keeps them.

    The pixels lie in the middle of a grid of 32 x 32 = 1024 neurons: the first layer's neurons read
    32 neighbours of a row, the second's every 32nd of those, so each of its neurons sees them all.
    """
    side = 32
    net = radixnet.network([[side, side]], [1, hidden // side**2, hidden // side**2], weights=1.0)
    patterns = [torch.from_numpy(layer.weights.toarray().T.copy()) for layer in net]
    edge = (side - 28) // 2
    grid = patterns[0].reshape(-1, side, side)[:, edge : side - edge, edge : side - edge]
    return [grid.reshape(-1, 784).contiguous(), patterns[1]]


def radix(digits: Digits, epochs: int, hidden: int = 2048) -> nn.Sequential:
    """Train a RadiX-Net from scratch: what has no edge is zero from the first step on."""
    model, masks = mlp(hidden), radix_masks(hidden)
    layers = linears(model)[:-1]

    @torch.no_grad()
    def hold(share: float) -> None:
        for layer, mask in zip(layers, masks, strict=True):
            layer.weight *= mask

    with torch.no_grad():
        for layer, mask in zip(layers, masks, strict=True):
            fan_in = mask.sum(dim=1, keepdim=True).clamp(min=1)
            layer.weight.copy_(torch.randn_like(layer.weight) * mask * (2 / fan_in).sqrt())
    train(model, digits, epochs, rate=2e-3, after_step=hold)
    return model


def density(model: nn.Sequential) -> float:
    """Return the share of weights that are not zero."""
    weights = [layer.weight for layer in linears(model)]
    return sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def make(
    digits: Digits, epochs: tuple[int, int, int] = EPOCHS, hidden: int = 2048
) -> Iterator[tuple[str, nn.Sequential]]:
    """Train the three models, for so many epochs each; yields each with its name."""
    dense = mlp(hidden)
    train(dense, digits, epochs[0], rate=1.5e-3)
    yield "dense", dense
    yield "pruned", pruned(dense, digits, epochs[1])
    yield "radix", radix(digits, epochs[2], hidden)


def main() -> None:
    """Train, test and save the models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("models"), help="a folder to make")
    parser.add_argument("--data", help="the folder of MNIST; by default as teraedge finds it")
    parser.add_argument("--epochs", type=int, nargs=3, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    digits = Digits.load("train", source=arguments.data)
    test = Digits.load("test", source=arguments.data)
    arguments.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for name, model in make(digits, tuple(arguments.epochs)):
        torch.save(model.state_dict(), arguments.output / f"{name}.pt")
        print(
            f"{name:7} density {density(model):7.2%}, test accuracy {accuracy(model, test):.2%}, "
            f"after {time.perf_counter() - start:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
