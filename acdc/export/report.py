"""What was asked, what was found, and how to find it again: a Markdown page for one circuit."""

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from acdc.circuit import Circuit
from acdc.evaluation.bootstrap import LEVEL, Uncertainty
from acdc.evaluation.curve import Curve, exceeds
from acdc.export.methods_paragraph import citations, methods_paragraph
from acdc.export.path_words import path_words
from acdc.export.paths import strongest_paths
from acdc.export.text import edge_rows, full_provenance, number, path_text, size_rows, told, with_codes

MAX_TEMPLATES = 10
N_PATHS_IN_WORDS = 3
RANKINGS = {"signed": "signed score", "magnitude": "|score|"}
ASKED = {
    "model": "Model", "model_sha256": "SHA-256 of the model", "task": "Task", "task_description": "What it is",
    "n_prompts": "Prompts", "metric": "Metric", "ablation": "Replacement of cut edges", "method": "Method",
    "method_options": "Options", "selection": "Selection", "seed": "Seed", "versions": "Versions",
}
ACDC = (
    "ACDC goes through the edges from the logits back and removes each whose removal raises the loss by less than a "
    "threshold (Conmy et al. 2023, *Towards Automated Circuit Discovery for Mechanistic Interpretability*, arXiv "
    "2304.14997)."
)
METHODS = {
    "acdc": ACDC,
    "acdc_sequential": ACDC,
    "exact": "Each edge was cut alone, and the rise of the loss measured (edge activation patching).",
    "eap": "Edge attribution patching estimates the effect of cutting each edge to first order: the change of what it "
    "carries times the gradient where it is read (Syed, Rager and Conmy 2023, *Attribution Patching Outperforms "
    "Automated Circuit Discovery*, arXiv 2310.10348).",
    "eap_ig": "EAP-IG is edge attribution patching with gradients averaged between the corrupted and the clean run "
    "(Hanna, Pezzelle and Belinkov 2024, *Have Faith in Faithfulness*, arXiv 2403.17806).",
    "eap_clean_corrupted": "Edge attribution patching with the mean of two gradients, on the clean and on the "
    "corrupted run (Hanna, Pezzelle and Belinkov 2024, *Have Faith in Faithfulness*, arXiv 2403.17806).",
    "relp": "Relevance patching is edge attribution patching with a gradient that follows the rules of layer-wise "
    "relevance propagation at norms, activation functions and gates (Rezaei Jafari, Eberle, Khakzar and Nanda 2025, "
    "*RelP: Faithful and Efficient Circuit Discovery via Relevance Patching*, arXiv 2508.21258).",
    "gim": "Gradient interaction modifications: edge attribution patching with a gradient that holds norms' scales "
    "constant, softens the softmax of attention and is shared out where factors are multiplied (Edin et al. 2025, "
    "*GIM: Improved Interpretability for Large Language Models*, arXiv 2505.17630).",
    "eap_ig_activations": "EAP-IG over activations is edge attribution patching with gradients averaged over runs in "
    "which what the input, the attention of one layer or one MLP writes lies between its replacement and its clean "
    "value (Hanna, Pezzelle and Belinkov 2024, *Have Faith in Faithfulness*, arXiv 2403.17806, in its code).",
    "node_attribution": "Nodes were scored by attribution patching: the change of what a node writes times the "
    "gradient there. An edge has the score of the weaker of its two ends, so that it says little about what travels "
    "along it.",
    "hisp": "The head importance score for pruning is the mean over prompts of the size of each node's estimated "
    "effect, within its layer (Michel, Levy and Neubig 2019, *Are Sixteen Heads Really Better than One?*, arXiv "
    "1905.10650). An edge has the score of the weaker of its two ends. Scores are sizes: none is negative, whether the "
    "edge helps or hurts.",
    "ifr": "Information flow routes: a score is the share of what is read that comes from the src, on the clean "
    "prompts (Ferrando and Voita 2024, *Information Flow Routes: Automatically Interpreting Language Models at Scale*, "
    "arXiv 2403.00824). It is no effect on the loss, and never negative.",
    "edge_pruning": "Edge Pruning learns a mask for every edge by gradient descent, so that few edges do what the "
    "model does (Bhaskar, Wettig, Friedman and Chen 2024, *Finding Transformer Circuits with Edge Pruning*, arXiv "
    "2406.16778). A score here is the probability that more than half of the edge is kept, not a rise of the loss.",
    "subnetwork_probing": "Subnetwork probing learns a mask for every node by gradient descent, so that few nodes do "
    "what the model does (Cao, Sanh and Rush 2021, *Low-Complexity Probing via Finding Subnetworks*, arXiv 2104.03514; "
    "Conmy et al. 2023, arXiv 2304.14997). A score here is the probability that more than half of what both ends of an "
    "edge write is kept, not a rise of the loss.",
    "ugs": "Uniform gradient sampling learns how often each edge is kept, from gradients at fractions that are drawn "
    "uniformly (Li and Janson 2024, *Optimal ablation for interpretability*, arXiv 2409.09951). A score here is that "
    "probability, not a rise of the loss.",
    "ensemble": "The scores of several methods were put on one scale, by their root mean square or by rank, and "
    "averaged. A score here has the sign of the effect, but no unit.",
    "random": "The scores are random numbers: a baseline, which says nothing about the model.",
}
NO_RISE = ("hisp", "ifr", "edge_pruning", "subnetwork_probing", "ugs", "ensemble", "random")  # of the loss
SCORE = "A score is the estimated rise of the loss if that edge alone is cut: positive edges help the task."
CONVENTIONS = (
    "Faithfulness is f = (m(circuit) − m(all cut)) / (m(full model) − m(all cut)). CPR is the area under f, CMD the "
    "area under |1 − f|, over the requested fraction of edges on a linear axis, by trapezoids (Mueller et al. 2025, "
    "*MIB: A Mechanistic Interpretability Benchmark*, arXiv 2504.13151; its CPR ranks by signed score, its CMD by "
    "|score|). Two thirds of their weight lies on the circuits of 50% and 100%; the means over log10 of the fraction, "
    "and over circuits up to 5%, tell more of small ones. A circuit of f > 1 raises CPR, but is not more faithful."
)


def report(circuit: Circuit, curves: Sequence[Curve] = (), uncertainty: Uncertainty | None = None, *,
           figure: str | None = "circuit.svg", curve_image: str | None = "curve.png",
           history_image: str | None = "masks.png", n_edges: int = 20, n_paths: int = 10,
           roles: Mapping[str, str] | None = None, tests: Mapping[str, Any] | None = None) -> str:
    """The page. `figure`, `curve_image` and `history_image` are links relative to it; None leaves an image out.

    `uncertainty` gives the strongest edges their intervals, `roles` says what nodes do, and `tests` is what the tests
    of the circuit gave: their "verdict" and a list of "tests", each with name, verdict and reason. What the provenance
    does not say is left out.
    """
    record = full_provenance(circuit)
    where = f" in {escaped(record['model'])}" if record.get("model") else ""
    sections = [
        f"# {escaped(record.get('task') or 'Circuit')}{where}",
        _asked(record),
        _found(circuit, record),
        f"![The circuit]({figure})" if figure else "",
        _curves(curves, curve_image),
        _told(_trust, "uncertainty or provenance.calibration", record),
        _told(_learned, "history", record, history_image),
        _tests(tests),
        _strongest(circuit, uncertainty, n_edges, n_paths),
        _in_words(circuit, roles or {}, min(n_paths, N_PATHS_IN_WORDS)),
        _again(record),
        _method(record),
        _for_a_paper(circuit, tested=tests is not None),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _told(section: Callable[..., str], field: str, *given: Any) -> str:
    with told(field):
        return section(*given)


def escaped(value: Any) -> str:
    """As plain text on one line: nothing in it is read as Markdown or HTML."""
    text = with_codes(" ".join(number(value).split()))
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", text)


def code(text: str) -> str:
    """As code that also fits a table's cell: backticks get a longer fence, pipes a backslash."""
    text = with_codes(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith(("`", " ")) or text.endswith(("`", " ")) else ""
    return f"{fence}{space}{text}{space}{fence}".replace("|", r"\|")


def quoted(text: str) -> str:
    """A prompt as code, in quotes: leading spaces show, and line breaks are \\n."""
    return code(json.dumps(text, ensure_ascii=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _asked(record: Mapping[str, Any]) -> str:
    rows = []
    for key, name in ASKED.items():
        value = record.get(key)
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {number(v)}" for k, v in value.items() if v is not None)
        if value is not None and value != "":
            rows.append([name, escaped(value)])
    example = record.get("example")
    if isinstance(example, Mapping):
        names = {"clean": "Example", "corrupted": "Its corrupted prompt", "answer": "Answer", "wrong": "Wrong answer"}
        rows += [[name, quoted(str(example[key]))] for key, name in names.items() if example.get(key) is not None]
    return "## What was asked\n\n" + table(["", ""], rows) if rows else ""


def _found(circuit: Circuit, record: Mapping[str, Any]) -> str:
    names = {
        "clean_metric": "Metric, full model", "corrupted_metric": "Metric, all edges cut",
        "circuit_metric": "Metric, circuit", "faithfulness": "Faithfulness",
    }
    rows = [[name.capitalize() if name == name.lower() else name, escaped(text) if name == "positions" else text]
            for name, text in size_rows(circuit)]
    rows += [[name, escaped(record[key])] for key, name in names.items() if record.get(key) is not None]
    seconds = record.get("seconds")
    if isinstance(seconds, Mapping) and seconds:
        rows.append(["Seconds", escaped(", ".join(f"{stage} {number(value)}" for stage, value in seconds.items()))])
    text = "## What was found\n\n" + table(["", ""], rows)
    faithfulness = record.get("faithfulness")
    if isinstance(faithfulness, float) and exceeds(faithfulness):
        text += f"\n\n{_exceeds('The circuit', faithfulness)}"
    return text


def agreement_text(overall: Mapping[str, Any]) -> str:
    """What patching some edges exactly has told, as far as it is defined (see `acdc.evaluation.calibration`)."""
    said = [f"{overall.get('n_sampled')} edges patched"]
    said += [f"{name} {overall[key]:.3f}" for key, name in (("pearson", "Pearson"), ("spearman", "Spearman"))
             if overall.get(key) is not None]
    if overall.get("sign_agreement") is not None:
        said.append(f"the sign agrees for {overall['sign_agreement']:.1%} of clear effects")
    if overall.get("missed") is not None:
        said.append(f"{overall['missed']:.1%} of large effects missed "
                    f"(95% interval {overall['missed_low']:.1%} to {overall['missed_high']:.1%})")
    return "; ".join(said)


def resampling_text(summary: Mapping[str, Any]) -> str:
    """What drawing the prompts anew has told (see `acdc.evaluation.bootstrap`)."""
    level = summary["level"]
    return (
        f"resampled {summary['n_resamples']:,} times, the top {summary['size']:,} edges by {summary['by']} share "
        f"{summary['overlap']:.1%} with those of other draws; {summary['n_certain']:,} edges are among them in "
        f"{level:.0%} of the draws or more, {summary['n_possible']:,} in {summary['rare']:.0%} or more"
    )


def _trust(record: Mapping[str, Any]) -> str:
    """How much the circuit owes to its prompts, and how far its scores can be trusted."""
    parts = []
    summary = record.get("uncertainty")
    if isinstance(summary, Mapping):
        parts.append(f"**On other prompts.** The {summary['n_prompts']:,} prompts were "
                     f"{escaped(resampling_text(summary))}.")
        splits = summary["templates"]
        if splits:
            rows = [[escaped(split["template"]), f"{split['n_prompts']:,}", f"{split['overlap']:.1%}",
                     f"{split['by_chance']:.1%}"] for split in splits[:MAX_TEMPLATES]]
            parts += ["Of the circuit's edges, those that the prompts of one template give too, and that as many "
                      "prompts drawn from all would give:",
                      table(["Template", "Prompts", "Its prompts", "Any prompts"], rows)]
            rest = [split["overlap"] for split in splits[MAX_TEMPLATES:]]
            if rest:
                parts.append(f"{len(rest):,} more templates, of as many prompts or fewer: {min(rest):.1%} to "
                             f"{max(rest):.1%}.")
    calibration = record.get("calibration")
    if isinstance(calibration, Mapping) and isinstance(calibration.get("overall"), Mapping):
        parts.append(f"**Against exact effects.** {escaped(agreement_text(calibration['overall']))}.")
    return "\n\n".join(["## How far to trust it", *parts]) if parts else ""


def _exceeds(what: str, faithfulness: float) -> str:
    return (
        f"**{what} exceeds the full model** (f = {faithfulness:.4g}): it leaves out edges that work against the task. "
        "The further f is above 1, the less the circuit is a picture of what the model does."
    )


def _curves(curves: Sequence[Curve], image: str | None) -> str:
    if not curves:
        return ""
    parts = ["## Faithfulness by circuit size"]
    if image:
        parts.append(f"![Faithfulness by circuit size]({image})")
    for curve in curves:
        total = curve.n_graph_edges
        rows = [
            [f"{point.fraction:.3%}", f"{point.n_edges:,}", f"{point.n_edges / total:.3%}" if total else "-",
             number(float(point.metric)), f"{point.faithfulness:.3f}",
             "exceeds the full model" if exceeds(point.faithfulness) else ""]
            for point in curve.points
        ]
        areas = f"CPR {curve.cpr:.3f}, CMD {curve.cmd:.3f}; " if len(curve.points) > 1 else ""
        parts.append(
            f"Ranked by {escaped(RANKINGS[curve.by])}: {areas}{escaped(curve.metric)} {number(float(curve.full))} for "
            f"the full model and {number(float(curve.empty))} with all edges cut; {curve.n_prompts:,} prompts."
        )
        parts.append(table(["Fraction asked for", "Edges kept", "Share kept", "Metric", "Faithfulness", ""], rows))
    summarised = [curve for curve in curves if len(curve.points) > 1]
    if summarised:
        parts.append(_areas(summarised))
    beyond = [(p, curve) for curve in curves for p in curve.points if exceeds(p.faithfulness)]
    if beyond:
        point, curve = max(beyond, key=lambda pair: pair[0].faithfulness)
        ranking = escaped(RANKINGS[curve.by])
        parts.append(_exceeds(f"The circuit of {point.n_edges:,} edges by {ranking}", point.faithfulness))
    return "\n\n".join(parts)


def _areas(curves: Sequence[Curve]) -> str:
    """All areas of the curves, those over achieved fractions where they are others than those asked for."""
    rows = []
    for curve in curves:
        for achieved in (False, True)[: 1 + curve.stops_short]:
            values = vars(curve.areas(achieved=achieved)).values()
            rows.append([escaped(RANKINGS[curve.by]), "kept" if achieved else "asked for",
                         *("-" if value is None else f"{value:.3f}" for value in values)])
    columns = ["Ranked by", "Fractions", "CPR", "CMD", "Mean f, log", r"Mean \|1 − f\|, log", "Mean f, up to 5%",
               r"Mean \|1 − f\|, up to 5%"]
    return table(columns, rows)


def _learned(record: Mapping[str, Any], image: str | None) -> str:
    """The loss curve of learned masks."""
    history = record.get("history")
    if not history:
        return ""
    text = (
        f"In {history[-1]['step'] + 1:,} steps the loss went from {history[0]['loss']:.4g} to "
        f"{history[-1]['loss']:.4g}, each the mean of the few prompts of its step."
    )
    return "\n\n".join(["## How the masks were learned", *([f"![Loss by step]({image})"] if image else []), text])


def _strongest(circuit: Circuit, uncertainty: Uncertainty | None, n_edges: int, n_paths: int) -> str:
    parts = []
    scored = circuit.scores is not None
    if n_edges and circuit.n_edges:
        columns = ["Score", "Edge"] if scored else ["Edge"]
        strongest = edge_rows(circuit, n_edges)
        rows = [[*row[:-1], code(row[-1])] for row in strongest]
        if uncertainty is not None:
            columns += [f"{LEVEL:.0%} interval", "In draws of the prompts"]
            for row, (*_, name) in zip(rows, strongest, strict=True):
                edge = circuit.graph.edge(name)
                row += [f"{uncertainty.low[edge]:+.4g} to {uncertainty.high[edge]:+.4g}",
                        f"{uncertainty.inclusion[edge]:.1%}"]
        parts += ["## Strongest edges" if scored else "## Edges", table(columns, rows)]
    paths = strongest_paths(circuit, n_paths)
    if paths:
        columns = ["Least score, absolute", "Path"] if scored else ["Path"]
        rows = [[*([number(p.strength)] if scored else []), code(path_text(circuit, p))] for p in paths]
        parts += ["## Strongest paths" if scored else "## Shortest paths", table(columns, rows)]
    return "\n\n".join(parts)


def _in_words(circuit: Circuit, roles: Mapping[str, str], n_paths: int) -> str:
    sentences = [escaped(path_words(circuit, path, roles)) for path in strongest_paths(circuit, n_paths)]
    return "\n".join(["In words:\n", *(f"- {sentence}" for sentence in sentences)]) if sentences else ""


def _tests(tests: Mapping[str, Any] | None) -> str:
    """The verdict, and each test's with its reason."""
    if tests is None:
        return ""
    results = [result for result in tests.get("tests") or [] if isinstance(result, Mapping)]
    lines = [f"- **{escaped(result.get('verdict'))}** {escaped(result.get('name'))}: {escaped(result.get('reason'))}"
             for result in results]
    verdict = f"**{escaped(tests['verdict'])}**\n\n" if tests.get("verdict") else ""
    return f"## Tests\n\n{verdict}" + "\n".join(lines)


def _for_a_paper(circuit: Circuit, *, tested: bool) -> str:
    """A paragraph and its references, to be copied."""
    bibtex = citations(circuit, tested=tested)
    return (f"## For a paper\n\n```latex\n{methods_paragraph(circuit, tested=tested)}\n```"
            + (f"\n\n```bibtex\n{bibtex}\n```" if bibtex else ""))


def _again(record: Mapping[str, Any]) -> str:
    command = record.get("command")
    if not command:
        return ""
    text = shlex.join(map(str, command)) if isinstance(command, list | tuple) else str(command)
    text = "\n".join(map(with_codes, text.split("\n")))
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"## How to find it again\n\n{fence}sh\n{text}\n{fence}"


def _method(record: Mapping[str, Any]) -> str:
    method = str(record.get("method", "")).lower().replace("-", "_")
    parts = [METHODS[method]] if method in METHODS else []
    conventions = CONVENTIONS if method in NO_RISE else f"{SCORE} {CONVENTIONS}"
    return "\n\n".join(["## Method", *parts, conventions])
