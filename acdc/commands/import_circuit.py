"""`acdc import`: makes a circuit of a file that EAP-IG or MIB's circuit track wrote."""

import argparse
import hashlib
from pathlib import Path
from typing import Any

from acdc.arguments import choose, size_of
from acdc.errors import AcdcError
from acdc.input_file import LARGE, read_bytes
from acdc.output_folder import write_file

from .printing import say

HELP = "make a circuit of a JSON file of EAP-IG or MIB's circuit track"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="the JSON file, such as importances.json")
    parser.add_argument("--out", type=Path, required=True, help="the circuit.json to write")
    parser.add_argument("--model", help="the model that the circuit is of: packaged, hub name or folder; it is checked "
                        "to have the circuit's shape, and remembered")
    parser.add_argument("--kv-heads", type=int, help="without --model: how many KV heads the model has (default: the "
                        "file's if acdc wrote it, else as many as heads)")
    parser.add_argument("--size", help="keep the highest edges, so many (500) or such a share (2%%), instead of those "
                        "that the file keeps")
    parser.add_argument("--by", default="magnitude", help="with --size: rank edges by score (signed) or its size "
                        "(magnitude)")


def run(arguments: argparse.Namespace) -> None:
    from acdc.circuit import Circuit
    from acdc.export.json_file import circuit_to_json
    from acdc.export.mib import circuit_from_mib

    choose("ranking", arguments.by, {"signed": None, "magnitude": None})
    if arguments.out.is_dir():
        raise AcdcError(f"cannot write to {arguments.out}: that is a folder; give --out a file")
    content = _read(arguments.file)
    text = content.decode("utf-8", errors="replace")
    model, n_kv_heads = _model(arguments)
    circuit = circuit_from_mib(text, str(arguments.file), n_kv_heads=n_kv_heads)
    known = {} if model is None else _checked(model, circuit, arguments)
    if arguments.size is not None:
        if circuit.scores is None:
            raise AcdcError(f"{arguments.file} has no scores to rank by; leave out --size")
        circuit = circuit.scores.top(size_of(arguments.size, circuit.graph.n_edges), by=arguments.by)
    source = {"file": str(arguments.file.resolve()), "sha256": hashlib.sha256(content).hexdigest()}
    provenance = {**circuit.provenance, **known, "imported": source}
    circuit = Circuit(circuit.graph, circuit.kept, circuit.scores, provenance)
    write_file(arguments.out, circuit_to_json(circuit))
    print(f"written to {arguments.out}: {circuit.n_edges:,} of {circuit.graph.n_edges:,} edges"
          f"{', no scores' if circuit.scores is None else ', and the scores of all'}")
    if not circuit.n_edges and circuit.scores is not None:
        print("the file keeps no edge, as one of scores alone does; give --size to keep the highest")


def _read(path: Path) -> bytes:
    if path.suffix in (".pt", ".pth", ".pkl"):
        raise AcdcError(f"{path} is a pickle, which can run code when it is read, so it is not read. Write it as JSON "
                        "where it came from: Graph.from_pt(file).to_json(other) of EAP-IG")
    try:
        return read_bytes(path, LARGE)
    except FileNotFoundError as error:
        raise AcdcError(f"no file {str(path)!r}; give a JSON file of EAP-IG or MIB") from error


def _model(arguments: argparse.Namespace) -> tuple[Any, int | None]:
    if arguments.model is None:
        return None, arguments.kv_heads
    if arguments.kv_heads is not None:
        raise AcdcError("--kv-heads is what --model tells; leave out one of them")
    import transformers

    from acdc.models import load_model

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    say(f"loading {arguments.model}")
    model = load_model(arguments.model, dtype="float32")
    return model, model.n_kv_heads


def _checked(model: Any, circuit: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """What is remembered of the model, once it is known to be of the circuit's shape."""
    from acdc.models import weights_hash
    from acdc.patching import check_graph

    check_graph(model, circuit.graph)
    width = model.hf.get_input_embeddings().weight.shape[1]
    if circuit.provenance["d_model"] != width:
        raise AcdcError(f"{arguments.file} is of a model with d_model {circuit.provenance['d_model']!r}, "
                        f"{arguments.model} has {width}. Give the model that it was found in")
    return {"model": arguments.model, "model_sha256": weights_hash(model), "dtype": "float32"}
