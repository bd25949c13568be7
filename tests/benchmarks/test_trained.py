"""Trained models do what is stored of them, on prompts drawn anew, and methods find the nodes that they use."""

from functools import cache

import pytest
import torch

from acdc.benchmarks.trained import induction, siit
from acdc.benchmarks.trained.load import TRAINED, load_trained
from acdc.benchmarks.trained.network import Swap, new_network, outputs, written
from acdc.benchmarks.trained.programs import PROGRAMS, program
from acdc.patching import patch_nodes

loaded = cache(load_trained)
ON_PROGRAMS = [name for name in TRAINED if name in PROGRAMS]
trained_models = pytest.mark.parametrize("name", TRAINED)
ablations = pytest.mark.parametrize("ablation", ["zero", "resample"])


def said(name: str, tokens: list[int]) -> list[float]:
    """What a program says at every position after BOS, in plain Python."""
    of = PROGRAMS[name]
    text = [of.tokens[token - 1] for token in tokens[1:]]
    counted = {"frac_prevs": lambda i: text[i] == "x", "pair_balance": lambda i: (text[i] == "(") - (text[i] == ")"),
               "detect_ab": lambda i: i > 0 and text[i - 1 : i + 1] == ["a", "b"]}[name]
    return [sum(counted(j) for j in range(i + 1)) / (i + 1) for i in range(len(text))]


@pytest.mark.parametrize("name", ON_PROGRAMS)
def test_programs_say_what_they_say_they_compute(name):
    tokens = program(name).draw(50, torch.Generator().manual_seed(7), held_out=True)
    values = program(name).run(tokens)[program(name).output][:, 1:]
    torch.testing.assert_close(values, torch.tensor([said(name, prompt) for prompt in tokens.tolist()]))


def test_held_out_prompts_are_never_trained_on():
    for of in PROGRAMS.values():
        draws = [of.draw(3000, torch.Generator().manual_seed(0), held_out=held_out) for held_out in (True, False)]
        seen, unseen = ({tuple(prompt) for prompt in draw.tolist()} for draw in draws)
        assert not seen & unseen
        assert all(prompt[0] == 0 and min(prompt[1:]) > 0 for prompt in seen | unseen)


def test_a_swapped_variable_is_passed_on_and_not_computed():
    of = program("pair_balance")
    tokens = torch.tensor([[0, 1, 1, 2, 3, 1, 4]])
    zero = torch.zeros(1, 7)
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
            expected[key] += float((given - wanted[of.output][0, 1:]).pow(2).mean()) / n
    assert {key: loss.item() for key, loss in found.items()} == pytest.approx(expected, rel=1e-4)


def test_training_lowers_its_losses_and_repeats():
    settings = siit.Settings(steps=30, batch=32)
    hf, history = siit.train("frac_prevs", settings)
    again, same = siit.train("frac_prevs", settings)
    assert history == same
    assert all(torch.equal(a, b) for a, b in zip(hf.parameters(), again.parameters(), strict=True))
    for key in history[0]:
        assert sum(step[key] for step in history[-5:]) < 0.7 * sum(step[key] for step in history[:5])


def test_training_induction_lowers_its_loss_and_repeats():
    settings = induction.Settings(steps=30, batch=16)
    hf, history = induction.train(settings)
    assert history == induction.train(settings)[1]
    assert sum(history[-5:]) < 0.9 * sum(history[:5])
    assert not any(weight.any() for name, weight in hf.named_parameters() if ".mlp." in name)
