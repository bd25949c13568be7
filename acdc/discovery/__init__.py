"""The discovery methods. Each is `method(model, batches, metric, *, options) -> EdgeScores`; positive = helps."""

from collections.abc import Callable

from acdc.circuit import EdgeScores
from acdc.discovery import (
    acdc,
    acdc_sequential,
    eap,
    eap_clean_corrupted,
    eap_ig,
    eap_ig_activations,
    edge_pruning,
    ensemble,
    exact,
    gim,
    hisp,
    ifr,
    node_attribution,
    random,
    relp,
    subnetwork_probing,
    ugs,
)

METHODS: dict[str, Callable[..., EdgeScores]] = {
    "eap": eap.eap,
    "eap_ig": eap_ig.eap_ig,
    "eap_ig_activations": eap_ig_activations.eap_ig_activations,
    "eap_clean_corrupted": eap_clean_corrupted.eap_clean_corrupted,
    "relp": relp.relp,
    "gim": gim.gim,
    "node_attribution": node_attribution.node_attribution,
    "hisp": hisp.hisp,
    "ifr": ifr.ifr,
    "exact": exact.exact,
    "acdc": acdc.acdc,
    "acdc_sequential": acdc_sequential.acdc_sequential,
    "edge_pruning": edge_pruning.edge_pruning,
    "subnetwork_probing": subnetwork_probing.subnetwork_probing,
    "ugs": ugs.ugs,
    "ensemble": ensemble.ensemble,
    "random": random.random,
}

UNSIGNED = frozenset({"hisp", "ifr", "edge_pruning", "subnetwork_probing", "ugs"})  # not whether an edge helps or hurts
