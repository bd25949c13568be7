"""Which named class each node is in: from a file of groups, or from what nodes are said to do."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count

from acdc.circuit import Annotation
from acdc.errors import AcdcError
from acdc.export.json_file import parse_json
from acdc.export.palette import CLASSES
from acdc.export.record import checked_roles, readable
from acdc.graph import Graph, Node

MAX_CLASS_NAME = 60


@dataclass(frozen=True)
class Classes:
    """The nodes of each class, by name, in the order of tints and of the legend. A node is in one class at most."""

    names: tuple[str, ...]
    members: Mapping[str, frozenset[Node]]
    tags: Mapping[str, str]

    def of(self, node: Node) -> str | None:
        """The class of a node."""
        return next((name for name in self.names if node in self.members[name]), None)

    def tag(self, node: Node) -> str:
        """The short name of a node's class, empty without one."""
        name = self.of(node)
        return self.tags[name] if name is not None else ""

    def tint(self, node: Node) -> str:
        """The colour of a node's class; see `tint_of`."""
        name = self.of(node)
        return self.tint_of(name) if name is not None else ""

    def tint_of(self, name: str) -> str:
        """The colour of a class; "mover (seen)" has that of "mover". Those beyond the palette share its first colours:
        tags tell them apart."""
        bases = list(dict.fromkeys(map(_base, self.names)))
        return CLASSES[bases.index(_base(name)) % len(CLASSES)]

    @property
    def longest_tag(self) -> int:
        """Characters."""
        return max((len(tag) for tag in self.tags.values()), default=0)

    def among(self, nodes: set[Node]) -> "Classes":
        """The classes that have some of these nodes, with the same tags and order."""
        names = tuple(name for name in self.names if self.members[name] & nodes)
        return Classes(names, {name: self.members[name] & nodes for name in names},
                       {name: self.tags[name] for name in names})

    def legend(self) -> list[tuple[str, str, str]]:
        """Tag, name and tint of each class."""
        return [(self.tags[name], name, self.tint_of(name)) for name in self.names]


def roles_of(annotations: Sequence[Annotation]) -> dict[str, str]:
    """What each node is said to do: the text of its first annotation of the kind `role`."""
    roles: dict[str, str] = {}
    for annotation in annotations:
        if annotation.kind == "role" and annotation.text:
            roles.setdefault(annotation.node, annotation.text)
    return roles


def classes_of_roles(graph: Graph, roles: Mapping[str, str]) -> Classes:
    """A class a role, in the order of the layers where they begin."""
    return classes_of_groups(graph, groups_of_roles(checked_roles(graph, roles)))


def groups_of_roles(roles: Mapping[str, str]) -> dict[str, list[str]]:
    """The nodes of each role in its short form, as `class_drawing` takes them; roles without a text are left out."""
    groups: dict[str, list[str]] = {}
    for node, role in roles.items():
        groups.setdefault(short_role(role), []).append(node)
    return {name: nodes for name, nodes in groups.items() if name}


def short_role(role: str) -> str:
    """A role as figures have room for it: "mover (seen, without effect)" is "mover (seen)"."""
    return re.sub(r"\(([^(),]*),[^()]*\)$", r"(\1)", readable(role))


def classes_of_groups(graph: Graph, groups: Mapping[str, list[str]]) -> Classes:
    """Classes by name, each a list of names of nodes; refuses a node in two, and one that the graph lacks."""
    members: dict[str, frozenset[Node]] = {}
    for name, nodes in groups.items():
        checked_roles(graph, dict.fromkeys(nodes, name))
        found = frozenset(Node.parse(node) for node in nodes)
        twice = [node.name for other in members.values() for node in found & other]
        if twice:
            raise AcdcError(f"{min(twice)} is in two groups; give it to one")
        if found:
            members[readable(name)[:MAX_CLASS_NAME] or "?"] = found
    names = sorted(members, key=lambda name: (min((node.layer, node.index) for node in members[name]), name))
    return Classes(tuple(names), members, _tags(names))


def read_groups(text: str, source: str = "the text") -> dict[str, list[str]]:
    """Groups from JSON such as {"name mover": ["a9.h9", "a9.h6"], ...}."""
    data = parse_json(text, source)
    if not isinstance(data, dict) or not all(
        isinstance(nodes, list) and all(isinstance(node, str) for node in nodes) for nodes in data.values()
    ):
        raise AcdcError(f'{source} must hold an object from names of groups to lists of nodes, such as '
                        '{"name mover": ["a9.h9", "a9.h6"]}')
    return data


def _base(name: str) -> str:
    """A class's name without a remark in brackets at its end."""
    return re.sub(r" *\([^()]*\)$", "", name) or name


def _tags(names: list[str]) -> dict[str, str]:
    """Up to three letters for each name, different from one another: initials, else a longer start, else a number.

    A remark in brackets is a star: NM for "name mover", NM* for "name mover (seen)".
    """
    tags: dict[str, str] = {}
    of_base: dict[str, str] = {}
    for name in sorted(names, key=lambda name: _base(name) != name):
        base = _base(name)
        if base not in of_base:
            of_base[base] = _new_tag(base, of_base.values())
        tag = of_base[base] + "*" * (base != name)
        while tag in tags.values():
            tag += "*"
        tags[name] = tag
    return {name: tags[name] for name in names}


def _new_tag(name: str, taken: Collection[str]) -> str:
    words = re.findall(r"[A-Za-z0-9]+", name) or ["X"]
    initials = "".join(word[0] for word in words)[:3].upper() if len(words) > 1 else words[0][:2].upper()
    longer = (words[0][:3] if len(words) == 1 else words[0][:2] + words[1][0]).upper()
    numbered = (f"{initials[:2]}{number}" for number in count(2))
    return next(tag for tag in chain((initials, longer), numbered) if tag not in taken)
