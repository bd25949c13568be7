"""Which site of a model is meant by the names that TransformerLens, SAELens and circuit-tracer give to places."""

import re

from acdc.annotation.sites import NAME, PARTS

HOOKS = {
    "resid{}": "blocks.{}.hook_resid_pre",
    "resid{}.mid": "blocks.{}.hook_resid_mid",
    "a{}": "blocks.{}.hook_attn_out",
    "a{}.z": "blocks.{}.attn.hook_z",
    "m{}": "blocks.{}.hook_mlp_out",
    "m{}.norm": "blocks.{}.ln2.hook_normalized",
    "m{}.in": "blocks.{}.mlp.hook_in",
    "m{}.neurons": "blocks.{}.mlp.hook_post",
}
OTHER_HOOKS = {"blocks.{}.hook_resid_post": "resid{+1}", "blocks.{}.hook_mlp_in": "resid{}.mid",
               "blocks.{}.mlp.hook_out": "m{}"}

NUMBER = "([0-9]{1,9})"  # of a layer


def hook_of(site: str) -> str:
    """TransformerLens' name of a site, or the site itself where there is none."""
    for pattern, hook in HOOKS.items():
        match = re.fullmatch(re.escape(pattern).replace(r"\{\}", NUMBER), site)
        if match:
            return hook.format(match[1])
    return site


def site_of(hook: str, layer: int | None = None) -> str | None:
    """The site that is called so; a site's own name stays as it is; None for others. `layer`: circuit-tracer's names
    leave it out."""
    if layer is not None:
        hook = hook.replace("{layer}", str(layer))
        hook = hook if hook.startswith("blocks.") else f"blocks.{layer}.{hook}"
    for pattern, site in {**{hook: site for site, hook in HOOKS.items()}, **OTHER_HOOKS}.items():
        match = re.fullmatch(re.escape(pattern).replace(r"\{\}", NUMBER), hook)
        if match:
            return site.replace("{+1}", str(int(match[1]) + 1)).format(match[1])
    match = NAME.fullmatch("resid0" if hook == "input" else hook)
    known = match is not None and match["part"] in PARTS[match["kind"]] and not (match["head"] and match["kind"] != "a")
    return hook if known else None


def before_post_norm(hook: str) -> bool:
    """Whether a name means what the MLP's last weights return, before a norm that follows in some models (Gemma 2)."""
    return hook.endswith("mlp.hook_out")
