"""The discovery methods. Each is `method(model, batches, metric, *, options) -> EdgeScores`; positive = helps."""

from collections.abc import Callable

from acdc.circuit import EdgeScores
from acdc.discovery.acdc import acdc
from acdc.discovery.eap import eap
from acdc.discovery.eap_ig import eap_ig
from acdc.discovery.exact import exact

METHODS: dict[str, Callable[..., EdgeScores]] = {
    "eap": eap,
    "eap_ig": eap_ig,
    "exact": exact,
    "acdc": acdc,
}
