"""Many machines: workers of a Ray cluster give the bytes that one process gives, whoever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_benchmark import N_TEST, N, command
from test_cli import TOKENIZER, run, save_model, solvable

import acdc.cluster
import acdc.ray_workers
from acdc.cluster import finished, on_ray
from acdc.discovery import METHODS
from acdc.discovery.exact import exact_effects
from acdc.errors import AcdcError
from acdc.evaluation.calibration import calibrate
from acdc.evaluation.faithfulness import measure
from acdc.metrics import METRICS, Metric
from acdc.models import load_model, weights_hash
from acdc.ray_workers import LostError, _cluster, divide
from acdc.stopping import Stopped, stopped_by_signals
from acdc.tasks import load_task

ray = pytest.importorskip("ray")
GRADIENTS = ("eap", "eap_ig", "eap_ig_activations", "eap_clean_corrupted", "relp", "gim", "hisp", "ifr",
             "node_attribution", "ensemble")
TEXTS = ("eap", "acdc:threshold=0.05,shortlist=20%,prompts=4", "acdc:threshold=0.02,shortlist=20%,prompts=4")
ONE_CPU = """
import os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
ray.init("local", num_cpus=1, include_dashboard=False)
from acdc.cli import main
sys.exit(main(sys.argv[1:]))
"""
CLOCKS = {"seconds", "cpu_seconds", "evaluation_seconds", "peak_gib", "machine", "date"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and a task file."""
    base = tmp_path_factory.mktemp("cluster")
    hf = save_model(base / "model")
    (base / "task.json").write_text(json.dumps(solvable(hf, N + N_TEST, seed=0)))
    return base


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs of this machine, whichever it has."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    on_stop = signal.getsignal(signal.SIGTERM)
    ray.init("local", num_cpus=2, log_to_driver=False, configure_logging=False, include_dashboard=False)
    signal.signal(signal.SIGTERM, on_stop)
    yield
    ray.shutdown()
    del os.environ["RAY_USAGE_STATS_ENABLED"]


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder / "model")


@pytest.fixture(scope="module")
def spread(cluster, model):
    """The model with two workers of one thread each."""
    with on_ray(model, n=2) as spread:
        yield spread


@pytest.fixture(scope="module")
def batches(folder):
    task = load_task(str(folder / "task.json"), TOKENIZER)
    return task.batches(TOKENIZER, batch_size=3)


def deadly(marker):
    """A metric that kills whoever computes it, unless the marker is there; then it is the logit difference."""
    difference = METRICS["logit_difference"].value

    def value(logits, batch, reference):
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return difference(logits, batch, reference)

    return Metric("logit_difference", value)


def pids(spread):
    """Of the workers that are at work at the same time."""
    def own(piece):
        time.sleep(0.3)
        yield os.getpid()

    return {pid for _, found in finished(spread.workers, own, range(2 * spread.workers.n)) for pid in found}


def test_a_grid_goes_on_after_its_driver_was_killed(cluster, folder, tmp_path):
    # First of all, because the workers of the other tests have both CPUs.
    def records(out):
        cells = json.loads((out / "results.json").read_text())["cells"]
        return [{key: value for key, value in cell.items() if key not in CLOCKS} for cell in cells]

    status, _, err = run(*command(folder, tmp_path / "one", methods=TEXTS))
    assert status == 0, err
    asked = [*command(folder, tmp_path / "many", methods=TEXTS), "--ray"]
    killed = subprocess.Popen([sys.executable, "-c", ONE_CPU, *map(str, asked)], stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "many").glob("cells/*.json")):
        assert killed.poll() is None and time.monotonic() < deadline, killed.communicate()[1]
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    there = len(list((tmp_path / "many").glob("cells/*.json")))
    status, out, err = run(*asked)
    assert status == 0, err
    assert out.count("there already") == there < len(TEXTS)
    assert records(tmp_path / "many") == records(tmp_path / "one")
    assert [record["own"] is None for record in records(tmp_path / "many")] == [True, False, False]


@pytest.mark.parametrize("method", GRADIENTS)
@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_scores_are_the_bytes_of_one_process(spread, model, batches, method, ablation):
    assert len(batches) > 3
    options = {"ablation": ablation, **({"per_prompt": True} if method in ("eap", "eap_ig", "relp", "ifr") else {})}
    one, many = (METHODS[method](m, batches, **options) for m in (model, spread))
    assert many.values.tobytes() == one.values.tobytes()
    assert (many.provenance, many.per_prompt is None) == (one.provenance, one.per_prompt is None)
    if one.per_prompt is not None:
        assert many.per_prompt.tobytes() == one.per_prompt.tobytes()


def test_edges_and_circuits_too(spread, model, batches, monkeypatch):
    monkeypatch.setattr("acdc.discovery.exact.LEAST_PASSES", 1)
    few = batches[:1]  # fewer batches than workers: the edges are divided
    edges = np.random.default_rng(0).permutation(model.graph().n_edges)[:150]
    one, many = (exact_effects(m, few, METRICS["logit_difference"], edges) for m in (model, spread))
    assert many.tobytes() == one.tobytes()
    scores = METHODS["exact"](model, batches, positions="roles" if few[0].examples[0].roles else "all")
    assert METHODS["exact"](spread, batches).values.tobytes() == METHODS["exact"](model, batches).values.tobytes()
    one, many = (calibrate(m, METHODS["eap"](model, few), few, n=60) for m in (model, spread))
    assert many.summary() == one.summary() and many.sample.effect.tobytes() == one.sample.effect.tobytes()
    circuits = [scores.top(n, by="magnitude") for n in (0, 5, 20, 20, 60, scores.graph.n_edges)]
    one, many = (measure(m, circuits, few, METRICS["kl_divergence"]) for m in (model, spread))
    assert torch.equal(one, many)


def test_pieces_of_edges_are_whole_and_alike(model, monkeypatch):
    from acdc.discovery.exact import _parts

    graph = model.graph()
    reads = [(c, np.arange(int(graph.n_srcs_read[c]))) for c in range(len(graph.channels))][::-1]
    for passes in (1, 3, 1000):
        monkeypatch.setattr("acdc.discovery.exact.LEAST_PASSES", passes)
        parts = _parts(graph, reads)
        assert [read for part in parts for read in part] == reads
        assert all(parts) and (len(parts) > 1) == (passes < 1000)


def test_killed_workers_are_replaced(spread, model, batches, tmp_path):
    expected = METHODS["eap"](model, batches).values.tobytes()
    before = pids(spread)
    assert len(before) == 2 and os.getpid() not in before
    os.kill(min(before), signal.SIGKILL)  # between two jobs
    assert METHODS["eap"](spread, batches, deadly(tmp_path / "killed")).values.tobytes() == expected  # and in one
    assert (tmp_path / "killed").exists() and METHODS["eap"](spread, batches).values.tobytes() == expected
    after = pids(spread)
    assert after and not after & {min(before)}


def test_what_kills_every_worker_and_what_is_raised(spread, model, batches, monkeypatch):
    def mistake(logits, batch, reference):
        raise AcdcError("a mistake")

    def bug(logits, batch, reference):
        raise ZeroDivisionError("a bug")

    with pytest.raises(AcdcError, match="^a mistake$"):
        METHODS["eap"](spread, batches, Metric("m", mistake))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        METHODS["eap"](spread, batches, Metric("m", bug))
    monkeypatch.setattr(acdc.ray_workers, "MOST_LOSSES", 0)

    def always(logits, batch, reference):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(LostError, match="1 workers died of the same piece of work, Batch"):
        METHODS["eap"](spread, batches[:1], Metric("m", always))
    monkeypatch.undo()
    assert METHODS["eap"](spread, batches).values.tobytes() == METHODS["eap"](model, batches).values.tobytes()


def test_an_edited_model_keeps_to_this_process(spread, model, batches):
    edited = replace(spread, hf=load_model(spread.name).hf)
    with torch.no_grad():
        edited.hf.get_output_embeddings().weight.mul_(2)
    assert not np.allclose(METHODS["eap"](edited, batches).values, METHODS["eap"](model, batches).values)


def test_other_weights_on_a_worker_are_refused(spread):
    spread.workers.stand_for(spread, "weights of sha256 0")
    os.kill(min(pids(spread)), signal.SIGKILL)
    try:
        with pytest.raises(AcdcError, match="a worker has acdc .*, weights of sha256 .*, but here are acdc"):
            list(finished(spread.workers, lambda piece: [time.sleep(1)], range(40)))
    finally:
        spread.workers.stand_for(spread, f"weights of sha256 {weights_hash(spread)}")


def test_commands(spread, folder, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(acdc.cluster, "on_ray", lambda model, *options: given.append(options) or nullcontext(spread))
    task = ("--task", folder / "task.json", "--model", folder / "model", "--prompts", N, "--batch-size", 3)
    for name, options in (("one", ()), ("many", ("--ray", "local", "--workers", 2))):
        found = run("discover", *task, "--method", "eap", "--size", 40, "--out", tmp_path / name, *options)
        assert found[0] == 0, found[2]
        for order, more in (("evaluate", ("--curve",)), ("calibrate", ("--edges", 60))):
            out = tmp_path / f"{name}-{order}.json"
            status, _, err = run(order, tmp_path / name, *more, "--out", out, *options)
            assert status == 0, err
    assert given == [("local", 2)] * 3
    assert (tmp_path / "one" / "edges.csv").read_bytes() == (tmp_path / "many" / "edges.csv").read_bytes()
    one, many = (json.loads((tmp_path / name / "circuit.json").read_text())["provenance"] for name in ("one", "many"))
    differing = {key for key in one if one[key] != many[key]}
    assert differing <= {"command", "seconds"}
    for order in ("evaluate", "calibrate"):
        assert (tmp_path / f"one-{order}.json").read_bytes() == (tmp_path / f"many-{order}.json").read_bytes()


@pytest.mark.parametrize(("options", "message"), [
    (("--workers", "2"), "--workers are those of --ray; give that too"),
    (("--ray", "--workers", "0"), "--workers 0: it must be at least 1"),
    (("--ray", "somewhere"), "'somewhere' is no address of a Ray cluster: give HOST:PORT, auto or local, or nothing"),
])
def test_mistakes_are_refused_before_the_model_is_loaded(folder, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(acdc.models, "load_model", None)
    for order in (("discover", "--task", folder / "task.json"), ("benchmark", "--tasks", folder / "task.json")):
        status, _, err = run(*order, "--out", tmp_path / "out", *options)
        assert status == 1 and message in err


def test_signals_stop_a_run_beside_ray_as_well():
    """Ray has SIGTERM end the process at once."""
    exits = SimpleNamespace(is_initialized=lambda: False, shutdown=lambda: None,
                            init=lambda **options: signal.signal(signal.SIGTERM, lambda *_: sys.exit(15)))
    with pytest.raises(Stopped), stopped_by_signals(), _cluster(exits, "local"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


def test_without_ray(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    status, _, err = run("discover", "--ray", "--out", tmp_path / "out")
    assert status == 1 and "`pip install acdc[ray]`" in err and len(err.splitlines()) == 1


def test_cpus_and_gpus_are_divided():
    two, eight, gpus = {"CPU": 2.0}, {"CPU": 8.0, "memory": 1e9}, {"CPU": 16.0, "GPU": 4.0}
    assert divide([two], None, on_gpu=False) == (2, 1, 0)
    assert divide([two], 1, on_gpu=False) == (1, 2, 0)
    assert divide([eight, eight], 4, on_gpu=False) == (4, 4, 0)
    assert divide([eight, two], 2, on_gpu=False) == (2, 4, 0)  # both on the large one
    assert divide([{"CPU": 3.0}, {"CPU": 3.0}], 3, on_gpu=False) == (3, 1, 0)  # not 2 threads: a place too few
    assert divide([eight, gpus], None, on_gpu=True) == (4, 4, 1)
    assert divide([gpus], 8, on_gpu=True) == (8, 2, 0.5)
    assert divide([gpus], 6, on_gpu=True) == (6, 2, 0.5)
    for nodes, n, on_gpu, message in (([two], 3, False, "--workers 3: the cluster has 2 CPUs, and each"),
                                      ([two], None, True, "the cluster has no GPUs"),
                                      ([two], 0, False, "at least 1"),
                                      ([{"CPU": 1.0, "GPU": 4.0}], 4, True, "has 1 CPUs and 4 GPUs")):
        with pytest.raises(AcdcError, match=message):
            divide(nodes, n, on_gpu=on_gpu)


def test_what_is_sent_arrives(model):
    pack, unpack = acdc.ray_workers._pack, acdc.ray_workers._unpack
    tensors = [torch.arange(6.0, dtype=dtype).reshape(2, 3) for dtype in (torch.float64, torch.bfloat16, torch.int64)]
    tensors += [torch.tensor(3), torch.tensor([True, False]), torch.zeros(0, 4), torch.ones(4, 4).T[:2]]
    sent = pack((tensors, model, model.graph()), model)
    assert len(sent) < 5000  # neither the model nor the tables of the graph
    arrived, own, graph = unpack(sent, "its own", torch.device("cpu"))
    assert own == "its own" and graph is model.graph()
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(tensors, arrived, strict=True))
    with pytest.raises(AssertionError, match="would be sent along"):
        pack(model.hf, None)
