"""Attention-only models made by hand, each head of which has the role that it is given, and random ones.

The residual stream has four parts of 40: the token, the position, what a head passes on, and what the logits are read
from. Norms are identities and MLPs write nothing, so a head does what its four matrices say and nothing else.
"""

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from tiny_models import NoEffect
from torch import Tensor, nn
from transformers import GPT2Config, LlamaConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from acdc.task import Batch, Example
from acdc.transformer import Transformer

SIZE, D_HEAD = 40, 80
TOKEN, POSITION, PASSED, OUT = (slice(SIZE * i, SIZE * (i + 1)) for i in range(4))
WORDS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
         "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"]
EYE, LOUD = torch.eye(SIZE), 400.0


class Words:
    """A tokenizer of 40 words, of which 20 have an order."""

    all_special_ids = ()
    unk_token_id = None
    words = (*WORDS, *(f"w{i}" for i in range(len(WORDS), SIZE)))

    def __len__(self) -> int:
        return SIZE

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [self.words.index(w) if w in self.words else 39 for piece in text.split()
                              for w in ([piece] if piece in self.words else [piece, piece])]}

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[i] for i in ids)


def empty(n_layers: int = 1) -> Transformer:
    """Two heads a layer, all of which write nothing and attend evenly."""
    config = GPT2Config(n_embd=4 * SIZE, n_head=2, n_layer=n_layers, n_positions=SIZE, vocab_size=SIZE,
                        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)
    hf = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        hf.transformer.wte.weight[:, TOKEN] = EYE
        hf.transformer.wpe.weight[:, POSITION] = EYE
        hf.lm_head.weight[:, OUT] = EYE
    hf.transformer.ln_f = nn.Identity()
    for block in hf.transformer.h:
        block.ln_1, block.ln_2, block.mlp = nn.Identity(), nn.Identity(), NoEffect()
    return Transformer(hf, Words(), "planted")


def plant(model: Transformer, layer: int, head: int, *, q: Sequence[tuple[slice, Tensor]] = (),
          k: Sequence[tuple[slice, Tensor]] = (), v: tuple[slice, Tensor] | None = None,
          to: slice = OUT, writes: float = 1.0) -> None:
    """Sets a head's matrices. q, k: parts that are read, and how into the first or (second in the list) last 40 of
    d_head; v: a part that is read; `to`: the part that it is written to, times `writes`."""
    attn = model.hf.transformer.h[layer].attn
    d_model = 4 * SIZE
    with torch.no_grad():
        for which, parts in ((0, q), (1, k)):
            weight = attn.c_attn.weight[:, which * d_model + head * D_HEAD :][:, :D_HEAD]
            for i, (part, how) in enumerate(parts):
                weight[part, i * SIZE : (i + 1) * SIZE] = how
        if v is not None:
            attn.c_attn.weight[:, 2 * d_model + head * D_HEAD :][v[0], :SIZE] = v[1]
            attn.c_proj.weight[head * D_HEAD :][:SIZE, to] = writes * EYE


def towards(place: Sequence[int]) -> Tensor:
    """A query at t that asks for position place[t]."""
    asks = torch.zeros(SIZE, SIZE)
    asks[range(SIZE), place] = LOUD
    return asks


def at(*places: int) -> Tensor:
    """A query, at any position, that asks for some positions."""
    asks = torch.zeros(SIZE, SIZE)
    asks[:, list(places)] = LOUD
    return asks


PREVIOUS = [max(t - 1, 0) for t in range(SIZE)]
NEXT_WORD = torch.zeros(SIZE, SIZE)
NEXT_WORD[range(SIZE), [(i + 1) % SIZE for i in range(SIZE)]] = 1


def of_one_role(role: str) -> tuple[Transformer, tuple[int, int]]:
    """A model with one head of that role, and where it is."""
    model = empty(2)
    if role == "previous token":
        plant(model, 0, 0, q=[(POSITION, towards(PREVIOUS))], k=[(POSITION, EYE)])
    elif role == "duplicate token":
        plant(model, 0, 0, q=[(TOKEN, LOUD * EYE)], k=[(TOKEN, EYE)])
    elif role == "induction":
        plant(model, 0, 0, q=[(POSITION, towards(PREVIOUS))], k=[(POSITION, EYE)], v=(TOKEN, EYE), to=PASSED)
        plant(model, 1, 0, q=[(TOKEN, LOUD * EYE)], k=[(PASSED, EYE)])
        return model, (1, 0)
    elif role == "attention sink":
        plant(model, 0, 0, q=[(POSITION, at(0))], k=[(POSITION, EYE)])
    elif role == "positional":
        plant(model, 0, 0, q=[(POSITION, towards([t // 2 for t in range(SIZE)]))], k=[(POSITION, EYE)])
    elif role == "copying":
        plant(model, 0, 0, v=(TOKEN, EYE))
    elif role == "successor":
        plant(model, 0, 0, v=(TOKEN, NEXT_WORD))
    return model, (0, 0)


def mover_model() -> Transformer:
    """Does "x A B B end" -> A: a0.h0 tells the end which name came last, a1.h0 attends to the other and writes it,
    a1.h1 writes against it. a0.h1 attends to the token before and writes nothing that is read."""
    model = empty(2)
    plant(model, 0, 0, q=[(POSITION, towards([3] * SIZE))], k=[(POSITION, EYE)], v=(TOKEN, EYE), to=PASSED)
    plant(model, 0, 1, q=[(POSITION, towards(PREVIOUS))], k=[(POSITION, EYE)])
    for head, writes in ((0, 10.0), (1, -4.0)):
        plant(model, 1, head, q=[(PASSED, -0.1 * LOUD * EYE), (POSITION, at(1, 2))], k=[(TOKEN, EYE), (POSITION, EYE)],
              v=(TOKEN, EYE), writes=writes)
    return model


def mover_batch(n: int = 12, seed: int = 0) -> Batch:
    """Prompts "x A B B end" or "x B A B end"; in the corrupted one the last name is another."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.stack([torch.randperm(SIZE - 1, generator=generator)[:4] for _ in range(n)])
    x, a, b, c = rows.T
    swapped = torch.arange(n) % 2 == 1
    first, second = torch.where(swapped, b, a), torch.where(swapped, a, b)
    end = torch.full_like(x, SIZE - 1)
    clean, corrupted = (torch.stack([x, first, second, last, end], dim=1) for last in (b, c))
    examples = tuple(Example("clean", "corrupted", "a", "b", roles={"IO": 1 + i % 2, "S1": 2 - i % 2, "S2": 3})
                     for i in range(n))
    return Batch(clean, corrupted, a, b, examples)


def random_models(n: int, *, loud: float = 2.0) -> list[Transformer]:
    """Models of 48 random heads each, GPT-2s and Llamas in turn, whose patterns are far from even."""
    shape = SimpleNamespace(layers=3, heads=16, d=128)
    models = []
    for seed in range(n):
        if seed % 2:
            config = LlamaConfig(hidden_size=shape.d, num_attention_heads=shape.heads, num_hidden_layers=shape.layers,
                                 num_key_value_heads=shape.heads, intermediate_size=shape.d, vocab_size=97,
                                 max_position_embeddings=64)
        else:
            config = GPT2Config(n_embd=shape.d, n_head=shape.heads, n_layer=shape.layers, n_positions=64, vocab_size=97,
                                bos_token_id=0, eos_token_id=0)
        hf = AutoModelForCausalLM.from_config(config).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in hf.named_parameters():
                if parameter.dim() > 1:
                    embeds = "embed" in name or "wte" in name or "wpe" in name
                    scale = 1.0 if embeds else loud * parameter.shape[-1] ** -0.5
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        models.append(Transformer(hf, Words(), f"random {seed}"))
    return models
