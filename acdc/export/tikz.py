"""A drawing in TikZ, which plain pdflatex sets: the same shapes as in the figure, in the letters of the paper."""

from acdc.export.drawing import Drawing, Panel, Patch, Shape, Words
from acdc.export.latex_text import latex

HEAD = r"""\documentclass{article}
\usepackage[paperwidth=%WIDTH%in,paperheight=%HEIGHT%in,margin=0in]{geometry}
\usepackage{tikz}
\pagestyle{empty}
\setlength{\parindent}{0pt}
\setlength{\topskip}{0pt}
\begin{document}%
"""
ANCHORS = {("left", "middle"): "base west", ("center", "middle"): "base", ("right", "middle"): "base east",
           ("left", "top"): "north west", ("center", "top"): "north", ("right", "top"): "north east",
           ("left", "bottom"): "south west", ("center", "bottom"): "south", ("right", "bottom"): "south east"}
MIDDLE = 0.38 / 72  # inches from the baseline to the middle of a digit, a point of its size
NARROW = 1.12  # by how much Computer Modern's sans serif is smaller than DejaVu Sans at one size


def to_tikz(drawing: Drawing, *, document: bool = True) -> str:
    """A document of one page as large as the drawing; or its `tikzpicture` alone, for `\\input` into a paper.

    The paper needs `\\usepackage{tikz}` and no library of it. Characters that pdflatex cannot set are written as their
    code points.
    """
    colours = sorted({colour for shape in drawing.shapes for colour in _colours(shape)})
    names = {colour: f"acdc{colour[1:].upper()}" for colour in colours}
    lines = [r"\begin{tikzpicture}[x=1in,y=1in,inner sep=0pt,outer sep=0pt,line cap=butt]"]
    lines += [rf"\definecolor{{{name}}}{{HTML}}{{{colour[1:].upper()}}}" for colour, name in names.items()]
    # The picture is a hair smaller than the page, which TeX must not find too small for it.
    lines.append(rf"\useasboundingbox (0,0.02) rectangle ({drawing.width:.4f},{drawing.height:.4f});")
    lines += [_shape(shape, names) for shape in drawing.painted()]
    lines.append(r"\end{tikzpicture}%")
    if not document:
        return "\n".join(lines) + "\n"
    head = HEAD.replace("%WIDTH%", f"{drawing.width:.4f}").replace("%HEIGHT%", f"{drawing.height:.4f}")
    return head + "\n".join([*lines, r"\end{document}"]) + "\n"


def _colours(shape: Shape) -> list[str]:
    if isinstance(shape, Panel):
        return [shape.fill, *([shape.line] if shape.line else [])]
    return [shape.fill if isinstance(shape, Patch) else shape.colour]


def _shape(shape: Shape, names: dict[str, str]) -> str:
    if isinstance(shape, Panel):
        options = [f"fill={names[shape.fill]}"]
        if shape.line:
            options += [f"draw={names[shape.line]}", f"line width={shape.line_width:.2f}bp"]
        if shape.radius:
            options.append(f"rounded corners={72 * shape.radius:.2f}bp")
        return (rf"\path[{','.join(options)}] ({shape.x:.4f},{shape.y:.4f}) rectangle "
                f"({shape.x + shape.width:.4f},{shape.y + shape.height:.4f});")
    if isinstance(shape, Words):
        font = rf"\fontsize{{10}}{{12}}\selectfont\sffamily{chr(92) + 'bfseries' if shape.bold else ''}"
        options = [f"anchor={ANCHORS[shape.across, shape.along]}", f"scale={NARROW * shape.size / 10:.3f}",
                   f"text={names[shape.colour]}", f"font={font}"]
        y = shape.y - MIDDLE * shape.size if shape.along == "middle" else shape.y
        return rf"\node[{','.join(options)}] at ({shape.x:.4f},{y:.4f}) {{{latex(shape.text)}}};"
    points = [f"({x:.4f},{y:.4f})" for x, y in shape.points.tolist()]
    if isinstance(shape, Patch):
        return rf"\fill[{names[shape.fill]}] {' -- '.join(points)} -- cycle;"
    options = [f"draw={names[shape.colour]}", f"line width={shape.width:.2f}bp"]
    if shape.opacity < 1:
        options.append(f"draw opacity={shape.opacity:.2f}")
    if shape.dashes:
        on, off = (shape.width * length for length in shape.dashes)
        options.append(f"dash pattern=on {on:.2f}bp off {off:.2f}bp")
    if shape.curved:
        return rf"\path[{','.join(options)}] {points[0]} .. controls {points[1]} and {points[2]} .. {points[3]};"
    return rf"\path[{','.join(options)}] {' -- '.join(points)};"
