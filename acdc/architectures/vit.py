"""ViT: a vision transformer that classifies images from what its CLS position holds in the end.

HuggingFace's module stays as it is, inside a thin one that takes tokens: patch ids of a `PatchTable`. CLS, at which
HuggingFace's classifier reads, is its first position and our last, where the logits of every model are read. The
encoder sees all positions alike (no mask, no rotary embedding; position embeddings are added before it), so it
computes the same in either order; the parity check compares with HuggingFace's own forward, on images, in its order.
"""

from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from acdc.architectures.anatomy import Anatomy, Attention, Block, Projection, layer_norm
from acdc.errors import AcdcError
from acdc.patches import PatchTable

Tokens = Int[Tensor, "batch pos"]


class PatchEmbedding(nn.Module):
    """What each token adds to its place, as the weights of an embedding; 0 for labels, which no image holds."""

    pixels: Tensor

    def __init__(self, embeddings: Any, n_labels: int, pixels: Tensor) -> None:
        super().__init__()
        self.hf, self.n_labels = embeddings, n_labels
        self.register_buffer("pixels", pixels, persistent=False)

    @property
    def weight(self) -> Float[Tensor, "token d_model"]:
        of_patches = self.hf.patch_embeddings.projection(self.pixels).flatten(1)
        cls = self.hf.cls_token[0]
        return torch.cat([cls.new_zeros(self.n_labels, cls.shape[1]), cls, of_patches])

    @property
    def num_embeddings(self) -> int:
        return self.n_labels + 1 + len(self.pixels)


class PatchReader(nn.Module):
    """A ViT that takes tokens, and gives the logits at every position, CLS last."""

    def __init__(self, hf: Any, patches: PatchTable) -> None:
        super().__init__()
        self.hf, self.patches = hf, patches
        pixels = patches.pixels.to(hf.classifier.weight.device, hf.classifier.weight.dtype)
        self.embedding = PatchEmbedding(hf.vit.embeddings, len(patches.labels), pixels)

    @property
    def config(self) -> Any:
        return self.hf.config

    def get_input_embeddings(self) -> PatchEmbedding:
        return self.embedding

    def get_output_embeddings(self) -> nn.Linear:
        return self.hf.classifier

    def images(self, tokens: Tokens) -> Float[Tensor, "batch channel height width"]:
        return self.patches.images(tokens, self.embedding.pixels)

    def embed(self, tokens: Tokens) -> Float[Tensor, "batch pos d_model"]:
        return cls_last(self.hf.vit.embeddings(self.images(tokens)))

    def base_model(self, input_ids: Tokens, **options: Any) -> Any:
        """HuggingFace's encoder, as it runs it, with CLS as its last position. No option changes what it computes."""
        return self.encode(self.images(input_ids))

    def encode(self, images: Float[Tensor, "batch channel height width"]) -> Any:
        """The same from any pixels, also such as the table does not hold."""
        handle = self.hf.vit.embeddings.register_forward_hook(lambda module, args, out: cls_last(out))
        try:
            return self.hf.vit(images)
        finally:
            handle.remove()

    def forward(self, input_ids: Tokens, **options: Any) -> SimpleNamespace:
        """HuggingFace's own forward on the images, in its order; its classifier also at the patches."""
        out = self.hf(pixel_values=self.images(input_ids), output_hidden_states=True)
        at_patches = self.hf.classifier(self.hf.vit.layernorm(out.hidden_states[-1]))[:, 1:]
        return SimpleNamespace(logits=torch.cat([at_patches, out.logits[:, None]], dim=1))

    def probe(self) -> Tokens:
        """Two images of assorted patches, which differ in each."""
        n, first = len(self.patches.pixels), self.patches.cls + 1
        place = torch.arange(self.patches.length - 1)
        drawn = torch.randint(n, (len(place),), generator=torch.Generator().manual_seed(0))
        tokens = first + torch.stack([drawn, (drawn + 1 + place % max(1, n - 1)) % n])
        tokens = torch.cat([tokens, torch.full((2, 1), self.patches.cls)], dim=1)
        return tokens.to(self.hf.classifier.weight.device)


def cls_last(x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    return x.roll(-1, dims=1)


def read_patches(hf: Any, patches: Any) -> PatchReader:
    """The model as one that takes tokens. Raises `AcdcError` where table and model do not fit."""
    if isinstance(hf, PatchReader):
        return hf
    config, name = hf.config, type(hf).__name__
    if not isinstance(patches, PatchTable):
        raise AcdcError(f"{name} reads images, and its tokenizer is {type(patches).__name__}: give "
                        "PatchTable.of_model(images, config) as `tokenizer`, of the images that it is to be studied on")
    if not isinstance(getattr(hf, "classifier", None), nn.Linear):
        raise AcdcError(f"{name} has no classifier; load the model that has it (AutoModelForImageClassification)")
    size = config.image_size if isinstance(config.image_size, (tuple, list)) else (config.image_size,) * 2
    expected = (config.num_channels, config.patch_size, *size, config.num_labels)
    given = (patches.pixels.shape[1], patches.patch, *patches.size, len(patches.labels))
    if given != expected:
        raise AcdcError(f"the table of patches has {given} (channels, patch, height, width, labels), {name} has "
                        f"{expected}. Make it with PatchTable.of_model(images, config)")
    return PatchReader(hf, patches)


def vit(hf: Any) -> Anatomy:
    def attention(module: Any) -> Attention:
        q, k, v = (Projection(projection, module.num_attention_heads, module.head_dim)
                   for projection in (module.q_proj, module.k_proj, module.v_proj))
        return Attention(q, k, v, out=module.o_proj, scaling=module.scaling,
                         softmax_float32=hf.config._attn_implementation == "eager")

    body = hf.hf.vit
    blocks = tuple(
        Block(
            module=layer,
            attn_norm=layer_norm(layer.layernorm_before),
            attention=attention(layer.attention),
            mlp_norm=layer_norm(layer.layernorm_after),
            mlp=layer.mlp,
            mlp_act=layer.mlp.activation_fn,
        )
        for layer in body.layers
    )
    return Anatomy(blocks, hf.embed, layer_norm(body.layernorm), causal=False, probe=hf.probe)
