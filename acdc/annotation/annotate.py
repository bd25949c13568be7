"""What is known of a circuit's nodes, in one call: every annotator that applies, as `Annotation` records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from tqdm import tqdm

from acdc.activations import record
from acdc.annotation.attention import mean_patterns, patterns, role_names
from acdc.annotation.composition import LETTERS, composition
from acdc.annotation.effects import Effect, joint_effects, node_effects
from acdc.annotation.feature_notes import feature_notes
from acdc.annotation.features import Coder, edge_features
from acdc.annotation.head_roles import RoleScore, sequence_roles
from acdc.annotation.lens_notes import lens_notes
from acdc.annotation.movers import movers_and_inhibitors
from acdc.annotation.pictures import annotate_pictures
from acdc.annotation.probe_notes import probe_notes
from acdc.circuit import Annotation, Circuit
from acdc.errors import AcdcError, unknown_name
from acdc.evaluation.significance import ALPHA
from acdc.metrics import METRICS, Metric
from acdc.patching import check_graph
from acdc.pieces import piece_of_json
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

MAX_ROLES = 40  # tokens told apart in a mean pattern
N_PARTNERS = 3  # heads named for each kind of composition
LEAST_Z = 5.0
N_FEATURES = 5  # of each node


@dataclass(frozen=True, eq=False)
class Study:
    """What annotators work on. `nodes` and `heads` are those of the circuit that write. `coders`: of its nodes."""

    model: Transformer
    circuit: Circuit
    batches: Sequence[Batch]
    metric: Metric
    seed: int = 0
    progress: bool = False
    coders: Sequence[Coder] = ()

    @cached_property
    def nodes(self) -> list[str]:
        return [node.name for node in self.circuit.nodes if node.kind in ("input", "head", "mlp")]

    @cached_property
    def heads(self) -> list[tuple[int, int]]:
        return [(node.layer, node.index) for node in self.circuit.nodes if node.kind == "head"]

    @cached_property
    def effects(self) -> dict[str, Effect]:
        """Of every node, measured once for all annotators."""
        return node_effects(self.model, self.batches, self.metric, self.nodes, seed=self.seed, progress=self.progress)


def annotate_effects(study: Study) -> list[Annotation]:
    """What noising each node does to the task."""
    found = []
    for node, effect in study.effects.items():
        share = "" if effect.share is None else f", {effect.share:+.1%} of that when all is corrupted"
        none = "" if effect.p <= ALPHA else "; not told from none"
        text = f"loss increase ({study.metric.name}) when this node is corrupted{share}{none}"
        data = {"low": effect.low, "high": effect.high, "p": effect.p, "method": "noising", "seed": study.seed}
        found.append(Annotation(node, "evidence", text, effect.value, data))
    return found


def annotate_roles(study: Study) -> list[Annotation]:
    """The roles of heads, each with whether the head matters to the task, alone and with all others of its role."""
    scores = [*movers_and_inhibitors(study.model, study.batches, study.heads),
              *sequence_roles(study.model, study.heads, seed=study.seed)]
    found = sorted((score for score in scores if score.found), key=lambda score: (score.layer, score.head))
    members: dict[str, list[str]] = {}
    for score in found:
        members.setdefault(score.role, []).append(score.node)
    together = joint_effects(study.model, study.batches, study.metric, members, seed=study.seed)
    return [_role(study, score, together[score.role], len(members[score.role])) for score in found]


def _role(study: Study, score: RoleScore, together: Effect, n_together: int) -> Annotation:
    node = score.node
    effect = study.effects[node]
    seen = "" if effect.p <= ALPHA else " (seen, without effect on this task)"
    data = {"baseline": score.baseline, "p": score.p, "least": score.baseline + score.least, "effect": effect.value,
            "effect_low": effect.low, "effect_high": effect.high, "effect_p": effect.p,
            "n_together": n_together, "effect_together": together.value, "effect_together_p": together.p,
            "n_tested": len(study.heads), "method": "head roles", "seed": study.seed}
    return Annotation(node, "role", score.role + seen, score.score, data)


def annotate_attention(study: Study) -> list[Annotation]:
    """Where each head looks: by role of tokens, mean over prompts; and on the first prompt."""
    names, batch, found = role_names(study.batches), study.batches[0], []
    if 0 < len(names) <= MAX_ROLES:
        means = mean_patterns(study.model, study.batches, study.heads, names)
        for (layer, head), mean in zip(study.heads, means, strict=True):
            best = int(mean[-1].argmax())
            text = f"mean over prompts; {names[-1]} looks most at {names[best]} ({float(mean[-1, best]):.2f})"
            found.append(_pattern(layer, head, text, list(names), mean))
    with torch.no_grad(), frozen(study.model):
        run = record(study.model, batch.clean[:1])
        tokens = [study.model.token_text(token) for token in batch.clean[0].cpu().tolist()]
        for layer, head in study.heads:
            found.append(_pattern(layer, head, "first prompt", tokens, patterns(study.model, run, layer, [head])[0, 0]))
    return found


def _pattern(layer: int, head: int, text: str, tokens: list[str], weights: torch.Tensor) -> Annotation:
    rows = [[round(weight, 4) for weight in row] for row in weights.cpu().tolist()]
    return Annotation(f"a{layer}.h{head}", "attention", text, None,
                      {"tokens": tokens, "weights": rows, "method": "attention"})


def annotate_composition(study: Study) -> list[Annotation]:
    """The earlier heads of the circuit that each head's q, k and v fit best, beyond a random rotation."""
    if len(study.heads) < 2:
        return []
    measured, n = composition(study.model), study.model.n_heads
    places = [layer * n + head for layer, head in study.heads]
    found = []
    for place, (layer, head) in zip(places, study.heads, strict=True):
        before = [writer for writer in places if writer < layer * n]
        for i, letter in enumerate(LETTERS):
            best = sorted(before, key=lambda writer: -float(measured.z[i, writer, place]))[:N_PARTNERS]
            best = [writer for writer in best if float(measured.z[i, writer, place]) >= LEAST_Z]
            if not best:
                continue
            partners = {f"a{w // n}.h{w % n}": float(measured.ratio[i, w, place]) for w in best}
            data = {"ratios": partners, "baseline": measured.baseline, "method": "weights",
                    "z": [float(measured.z[i, w, place]) for w in best]}
            text = f"{letter}-composition with {', '.join(partners)}, by weights"
            found.append(Annotation(f"a{layer}.h{head}", "composition", text, max(partners.values()), data))
    return found


def annotate_lens(study: Study) -> list[Annotation]:
    """What each node adds to the answer's logit by itself, and the tokens that it promotes."""
    return lens_notes(study.model, study.batches, study.nodes, seed=study.seed)


def annotate_probes(study: Study) -> list[Annotation]:
    """What of the task's variables a linear probe reads off each node at the last position, and whether it matters."""
    return probe_notes(study.model, study.batches, study.metric, study.nodes, seed=study.seed,
                       progress=study.progress)


def annotate_features(study: Study) -> list[Annotation]:
    """Which features of the coders carry the edges out of their nodes."""
    found = edge_features(study.model, study.batches, study.metric, circuit=study.circuit, coders=study.coders)
    return feature_notes(study.model, study.batches, found, N_FEATURES)


ANNOTATORS: dict[str, tuple[Callable[[Study], list[Annotation]], str]] = {
    "effects": (annotate_effects, "evidence"),
    "roles": (annotate_roles, "role"),
    "attention": (annotate_attention, "attention"),
    "composition": (annotate_composition, "composition"),
    "lens": (annotate_lens, "lens"),
    "probes": (annotate_probes, "probe"),
    "features": (annotate_features, "feature"),
    "pictures": (lambda study: annotate_pictures(study.model, study.batches, study.nodes, seed=study.seed,
                                                 progress=study.progress), "picture"),
}
"""Everything that can be known of nodes: the function, and the kind of annotation that it makes."""


def annotate(
    model: Transformer,
    circuit: Circuit,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    only: Sequence[str] | None = None,
    coders: Sequence[Coder] = (),
    seed: int = 0,
    progress: bool = False,
) -> list[Annotation]:
    """What is known of the circuit's nodes, by all of `ANNOTATORS` or those named in `only`.

    `coders`: sparse autoencoders or transcoders of the circuit's nodes, without which nothing is said of features.
    `seed`: of the random sequences and of the draws of prompts. Cost: mostly that of `node_effects`, a part of a
    forward pass a node. Raises `AcdcError` for an unknown annotator, a circuit of another model, and fewer than two
    prompts.
    """
    names = those_that_apply(only, coders)
    check_graph(model, circuit.graph)
    if sum(len(batch) for batch in batches) < 2:
        raise AcdcError("nodes are annotated by what they do over prompts; give at least two, better 32")
    study = Study(model, circuit, batches, metric, seed, progress, coders)
    found: list[Annotation] = []
    for name in tqdm(names, desc="annotating", disable=not progress):
        notes = piece_of_json(f"what {name} finds", lambda name=name: [vars(one) for one in ANNOTATORS[name][0](study)])
        found += [Annotation(**note) for note in notes]
    return found


def those_that_apply(only: Sequence[str] | None, coders: Sequence[Coder]) -> list[str]:
    """The annotators named in `only`, or all for which there is what they need."""
    names = [name for name in ANNOTATORS if coders or name != "features"] if only is None else list(only)
    for name in names:
        if name not in ANNOTATORS:
            raise unknown_name("annotator", name, ANNOTATORS)
    if not names:
        raise AcdcError(f"no annotator named; name some of {', '.join(ANNOTATORS)}")
    if "features" in names and not coders:
        raise AcdcError("features are those of a sparse autoencoder or transcoder of a node; give one")
    return names


def merge(old: Sequence[Annotation], new: Sequence[Annotation], names: Sequence[str]) -> list[Annotation]:
    """The old annotations, with those of the kinds that the annotators `names` make replaced by the new ones."""
    replaced: set[Any] = {ANNOTATORS[name][1] for name in names}
    return [*(annotation for annotation in old if annotation.kind not in replaced), *new]
