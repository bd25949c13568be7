"""The table of methods: a search's own circuit is measured as it is."""

import numpy as np
import pytest
from conftest import make_batch, tiny

from acdc.benchmarks.methods import RUNS, faithfulness_of, main
from acdc.circuit import EdgeScores
from acdc.evaluation.faithfulness import faithfulness


def test_a_search_is_measured_at_its_own_circuit():
    """Also where kept / edges * edges, in floating point, is less than what is kept."""
    model, batches = tiny("gemma2"), [make_batch(3, 6)]
    run, graph = RUNS["acdc, shortlist 5%"], model.graph()
    n = next(n for n in range(1, graph.n_edges) if int(n / graph.n_edges * graph.n_edges) < n)
    values = np.where(np.arange(graph.n_edges) < n, 1.0, -np.inf)
    scores = EdgeScores(graph, values)
    expected = faithfulness(model, scores.top(n, by="signed"), batches)
    assert faithfulness_of(run, scores, model, batches)["own"] == [n, expected.faithfulness]


def test_rows_that_there_are_not(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["methods", "--only", "eap,eap_ig"])
    with pytest.raises(SystemExit):
        main()
    assert "no row 'eap,eap_ig'; rows are edge_pruning;" in capsys.readouterr().err
