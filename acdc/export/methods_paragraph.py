"""How a circuit was found, as a paragraph of LaTeX that can go into a paper, and what it cites."""

from collections.abc import Mapping
from typing import Any

from acdc.circuit import Circuit
from acdc.export.citations import OF_ABLATION, OF_METHOD, OF_METRIC, OF_TASK, bibliography, cited
from acdc.export.latex_text import latex
from acdc.export.text import full_provenance, number, told

METHOD_WORDS = {
    "acdc": "ACDC", "acdc_sequential": "ACDC", "exact": "exact patching of every edge alone",
    "eap": "edge attribution patching", "eap_ig": "edge attribution patching with integrated gradients",
    "eap_clean_corrupted": "edge attribution patching with clean and corrupted gradients",
    "eap_ig_activations": "edge attribution patching with integrated gradients over activations",
    "relp": "relevance patching", "gim": "gradient interaction modifications",
    "node_attribution": "attribution patching of nodes", "hisp": "head importance scores",
    "ifr": "information flow routes", "edge_pruning": "Edge Pruning", "subnetwork_probing": "subnetwork probing",
    "ugs": "uniform gradient sampling", "ensemble": "an ensemble of methods", "random": "random scores",
}
ABLATION_WORDS = {
    "resample": "its activation on the corrupted prompt", "mean": "its mean activation",
    "mean_over_positions": "its mean activation over prompts and positions", "zero": "zero",
    "optimal": "a constant learned to do least harm",
}


def methods_paragraph(circuit: Circuit, *, tested: bool = False) -> str:
    """What was done, in LaTeX with `\\citep`, as far as the provenance says. To be read before it is published."""
    record, graph = full_provenance(circuit), circuit.graph
    model, task = record.get("model"), record.get("task")
    kv = "one key and value input for each query head" if graph.kv == "head" else "key and value inputs by group"
    said = [
        f"We searched for the circuit that {_named(model) or 'the model'} uses"
        + (f" for {_named(task)}{_cite(OF_TASK, task)}" if task else "") + _prompts(record) + ".",
        _method(record),
        f"The graph has {graph.n_edges:,} edges between the input, attention heads ({kv}), MLPs and logits"
        + (f", told apart at {graph.n_positions:,} token positions" if graph.positions else "")
        + f"; the circuit keeps {circuit.n_edges:,} ({100 * circuit.n_edges / graph.n_edges:.3g}\\%)"
        + (f", selected as {latex(str(record['selection']))}" if record.get("selection") else "") + ".",
        _faithfulness(record), _uncertainty(record),
        r"We tested it as a set of hypotheses \citep{shi2024hypothesis}." if tested else "",
    ]
    return " ".join(part for part in said if part)


def citations(circuit: Circuit, *, tested: bool = False) -> str:
    """The BibTeX of what the paragraph cites."""
    return bibliography(cited(full_provenance(circuit), tested=tested))


def _named(value: Any) -> str:
    return latex(str(value)) if value else ""


def _cite(table: Mapping[str, tuple[str, ...]], name: Any) -> str:
    keys = table.get(str(name), ())
    return rf" \citep{{{','.join(keys)}}}" if keys else ""


def _prompts(record: Mapping[str, Any]) -> str:
    if not isinstance(record.get("n_prompts"), int):
        return ""
    seed = f" (seed {record['seed']})" if isinstance(record.get("seed"), int) else ""
    return f", on {record['n_prompts']:,} prompts{seed}"


def _method(record: Mapping[str, Any]) -> str:
    method, ablation, loss = record.get("method"), record.get("ablation"), record.get("loss") or record.get("metric")
    said = []
    if method:
        said.append(f"Edges were scored by {METHOD_WORDS.get(str(method), _named(method))}{_cite(OF_METHOD, method)}"
                    + (f" on the {_words(loss)}{_cite(OF_METRIC, loss)}" if loss else "") + ".")
    if ablation:
        said.append("An edge that is cut carries, instead of what its source computes, "
                    f"{ABLATION_WORDS.get(str(ablation), _named(ablation))}{_cite(OF_ABLATION, ablation)}.")
    return " ".join(said)


def _words(name: Any) -> str:
    return {"kl_divergence": "KL divergence"}.get(str(name)) or latex(str(name).replace("_", " "))


def _faithfulness(record: Mapping[str, Any]) -> str:
    value = record.get("faithfulness")
    if not isinstance(value, float):
        return ""
    parts = []
    for key, what in (("clean_metric", "the full model"), ("corrupted_metric", "all edges cut"),
                      ("circuit_metric", "the circuit")):
        if isinstance(record.get(key), float):
            parts.append(f"{number(record[key])} for {what}")
    measured = f" ({_words(record.get('metric', 'metric'))}: {', '.join(parts)})" if parts else ""
    return (r"Its faithfulness, $(m_\mathrm{circuit}-m_\mathrm{empty})/(m_\mathrm{full}-m_\mathrm{empty})$ "
            rf"\citep{{mueller2025mib}}, is {number(value)}{measured}.")


def _uncertainty(record: Mapping[str, Any]) -> str:
    summary = record.get("uncertainty")
    if not isinstance(summary, Mapping) or not {"overlap", "n_resamples"} <= set(summary):
        return ""
    with told("uncertainty"):
        return (rf"In {summary['n_resamples']:,} bootstrap samples of the prompts \citep{{efron1979bootstrap}}, a "
                rf"circuit of the same size shares {100 * summary['overlap']:.1f}\% of its edges on average.")
