"""Which variables of the task can be read off a circuit's nodes, and whether the task loses by their erasure."""

from collections.abc import Sequence

from tqdm import tqdm

from acdc.annotation.erasure import clean_run, erasure
from acdc.annotation.probes import can_be_probed, probe
from acdc.annotation.variables import Labels, gather, has_order, variable
from acdc.circuit import Annotation
from acdc.evaluation.significance import ALPHA
from acdc.metrics import Metric
from acdc.task import Batch
from acdc.transformer import Transformer

NAMES = ("answer", "order", "corrupted")
N_CONTROLS, N_ERASURES = 19, (4, 19)  # control tasks; random moves beside an erasure: all where it beats the first few


def variables(batches: Sequence[Batch]) -> list[Labels]:
    """Those of `NAMES` that the prompts have, with classes that are found often enough, at the last position."""
    present = [name for name in NAMES if name != "order" or has_order(batches)]
    return [labels for labels in (variable(batches, name) for name in present) if can_be_probed(labels)]


def probe_notes(model: Transformer, batches: Sequence[Batch], metric: Metric, nodes: Sequence[str], *, seed: int = 0,
                progress: bool = False) -> list[Annotation]:
    """For each node and variable the probe's accuracy with its control, and the effect of erasing the variable there.

    What is not read better than from all 19 control tasks, or shuffles (p <= 0.05), is not erased. Nodes that write the
    same in all prompts are left out. Cost: a pass a batch and variable, some 100 to 200 small fits for each node and
    variable, and where it is erased 5 passes (20 more where that beats 4 random moves) of the last position through
    what lies above the node.
    """
    asked = variables(batches)
    runs = [clean_run(model, batch) for batch in batches] if asked else []
    notes = []
    for labels in asked:
        activations = gather(model, batches, nodes, labels)
        varying = [node for node in nodes if float(activations[node].std(0).max()) > 1e-9]
        for node in tqdm(varying, desc=f"probing {labels.name}", unit="node", disable=not progress):
            x = activations[node]
            found = probe(x, labels, n_controls=N_CONTROLS, seed=seed)
            data = {"variable": labels.name, "position": "end", "low": found.low, "high": found.high,
                    "control": found.control, "selectivity": found.selectivity, "p": found.p,
                    "majority": found.majority, "classes": list(found.classes)[:20], "n_rows": found.n_rows,
                    "n_tested": len(varying), "method": "linear probe, LEACE", "seed": seed}
            text = f"{labels.name} at the last position: accuracy {found.accuracy:.2f}, control {found.control:.2f}"
            if found.shuffled:
                data["shuffled"] = sum(found.shuffled) / len(found.shuffled)
                text += f", shuffled within words {data['shuffled']:.2f}"
            if found.p <= ALPHA:
                few, many = N_ERASURES  # by the same seed the few are the first of the many: p is a rank among either
                n_draws, erased = few, erasure(model, batches, metric, node, labels, x=x, runs=runs, n_draws=few,
                                              seed=seed)
                if erased.p == 1 / (1 + few):
                    n_draws, erased = many, erasure(model, batches, metric, node, labels, x=x, runs=runs, n_draws=many,
                                                  seed=seed)
                text += f"; {erased}"
                data |= {"erasure_effect": erased.effect, "erasure_at_random": erased.null, "erasure_z": erased.z,
                         "erasure_p": erased.p, "erasure_draws": n_draws}
            notes.append(Annotation(node, "probe", text, found.accuracy, data))
    return notes


def probed_sites(model: Transformer, names: Sequence[str]) -> list[str]:
    """The sites meant by names in which `*` stands for every layer."""
    found = []
    for name in names:
        if "*" not in name:
            found.append(name)
            continue
        layers = range(model.n_layers + (name == "resid*"))
        found += [name.replace("*", str(layer)) for layer in layers]
    return found
