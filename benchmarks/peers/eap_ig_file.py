"""Does EAP-IG's own loader read what acdc writes: the same edges kept, the same scores?

    acdc export circuits/mine --to mib --out mine.json
    git clone https://github.com/hannamw/EAP-IG
    python benchmarks/peers/eap_ig_file.py mine.json EAP-IG

Run it in an environment that holds torch and `transformer-lens<4` (3.9.0 will do): 4.0 lacks what EAP-IG imports. It
imports nothing of acdc, prints what was compared, and ends with an error where anything differs.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    written, source = Path(sys.argv[1]), Path(sys.argv[2])
    sys.path.insert(0, str(source / "src" if (source / "src").is_dir() else source))
    from eap.graph import Graph  # pyright: ignore[reportMissingImports]

    data = json.loads(written.read_text())
    graph = Graph.from_json(str(written))
    assert set(graph.edges) == set(data["edges"]), "the edges that there are differ"
    kept = {name for name, edge in data["edges"].items() if edge["in_graph"]}
    assert {name for name, edge in graph.edges.items() if bool(edge.in_graph)} == kept, "the kept edges differ"
    nodes = {name for name, node in data["nodes"].items() if node["in_graph"] and name != "logits"}
    found = {name for name, node in graph.nodes.items() if name != "logits" and bool(node.in_graph)}
    assert found == nodes, "the kept nodes differ"
    largest = max(abs(edge["score"]) for edge in data["edges"].values()) or 1.0
    difference = max(abs(float(edge.score) - data["edges"][name]["score"]) for name, edge in graph.edges.items())
    assert difference <= 1e-6 * largest, f"scores differ by {difference}"  # theirs are float32
    print(f"EAP-IG reads {len(graph.edges):,} edges and the same {len(kept):,} kept ones, {len(nodes):,} nodes; "
          f"scores differ by {difference / largest:.1e} of the largest")


if __name__ == "__main__":
    main()
