"""A search or a training run by roles of tokens is of these roles: with others its file is refused."""

from dataclasses import replace

import pytest
from conftest import make_batch, tiny

from acdc.discovery import METHODS
from acdc.errors import AcdcError
from acdc.metrics import METRICS


def labelled(roles):
    batch = make_batch(2, 6)
    return [replace(batch, examples=tuple(replace(example, roles=roles) for example in batch.examples))]


@pytest.mark.parametrize(("name", "options", "file"), [("acdc", {"threshold": 0.3}, "journal"),
                                                       ("ugs", {"steps": 2, "prompts_per_step": 2}, "checkpoint")])
def test_other_roles_of_the_same_tokens_are_another_run(name, options, file, tmp_path):
    def scores(roles, positions="roles"):
        return METHODS[name](tiny("llama"), labelled(roles), METRICS["logit_difference"], positions=positions,
                             **options, **{file: tmp_path / positions})

    first = scores({"subject": 3, "verb": 4})
    assert scores({"verb": 4, "subject": 3}) == first
    for roles in ({"subject": 2, "verb": 4}, {"subject": 3}, {"subject": 3, "object": 4}):
        with pytest.raises(AcdcError, match="its prompts is"):
            scores(roles)
    assert scores({"subject": 3}, "all") == scores({}, "all")
