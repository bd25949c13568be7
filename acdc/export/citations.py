"""What to cite for a method, a metric, an ablation or a task: BibTeX entries, and which of them each one needs."""

from collections.abc import Mapping
from typing import Any


def _arxiv(key: str, authors: str, title: str, year: int, number: str) -> str:
    fields = {"author": authors, "title": f"{{{title}}}", "year": str(year), "eprint": number,
              "archivePrefix": "arXiv", "url": f"https://arxiv.org/abs/{number}"}
    return f"@misc{{{key},\n" + "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items()) + "}"


BIBTEX = {
    "conmy2023acdc": _arxiv(
        "conmy2023acdc", "Conmy, Arthur and Mavor-Parker, Augustine N. and Lynch, Aengus and Heimersheim, Stefan and "
        r"Garriga-Alonso, Adri{\`a}", "Towards Automated Circuit Discovery for Mechanistic Interpretability", 2023,
        "2304.14997"),
    "syed2023attribution": _arxiv(
        "syed2023attribution", "Syed, Aaquib and Rager, Can and Conmy, Arthur",
        "Attribution Patching Outperforms Automated Circuit Discovery", 2023, "2310.10348"),
    "hanna2024faith": _arxiv(
        "hanna2024faith", "Hanna, Michael and Pezzelle, Sandro and Belinkov, Yonatan",
        "Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding Model Mechanisms", 2024, "2403.17806"),
    "rezaeijafari2025relp": _arxiv(
        "rezaeijafari2025relp", "Rezaei Jafari, Farnoush and Eberle, Oliver and Khakzar, Ashkan and Nanda, Neel",
        "RelP: Faithful and Efficient Circuit Discovery via Relevance Patching", 2025, "2508.21258"),
    "edin2025gim": _arxiv(
        "edin2025gim", "Edin, Joakim and others", "GIM: Improved Interpretability for Large Language Models", 2025,
        "2505.17630"),
    "michel2019sixteen": _arxiv(
        "michel2019sixteen", "Michel, Paul and Levy, Omer and Neubig, Graham",
        "Are Sixteen Heads Really Better than One?", 2019, "1905.10650"),
    "ferrando2024routes": _arxiv(
        "ferrando2024routes", "Ferrando, Javier and Voita, Elena",
        "Information Flow Routes: Automatically Interpreting Language Models at Scale", 2024, "2403.00824"),
    "bhaskar2024edge": _arxiv(
        "bhaskar2024edge", "Bhaskar, Adithya and Wettig, Alexander and Friedman, Dan and Chen, Danqi",
        "Finding Transformer Circuits with Edge Pruning", 2024, "2406.16778"),
    "cao2021subnetworks": _arxiv(
        "cao2021subnetworks", "Cao, Steven and Sanh, Victor and Rush, Alexander M.",
        "Low-Complexity Probing via Finding Subnetworks", 2021, "2104.03514"),
    "li2024optimal": _arxiv(
        "li2024optimal", "Li, Maximilian and Janson, Lucas", "Optimal ablation for interpretability", 2024,
        "2409.09951"),
    "mueller2025mib": _arxiv(
        "mueller2025mib", "Mueller, Aaron and Geiger, Atticus and Wiegreffe, Sarah and others",
        "MIB: A Mechanistic Interpretability Benchmark", 2025, "2504.13151"),
    "goldowskydill2023path": _arxiv(
        "goldowskydill2023path", "Goldowsky-Dill, Nicholas and MacLeod, Chris and Sato, Lucas and Arora, Aryaman",
        "Localizing Model Behavior with Path Patching", 2023, "2304.05969"),
    "zhang2023patching": _arxiv(
        "zhang2023patching", "Zhang, Fred and Nanda, Neel",
        "Towards Best Practices of Activation Patching in Language Models: Metrics and Methods", 2023, "2309.16042"),
    "wang2022ioi": _arxiv(
        "wang2022ioi", "Wang, Kevin and Variengien, Alexandre and Conmy, Arthur and Shlegeris, Buck and Steinhardt, "
        "Jacob", "Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small", 2022,
        "2211.00593"),
    "olsson2022induction": _arxiv(
        "olsson2022induction", "Olsson, Catherine and Elhage, Nelson and Nanda, Neel and others",
        "In-context Learning and Induction Heads", 2022, "2209.11895"),
    "shi2024hypothesis": _arxiv(
        "shi2024hypothesis", "Shi, Claudia and others", "Hypothesis Testing the Circuit Hypothesis in LLMs", 2024,
        "2410.13032"),
    "efron1979bootstrap": (
        "@article{efron1979bootstrap,\n  author = {Efron, Bradley},\n"
        "  title = {{Bootstrap Methods: Another Look at the Jackknife}},\n  journal = {The Annals of Statistics},\n"
        "  volume = {7},\n  number = {1},\n  pages = {1--26},\n  year = {1979},\n"
        "  doi = {10.1214/aos/1176344552},\n}"
    ),
}
OF_METHOD: dict[str, tuple[str, ...]] = {
    "acdc": ("conmy2023acdc",), "acdc_sequential": ("conmy2023acdc",), "exact": ("goldowskydill2023path",),
    "eap": ("syed2023attribution",), "eap_ig": ("hanna2024faith",), "eap_clean_corrupted": ("hanna2024faith",),
    "eap_ig_activations": ("hanna2024faith",), "relp": ("rezaeijafari2025relp",), "gim": ("edin2025gim",),
    "node_attribution": ("syed2023attribution",), "hisp": ("michel2019sixteen",), "ifr": ("ferrando2024routes",),
    "edge_pruning": ("bhaskar2024edge",), "subnetwork_probing": ("cao2021subnetworks", "conmy2023acdc"),
    "ugs": ("li2024optimal",), "ensemble": (), "random": (),
}
OF_METRIC: dict[str, tuple[str, ...]] = {
    "logit_difference": ("wang2022ioi",), "probability_difference": (), "kl_divergence": ("conmy2023acdc",),
    "answer_rank": (), "accuracy": (),
}
OF_ABLATION: dict[str, tuple[str, ...]] = {
    "resample": ("zhang2023patching",), "mean": ("wang2022ioi",), "mean_over_positions": (), "zero": (),
    "optimal": ("li2024optimal",),
}
OF_TASK: dict[str, tuple[str, ...]] = {"ioi": ("wang2022ioi",), "induction": ("olsson2022induction",)}


def cited(record: Mapping[str, Any], *, tested: bool = False) -> list[str]:
    """The keys of what a run's provenance asks to cite, each once. `tested`: it was put to tests of hypotheses."""
    keys: list[str] = []
    for table, name in ((OF_TASK, "task"), (OF_METHOD, "method"), (OF_ABLATION, "ablation"), (OF_METRIC, "metric")):
        keys += table.get(str(record.get(name)), ())
    if record.get("faithfulness") is not None:
        keys.append("mueller2025mib")
    if record.get("uncertainty"):
        keys.append("efron1979bootstrap")
    if tested:
        keys.append("shi2024hypothesis")
    return list(dict.fromkeys(keys))


def bibliography(keys: list[str]) -> str:
    """The BibTeX entries of these keys."""
    return "\n\n".join(BIBTEX[key] for key in keys)
