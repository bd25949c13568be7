"""What the nodes of a circuit do: roles of heads, attention patterns, composition, effects; as `Annotation` records."""
