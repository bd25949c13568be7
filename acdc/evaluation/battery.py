"""All tests of one circuit, and the verdict on it.

Tests that decide: sufficiency, necessity, completeness, minimality of edges and of nodes, random circuits. The others
inform: the tests of Shi et al., whose null hypotheses can be rejected but hardly shown; sensitivity; dissociation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from acdc.circuit import Circuit
from acdc.errors import AcdcError, unknown_name
from acdc.evaluation import hypothesis_tests as shi
from acdc.evaluation.bench import Bench, Gains
from acdc.evaluation.completeness import completeness
from acdc.evaluation.dissociation import of_another_circuit, on_another_task
from acdc.evaluation.minimality import EdgesCut, cut_edges, minimality_of_edges, minimality_of_nodes
from acdc.evaluation.random_circuits import against_random
from acdc.evaluation.sensitivity import sensitivity
from acdc.evaluation.sufficiency import necessity, sufficiency
from acdc.evaluation.verdict import Battery, TestResult
from acdc.patching import check_graph


@dataclass(frozen=True)
class Settings:
    """`tolerance`: of faithfulness, in shares of the gap between full model and empty circuit. `edges`, `nodes`: at
    most so many are cut alone. `random`: size-matched circuits of each kind. `subsets`: random sets of completeness.
    `inflated`: references of Shi's minimality. `epsilon`: of Shi's equivalence."""

    tolerance: float = 0.1
    edges: int = 100
    nodes: int = 50
    random: int = 20
    subsets: int = 6
    inflated: int = 30
    permutations: int = 1000
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = {"random": 19, "subsets": 0, "inflated": 29, "permutations": 99}.get(name, 1)
            if name in ("tolerance", "epsilon"):
                if not 0 < value < (0.5 if name == "epsilon" else 1):
                    raise AcdcError(f"{name} {value}: it must lie between 0 and {'0.5' * (name == 'epsilon') or 1}")
            elif value < least:
                reason = ": with fewer, no test of these could ever pass" if least > 1 else ""
                raise AcdcError(f"{name} {value}: it must be at least {least}{reason}")


@dataclass(frozen=True, eq=False)
class _Given:
    """What the tests are made from. `gains`: the circuit's own."""

    bench: Bench
    circuit: Circuit
    gains: Gains
    cut: EdgesCut | None
    settings: Settings


TESTS: dict[str, Callable[[_Given], TestResult]] = {
    "sufficiency": lambda g: sufficiency(g.bench, g.gains, tolerance=g.settings.tolerance),
    "necessity": lambda g: necessity(g.bench, g.circuit, tolerance=g.settings.tolerance),
    "completeness": lambda g: completeness(g.bench, g.circuit, _cut(g), n_random=g.settings.subsets,
                                           tolerance=g.settings.tolerance),
    "minimality_edges": lambda g: minimality_of_edges(g.bench, g.circuit, _cut(g), tolerance=g.settings.tolerance),
    "minimality_nodes": lambda g: minimality_of_nodes(g.bench, g.circuit, g.gains[0], n=g.settings.nodes,
                                                      tolerance=g.settings.tolerance),
    "random": lambda g: against_random(g.bench, g.circuit, g.gains, n=g.settings.random),
    "shi_equivalence": lambda g: shi.equivalence(g.bench, g.gains, epsilon=g.settings.epsilon),
    "shi_independence": lambda g: shi.independence(g.bench, g.circuit, n_permutations=g.settings.permutations),
    "shi_minimality": lambda g: shi.minimality(g.bench, g.circuit, _cut(g), n_inflated=g.settings.inflated),
    "sensitivity": lambda g: sensitivity(g.bench, g.circuit, tolerance=g.settings.tolerance),
}
READ_CUT_EDGES = ("completeness", "minimality_edges", "shi_minimality")


def _cut(given: _Given) -> EdgesCut:
    assert given.cut is not None
    return given.cut


def run_battery(bench: Bench, circuit: Circuit, settings: Settings = Settings(), *,  # noqa: B008
                only: Sequence[str] = tuple(TESTS), other_task: tuple[str, Bench] | None = None,
                other_circuit: Circuit | None = None) -> Battery:
    """The tests in `only`, by the names in `TESTS`; dissociation where another task or circuit is given.

    `other_task`: its name and a bench of its prompts, with the same model. Deterministic by the bench's seed. Cost:
    about edges / 10 + nodes + 2 random + 2 inflated circuit runs, and 20 to 25 of nearly all edges (with the defaults).
    Raises `AcdcError` for an empty circuit, a full one, and one of another model.
    """
    for name in only:
        if name not in TESTS:
            raise unknown_name("test", name, TESTS)
    check_graph(bench.model, circuit.graph)
    if not 0 < circuit.n_edges < circuit.graph.n_edges:
        raise AcdcError(f"a circuit of {circuit.n_edges:,} of {circuit.graph.n_edges:,} edges: there is nothing to "
                        "test in a circuit without edges, or with all of them")
    if other_circuit is not None and other_circuit.graph != circuit.graph:
        raise AcdcError(f"the other circuit is of another graph, {other_circuit.graph}, than this one, {circuit.graph}")
    cut = cut_edges(bench, circuit, settings.edges) if set(only) & set(READ_CUT_EDGES) else None
    given = _Given(bench, circuit, bench.gains([circuit]), cut, settings)
    results = [test(given) for name, test in TESTS.items() if name in only]
    if other_task is not None:
        name, other = other_task
        results.append(on_another_task(bench, other, circuit, given.gains, name=name, n_random=settings.random // 2,
                                       tolerance=settings.tolerance))
    if other_circuit is not None:
        results.append(of_another_circuit(bench, circuit, other_circuit, given.gains, tolerance=settings.tolerance))
    return Battery(tuple(results), circuit.n_edges, circuit.graph.n_edges, bench.n_prompts, bench.metric.name,
                   vars(settings))
