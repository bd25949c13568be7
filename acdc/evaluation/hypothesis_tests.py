"""The three tests of Shi et al. 2024: equivalence, independence, minimality.

Each has a null hypothesis that an ideal circuit satisfies, so rejecting it speaks *against* the circuit, and not
rejecting it says little: few prompts never reject. What can be shown in favour is tested the other way round.
Scores are the metric with the sign by which higher is better. Source: Shi et al. 2024 (arXiv 2410.13032).
"""

import numpy as np
from jaxtyping import Float

from acdc.circuit import Circuit
from acdc.evaluation.bench import TIE, Bench, Gains
from acdc.evaluation.minimality import EdgesCut, first_few
from acdc.evaluation.random_circuits import inflated
from acdc.evaluation.significance import ALPHA, binomial, binomial_tail, holm, share_interval
from acdc.evaluation.verdict import TestResult, Verdict

Scores = Float[np.ndarray, " prompt"]


def equivalence(bench: Bench, gains: Gains, *, epsilon: float = 0.1) -> TestResult:
    """Have circuit and model the same chance of outperforming each other?

    delta = score(circuit) - score(model) on a prompt; H0: |P(delta > 0) - 1/2| <= epsilon. A tie counts half, and a
    difference below 1e-4 of the mean gap is one: it may be rounding. fail: H0 is rejected by `equivalence_p`. pass:
    the contrary of H0 is, by `differs_at_most`. Else undecided. It asks how often, not by how much: a circuit that is a
    little worse on every prompt fails, one that is far worse on half and a little better on half passes.
    """
    delta = gains[0] - bench.gap
    tie = np.abs(delta) <= TIE * bench.gap.mean()
    n, n_ties = len(delta), int(tie.sum())
    n_above = int((delta[~tie] > 0).sum())
    share = (n_above + n_ties / 2) / n
    p, bound = equivalence_p(n_above + n_ties / 2, n, epsilon), differs_at_most(n_above, n_ties, n)
    verdict: Verdict = "fail" if p <= ALPHA else "pass" if bound <= epsilon else "undecided"
    numbers = {"n": n, "n_above": n_above, "n_ties": n_ties, "share": share, "epsilon": epsilon, "p": p,
               "differs_at_most": bound}
    reason = (f"the circuit outdoes the model on {n_above} of {n} prompts, {n_ties} tied: P(Δ > 0) = {share:.3f}; H0, "
              f"within 1/2 ± {epsilon:g}, is {'rejected' if p <= ALPHA else 'not rejected'} (p {p:.2g}); off 1/2 by "
              f"{bound:.2f} at most")
    return TestResult("equivalence (Shi)", verdict, reason, numbers, decides=False)


def equivalence_p(n_above: float, n: int, epsilon: float) -> float:
    """p of H0: |P(delta > 0) - 1/2| <= epsilon: P(|X / n - 1/2| >= |n_above / n - 1/2|) of X ~ Binomial(n, 1/2 + eps).

    Two-sided; of all probabilities in H0 those at its ends are the likeliest to give so far a share.
    """
    off = np.abs(np.arange(n + 1) / n - 0.5)
    return min(1.0, float(binomial(n, 0.5 + epsilon)[off >= abs(n_above / n - 0.5) - 1e-12].sum()))


def differs_at_most(n_above: int, n_ties: int, n: int) -> float:
    """The bound of |P(delta > 0) + P(tie) / 2 - 1/2| at 95%.

    The better of two bounds, at 97.5% each: the exact interval of the share, ties counted against it; and half the
    upper end of the share of prompts that are no ties, as ties are as good for one as for the other.
    """
    low, high = share_interval(n_above, n, 0.95)[0], share_interval(n_above + n_ties, n, 0.95)[1]
    return min(max(high - 0.5, 0.5 - low), share_interval(n - n_ties, n, 0.95)[1] / 2)


def independence(bench: Bench, circuit: Circuit, *, n_permutations: int = 1000) -> TestResult:
    """Does what is left without the circuit still know how well the model does?

    H0: score(complement) and score(model) are independent over prompts. Test: `hsic_p`. The empty circuit's score is
    tested as well: where the replacements alone depend on the prompt (resample, with clean and corrupted prompts that
    share a template), it is dependent too, and rejecting H0 says nothing of the complement.
    fail: H0 is rejected for the complement, and not for the empty circuit. pass: the complement does what the empty
    circuit does, up to ties. Else undecided. Cost: one run of all edges but the circuit's.
    """
    gain = bench.gains([circuit.complement()])[0]
    p, p_empty = (hsic_p(score, bench.full, n_permutations, bench.seed) for score in (gain + bench.empty, bench.empty))
    nothing_left = bool((np.abs(gain) <= TIE * bench.gap.mean()).all())
    numbers = {"p": p, "p_empty": p_empty, "nothing_left": nothing_left, "n_permutations": n_permutations}
    if nothing_left:
        return TestResult("independence (Shi)", "pass", "without the circuit, the model does on every prompt what it "
                          f"does with all edges cut (HSIC with its full score: p {p:.3g})", numbers, decides=False)
    rejected = p <= ALPHA
    words = "depends on" if rejected else "is not shown to depend on"
    reason = f"the complement's score {words} the model's (HSIC, p {p:.3g})"
    if rejected and p_empty <= ALPHA:
        reason += f"; but so does the score with all edges cut (p {p_empty:.3g}), so this says nothing of the circuit"
    verdict: Verdict = "fail" if rejected and p_empty > ALPHA else "undecided"
    return TestResult("independence (Shi)", verdict, reason, numbers, decides=False)


def hsic_p(x: Scores, y: Scores, n_permutations: int, seed: int) -> float:
    """p of H0: x and y are independent; the rank of their HSIC among those with y permuted, (1 + n at least) / (1 + n).

    HSIC = trace(K H L H) / (n - 1)^2, H = 1 - 1/n, with Gaussian kernels as wide as the median distance of x, and of y.
    Source: Gretton et al. 2007 (A kernel statistical test of independence).
    """
    centred, other = _centred(_gaussian(x)), _gaussian(y)
    rng = np.random.default_rng([seed, 13])
    orders = [np.arange(len(x)), *(rng.permutation(len(x)) for _ in range(n_permutations))]
    statistics = np.array([(centred * other[np.ix_(order, order)]).sum() for order in orders])
    return float((statistics >= statistics[0] - 1e-12 * abs(statistics[0])).mean())  # the first one is its own


def hsic(x: Scores, y: Scores) -> float:
    """The statistic of `hsic_p`."""
    return float((_centred(_gaussian(x)) * _gaussian(y)).sum() / (len(x) - 1) ** 2)


def _gaussian(x: Scores) -> Float[np.ndarray, "prompt prompt"]:
    distance = np.abs(x[:, None] - x[None, :])
    between = distance[np.triu_indices(len(x), 1)]
    width = np.median(between) or between.mean() or 1.0
    return np.exp(-(distance**2) / (2 * width**2))


def _centred(k: Float[np.ndarray, "prompt prompt"]) -> Float[np.ndarray, "prompt prompt"]:
    return k - k.mean(0) - k.mean(1)[:, None] + k.mean()


def minimality(bench: Bench, circuit: Circuit, cut: EdgesCut, *, n_inflated: int = 30, quantile: float = 0.9
               ) -> TestResult:
    """Does each edge matter more than a random edge would, in a random path added to the circuit?

    delta(edge) = mean |score(circuit) - score(circuit without it)|. Reference: in each of `n_inflated` circuits, the
    circuit with a random path from the input to the logits, the same of a random edge of that path. H0 of an edge:
    P(delta(edge) > delta(reference)) >= `quantile`; binomial test, corrected by Holm for the edges tested (Shi et al.
    name Bonferroni, which rejects less). fail: H0 is rejected for at least one edge: it matters as a random one may.
    pass: the contrary of H0 is rejected for each of them, at 5% each. Cost: two circuit runs a reference.
    """
    rng = np.random.default_rng([bench.seed, 14])
    grown = [inflated(circuit, rng) for _ in range(n_inflated)]
    without = [Circuit(circuit.graph, _without(bigger, edge)) for bigger, edge in grown]
    gains = bench.gains([bigger for bigger, _ in grown] + without)
    references = np.abs(gains[:n_inflated] - gains[n_inflated:]).mean(1)
    changes = np.abs(cut.own - cut.gains).mean(1)
    tie = TIE * bench.gap.mean() / max(1, circuit.n_edges)
    n_above = (changes[:, None] > references + tie).sum(1)
    if not len(changes):
        return TestResult("minimality (Shi)", "undecided", "the circuit has no edges to cut", {"n_tested": 0},
                          decides=False)
    idle = np.array(holm([binomial_tail(n, n_inflated, quantile, above=False) for n in n_above.tolist()])) <= ALPHA
    needed = np.array([binomial_tail(n, n_inflated, quantile, above=True) for n in n_above.tolist()]) <= ALPHA
    names = [circuit.graph.edge_name(edge) for edge in cut.edges.tolist()]
    verdict: Verdict = "fail" if idle.any() else "pass" if needed.all() else "undecided"
    worst = [names[i] for i in np.argsort(changes, kind="stable").tolist() if idle[i]]
    listed = f": {first_few(worst)}" if worst else ""
    n_open = int((~needed & ~idle).sum())
    reason = (f"of {len(names):,} edges, {int(needed.sum()):,} matter more than {quantile:.0%} of {n_inflated} random "
              f"edges added to the circuit, {int(idle.sum()):,} do not (Holm){listed}"
              f"{f'; {n_open:,} are open' if n_open else ''}")
    numbers = {"n_tested": len(names), "n_inflated": n_inflated, "quantile": quantile, "n_needed": int(needed.sum()),
               "n_idle": int(idle.sum()), "references": references.tolist(),
               "edges": [{"name": name, "change": change, "n_above": above} for name, change, above in zip(
                   names, changes.tolist(), n_above.tolist(), strict=True)]}
    return TestResult("minimality (Shi)", verdict, reason, numbers, decides=False)


def _without(circuit: Circuit, edge: int) -> np.ndarray:
    kept = circuit.kept.copy()
    kept[edge] = False
    return kept
