"""The real model: what it computes, its graph, and EAP-IG and circuit runs against the naive implementation on it."""

import numpy as np
import pytest
import torch
from naive import NaiveModel

from acdc.ablation import prepare_ablation
from acdc.annotation.head_roles import sequence_roles
from acdc.annotation.lens import attribute_answers
from acdc.annotation.movers import movers_and_inhibitors
from acdc.annotation.patching_sweep import sweep
from acdc.discovery.eap_ig import eap_ig
from acdc.evaluation.faithfulness import faithfulness_curve
from acdc.evaluation.task_check import check_task
from acdc.intervention.direction import difference_of_means, token_batches
from acdc.intervention.generation import generate
from acdc.intervention.interventions import add
from acdc.metrics import METRICS
from acdc.models import load_model
from acdc.patching import run_circuit
from acdc.tasks import TASKS, load_task
from acdc.tasks.ioi import ioi


@pytest.fixture(scope="module")
def model():
    return load_model("smollm2")


def test_it_completes_the_indirect_object(model):
    prompt = "When Mary and John went to the store, John gave a drink to"
    tokens = torch.tensor([model.tokenizer(prompt)["input_ids"]])
    assert tokens.shape == (1, 14)  # no BOS
    with torch.no_grad():
        probabilities = model.hf(tokens).logits[0, -1].softmax(-1)
    assert model.tokenizer.decode(probabilities.argmax()) == " Mary"
    assert float(probabilities.max()) == pytest.approx(0.92, abs=0.005)


def test_its_graphs(model):
    assert (model.graph().n_edges, model.graph("group").n_edges) == (123_211, 70_651)


def test_scores_and_circuit_runs_are_the_naive_ones(model):
    """All 123,211 edges, two prompts, one step of EAP-IG at the corrupted input, and the circuit of its top 1%."""
    metric, graph = METRICS["logit_difference"], model.graph()
    batch = ioi(model.tokenizer, n=2).batches(model.tokenizer)[0]
    naive, leaves = NaiveModel(model.hf), {}
    with torch.no_grad():
        _, clean = naive.run(batch.clean, graph)
        _, corrupted = naive.run(batch.corrupted, graph)
    logits, _ = naive.run(batch.clean, graph, embedding=corrupted["input"], leaves=leaves)
    gradients = torch.autograd.grad(metric.loss(logits, batch, logits).sum(), list(leaves.values()))
    change = torch.stack([(corrupted[src.name] - clean[src.name]).flatten() for src in graph.srcs])
    by_channel = torch.stack([gradient.flatten() for gradient in gradients])
    order = [list(leaves).index(channel.name) for channel in graph.channels]
    expected = graph.from_matrix((change @ by_channel[order].T / len(batch)).numpy()[:, :, None])
    scores = eap_ig(model, [batch], steps=1)
    np.testing.assert_allclose(scores.values, expected, rtol=0, atol=1e-4 * np.abs(expected).max())

    circuit = scores.top(graph.n_edges // 100, by="magnitude")
    with torch.no_grad():
        logits, _ = naive.run(batch.clean, graph, circuit.kept, corrupted)
    ours = run_circuit(model, batch, circuit, prepare_ablation(model, [batch])(batch))
    torch.testing.assert_close(ours, logits, atol=2e-3, rtol=0)


def test_faithfulness_of_ioi_circuits(model):
    """The model does IOI; ranked by magnitude f nears 1, ranked by signed score it overshoots."""
    batches = ioi(model.tokenizer).batches(model.tokenizer)
    scores = eap_ig(model, batches)
    magnitude, signed = (faithfulness_curve(model, scores, batches, by=by, fractions=(0.01, 0.1))
                         for by in ("magnitude", "signed"))
    assert 4 < magnitude.full < 6
    assert abs(magnitude.empty) < 0.8
    small, large = (point.faithfulness for point in magnitude.points)
    assert 0.35 < small < 0.75 < large < 1.1
    assert all(point.faithfulness > 2 for point in signed.points)


def test_some_heads_have_the_roles_that_the_docs_say(model):
    heads = [(17, 4), (14, 3), (19, 3), (20, 0), (23, 7), (24, 4)]
    batches = ioi(model.tokenizer).batches(model.tokenizer)
    scores = [*sequence_roles(model, heads, n_sequences=8), *movers_and_inhibitors(model, batches, heads)]
    found = {(score.node, score.role) for score in scores if score.found}
    assert {("a17.h4", "induction"), ("a14.h3", "duplicate token"), ("a19.h3", "previous token"),
            ("a20.h0", "S-inhibition"), ("a23.h7", "name mover"), ("a24.h4", "negative mover")} <= found
    assert not found & {("a19.h3", "induction"), ("a20.h0", "name mover"), ("a17.h4", "S-inhibition")}


def test_steering_turns_the_mood(model):
    """With a few of the sentences that the docs' example has, at its place."""
    happy = ["This movie was wonderful and I loved it", "The food was delicious and the service excellent",
             "Everything went perfectly and we were thrilled", "I am so happy and grateful"]
    sad = ["This movie was terrible and I hated it", "The food was disgusting and the service horrible",
           "Everything went wrong and we were furious", "I am so sad and angry"]
    direction = difference_of_means(model, "resid14", *(token_batches(model, texts) for texts in (happy, sad)),
                                    over="all")
    prompt = token_batches(model, ["I went to the restaurant last night, and"])[0]
    texts = [model.tokenizer.decode(generate(model, prompt, 6, interventions=[add(direction, strength)])[0].tolist())
             for strength in (0.0, 0.25)]
    assert "trying to decide" in texts[0] and "excited" in texts[1]


UNABLE = {"induction", "mcqa", "colored_objects", "digits"}


@pytest.mark.parametrize("name", [name for name in TASKS if name not in UNABLE])
def test_it_does_the_tasks_that_the_docs_say_it_does(model, name):
    check = check_task(model, load_task(name, model.tokenizer, n=12).batches(model.tokenizer))
    assert check.accuracy >= 0.75 and check.clean > check.corrupted + 1 and check.corrupted_accuracy < check.accuracy


def test_lens_and_sweep_agree_on_the_name_movers(model):
    batches = ioi(model.tokenizer).batches(model.tokenizer)
    direct = attribute_answers(model, batches)
    ranked = sorted(direct.nodes, key=lambda node: -direct.nodes[node].value)
    assert ranked[0] == "a23.h3" and direct.nodes["a24.h4"].high < 0
    assert sum(one.value for one in direct.nodes.values()) == pytest.approx(direct.total, abs=1e-3)
    few = ioi(model.tokenizer, n=2).batches(model.tokenizer)
    stream = sweep(model, few, place="residual", positions="roles")
    at = {role: stream.share[:, i] for i, role in enumerate(stream.columns)}
    assert at["S2"][10] > 0.95 and at["end"][10] < 0.05 and at["end"][25] > 0.8 and abs(at["S2"][25]) < 0.1
