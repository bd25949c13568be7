"""Trained models do what is stored of them, on prompts drawn anew, and methods find the nodes that they use."""

from functools import cache

import numpy as np
import pytest
import torch

from acdc.benchmarks.trained import induction, siit
from acdc.benchmarks.trained.compare import auroc, node_scores, scores_of
from acdc.benchmarks.trained.cutting import Network
from acdc.benchmarks.trained.load import TRAINED, load_trained
from acdc.benchmarks.trained.network import Size, Swap, new_network, node_names, outputs, written
from acdc.benchmarks.trained.programs import PROGRAMS, program
from acdc.benchmarks.trained.stored import FOLDER, read
from acdc.discovery import METHODS
from acdc.errors import AcdcError
from acdc.patching import patch_nodes

loaded = cache(load_trained)
ON_PROGRAMS = [name for name in TRAINED if name in PROGRAMS]
trained_models = pytest.mark.parametrize("name", TRAINED)
ablations = pytest.mark.parametrize("ablation", ["zero", "resample"])


def said(name: str, tokens: list[int]) -> list[float]:
    """What a program says at every position after BOS, in plain Python."""
    text = "".join(PROGRAMS[name].tokens[token - 1] for token in tokens[1:])
    up_to = [text[: i + 1] for i in range(len(text))]
    return {"frac_prevs": [part.count("x") / len(part) for part in up_to],
            "pair_balance": [(part.count("(") - part.count(")")) / len(part) for part in up_to],
            "detect_ab": ["ab" in part for part in up_to]}[name]


@pytest.mark.parametrize("name", ON_PROGRAMS)
def test_programs_say_what_they_say_they_compute(name):
    tokens = program(name).draw(50, torch.Generator().manual_seed(7), held_out=True)
    values = program(name).run(tokens)[program(name).output][:, 1:]
    torch.testing.assert_close(values, torch.tensor([said(name, prompt) for prompt in tokens.tolist()]).float())


def test_held_out_prompts_are_never_trained_on():
    for of in PROGRAMS.values():
        draws = [of.draw(3000, torch.Generator().manual_seed(0), held_out=held_out) for held_out in (True, False)]
        seen, unseen = ({tuple(prompt) for prompt in draw.tolist()} for draw in draws)
        assert not seen & unseen
        assert all(prompt[0] == 0 and min(prompt[1:]) > 0 for prompt in seen | unseen)


def test_a_swapped_variable_is_passed_on_and_not_computed():
    of = program("pair_balance")
    tokens = torch.tensor([[0, 1, 1, 2, 3, 1]])
    zero = torch.zeros(1, 6)
    assert of.run(tokens, {"closed": zero})["balance"].equal(of.run(tokens)["opened"])
    assert of.run(tokens, {"bracket": zero})["balance"].equal(zero)


def test_swapping_nodes_is_activation_patching():
    model = loaded("pair_balance").model
    (batch,) = loaded("pair_balance").batches
    wrote = written(model.hf, batch.corrupted)
    for node in wrote:
        given = outputs(model.hf, batch.clean, [Swap(node, slice(None), wrote[node])])[:, -1]
        torch.testing.assert_close(given, patch_nodes(model, batch, [node]), rtol=0, atol=1e-9)


def test_losses_are_those_of_the_formulas():
    """One pair at a time, in passes of their own."""
    of, settings = program("frac_prevs"), siit.Settings()
    size = siit.size_of(of, settings)
    hf, nodes = new_network(size, 3), siit.outside(of, size)
    generator = torch.Generator().manual_seed(4)
    n = 2 * len(nodes)
    base, source = (of.draw(n, generator, held_out=False) for _ in range(2))
    found = siit.losses(hf, of, base, source, nodes)
    wrote, expected = written(hf, source), {"behaviour": 0.0, "iit": 0.0, "strict": 0.0}
    for i in range(n):
        one, other = base[i : i + 1], source[i : i + 1]
        variable = list(of.variables)[i * len(of.variables) // n]
        node, idle = of.variables[variable].node, nodes[i * len(nodes) // n]
        plain, as_on_source = of.run(one), of.run(one, {variable: of.run(other)[variable]})
        for key, swaps, wanted in (
            ("behaviour", [], plain), ("iit", [Swap(node, slice(None), wrote[node][i : i + 1])], as_on_source),
            ("strict", [Swap(idle, slice(None), wrote[idle][i : i + 1])], plain),
        ):
            given = outputs(hf, one, swaps)[0, 1:, 0]
            expected[key] += (given - wanted[of.output][0, 1:]).pow(2).mean().item() / n
    assert {key: loss.item() for key, loss in found.items()} == pytest.approx(expected, rel=1e-4)


def test_training_lowers_its_losses_and_repeats():
    settings = siit.Settings(steps=40, batch=32)
    hf, history = siit.train("frac_prevs", settings)
    again, same = siit.train("frac_prevs", settings)
    assert history == same
    assert all(torch.equal(a, b) for a, b in zip(hf.parameters(), again.parameters(), strict=True))
    for key in history[0]:
        assert sum(step[key] for step in history[-5:]) < 0.9 * sum(step[key] for step in history[:5])


def test_training_induction_lowers_its_loss_and_repeats():
    settings = induction.Settings(steps=80, batch=32)
    hf, history = induction.train(settings)
    assert history == induction.train(settings)[1]
    assert sum(history[-5:]) < 0.95 * sum(history[:5])
    assert not any(weight.any() for name, weight in hf.named_parameters() if ".mlp." in name)


@pytest.mark.parametrize("name", ON_PROGRAMS)
def test_networks_are_as_right_as_stored_on_prompts_drawn_anew(name):
    hf, stored = read(FOLDER, name)
    of = program(name)
    nodes = [node for node in node_names(Size(**stored["size"])) if node not in stored["nodes"]]
    assert {variable.node for variable in of.variables.values()} | {"input"} == set(stored["nodes"])
    again, fresh = (siit.metrics(hf, of, nodes, pairs=pairs, seed=seed) for pairs, seed in ((1024, 1), (512, 11)))
    for key in ("accuracy", "interchange", "strict"):
        assert again[key] == pytest.approx(stored["reached"][key], abs=1e-3)
    for found in (stored["reached"], fresh):
        assert min(found["accuracy"], *found["interchange"].values(), *found["strict"].values()) > 0.98


def test_the_induction_network_does_what_is_stored_on_prompts_drawn_anew():
    hf, stored = read(FOLDER, "induction")
    fresh, attention = induction.reached(hf, induction.Settings(), seed=11), stored["reached"]["attention"]
    assert fresh["loss"] == pytest.approx(stored["reached"]["loss"], rel=0.5)
    assert fresh["accuracy"] > 0.999
    for what in ("previous", "induction"):
        assert fresh["attention"][what] == pytest.approx(attention[what], abs=0.03)
    assert max(attention["previous"], key=attention["previous"].get) == "a0.h2"
    assert max(attention["induction"], key=attention["induction"].get) == "a1.h1"
    for batch in load_trained("induction").batches:
        for prompt, answer in zip(batch.clean.tolist(), batch.answer.tolist(), strict=True):
            assert answer == prompt[prompt.index(prompt[-1]) + 1]


@ablations
@trained_models
def test_stored_effects_are_those_of_the_engine(name, ablation):
    """What plain algebra measured when the model was made, against the engine's exact patching."""
    trained = loaded(name)
    scores = METHODS["exact"](trained.model, trained.batches, trained.metric, ablation=ablation)
    stored = np.array([trained.effects[ablation][edge] for edge in scores.graph.edge_names])
    np.testing.assert_allclose(scores.values, stored, atol=1e-9)
    over = scores.above(trained.threshold[ablation], by="signed")
    assert over.edge_names == trained.circuit(ablation).edge_names


@trained_models
def test_nodes_of_use_are_told_from_others(name):
    """Resampled alone, each moves the output much further than any other; the largest other effects are on the page."""
    trained = loaded(name)
    effects = {node: trained.effects["resample"][node] for node in Network(trained.model.hf).nodes}
    assert min(effects[node] for node in trained.nodes) > 5 * max(
        effect for node, effect in effects.items() if node not in trained.nodes)


@pytest.mark.parametrize("method", ["acdc", "eap_ig"])
@trained_models
def test_methods_find_the_nodes(name, method):
    trained = loaded(name)
    assert auroc(node_scores(scores_of(method, trained, "resample")), trained.nodes) == 1


@ablations
def test_acdc_recovers_the_induction_circuit(ablation):
    trained = loaded("induction")
    circuit = scores_of("acdc", trained, ablation).above(trained.threshold[ablation], by="signed")
    q_and_k = ["input->a0.h2<q>", "input->a0.h2<k>"] if ablation == "zero" else []
    assert circuit.edge_names == trained.circuit(ablation).edge_names == (
        *q_and_k, "input->a0.h2<v>", "input->a1.h1<q>", "a0.h2->a1.h1<k>", "input->a1.h1<v>", "a1.h1->logits")


def test_area_under_the_curve():
    assert auroc({"a": 2.0, "b": 1.0, "c": 0.0}, ["a", "b"]) == 1
    assert auroc({"a": 0.0, "b": 1.0, "c": 1.0}, ["a"]) == 0
    assert auroc({"a": 1.0, "b": 1.0, "c": 0.0}, ["a"]) == 0.75


def test_loading_refuses_other_names():
    with pytest.raises(AcdcError, match=r"'reverse'.*frac_prevs"):
        load_trained("reverse")
    with pytest.raises(AcdcError, match=r"'mean'.*resample"):
        loaded("induction").circuit("mean")
