"""Whether a coder fits a model: its sites are there, in order and as wide as the coder expects."""

from acdc.annotation.features import check_order
from acdc.annotation.sites import site, widths
from acdc.errors import AcdcError
from acdc.sae.cross_layer import CrossLayerTarget
from acdc.sae.sparse_coder import SparseCoder
from acdc.transformer import Transformer


def check_on_model(model: Transformer, coder: SparseCoder | CrossLayerTarget) -> None:
    """Raises `AcdcError` where what a coder reads or rebuilds is not in the model, is of another width, where the
    target does not come after what is read, and where the coder rebuilds an MLP's output as it is before a norm that
    this model has after it. Cost: a forward pass of one token."""
    check_order(model, coder)
    at = site(model, coder.target)
    if coder.record.get("before_post_norm") and at.kind == "m" and model.blocks[at.layer].mlp_post is not None:
        raise AcdcError(f"the coder rebuilds mlp.hook_out of layer {at.layer}, before the norm that follows the MLP in "
                        f"{model.name}; {coder.target} is after it. Give a coder of hook_mlp_out")
    encoders = coder.encoders if isinstance(coder, CrossLayerTarget) else (coder,)
    of_site = [(one.site, "reads", one.d_in) for one in encoders] + [(coder.target, "rebuilds", coder.d_out)]
    found = widths(model, list({name for name, _, _ in of_site}))
    for name, does, expected in of_site:
        if found[name] != expected:
            raise AcdcError(f"the coder {does} {expected} dimensions at {name}, which has {found[name]} in "
                            f"{model.name}; give one that was trained on this site of this model")
