"""How a peer is asked: its side of a comparison runs as a script in another Python, with JSON in and out."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from acdc.task import Batch
from acdc.transformer import Transformer


class PeerMissingError(Exception):
    """The environment lacks something that the peer's side imports; the message names it."""


def ask(python: str, script: str, model: Transformer, batch: Batch, **request: Any) -> Any:
    """What `script`, of this folder or at that path, answers about the model and prompts, run by `python`.

    Raises `PeerMissingError` where an import fails there, `SystemExit` with the end of its errors where anything else
    does.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.hf.save_pretrained(folder / "model")
        threads = torch.get_num_threads()
        prompts = {key: getattr(batch, key).tolist() for key in ("clean", "corrupted", "answer", "wrong")}
        (folder / "request.json").write_text(json.dumps(
            {"folder": str(folder / "model"), "threads": threads, **prompts, **request}))
        command = [python, "-W", "ignore", str(Path(__file__).parent / script), str(folder / "request.json"),
                   str(folder / "answer.json")]
        environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": str(threads)}
        try:
            done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
        except FileNotFoundError as error:
            raise PeerMissingError(f"there is no Python at {python}") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            if last.startswith(("ModuleNotFoundError", "ImportError")):
                raise PeerMissingError(last.partition(": ")[2])
            raise SystemExit(f"{script} failed:\n{done.stderr[-3000:]}")
        return json.loads((folder / "answer.json").read_text())
