"""What can be read off an activation by a linear probe, and how much of that the probe could have learnt by heart.

Accuracy alone says little: a probe with many dimensions fits anything. So it always comes with that of control tasks,
in which each word type has a label drawn at random, the same wherever it occurs; what is left is the selectivity.
Source: Hewitt & Liang 2019 (arXiv 1909.03368).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from acdc.annotation.variables import Labels
from acdc.errors import AcdcError, unknown_name
from acdc.evaluation.significance import LEVEL, draw_weights, interval, share_interval
from acdc.output_folder import write_file
from acdc.tensor_file import read_tensors, tensor_bytes

C = 0.1  # of the logistic regression; the ridge's penalty is 1 / C. On standardised dimensions
N_FOLDS = 5
N_CONTROLS = 20
FORMAT = "acdc probe 1"


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear probe in the activations' own units: softmax(weight x + bias) over `classes`; one row, for a number.

    `means`: of the activations of each class; None for a number. `about`: site, variable, position, model.
    """

    weight: Float[Tensor, "class width"]
    bias: Float[Tensor, " class"]
    classes: tuple[str, ...] = ()
    means: Float[Tensor, "class width"] | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    def read(self, x: Float[Tensor, "*where width"]) -> Float[Tensor, "*where class"]:
        """The probability of each class, or the number."""
        scores = x @ self.weight.T.to(x) + self.bias.to(x)
        return scores.softmax(-1) if self.classes else scores

    def direction(self, label: str | None = None) -> Float[Tensor, " width"]:
        """What to watch: the weights of a class less the mean of the others', or those of the number. Of two classes it
        is the gradient of the log odds. `label`: by default the last of two classes. Raises `AcdcError` for an unknown
        class."""
        return self.weight[0] if not self.classes else _against_others(self.weight, self._place(label))

    def shift(self, label: str | None = None) -> Float[Tensor, " width"]:
        """From the mean activation of the other classes to that of this one: what to steer by. Errors as `direction`,
        and `AcdcError` for a number."""
        if self.means is None:
            raise AcdcError("a probe of a number has no class to steer to; use its direction")
        return _against_others(self.means, self._place(label))

    def _place(self, label: str | None) -> int:
        if label is None and len(self.classes) == 2:
            return 1
        if label not in self.classes:
            raise unknown_name("class", str(label), self.classes)
        return self.classes.index(label)

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file: weight, bias and means, with classes and `about` as metadata; of two classes or a
        number also `direction`, so that the file serves wherever a direction is wanted (steering, monitoring)."""
        tensors = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
        if self.means is not None:
            tensors["means"] = self.means.contiguous()
        known = {"format": FORMAT, "probe": json.dumps({"classes": self.classes, "about": dict(self.about)})}
        if len(self.classes) in (0, 2) and self.direction().norm() > 0:
            tensors["direction"] = self.direction().contiguous()
            offset = float(self.bias[-1] - self.bias[0]) if self.classes else float(self.bias[0])
            label = f"{self.about.get('variable', 'probe')} = {self.classes[1]}" if self.classes else "number"
            known |= {"site": self.about.get("site", ""), "label": label,
                      "offset": json.dumps(-offset / float(tensors["direction"].norm()))}
        write_file(path, tensor_bytes(tensors, known))

    @staticmethod
    def load(path: str | Path) -> "Probe":
        """What `save` wrote. Raises `AcdcError` for a file that is missing or no probe."""
        tensors, metadata = read_tensors(path, "probe", "give one that acdc probe wrote")
        if metadata.get("format") != FORMAT or not {"weight", "bias"} <= tensors.keys():
            raise AcdcError(f"{str(path)!r} is a safetensors file, but no probe; give one that acdc probe wrote")
        try:
            known = json.loads(metadata["probe"])
            classes, about, (n, width) = known["classes"], known["about"], tensors["weight"].shape
            shapes = {"weight": (n, width), "bias": (n,), "means": (n, width), "direction": (width,)}
            if any(shapes.get(name) != tuple(tensor.shape) or not tensor.is_floating_point()
                   or not torch.isfinite(tensor).all() for name, tensor in tensors.items()):
                raise ValueError("a tensor is of another shape, or not finite")
            are_texts = isinstance(classes, list) and isinstance(about, dict) and all(
                isinstance(text, str) for text in [*classes, *about, *about.values()])
            if not are_texts or n != max(1, len(classes)):
                raise ValueError("its classes do not fit its weights, or its record is not of texts")
            return Probe(tensors["weight"], tensors["bias"], tuple(classes), tensors.get("means"), about)
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise AcdcError(f"{str(path)!r} is a damaged probe ({error}); write it anew with acdc probe") from error


def _against_others(rows: Float[Tensor, "class width"], place: int) -> Float[Tensor, " width"]:
    others = [i for i in range(len(rows)) if i != place]
    return rows[place] - rows[others].mean(0)


@dataclass(frozen=True)
class Result:
    """How well a probe does on rows it was not fitted on, beside its controls.

    `measure`: "accuracy", or "r2" for numbers, whose share of variance explained is then called accuracy. `low`,
    `high`: its interval at 95%. `majority`: of always the most frequent class (0 for numbers). `control`: the mean over
    control tasks, `controls` each. `selectivity` = accuracy - control. `n_left_out`: rows of
    classes in fewer than five groups.

    `z`, `p`: see `against`, among `controls`; or among `shuffled`, where that holds anything: accuracies for labels
    shuffled among the rows of each word type, taken where most rows are of words that have several labels. There words
    cannot tell the labels, and control tasks of few words are easy, so that selectivity says nothing.
    """

    variable: str
    measure: str
    accuracy: float
    low: float
    high: float
    majority: float
    control: float
    controls: tuple[float, ...]
    selectivity: float
    z: float
    p: float
    n_rows: int
    n_left_out: int
    n_words: int
    classes: tuple[str, ...]
    width: int
    shuffled: tuple[float, ...] = ()

    def __str__(self) -> str:
        shuffled = f", shuffled within words {np.mean(self.shuffled):.2f}" if self.shuffled else ""
        return (f"{self.measure} {self.accuracy:.2f} ({self.low:.2f} to {self.high:.2f}), control {self.control:.2f}"
                f"{shuffled}, selectivity {self.selectivity:+.2f} (p {self.p:.2g}); majority {self.majority:.2f}")

    def record(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def against(value: float, draws: Float[np.ndarray, " draw"]) -> tuple[float, float]:
    """z = (value - mean) / sd of the draws (0 where they do not differ), and the one-sided rank p that the value is one
    more draw: (1 + draws at or above it) / (1 + draws)."""
    spread = float(draws.std(ddof=1))
    z = (value - float(draws.mean())) / spread if spread else 0.0
    return z, (1 + int((draws >= value).sum())) / (1 + len(draws))


def usable(labels: Labels) -> Bool[np.ndarray, " row"]:
    """Which rows are of classes found in at least five groups, so that each can be fitted and tested.

    Raises `AcdcError` where fewer than two classes (or, of numbers, two values or ten groups) are left.
    """
    kept, lack = _usable(labels)
    if lack is not None:
        raise AcdcError(lack)
    return kept


def can_be_probed(labels: Labels) -> bool:
    """Whether enough rows are `usable`."""
    return _usable(labels)[1] is None


def _usable(labels: Labels) -> tuple[Bool[np.ndarray, " row"], str | None]:
    """The usable rows, and what is wrong with them, if anything."""
    if labels.numeric:
        n_values, n_groups = len(np.unique(labels.values)), len(np.unique(labels.group))
        enough = n_groups >= 2 * N_FOLDS and n_values >= 2
        return np.ones(len(labels), dtype=bool), None if enough else (
            f"{labels.name}: a number is probed where it varies, over {2 * N_FOLDS} groups at least; given {n_values} "
            f"values in {n_groups} groups")
    counts = {name: len(np.unique(labels.group[labels.values == name])) for name in labels.classes}
    kept = [name for name, n in counts.items() if n >= N_FOLDS]
    given = ", ".join(f"{name!r} in {n}" for name, n in list(counts.items())[:8])
    return np.isin(labels.values, kept), None if len(kept) >= 2 else (
        f"{labels.name}: a probe needs two classes, each in {N_FOLDS} groups (prompts, words or templates) at least; "
        f"given {given}{' ...' if len(counts) > 8 else ''}")


def probe(x: Float[Tensor, "row width"], labels: Labels, *, c: float = C, n_controls: int = N_CONTROLS, seed: int = 0
          ) -> Result:
    """How well a linear probe reads the labels off the rows of x, five-fold, beside control tasks.

    Classes: logistic regression with an L2 penalty of 1/c; numbers: ridge. Dimensions are standardised over all rows
    (no label enters). No group is on both sides of a fold; folds hold equal shares of each class. `accuracy` is over
    all rows, each predicted by the fit that did not see it. Its interval is the exact one of a share, as if each group
    were one row; of r2, over draws of rows. A control task gives each word type the label of another one, drawn at
    random, and is probed in the same way. Where words do not tell the labels, labels shuffled within words are too, and
    p is against those (see `Result`).

    It misleads where words hardly repeat: then nothing can be learnt by heart, and the control is chance; and a probe
    finds what is there whether or not the model uses it (see `acdc.annotation.erasure`). Cost: 5 (1 + n_controls) fits,
    twice that with shuffles, in as many dimensions as there are rows, at most. Raises `AcdcError` as `usable`.
    """
    from threadpoolctl import threadpool_limits  # here, because its import sets an environment variable

    if n_controls < 2:
        raise AcdcError(f"{n_controls} control tasks: give at least 2, better 20; an accuracy says nothing without")
    with threadpool_limits(1):  # threads that wait for each other cost small fits more than they bring
        return _probe(x, labels, c, n_controls, seed)


def _probe(x: Float[Tensor, "row width"], labels: Labels, c: float, n_controls: int, seed: int) -> Result:
    kept = usable(labels)
    chosen = labels.of(kept)
    points = _reduced(_standardised(x[torch.from_numpy(kept)].numpy())[0])
    rng = np.random.default_rng(seed)
    predicted = _predictions(points, chosen, chosen.values, c, rng)
    controls = []
    for _ in range(n_controls):
        drawn = control_labels(chosen, rng)
        controls.append(_accuracy(drawn, _predictions(points, chosen, drawn, c, rng)))
    shuffled = []
    if not words_tell(chosen):
        for _ in range(n_controls):
            drawn = shuffled_labels(chosen, rng)
            shuffled.append(_accuracy(drawn, _predictions(points, chosen, drawn, c, rng)))
    accuracy, control = _accuracy(chosen.values, predicted), float(np.mean(controls))
    low, high = _interval(chosen, predicted, accuracy, seed)
    z, p = against(accuracy, np.array(shuffled or controls))
    majority = 0.0 if chosen.numeric else float(np.unique(chosen.values, return_counts=True)[1].max() / len(chosen))
    return Result(labels.name, "r2" if chosen.numeric else "accuracy", accuracy, low, high, majority, control,
                  tuple(controls), accuracy - control, z, p, len(chosen), len(labels) - len(chosen),
                  len(np.unique(chosen.word)), tuple(chosen.classes), x.shape[1], tuple(shuffled))


def control_labels(labels: Labels, rng: np.random.Generator) -> Shaped[np.ndarray, " row"]:
    """Labels of a control task: each word type has that of another type, drawn at random; at least two differ.

    Raises `AcdcError` where there is one type.
    """
    types, own = np.unique(labels.word, return_inverse=True)
    if len(types) < 2:
        raise AcdcError(f"{labels.name}: all rows have one word type, so that no control task can be drawn")
    for _ in range(1000):
        mixed = rng.permutation(len(labels))
        first = np.unique(own[mixed], return_index=True)[1]  # a row of each type, at random
        of_type = labels.values[mixed[first]]
        if len(np.unique(of_type)) > 1:
            return rng.permutation(of_type)[own]
    raise AcdcError(f"{labels.name}: {len(types)} word types all have one label, so that no control task can be drawn")


def words_tell(labels: Labels) -> bool:
    """Whether at least half of the rows are of word types that have one label each."""
    types, own = np.unique(labels.word, return_inverse=True)
    single = np.array([len(np.unique(labels.values[own == i])) == 1 for i in range(len(types))])
    return bool(single[own].mean() >= 0.5)


def shuffled_labels(labels: Labels, rng: np.random.Generator) -> Shaped[np.ndarray, " row"]:
    """The labels, shuffled among the rows of each word type: they keep what words tell, and nothing else."""
    drawn = labels.values.copy()
    for word in np.unique(labels.word):
        rows = np.nonzero(labels.word == word)[0]
        drawn[rows] = drawn[rng.permutation(rows)]
    return drawn


def fit(x: Float[Tensor, "row width"], labels: Labels, *, c: float = C, about: Mapping[str, str] | None = None
        ) -> Probe:
    """The probe fitted on all rows, in the units of x. Errors as `usable`."""
    kept = usable(labels)
    chosen = labels.of(kept)
    points = x[torch.from_numpy(kept)].numpy()
    standardised, mean, scale = _standardised(points)
    weight, bias = _fit(standardised, chosen.values, c)
    weight = weight / scale
    bias = bias - weight @ mean
    means = None if chosen.numeric else np.stack([points[chosen.values == name].mean(0) for name in chosen.classes])
    float32 = [None if part is None else torch.from_numpy(part).float() for part in (weight, bias, means)]
    assert float32[0] is not None and float32[1] is not None
    return Probe(float32[0], float32[1], tuple(chosen.classes), float32[2], dict(about or {}))


def _standardised(x: Float[np.ndarray, "row width"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x with mean 0 and standard deviation 1 in each dimension that varies, that mean, and what it is divided by."""
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-9 * np.abs(x).max(initial=1e-300), scale, 1.0)
    return (x - mean) / scale, mean, scale


def _reduced(x: Float[np.ndarray, "row width"]) -> Float[np.ndarray, "row dimension"]:
    """The same rows up to a rotation, in as many dimensions as there are rows at most: an L2 penalty cannot tell."""
    if len(x) >= x.shape[1]:
        return x
    values, vectors = np.linalg.eigh(x @ x.T)
    kept = values > 1e-10 * max(float(values[-1]), 1e-300)
    return vectors[:, kept] * np.sqrt(values[kept])


def _predictions(x: Float[np.ndarray, "row dimension"], labels: Labels, values: Shaped[np.ndarray, " row"], c: float,
                 rng: np.random.Generator) -> Shaped[np.ndarray, " row"]:
    """What is predicted of each row by the probe of the four folds that it is not in."""
    fold, predicted = _folds(labels.group, values, rng), values.copy()
    for test in (fold == i for i in range(N_FOLDS)):
        seen = np.unique(values[~test])
        if len(seen) == 1:
            predicted[test] = seen[0]
            continue
        weight, bias = _fit(x[~test], values[~test], c)
        scores = x[test] @ weight.T + bias
        predicted[test] = scores[:, 0] if labels.numeric else seen[scores.argmax(1)]
    return predicted


def _folds(group: Shaped[np.ndarray, " row"], values: Shaped[np.ndarray, " row"], rng: np.random.Generator
           ) -> Int[np.ndarray, " row"]:
    """The fold of each row: groups in the order of their label, else at random, dealt out in turn."""
    names, first, own = np.unique(group, return_index=True, return_inverse=True)
    order = np.lexsort((rng.random(len(names)), values[first]))
    fold = np.empty(len(names), dtype=int)
    fold[order] = (np.arange(len(names)) + rng.integers(N_FOLDS)) % N_FOLDS
    return fold[own]


def _fit(x: Float[np.ndarray, "row dimension"], values: Shaped[np.ndarray, " row"], c: float
         ) -> tuple[np.ndarray, np.ndarray]:
    """Weights [class, dimension] and biases; the scores of two classes are opposite."""
    import sklearn
    from sklearn.linear_model import LogisticRegression, Ridge  # here, because it takes a second to import

    if x.shape[1] == 0:
        x = np.zeros((len(x), 1))
    with sklearn.config_context(assume_finite=True):
        if values.dtype.kind == "f":
            ridge = Ridge(alpha=1 / c).fit(x, values)
            return np.atleast_2d(ridge.coef_), np.atleast_1d(ridge.intercept_)
        model = LogisticRegression(C=c, max_iter=1000).fit(x, values)
    if len(model.classes_) == 2:
        return np.concatenate([-model.coef_, model.coef_]) / 2, np.concatenate([-model.intercept_,
                                                                                model.intercept_]) / 2
    return model.coef_, model.intercept_


def _accuracy(values: Shaped[np.ndarray, " row"], predicted: Shaped[np.ndarray, " row"]) -> float:
    if values.dtype.kind == "f":
        return 1 - float(((values - predicted) ** 2).mean() / values.var())
    return float((values == predicted).mean())


def _interval(labels: Labels, predicted: Shaped[np.ndarray, " row"], accuracy: float, seed: int
              ) -> tuple[float, float]:
    n_groups = len(np.unique(labels.group))
    if not labels.numeric:
        return share_interval(round(accuracy * n_groups), n_groups, LEVEL)
    weights = draw_weights(len(labels), 1000, seed)
    spread = (labels.values - labels.values.mean()) ** 2
    ratios = (weights @ (labels.values - predicted) ** 2) / (weights @ spread)
    low, high = interval(1 - ratios[None], n_groups)[0]
    return float(low), float(high)
