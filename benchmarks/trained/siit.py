"""Trains a network to hold a program's variables in chosen nodes, and nothing of use in the others.

    python -m acdc.benchmarks.trained.siit --program frac_prevs      # writes frac_prevs.safetensors and .json

Strict interchange-intervention training, on pairs of random prompts, base and source; l is the squared error of a
number, or the cross-entropy of a class, averaged over the positions after BOS:

    L_behaviour = mean over pairs of l(network(base), program(base))
    L_IIT       = mean over pairs and variables v of
                  l(network(base; v's node as on source), program(base; v as on source))
    L_SIIT      = mean over pairs and nodes n that hold no variable of
                  l(network(base; n as on source), program(base))
    L           = L_behaviour + iit_weight * L_IIT + strict_weight * L_SIIT

The pairs of a batch are shared out evenly among the variables, and among the nodes that hold none. What a node writes
on source is a constant for the gradient.

Phases: train; measure on prompts that training never saw; draw prompts for discovery; measure the effect of every node
and edge there; write.

Source: Geiger et al. 2022 (arXiv 2112.00826) for IIT; Gupta et al. 2024, InterpBench (arXiv 2407.14494) for the strict
term.
"""

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from acdc.benchmarks.compiled.load import LOGIT_DISTANCE, batch_of  # pyright: ignore[reportMissingImports]
from acdc.benchmarks.trained.network import (  # pyright: ignore[reportMissingImports]
    Outputs,
    Size,
    Swap,
    new_network,
    node_names,
    outputs,
    rise_and_fall,
    written,
)
from acdc.benchmarks.trained.programs import (  # pyright: ignore[reportMissingImports]
    PROGRAMS,
    Program,
    Values,
    program,
)
from acdc.benchmarks.trained.stored import FOLDER, known, write  # pyright: ignore[reportMissingImports]
from acdc.metrics import METRICS
from acdc.models import load_model

TOLERANCE = 0.05  # within which a number counts as right
PAIRS = 64  # of prompts, for discovery
MOVED = 0.1  # an edge counts if cutting it alone moves the number by more than this, or the classes by so many nats


@dataclass(frozen=True)
class Settings:
    """Of AdamW, whose learning rate goes as `rise_and_fall` says, and of the network."""

    steps: int = 2500
    batch: int = 128
    learning_rate: float = 3e-3
    iit_weight: float = 5.0
    strict_weight: float = 10.0
    weight_decay: float = 0.3
    clip: float = 0.1
    d_model: int = 16
    d_mlp: int = 32
    seed: int = 0


SETTINGS = {
    "frac_prevs": Settings(),
    "pair_balance": Settings(iit_weight=10.0, strict_weight=5.0, d_model=24, d_mlp=48),
    "detect_ab": Settings(learning_rate=2e-3, iit_weight=3.0, strict_weight=3.0),
}


def size_of(of: Program, settings: Settings) -> Size:
    return Size(vocabulary=len(of.vocabulary), positions=of.length, outputs=of.classes or 1, d_model=settings.d_model,
                d_mlp=settings.d_mlp)


def outside(of: Program, size: Size) -> list[str]:
    """The nodes that are to hold no variable."""
    inside = {variable.node for variable in of.variables.values()}
    return [name for name in node_names(size) if name not in inside]


def error(given: Outputs, wanted: Values) -> Float[Tensor, ""]:
    """l of the module's docstring."""
    given, wanted = given[:, 1:], wanted[:, 1:]
    if given.shape[-1] == 1:
        return F.mse_loss(given[..., 0], wanted)
    return F.cross_entropy(given.flatten(0, 1), wanted.flatten().long())


def right(given: Outputs, wanted: Values) -> Bool[Tensor, "batch pos_after_bos"]:
    """Where the network says what it should, at the positions after BOS."""
    given, wanted = given[:, 1:], wanted[:, 1:]
    if given.shape[-1] == 1:
        return (given[..., 0] - wanted).abs() < TOLERANCE
    return given.argmax(-1) == wanted


def shares(n: int, among: int, start: int) -> list[slice]:
    """n rows from `start` on, shared out."""
    ends = [start + n * i // among for i in range(among + 1)]
    return [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]


def losses(hf: Any, of: Program, base: Int[Tensor, "pair pos"], source: Int[Tensor, "pair pos"], nodes: list[str]
           ) -> dict[str, Float[Tensor, ""]]:
    """L_behaviour, L_IIT and L_SIIT of some pairs, in one pass over three copies of base. `nodes`: those of no use."""
    n, on_base, on_source, wrote = len(base), of.run(base), of.run(source), written(hf, source)
    wanted, swaps = [on_base[of.output]], []
    for (name, variable), rows in zip(of.variables.items(), shares(n, len(of.variables), n), strict=True):
        pairs = slice(rows.start - n, rows.stop - n)
        swaps.append(Swap(variable.node, rows, wrote[variable.node][pairs]))
        wanted.append(of.run(base[pairs], {name: on_source[name][pairs]})[of.output])
    for node, rows in zip(nodes, shares(n, len(nodes), 2 * n), strict=True):
        swaps.append(Swap(node, rows, wrote[node][rows.start - 2 * n : rows.stop - 2 * n]))
    given = outputs(hf, base.repeat(3, 1), swaps)
    return {"behaviour": error(given[:n], wanted[0]), "iit": error(given[n : 2 * n], torch.cat(wanted[1:])),
            "strict": error(given[2 * n :], wanted[0])}


def train(name: str, settings: Settings, *, report: bool = False) -> tuple[Any, list[dict[str, float]]]:
    """A network trained on a program, and the losses of every step."""
    of = program(name)
    size = size_of(of, settings)
    hf, nodes = new_network(size, settings.seed), outside(of, size)
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(hf.parameters(), lr=settings.learning_rate,
                                  weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rise_and_fall(settings.steps, power=2))
    history = []
    for step in range(settings.steps):
        base, source = (of.draw(settings.batch, generator, held_out=False) for _ in range(2))
        found = losses(hf, of, base, source, nodes)
        optimizer.zero_grad()
        weights = {"behaviour": 1, "iit": settings.iit_weight, "strict": settings.strict_weight}
        torch.stack([weights[key] * loss for key, loss in found.items()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), settings.clip)
        optimizer.step()
        schedule.step()
        history.append({key: loss.item() for key, loss in found.items()})
        if report and (step % 250 == 249 or step == 0):
            print(step + 1, {key: f"{loss:.2e}" for key, loss in history[-1].items()}, flush=True)
    return hf, history


@torch.no_grad()
def metrics(hf: Any, of: Program, nodes: list[str], *, pairs: int = 1024, seed: int = 1) -> dict[str, Any]:
    """On pairs of held-out prompts, the share of positions at which the network is right: as it is (`accuracy`), with
    the node of each variable as on source (`interchange`), with each other node as on source (`strict`)."""
    generator = torch.Generator().manual_seed(seed)
    base, source = (of.draw(pairs, generator, held_out=True) for _ in range(2))
    wrote, on_base, on_source = written(hf, source), of.run(base), of.run(source)

    def share(given: Outputs, wanted: Values) -> float:
        return float(right(given, wanted).float().mean())

    def swapped(node: str) -> Outputs:
        return outputs(hf, base, [Swap(node, slice(None), wrote[node])])

    return {
        "accuracy": share(outputs(hf, base), on_base[of.output]),
        "interchange": {name: share(swapped(variable.node), of.run(base, {name: on_source[name]})[of.output])
                        for name, variable in of.variables.items()},
        "strict": {node: share(swapped(node), on_base[of.output]) for node in nodes},
    }


def pairs_that_differ(of: Program, n: int, generator: torch.Generator) -> dict[str, list[list[int]]]:
    """Pairs of held-out prompts for which the program says different things at the last position."""
    base, source = (of.draw(8 * n, generator, held_out=True) for _ in range(2))
    last = [of.run(tokens)[of.output][:, -1] for tokens in (base, source)]
    differ = (last[0] - last[1]).abs() > TOLERANCE
    return {"clean": base[differ][:n].tolist(), "corrupted": source[differ][:n].tolist()}


def make(name: str, settings: Settings, folder: Path, *, report: bool = False) -> dict[str, Any]:
    """Trains, measures and writes a model."""
    of, start = program(name), time.process_time()
    size = size_of(of, settings)
    hf, history = train(name, settings, report=report)
    seconds, hf = time.process_time() - start, hf.eval()
    reached = {**metrics(hf, of, outside(of, size)), "losses": {
        key: sum(step[key] for step in history[-100:]) / 100 for key in history[0]}}
    prompts = pairs_that_differ(of, PAIRS, torch.Generator().manual_seed(settings.seed + 2))
    model = load_model(hf, dtype="float64")
    batches = [batch_of(model, prompts, list(of.vocabulary), of.labels)]
    metric = METRICS["kl_divergence"] if of.classes else LOGIT_DISTANCE
    found = known(hf, batches, metric, {"zero": MOVED, "resample": MOVED})
    found["truth"] = {"program": of.edges, **found["truth"]}
    record = {
        "computes": of.computes, "vocabulary": of.vocabulary, "labels": of.labels,
        "nodes": {"input": "tokens", **{variable.node: key for key, variable in of.variables.items()}},
        "reached": reached, "training": {"script": "siit.py", **asdict(settings), "cpu_seconds": round(seconds),
                                         "torch": torch.__version__}, **found,
    }
    write(folder, name, hf, size, batches, record)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a network to hold a program's variables in chosen nodes.")
    parser.add_argument("--program", choices=PROGRAMS, required=True)
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder to write to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # small matrices: more threads are slower
    record = make(arguments.program, SETTINGS[arguments.program], arguments.out, report=True)
    print(record["reached"])
    for ablation in ("zero", "resample"):
        ranked = sorted(record["effects"][ablation].items(), key=lambda item: -item[1])
        print(ablation, {key: f"{effect:.2e}" for key, effect in ranked[:16]})


if __name__ == "__main__":
    main()
