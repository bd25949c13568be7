"""How any text is set by plain pdflatex: nothing in it is a command."""

from acdc.export.record import readable

LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "{''}", "'": "{'}", "`": "{`}",  # as the fonts of plain LaTeX have them
    "-": "{-}", "−": r"$-$", "×": r"$\times$", "…": r"\dots{}", "→": r"$\to$", "±": r"$\pm$",
    "–": "--",
}
# What pdflatex sets without a package for fonts of other scripts.
LATIN = {c: c for c in map(chr, range(0xC0, 0x180)) if c.isalpha() and c not in "ĲĳĿŀŉſ"}


def latex(text: str) -> str:
    """As plain text for pdflatex: no character is a command, and none is one that its fonts lack."""
    return "".join(
        LATEX[c] if c in LATEX else c if c in LATIN or " " <= c <= "~" else f"[U+{ord(c):04X}]" for c in readable(text)
    )
