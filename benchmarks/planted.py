"""Random models whose circuit is planted: a GPT-2 in which only chosen edges carry anything to what they lead into.

Every src writes into a part of the residual stream of its own, and a channel of the circuit reads the parts of its
planted srcs alone; so no other edge into it carries anything, under any ablation and on any prompt. Nodes outside the
circuit read whatever there is and write, but nothing of the circuit reads them. There are no norms, which would mix the
parts. With a `leak`, every channel of the circuit reads a little of all other parts as well.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from acdc.activations import record
from acdc.circuit import Circuit
from acdc.graph import Channel, Graph, Node
from acdc.models import load_model
from acdc.task import Batch, Example
from acdc.transformer import Transformer

N_LAYERS, N_HEADS, PART, VOCAB, LENGTH = 3, 3, 6, 40, 6
PATTERN = 3.0  # how far queries and keys are scaled up, so that attention depends on what they read


@dataclass(frozen=True, eq=False)
class Planted:
    """A model, and the circuit that is planted in it."""

    model: Transformer
    circuit: Circuit


def plant(seed: int, leak: float = 0.0) -> Planted:
    """A model with 3 layers of 3 heads, of whose 172 edges some 10 to 20 are planted; deterministic by `seed`."""
    graph = Graph(N_LAYERS, N_HEADS, N_HEADS)
    rng = np.random.default_rng(seed)
    circuit = Circuit.from_edges(graph, draw_edges(graph, rng))
    assert circuit.drop_dangling() == circuit, circuit.edge_names
    hf = _gpt2(circuit, leak, torch.Generator().manual_seed(seed))
    return Planted(load_model(hf, dtype="float64"), circuit)


def draw_edges(graph: Graph, rng: np.random.Generator) -> list[str]:
    """Each head and MLP is in the circuit with a chance of one half. A head of it reads values from one earlier node of
    it, and queries and keys from one each with a chance of one half; an MLP reads one or two. Whatever nothing else
    reads, the logits read."""
    chosen, read, edges = [Node("input")], set(), []

    def pick(n: int) -> list[Node]:
        places = rng.choice(len(before), min(n, len(before)), replace=False)
        return [before[place] for place in places]

    while len(chosen) < 4:
        chosen = [Node("input"), *(node for node in graph.srcs[1:] if rng.random() < 0.5)]
    for node in chosen[1:]:
        before = [other for other in chosen if other.kind == "input" or (other.layer, other.kind == "mlp")
                  < (node.layer, node.kind == "mlp")]
        letters = [""] if node.kind == "mlp" else ["v", *(["q", "k"] if rng.random() < 0.5 else [])]
        for letter in letters:
            dst = f"{node.name}<{letter}>" if letter else node.name
            for src in pick(int(rng.integers(1, 3)) if node.kind == "mlp" else 1):
                edges.append(f"{src.name}->{dst}")
                read.add(src)
    return edges + [f"{node.name}->logits" for node in chosen if node not in read]


def _gpt2(circuit: Circuit, leak: float, generator: torch.Generator) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel  # slow to import: not before it is needed

    graph = circuit.graph
    width = PART * len(graph.srcs)
    width += -width % N_HEADS
    config = GPT2Config(vocab_size=VOCAB, n_positions=LENGTH, n_embd=width, n_layer=N_LAYERS, n_head=N_HEADS,
                        n_inner=4 * PART, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False)
    config.name_or_path = "planted"
    with torch.random.fork_rng(devices=[]):  # its weights are drawn, and then replaced
        hf: Any = GPT2LMHeadModel(config).double().eval()
    hf.transformer.ln_f = nn.Identity()
    for block in hf.transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
    state = {key: torch.zeros_like(value) for key, value in hf.state_dict().items()}
    part = {node: slice(PART * i, PART * (i + 1)) for i, node in enumerate(graph.srcs)}

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    def reads(channel: Channel, n: int, scale: float = 1.0) -> torch.Tensor:
        """Weights that read the parts that the channel reads: its planted srcs', or all, where it has none."""
        srcs = [graph.srcs[s] for s in np.nonzero(kept[:, graph.channel_index[channel.name]])[0]]
        in_circuit = channel.node in circuit.nodes
        weight = leak * random(width, n) if in_circuit else random(width, n, scale=width**-0.5)
        for src in srcs:
            weight[part[src]] = random(PART, n, scale=(PART * len(srcs)) ** -0.5)
        return scale * weight

    kept = graph.to_matrix(circuit.kept)[:, :, 0]
    state["transformer.wte.weight"][:, part[Node("input")]] = random(VOCAB, PART)
    state["transformer.wpe.weight"][:, part[Node("input")]] = random(LENGTH, PART, scale=0.5)
    d_head = width // N_HEADS
    for i in range(N_LAYERS):
        name = f"transformer.h.{i}"
        heads = [Node("head", i, h) for h in range(N_HEADS)]
        qkv = [reads(Channel(head, letter), d_head, 1.0 if letter == "v" else PATTERN ** 0.5)
               for letter in ("q", "k", "v") for head in heads]
        state[f"{name}.attn.c_attn.weight"] = torch.cat(qkv, dim=1)
        state[f"{name}.attn.c_attn.bias"] = random(3 * width, scale=0.3)
        for h, head in enumerate(heads):
            rows = slice(d_head * h, d_head * (h + 1))
            state[f"{name}.attn.c_proj.weight"][rows, part[head]] = random(d_head, PART, scale=1.5 * d_head**-0.5)
        mlp = Node("mlp", i)
        state[f"{name}.mlp.c_fc.weight"] = reads(Channel(mlp), 4 * PART, 1.5)
        state[f"{name}.mlp.c_fc.bias"] = random(4 * PART, scale=0.3)
        state[f"{name}.mlp.c_proj.weight"][:, part[mlp]] = random(4 * PART, PART, scale=2 * (4 * PART) ** -0.5)
    state["lm_head.weight"] = reads(Channel(Node("logits")), VOCAB).T.contiguous()
    hf.load_state_dict(state)
    return hf


def draw_prompts(model: Transformer, n: int, seed: int) -> Batch:
    """Random pairs of prompts that share no token at any place. The answer is the token whose logit falls most from
    the clean to the corrupted prompt, the wrong answer the one whose logit rises most."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, VOCAB, (n, LENGTH), generator=generator)
    corrupted = (clean + torch.randint(1, VOCAB, (n, LENGTH), generator=generator)) % VOCAB
    with torch.no_grad():
        falls = model.logits(record(model, clean).final[:, -1]) - model.logits(record(model, corrupted).final[:, -1])
    answer, wrong = falls.argmax(-1), falls.argmin(-1)
    texts = [[" ".join(map(str, row)) for row in ids.tolist()] for ids in (clean, corrupted)]
    examples = tuple(Example(one, other, f" {a}", f" {w}")
                     for one, other, a, w in zip(*texts, answer.tolist(), wrong.tolist(), strict=True))
    return Batch(clean, corrupted, answer, wrong, examples)
