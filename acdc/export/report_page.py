"""The report as one HTML file: nothing is loaded and no script runs, pictures are in it, all text is escaped.

It shows the Markdown that `acdc.export.report` writes: headings, tables, paragraphs, pictures, lists and code. Whatever
else a text holds is shown as it stands: every character of it passes `html.escape`.
"""

import base64
import hashlib
import html
import re
from collections.abc import Mapping

from acdc.export.text import with_codes

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border: 1px solid #ddd; padding: .25rem .6rem; text-align: left; vertical-align: top; }
th { background: #f4f4f4; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; unicode-bidi: isolate; }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; white-space: pre-wrap; }
img { max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #e4e4e4; } th, pre { background: #2a2a2a; }
  th, td, h2 { border-color: #444; } img { background: #fff; }
}
"""
TYPES = {"png": "image/png", "svg": "image/svg+xml"}
INLINE = re.compile(r"\\(?P<plain>[^a-zA-Z0-9\s])|(?P<fence>`+)(?P<code>.+?)(?<!`)(?P=fence)(?!`)"
                    r"|\*\*(?P<bold>(?:\\.|[^\\*])+)\*\*|(?<!\*)\*(?P<italic>[^*\\]+)\*(?!\*)")
IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<name>[\w.-]+)\)")
ROW = re.compile(r"(?<!\\)\|")


def report_page(markdown: str, images: Mapping[str, bytes], *, title: str) -> str:
    """The page. `images`: from the name that the report links to, such as circuit.svg, to the file's bytes; links to
    others are left out."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    body = "\n".join(_blocks(markdown.splitlines(), images))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{html.escape(with_codes(title))}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _blocks(lines: list[str], images: Mapping[str, bytes]) -> list[str]:
    out: list[str] = []
    i = 0
    while i < len(lines):
        line = lines[i]
        if fence := re.match(r"(`{3,})\w*$", line):
            end = next((j for j in range(i + 1, len(lines)) if lines[j] == fence[1]), len(lines))
            out.append(f"<pre><code>{html.escape(chr(10).join(lines[i + 1 : end]))}</code></pre>")
            i = end + 1
        elif heading := re.match(r"(#{1,4}) (.*)", line):
            level = len(heading[1])
            out.append(f"<h{level}>{inline(heading[2])}</h{level}>")
            i += 1
        elif line.startswith("|"):
            end = next((j for j in range(i, len(lines)) if not lines[j].startswith("|")), len(lines))
            out.append(_table(lines[i:end]))
            i = end
        elif line.startswith("- "):
            end = next((j for j in range(i, len(lines)) if not lines[j].startswith("- ")), len(lines))
            out.append(f"<ul>{''.join(f'<li>{inline(item[2:])}</li>' for item in lines[i:end])}</ul>")
            i = end
        elif picture := IMAGE.fullmatch(line):
            out += _image(picture["name"], picture["alt"], images)
            i += 1
        else:
            if line.strip():
                out.append(f"<p>{inline(line)}</p>")
            i += 1
    return out


def inline(text: str) -> str:
    """A line of Markdown as HTML: code, bold, italics and escaped characters; all else is text."""
    out, at = [], 0
    for match in INLINE.finditer(text):
        out.append(html.escape(text[at : match.start()]))
        at = match.end()
        if match["plain"] is not None:
            out.append(html.escape(match["plain"]))
        elif match["code"] is not None:
            code = match["code"]
            if code.startswith(" ") and code.endswith(" ") and code.strip():
                code = code[1:-1]
            out.append(f"<code>{html.escape(code)}</code>")
        elif match["bold"] is not None:
            out.append(f"<strong>{inline(match['bold'])}</strong>")
        else:
            out.append(f"<em>{html.escape(match['italic'])}</em>")
    return "".join([*out, html.escape(text[at:])])


def _table(lines: list[str]) -> str:
    rows = [[cell.strip() for cell in ROW.split(line.strip())[1:-1]] for line in lines]
    head = "".join(f"<th>{inline(cell)}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows[2:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(cell: str) -> str:
    """In code, GitHub reads `\\|` in a table as a bar; elsewhere it is an escaped character like others."""
    return inline(re.sub(r"(`+)(.+?)\1", lambda code: code[0].replace(r"\|", "|"), cell) if "`" in cell else cell)


def _image(name: str, alt: str, images: Mapping[str, bytes]) -> list[str]:
    kind = TYPES.get(name.rpartition(".")[2])
    if name not in images or kind is None:
        return []
    data = base64.b64encode(images[name]).decode()
    return [f'<p><img alt="{html.escape(alt)}" src="data:{kind};base64,{data}"></p>']
