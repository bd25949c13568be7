"""The colours of what is drawn: Okabe and Ito's palette, told apart with all common forms of colour blindness."""

COLOURS = {"q": "#0072B2", "k": "#D55E00", "v": "#009E73", "": "#5A5A5A"}  # by channel; grey where a node has but one
CHANNELS = {"q": "into q", "k": "into k", "v": "into v", "": "into MLP or logits"}
BOTH, ONLY_FIRST, ONLY_SECOND = "#5A5A5A", "#0072B2", "#D55E00"  # in a comparison of two circuits
# Tints of the palette, for classes of nodes: light enough for black text.
CLASSES = ("#CDE5F3", "#F8D9C4", "#C9EBDD", "#F6E3B4", "#EFD3E3", "#D6ECF8", "#FBF6BF", "#E4E4E4")
