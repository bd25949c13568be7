"""What a reader changed on the page: the record that the page saves and opens with."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from acdc.errors import AcdcError
from acdc.export.json_file import parse_json
from acdc.graph import Graph, Node

FORMAT, VERSION = "acdc-view", 1
CHOICES = {
    "by": ("magnitude", "signed"), "layout": ("fixed", "compact"), "colour": ("channel", "sign"),
    "theme": ("auto", "light", "dark"),
}
FLAGS = ("onPaths", "onlyPinned")
MAX_TEXT, MAX_GROUPS = 200, 1000
LARGEST = sys.float_info.max  # which an integer can exceed, and then has no place in a page
GROUP = "group:"  # before the name of a group, where a node or a group can stand


def read_state(text: str, graph: Graph, source: str = "the text") -> dict[str, Any]:
    """The state that a page of a circuit of `graph` saved. `source` names the text in errors: the file's path."""
    state = parse_json(text, source)
    check_state(state, graph, source)
    return state


def check_state(state: Any, graph: Graph, source: str) -> None:
    """Refuses what is no state of a page of this graph; everything but `format` and `version` may be left out."""
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        raise AcdcError(f'{source} is not a state of the page: the field "format" must be "{FORMAT}"')
    if state.get("version") != VERSION or isinstance(state["version"], bool):
        raise AcdcError(f'{source}: field "version" is {state.get("version")!r}; this acdc reads version {VERSION}')
    checks = {"n": _is_count, "channels": _is_channels, "view": _is_view, "selected": _is_selected}
    lists = ("pinned", "hidden", "labels", "moved", "groups")
    for name, value in state.items():
        if name in ("format", "version"):
            continue
        if name == "sides" or (name == "colour" and value == "side"):
            raise AcdcError(f'{source} is of a page that compares two circuits (field "{name}"), and opens only there: '
                            "write that page with `acdc diff --html`, and open the state on it")
        if name in CHOICES:
            right = value in CHOICES[name]
        elif name in FLAGS:
            right = isinstance(value, bool)
        elif name in checks:
            right = checks[name](value)
        elif name in lists:
            right = isinstance(value, dict if name in ("labels", "moved") else list)
        else:
            raise AcdcError(f'{source}: field "{name}" is not one that this version knows')
        if not right:
            raise AcdcError(f'{source}: field "{name}" cannot be {json.dumps(value, default=str)[:80]}')
    groups = _check_groups(state.get("groups", []), graph, source)
    for name in ("pinned", "hidden"):
        for unit in state.get(name, []):
            _check_unit(unit, graph, groups, source, name)
    if state.get("selected") is not None:
        _check_place(state["selected"], graph, groups, source, "selected")
    for unit, label in state.get("labels", {}).items():
        _check_unit(unit, graph, groups, source, "labels")
        if not _is_text(label):
            raise AcdcError(f'{source}: field "labels": the label of {unit} must be 1 to {MAX_TEXT} characters')
    for place, by in state.get("moved", {}).items():
        _check_place(place, graph, groups, source, "moved")
        if not isinstance(by, list) or len(by) != 2 or not all(map(_is_number, by)):
            raise AcdcError(f'{source}: field "moved": {place} must be moved by two numbers')


def _check_groups(groups: list[Any], graph: Graph, source: str) -> set[str]:
    """Their names. A node is in one group at most."""
    where = f'{source}: field "groups"'
    names: set[str] = set()
    members: set[str] = set()
    for group in groups:
        if not isinstance(group, dict) or set(group) != {"name", "members"} or not isinstance(group["members"], list):
            raise AcdcError(f"{where}: a group must have a name and a list of members, and no more")
        if not _is_text(group["name"]) or group["name"] in names:
            raise AcdcError(f"{where}: each group needs a name of its own, of 1 to {MAX_TEXT} characters")
        names.add(group["name"])
        for node in group["members"]:
            _check_unit(node, graph, set(), source, "groups")
            if node in members:
                raise AcdcError(f"{where}: {node} is a member twice")
            members.add(node)
    if len(groups) > MAX_GROUPS:
        raise AcdcError(f"{where}: {len(groups):,} groups, of {MAX_GROUPS:,} at most")
    return names


def _check_place(place: Any, graph: Graph, groups: set[str], source: str, field: str) -> None:
    """A unit, with @position where positions are told apart."""
    if isinstance(place, str) and graph.positions:
        unit, at, position = place.rpartition("@")
        if at and position in graph.position_index:
            place = unit
    _check_unit(place, graph, groups, source, field)


def _check_unit(unit: Any, graph: Graph, groups: set[str], source: str, field: str) -> None:
    """The name of a node, or `group:` and that of a group."""
    if isinstance(unit, str) and unit.startswith(GROUP) and unit.removeprefix(GROUP) in groups:
        return
    try:
        node = Node.parse(unit) if isinstance(unit, str) else None
    except AcdcError:
        node = None
    if node is None or not _exists(node, graph):
        raise AcdcError(f'{source}: field "{field}": {unit!r} is no node of the circuit\'s graph of '
                        f"{graph.n_layers} layers of {graph.n_heads} heads; is the state of another circuit?")


def _exists(node: Node, graph: Graph) -> bool:
    if node.kind in ("input", "logits"):
        return True
    most = {"mlp": 1, "head": graph.n_heads, "kv": graph.n_kv_heads if graph.kv == "group" else 0}[node.kind]
    return node.layer < graph.n_layers and node.index < most


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -LARGEST <= value <= LARGEST


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT


def _is_count(value: Any) -> bool:
    return value is None or isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_channels(value: Any) -> bool:
    return isinstance(value, str) and set(value) <= set("qkvm") and len(set(value)) == len(value)


def _is_view(value: Any) -> bool:
    """From where to where the reader looks: shift right and down, and zoom."""
    return value is None or isinstance(value, list) and len(value) == 3 and all(map(_is_number, value)) and value[2] > 0


def _is_selected(value: Any) -> bool:
    return value is None or isinstance(value, str)
