"""Edge scores against those of EAP-IG's library and of auto-circuit: one model, the same prompts and settings.

    python -m acdc.benchmarks.peers.scores --peer-python peer/bin/python --eap-ig-source EAP-IG

`ENVIRONMENT` says how to make the peers' environment and where the library comes from; the source may be a checkout or
a bare git directory. A peer that is not there is not compared, which the table says. With `--results` it is recorded.
"""

import argparse
import copy
import io
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acdc.benchmarks.acdc_speed import random_gpt2  # pyright: ignore[reportMissingImports]
from acdc.benchmarks.peers.side import PeerMissingError, ask  # pyright: ignore[reportMissingImports]
from acdc.benchmarks.record import write_table  # pyright: ignore[reportMissingImports]
from acdc.circuit import EdgeScores
from acdc.discovery import METHODS
from acdc.metrics import METRICS
from acdc.models import load_model
from acdc.task import Batch
from acdc.transformer import Transformer

ENVIRONMENT = """python3.11 -m venv peer
peer/bin/pip install torch==2.13.0 auto-circuit==1.0.1 transformer-lens==1.19.0 transformers==4.56.2 \\
    typeguard==2.13.3 attrs==26.1.0 pyarrow==22.0.0 matplotlib==3.10.8
git clone https://github.com/hannamw/EAP-IG          # on no package index
git -C EAP-IG checkout {commit}"""
ABOUT = """The model is a GPT-2 with random weights ({layers} layers, {heads} heads, width {width}: {n_edges:,} edges),
stored by us and loaded by both sides; the peers' converts it to TransformerLens and stops if a logit differs by 1e-4.
The 16 prompts are 12 random tokens; clean and corrupted differ at one position. All is float32. EAP-IG's library is
used from its source, with its tensors on the CPU instead of a GPU and tokens instead of texts. Its losses are sums over
a batch's prompts, where not said otherwise; 5 steps.

Largest difference: of an edge's two scores, as a share of the largest |score|. Factor: what ours are multiplied by to
come nearest to theirs. Top 1%: how many of our strongest edges by |score| are among theirs; edges as strong as the last
one, within 1e-5 of the largest, are ties, and count. Where the two differ, the last column says why, and rows below,
where that can be, compare without it."""
TIE = 1e-5  # of the largest |score|
TOP = 0.01


@dataclass(frozen=True)
class Comparison:
    """What one row compares: a run of the peer, and the method of ours with its options.

    `model`: as it is, without position embedding, or a small one. `edges`: all, or a part named in `PARTS`.
    """

    title: str
    peer: dict[str, Any]
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    loss: str = "logit_difference"
    remark: str = ""
    model: str = "as it is"
    edges: str = "all"


PARTS = {
    "all": lambda src, dst: True,
    "not out of input": lambda src, dst: src != "input",
    "not into logits": lambda src, dst: dst != "logits",
}

NO_POSITION, SMALL = "without position embedding", "small"
LAST_ONLY = "theirs sums over the last token only, divides by the length and then averages over all nodes"
EAP_IG = (
    Comparison("EAP", {"method": "EAP"}, "eap"),
    Comparison("EAP-IG (inputs)", {"method": "EAP-IG-inputs"}, "eap_ig"),
    Comparison("EAP-IG (inputs), KL", {"method": "EAP-IG-inputs", "loss": "kl_divergence"}, "eap_ig",
               loss="kl_divergence"),
    Comparison("clean-corrupted", {"method": "clean-corrupted"}, "eap_clean_corrupted"),
    Comparison("EAP-IG (activations)", {"method": "EAP-IG-activations"}, "eap_ig_activations", {"gradients": "all"}),
    Comparison("EAP-IG (activations) against our default", {"method": "EAP-IG-activations"}, "eap_ig_activations",
               remark="ours takes for an edge the gradients of its own src's sublayer, theirs the mean over all"),
    Comparison("exact, model of 2 layers, 4 heads, width 64", {"method": "exact", "reduce": "each"}, "exact",
               model=SMALL),
    Comparison("EAP in batches of 8", {"method": "EAP", "batch_size": 8}, "eap"),
    Comparison("EAP in batches of 8, mean loss", {"method": "EAP", "batch_size": 8, "reduce": "mean"}, "eap",
               remark="with the notebooks' mean over a batch, their division by the number of prompts comes on top: "
                      "1/8; the order of the edges is the same"),
    Comparison("EAP, mean ablation by position", {"method": "EAP", "intervention": "mean-positional"}, "eap",
               {"ablation": "mean"}),
    Comparison("EAP, mean ablation", {"method": "EAP", "intervention": "mean"}, "eap",
               {"ablation": "mean_over_positions"}, remark=f"the mean: by its code, {LAST_ONLY}"),
    Comparison("EAP, zero ablation", {"method": "EAP", "intervention": "zero"}, "eap", {"ablation": "zero"},
               remark="the position embedding, which is in no node of theirs, and in `input` of ours"),
    Comparison("EAP, zero ablation, edges not out of input", {"method": "EAP", "intervention": "zero"}, "eap",
               {"ablation": "zero"}, edges="not out of input"),
    Comparison("EAP, zero ablation, model without position embedding", {"method": "EAP", "intervention": "zero"}, "eap",
               {"ablation": "zero"}, model=NO_POSITION),
    Comparison("information flow routes", {"method": "information-flow-routes"}, "ifr",
               remark="the position embedding, as above; into the logits, ours reads the last token, theirs all"),
    Comparison("information flow routes, model without position embedding, edges not into logits",
               {"method": "information-flow-routes"}, "ifr", model=NO_POSITION, edges="not into logits"),
)
AUTO_CIRCUIT = (
    Comparison("mask gradient, logits", {"function": "logit"}, "eap"),
    Comparison("mask gradient, probabilities", {"function": "prob"}, "eap", loss="probability_difference"),
)


@dataclass(frozen=True)
class Agreement:
    """How far two lists of scores agree. `beyond`: edges of our top that are not in theirs, ties apart."""

    pearson: float
    largest: float
    factor: float
    n_top: int
    shared: int
    beyond: int


def agreement(ours: np.ndarray, theirs: np.ndarray) -> Agreement:
    n_top = max(1, int(TOP * len(ours)))
    tops = [np.argsort(-np.abs(values), kind="stable")[:n_top] for values in (ours, theirs)]
    least = np.abs(theirs)[tops[1]].min()
    tied = np.abs(theirs) >= least - TIE * np.abs(theirs).max()
    return Agreement(
        float(np.corrcoef(ours, theirs)[0, 1]), float(np.abs(ours - theirs).max() / np.abs(ours).max()),
        float(ours @ theirs / (ours @ ours)), n_top, len(set(tops[0]) & set(tops[1])),
        n_top - int(tied[tops[0]].sum()))


def aligned(scores: EdgeScores, theirs: dict[str, float], part: str) -> tuple[np.ndarray, np.ndarray]:
    """Both sides' scores of the edges of a part, in our order. The graphs must have the same edges."""
    names = scores.graph.edge_names
    assert set(names) == set(theirs), f"edges of one side only: {sorted(set(names) ^ set(theirs))[:5]}"
    chosen = [name for name in names if PARTS[part](*name.split("->"))]
    return np.array([scores[name] for name in chosen]), np.array([theirs[name] for name in chosen])


def compare(row: Comparison, model: Transformer, batch: Batch, theirs: dict[str, float]) -> Agreement:
    scores = METHODS[row.method](model, [batch], METRICS[row.loss], **row.options)
    return agreement(*aligned(scores, theirs, row.edges))


def cells(row: Comparison, found: Agreement) -> list[str]:
    options = "".join(f", {key}={value}" for key, value in row.options.items())
    ties = f" ({found.beyond} beyond ties)" if found.beyond else ""
    return [row.title, f"`{row.method}`{options}", row.loss, f"{found.pearson:.7f}", f"{found.largest:.1e}",
            f"{found.factor:.4g}", f"{found.shared} of {found.n_top}{ties}", row.remark or "–"]


COLUMNS = ("theirs", "ours", "loss", "Pearson", "largest difference", "factor", "top 1%", "why they differ")


def source_of(path: Path, work: Path) -> tuple[Path, str]:
    """The folder that holds the package `eap`, and the commit: of a checkout, or of a bare git directory."""
    git = ["git", "-C", str(path)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    if (path / "src" / "eap").is_dir():
        return path / "src", commit or "not known"
    done = subprocess.run([*git, "archive", "HEAD", "src"], capture_output=True, check=False)
    if done.returncode:
        raise PeerMissingError(f"{path} holds no src/eap, and is no git directory that does")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(work, filter="data")
    return work / "src", commit


def without_position_embedding(model: Transformer) -> Transformer:
    hf = copy.deepcopy(model.hf)
    with torch.no_grad():
        hf.transformer.wpe.weight.zero_()
    return load_model(hf)


def scores_of_eap_ig(python: str, source: Path, models: dict[str, Transformer], batch: Batch,
                     rows: Sequence[Comparison]) -> tuple[list[dict[str, float]], dict[str, str]]:
    """The library's scores for each row, and what it ran with."""
    answers: list[dict[str, float]] = [{} for _ in rows]
    versions: dict[str, str] = {}
    for name, model in models.items():
        places = [i for i, row in enumerate(rows) if row.model == name]
        runs = [{"loss": "logit_difference", "steps": 5, **rows[i].peer} for i in places]
        answer = ask(python, "eap_ig_side.py", model, batch, source=str(source.resolve()), runs=runs)
        versions = answer["versions"]
        for i, scores in zip(places, answer["scores"], strict=True):
            answers[i] = scores
    return answers, versions


def missing(peer: str, why: str) -> list[str]:
    return [f"{peer}: not compared, {why}", *["–"] * (len(COLUMNS) - 1)]


def table(arguments: argparse.Namespace, models: dict[str, Transformer], batch: Batch
          ) -> tuple[list[list[str]], dict[str, Any]]:
    """The rows of both peers, as text, and what was compared with."""
    lines: list[list[str]] = []
    known: dict[str, Any] = {}

    def add(peer: str, rows: Sequence[Comparison], answers: Sequence[dict[str, float]]) -> None:
        for row, theirs in zip(rows, answers, strict=True):
            found = compare(row, models[row.model], batch, theirs)
            lines.append([f"{peer}: {row.title}", *cells(row, found)[1:]])
            known[f"{peer}: {row.title}"] = vars(found)
            print(" | ".join(lines[-1]), flush=True)

    try:
        if arguments.eap_ig_source is None:
            raise PeerMissingError("no source was given")
        with tempfile.TemporaryDirectory() as work:
            source, known["commit"] = source_of(arguments.eap_ig_source, Path(work))
            answers, known["EAP-IG"] = scores_of_eap_ig(arguments.peer_python, source, models, batch, EAP_IG)
        add("EAP-IG", EAP_IG, answers)
    except PeerMissingError as error:
        lines.append(missing("EAP-IG", str(error)))
    try:
        answer = ask(arguments.peer_python, "auto_circuit_side.py", models["as it is"], batch,
                     functions=[row.peer["function"] for row in AUTO_CIRCUIT])
        known["auto-circuit"] = answer["versions"]
        add("auto-circuit", AUTO_CIRCUIT, answer["scores"])
    except PeerMissingError as error:
        lines.append(missing("auto-circuit", str(error)))
    return lines, known


def main() -> None:
    parser = argparse.ArgumentParser(description="Edge scores against EAP-IG's library and auto-circuit.")
    parser.add_argument("--peer-python", required=True, help="the Python of an environment that holds the peers")
    parser.add_argument("--eap-ig-source", type=Path, help="a checkout of EAP-IG, or its bare git directory")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--difference", type=int, default=3, help="the position of 12 at which prompts differ")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, help="where to write peer_scores.json and the page README.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, (batch,) = random_gpt2(arguments.layers, arguments.heads, arguments.width, arguments.difference)
    models = {"as it is": model, NO_POSITION: without_position_embedding(model),
              SMALL: random_gpt2(2, 4, 64)[0]}
    lines, known = table(arguments, models, batch)
    if arguments.results:
        setting = {key: getattr(arguments, key) for key in ("layers", "heads", "width", "difference", "threads")}
        options = "".join(f" --{key} {value}" for key, value in setting.items() if value != parser.get_default(key))
        write_table(
            arguments.results, "peer_scores", title="Edge scores against EAP-IG's library and auto-circuit's",
            about=ABOUT.format(n_edges=model.graph().n_edges, **setting), parameters={**setting, **known},
            command=f"{ENVIRONMENT.format(commit=known.get('commit', 'main'))}\npython -m acdc.benchmarks.peers.scores "
                    f"--peer-python peer/bin/python --eap-ig-source EAP-IG{options}",
            columns=COLUMNS, rows=lines)


if __name__ == "__main__":
    main()
