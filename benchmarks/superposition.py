"""The toy model of superposition: more features than dimensions, packed the closer the rarer they are.

    python -m acdc.benchmarks.superposition [PICTURE]

x_hat = ReLU(W W^T x + b) rebuilds n features x, each 0 with probability `sparsity` and else uniform in 0 to 1, through
m < n dimensions; the loss is sum_i importance_i (x_i - x_hat_i)^2. Two pictures side by side: the phases of the second
of two features in one dimension, by density and relative importance (left out, given the dimension, or sharing it as
the first's opposite), with the boundary by theory; and the dimensionality of 20 features in 5 dimensions, by density.

Source: Elhage et al. 2022 (arXiv 2209.10652).
"""

import io
import sys

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from acdc.annotation.superposition import feature_dimensionality
from acdc.output_folder import write_file

STEPS, BATCH = 3000, 256


def train(density: Float[Tensor, " model"], importance: Float[Tensor, "model feature"], hidden: int, *,
          steps: int = STEPS, seed: int = 0) -> tuple[Float[Tensor, "model feature hidden"], Float[Tensor, " model"]]:
    """Weights of many toy models, trained side by side by Adam at a rate that falls to 0, and their last losses."""
    random = torch.Generator().manual_seed(seed)
    models, n = importance.shape
    weight = (torch.randn(models, n, hidden, generator=random) * (1 / hidden) ** 0.5).requires_grad_()
    bias = torch.zeros(models, n).requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    last = torch.zeros(models)
    for step in range(steps):
        x = torch.rand(models, BATCH, n, generator=random)
        x = x * (torch.rand(models, BATCH, n, generator=random) < density[:, None, None])
        rebuilt = torch.relu(x @ weight @ weight.mT + bias[:, None])
        losses = (importance[:, None] * (x - rebuilt) ** 2).mean((1, 2))
        if step >= steps - 100:
            last += losses.detach() / 100
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        schedule.step()
    return weight.detach(), last


def phases(weight: Float[Tensor, "model 2 1"]) -> np.ndarray:
    """Of the second of two features in one dimension: 0 left out, 1 the dimension is its own, 2 shared."""
    first, second = (weight[:, i, 0].abs() > 0.3 for i in (0, 1))
    return torch.where(second, torch.where(first, 2, 1), 0).numpy()


def losses_by_theory(density: float, importance: float) -> tuple[float, float]:
    """Of two features in one dimension, the first of importance 1: the loss where the more important one has it
    (W = (1, 0) or (0, 1), the other is rebuilt as its mean), and where they share it (W = (1, -1), b = 0).

    A feature's variance is d/3 - d^2/4. Shared, each is rebuilt but for the smaller of both where both are active; the
    square of that has a mean of 1/6 there. Training may find less than the latter, by other lengths and biases.
    """
    return min(1, importance) * (density / 3 - density**2 / 4), (1 + importance) * density**2 / 6


def boundary(importance: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
    """The density below which sharing has the smaller loss by theory."""
    less = np.minimum(1, importance)
    return less / 3 / ((1 + importance) / 6 + less / 4)


def phase_diagram(n: int = 14, tries: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Densities, relative importances, and the phase of the best of the tries."""
    density, importance = np.geomspace(0.01, 1, n), np.geomspace(0.1, 10, n)
    grid = torch.tensor([(d, i) for i in importance for d in density], dtype=torch.float32).repeat_interleave(tries, 0)
    weights, losses = train(grid[:, 0], torch.stack([torch.ones(len(grid)), grid[:, 1]], 1), 1, steps=1500)
    best = losses.view(n, n, tries).argmin(-1)[..., None].numpy()
    return density, importance, np.take_along_axis(phases(weights).reshape(n, n, tries), best, -1)[..., 0]


def packing(densities: Float[np.ndarray, " density"]) -> np.ndarray:
    """The dimensionality of 20 features in 5 dimensions, for each density; each 0.8 times as important as the last."""
    importance = 0.8 ** torch.arange(20).expand(len(densities), -1)
    weights, _ = train(torch.tensor(densities, dtype=torch.float32), importance, 5)
    kept = feature_dimensionality(weights)
    return torch.where(weights.norm(dim=2) > 0.3, kept, 0).numpy()


def main(path: str = "superposition.png") -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import ListedColormap

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    density, importance, found = phase_diagram()
    image = left.pcolormesh(density, importance, found, vmin=-0.5, vmax=2.5,
                            cmap=ListedColormap(["#dddddd", "#0072b2", "#e69f00"]))
    left.set(xscale="log", yscale="log", xlabel="density (1 - sparsity)", ylabel="importance of the second feature",
             title="two features, one dimension")
    line = np.geomspace(importance[0], importance[-1], 200)
    left.plot(boundary(line), line, color="black", linewidth=1.2, label="theory")
    left.plot([boundary(np.ones(1))[0], 1], [1, 1], color="black", linewidth=1.2)
    left.legend(loc="lower left", fontsize=8)
    bar = figure.colorbar(image, ax=left, ticks=[0, 1, 2])
    bar.ax.set_yticklabels(["left out", "its own", "shared"])
    densities = np.geomspace(0.01, 1, 16)
    kept = packing(densities)
    for d, row in zip(densities, kept, strict=True):
        right.plot(np.full(20, d), row, ".", color="#0072b2", alpha=0.4)
    for value, name in ((1, "own dimension"), (1 / 2, "antipodal pair"), (2 / 5, "pentagon")):
        right.axhline(value, color="#999999", linewidth=0.7)
        right.annotate(name, (0.011, value + 0.015), fontsize=8)
    right.set(xscale="log", xlabel="density (1 - sparsity)", ylabel="dimensionality of a feature", ylim=(-0.03, 1.1),
              title="20 features, 5 dimensions")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110, metadata={"Software": None})
    write_file(path, image.getvalue())
    by_theory = np.where(density < boundary(importance)[:, None], 2, importance[:, None] > 1)
    print(f"two features in one dimension: {(by_theory == found).mean():.0%} of the phases are those of theory")
    for d, row in zip(densities, kept, strict=True):
        print(f"density {d:.3f}: {int((row > 0).sum()):2} of 20 features represented, mean dimensionality "
              f"{row[row > 0].mean():.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
