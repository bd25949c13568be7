"""`acdc steer` and `acdc monitor` do what the library does, and refuse what it refuses, in one line."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import GROUPED
from tiny_tokenizer import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from acdc.circuit import Circuit
from acdc.cli import main
from acdc.export.json_file import circuit_to_json
from acdc.intervention.direction import difference_of_means, load_direction, token_batches
from acdc.intervention.generation import generate
from acdc.intervention.interventions import add
from acdc.intervention.measuring import metric_change
from acdc.intervention.monitor import monitor, watch_direction, watch_edge, watch_feature, watch_node
from acdc.models import load_model
from acdc.sae.formats import load_coder, save_coder
from acdc.sae.sparse_coder import SparseCoder
from acdc.tasks import load_task

PROMPT = "Then, Alice and Daniel went to the"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, prompts, a decoder and a circuit."""
    folder, tokenizer = tmp_path_factory.mktemp("steer"), tiny_tokenizer()
    torch.manual_seed(0)
    hf = LlamaForCausalLM(LlamaConfig(**{**GROUPED, "vocab_size": len(tokenizer)}))
    with torch.no_grad():
        for weight in hf.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    hf.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "good.txt").write_text("Then, Alice had\n\nThen, Daniel had a drink\n")
    (folder / "bad.txt").write_text("Then, Alice went\n")
    weights = {"W_enc": torch.randn(24, 5), "W_dec": torch.randn(5, 24), "b_enc": torch.zeros(5),
               "b_dec": torch.zeros(24)}
    save_coder(SparseCoder("relu", "m1", "m1", weights), folder / "sae")
    graph = load_model(folder / "model").graph()
    circuit = Circuit.from_edges(graph, ["a0.h1->m1", "input->a1.h0<q>"])
    (folder / "circuit.json").write_text(circuit_to_json(circuit))
    return folder


def run(folder, *options):
    out = folder / "out.json"
    assert main(["steer", str(folder / "model"), "--prompt", PROMPT, "--tokens", "5", *options, "-o", str(out)]) == 0
    return json.loads(out.read_text())


def test_steering_by_prompts(folder, capsys):
    model = load_model(folder / "model")
    record = run(folder, "--from", str(folder / "good.txt"), "--against", str(folder / "bad.txt"), "--at", "resid1",
                 "--strength", "2", "--task", "ioi", "--prompts", "4", "--save", str(folder / "d.safetensors"))
    prompts = ["Then, Alice had", "Then, Daniel had a drink"], ["Then, Alice went"]
    sets = [token_batches(model, texts) for texts in prompts]
    direction = difference_of_means(model, "resid1", *sets, over="all", label="good")
    prompt = token_batches(model, [PROMPT])[0]
    for name, interventions in (("before", []), ("after", [add(direction, 2.0)])):
        found = generate(model, prompt, 5, interventions=interventions)
        assert record[name] == model.tokenizer.decode(found[0].tolist())
    assert record["before"] != record["after"]
    batches = load_task("ioi", model.tokenizer, n=4).batches(model.tokenizer)
    expected = metric_change(model, batches, interventions=[add(direction, 2.0)])
    assert record["logit_difference"]["change"] == pytest.approx(vars(expected.change), rel=1e-5)
    assert record["after"] in capsys.readouterr().out
    saved = load_direction(folder / "d.safetensors")
    torch.testing.assert_close(saved.vector, direction.vector.float())
    again = run(folder, "--direction", str(folder / "d.safetensors"), "--strength", "2")
    assert again["after"] == record["after"]


def test_other_directions_and_cuts(folder):
    model = load_model(folder / "model")
    graph, texts = model.graph(), set()
    for options, done in (
        (["--feature", f"{folder / 'sae'}:3", "--strength", "4"], "feature 3 added at m1"),
        (["--token", " Alice", "--at", "resid2", "--clamp", "30", "--absolute"], "' Alice' clamped to 30 at resid2"),
        (["--ablate", "m1", "a0.h2"], "m1 ablated"),
        (["--ablate", "m1->logits", "m0->m1"], "2 edges cut (zero)"),
        (["--ablate", str(folder / "circuit.json")], "2 edges cut (zero)"),
        (["--only", str(folder), "--task", "ioi", "--prompts", "4", "--ablation", "mean_over_positions"],
         f"{graph.n_edges - 2:,} edges cut"),
    ):
        record = run(folder, *options)
        assert record["done"][0].startswith(done)
        texts.add(record["after"])
    assert len(texts) > 3


def test_the_monitor_prints_what_the_library_reads(folder, capsys, tmp_path):
    model = load_model(folder / "model")
    save_file({"direction": torch.ones(24)}, tmp_path / "ones.safetensors", {"site": "resid1", "label": "ones"})
    names = [str(tmp_path / "ones.safetensors"), "m1", "m0->logits", f"{folder / 'sae'}:3"]
    command = ["monitor", str(folder / "model"), "--prompt", PROMPT, "--watch", *names, "--tokens", "3"]
    assert main([*command, "--threshold", "0", "1", "1e9", "1e9"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    direction = load_direction(tmp_path / "ones.safetensors")
    watches = [watch_direction(model, direction, 0.0), watch_node(model, "m1", 1.0), watch_edge(model, names[2], 1e9)]
    coder = load_coder(folder / "sae")
    watches.append(watch_feature(names[3], "m1", coder.encode, 3, 1e9))
    assert lines == [reading.as_record() for reading in monitor(model, token_batches(model, [PROMPT])[0], watches, 3)]
    assert lines[0]["values"].keys() == {"ones", *names[1:]}
    assert any(line["alarms"] for line in lines) and lines[-1]["prompt"] is False
    assert main([*command, "--threshold", "-9", "--stop-on-alarm", "--out", str(tmp_path / "lines.jsonl")]) == 0
    assert len((tmp_path / "lines.jsonl").read_text().splitlines()) == 1
    assert capsys.readouterr().out == ""


MISTAKES = [
    (["steer", "--tokens", "2"], "say what to do"),
    (["steer", "--token", " Alice", "--at", "resid1"], "either --strength or --clamp"),
    (["steer", "--token", " Alice", "--strength", "1"], "--at is needed"),
    (["steer", "--token", " Alice", "--at", "resid9", "--strength", "1"], "its last is resid3"),
    (["steer", "--from", "x", "--at", "m1", "--strength", "1"], "go together"),
    (["steer", "--from", "x", "--against", "y", "--at", "m1", "--strength", "1"], "no file 'x'"),
    (["steer", "--feature", "x", "--at", "m1", "--strength", "1"], "CODER:INDEX"),
    (["steer", "--feature", "nothing:3", "--strength", "1"], "there is no nothing"),
    (["steer", "--direction", "x.safetensors", "--strength", "1"], "there is no"),
    (["steer", "--ablate", "m1", "nothing"], "'nothing' is neither a node"),
    (["steer", "--ablate", "m1", "--ablation", "mean_over_positions"], "give --task"),
    (["steer", "--ablate", "m1", "--ablation", "mean"], "with zero or mean_over_positions only"),
    (["steer", "--ablate", "m0->m1", "--token", " Alice", "--at", "m1", "--strength", "1"], "do one of both"),
    (["steer", "--ablate", "m1", "--positions", "some"], "unknown positions 'some'"),
    (["steer", "--ablate", "m1", "--task", "nothing"], "unknown task 'nothing'"),
    (["steer", "--ablate", "m1", "--metric", "nothing"], "unknown metric 'nothing'"),
    (["steer", "--ablate", "m1", "--tokens", "0"], "0 to generate"),
    (["steer", "--ablate", "m1", "--dtype", "half"], "unknown dtype 'half'"),
    (["steer", "--ablate", "m1", "--text", "nothing"], "cannot read the text"),
    (["monitor", "--watch", "nothing"], "cannot watch 'nothing'"),
    (["monitor", "--watch", "m1", "m2", "a0.h1", "--threshold", "1", "2"], "2 thresholds for 3 watches"),
    (["monitor", "--watch", "m1", "--stop-on-alarm"], "nothing is an alarm"),
    (["monitor", "--watch", "m1", "--out", "nowhere/lines"], "is not a folder"),
]


@pytest.mark.parametrize(("command", "message"), MISTAKES)
def test_mistakes_are_one_line(folder, command, message, capsys):
    name, *options = command
    assert main([name, str(folder / "model"), "--prompt", PROMPT, *options]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("acdc: ") and message in last
