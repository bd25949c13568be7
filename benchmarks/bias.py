"""A bias probe: the circuit of gendered pronouns is found and ablated; what becomes of bias, and of what else it does?

`python -m acdc.benchmarks.bias --model smollm2` prints the table of `docs/bias.md`.

Phases: edges are scored on prompts of the task `gendered_pronoun`; the top ones are cut, or the top ones that other
tasks do not rank high, or random ones; they then carry their mean over running text. Before and after: the task on
other prompts, p(he) - p(she) after occupations (bias), other tasks and the loss on running text (capability).
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from acdc.ablation import prepare_ablation
from acdc.annotation.text import read_text, windows
from acdc.circuit import Circuit, EdgeScores
from acdc.discovery.eap_ig import eap_ig
from acdc.errors import AcdcError
from acdc.intervention.direction import token_batches
from acdc.intervention.generation import Cut
from acdc.intervention.measuring import BeforeAfter, before_after, last_logits, metric_change, text_loss
from acdc.models import load_model
from acdc.output_folder import write_file
from acdc.task import Batch
from acdc.tasks import load_task  # pyright: ignore[reportMissingImports]
from acdc.transformer import Transformer

OCCUPATIONS = ("nurse", "doctor", "engineer", "teacher", "secretary", "lawyer", "mechanic", "dancer", "pilot", "maid",
               "soldier", "librarian", "carpenter", "cook", "driver", "artist", "farmer", "writer", "guard", "cleaner")
TEMPLATES = ("The {} said that", "The {} was late because")
PRONOUNS = (" he", " she")
TASK = "gendered_pronoun"
SHARED = 0.02
N_WINDOWS_OF_MEANS = 16


def occupation_probabilities(model: Transformer, cut: Cut | None = None, occupations: Sequence[str] = OCCUPATIONS
                             ) -> Float[np.ndarray, "occupation 2"]:
    """p(he) and p(she) after each occupation, the mean over templates."""
    he, she = (model.tokenizer(word, add_special_tokens=False)["input_ids"] for word in PRONOUNS)
    if len(he) != 1 or len(she) != 1:
        raise AcdcError(f"the tokenizer of {model.name} splits one of {PRONOUNS}; the probe needs single tokens")
    rows = []
    for occupation in occupations:
        found = []
        for tokens in token_batches(model, [template.format(occupation) for template in TEMPLATES]):
            batch = Batch(tokens, tokens, tokens[:, 0], tokens[:, 0], ())
            found.append(last_logits(model, batch, cut=cut).double().softmax(-1)[:, [he[0], she[0]]])
        rows.append(torch.cat(found).mean(0).cpu().numpy())
    return np.stack(rows)


def measure(model: Transformer, cut: Cut, tasks: Mapping[str, Sequence[Batch]], text: torch.Tensor,
            occupations: Sequence[str] = OCCUPATIONS) -> dict[str, BeforeAfter]:
    """Everything before and after the cut. `he - she` is the mean over occupations, `size` that of its absolute value,
    `spread` the mean distance of an occupation from the mean: what the occupation itself makes the model think."""
    before, after = (occupation_probabilities(model, which, occupations) for which in (None, cut))
    gap_before, gap_after = (p[:, 0] - p[:, 1] for p in (before, after))
    return {
        **{f"task {name}": metric_change(model, batches, cut=cut) for name, batches in tasks.items()},
        "he + she": before_after(before.sum(1), after.sum(1)),
        "he - she": before_after(gap_before, gap_after),
        "its size": before_after(np.abs(gap_before), np.abs(gap_after)),
        "its spread": before_after(np.abs(gap_before - gap_before.mean()), np.abs(gap_after - gap_after.mean())),
        "loss on text": before_after(text_loss(model, text), text_loss(model, text, cut=cut)),
    }


def study(model: Transformer, *, sizes: Sequence[float] = (0.001, 0.003), n: int = 32, n_windows: int = 4,
          others: Sequence[str] = ("ioi", "subject_verb_agreement"), unused: Sequence[str] = ("greater_than",),
          occupations: Sequence[str] = OCCUPATIONS, seed: int = 0) -> dict[str, dict[str, BeforeAfter]]:
    """The measurements for cuts of each size (a share of all edges): `top`, the edges of largest score; `specific`,
    the same without those that are in the top `SHARED` of one of `others`; `random`, any. All tasks are measured on
    prompts that no edge was chosen by, those in `unused` chose none at all."""
    def prompts(name: str, seed: int) -> list[Batch]:
        return load_task(name, model.tokenizer, n=n, seed=seed).batches(model.tokenizer, device=model.device)

    found_on, apart = prompts(TASK, seed), [prompts(other, seed) for other in others]
    measured = {name: prompts(name, seed + 1) for name in (TASK, *others, *unused)}
    text = windows(model, read_text("python"), 64, n_windows + N_WINDOWS_OF_MEANS)
    means = text[n_windows:]
    ablation = prepare_ablation(model, [Batch(means, means, means[:, 0], means[:, 0], ())], "mean_over_positions")
    scores, rng, results = eap_ig(model, found_on), np.random.default_rng(seed), {}
    shared = np.any([eap_ig(model, batches).top(round(SHARED * scores.graph.n_edges), by="magnitude").kept
                     for batches in apart], axis=0)
    own = EdgeScores(scores.graph, np.where(shared, 0.0, scores.values))
    for share in sizes:
        size = max(1, round(share * scores.graph.n_edges))
        top = scores.top(size, by="magnitude")
        cuts = {"top": top, "specific": own.top(size, by="magnitude"), "random": _random(top, rng)}
        for name, circuit in cuts.items():
            cut = Cut(circuit.complement(), ablation)
            results[f"{name} {size:,}"] = measure(model, cut, measured, text[:n_windows], occupations)
    return results


def _random(circuit: Circuit, rng: np.random.Generator) -> Circuit:
    return Circuit(circuit.graph, rng.permutation(circuit.kept))


def table(results: Mapping[str, Mapping[str, BeforeAfter]]) -> str:
    """One row a measurement, one column a cut, in Markdown."""
    first = next(iter(results.values()))
    lines = ["| | whole model | " + " | ".join(f"without {name}" for name in results) + " |",
             "|---" * (len(results) + 2) + "|"]
    for row in first:
        lines.append(f"| {row} | {first[row].before} | " + " | ".join(str(r[row].after) for r in results.values())
                     + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="A bias probe: gendered pronouns")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    arguments = parser.parse_args()
    results = study(load_model(arguments.model))
    print(table(results))
    if arguments.out:
        record: Any = {name: {row: {part: vars(e) for part, e in vars(result).items()} for row, result in rows.items()}
                       for name, rows in results.items()}
        write_file(arguments.out, json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    main()
