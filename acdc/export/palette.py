"""The colours of what is drawn: Okabe and Ito's palette, told apart with all common forms of colour blindness."""

COLOURS = {"q": "#0072B2", "k": "#D55E00", "v": "#009E73", "": "#5A5A5A"}  # by channel; grey where a node has but one
CHANNELS = {"q": "into q", "k": "into k", "v": "into v", "": "into MLP or logits"}
BOTH, ONLY_FIRST, ONLY_SECOND = "#5A5A5A", "#0072B2", "#D55E00"  # in a comparison of two circuits
# Tints for classes of nodes, eight of them of the palette: light enough for black text, and apart for all eyes.
CLASSES = ("#73B1D5", "#ECB78C", "#59C0A4", "#F4D48C", "#F2DEE9", "#B3DDF5", "#F4EB71", "#C4C4C4", "#A89CF0",
           "#C0B460")
