"""One report of all figures under a work directory: report.md, and report.html, a page to read and to send.

The page is one file: pictures are inside, nothing is loaded from elsewhere. It begins with how many claims
hold; then it has every claim with its verdict, what that rests on, who is trusted, and a link to its figure,
where the command, the time it took and all tables are.
"""

import ast
import base64
import html
import json
import re
import shlex
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

from cepam_jax.errors import ConfigError
from experiments.output import CLAIM_HEADER, VERDICTS, Claim
from experiments.tables import markdown

_FIGURES = Path(__file__).parent / "figures"


class Made(NamedTuple):
    """A figure that lies under the work directory.

    Attributes:
      folder: its name there.
      run: what run.json says.
      claims: of the papers.
      tables: in Markdown.
      picture: path of figure.png, or None.
    """

    folder: str
    run: dict
    claims: list[Claim]
    tables: str
    picture: Path | None

    @property
    def heading(self) -> str:
        other = "" if self.run["figure"] == self.folder else f" ({self.folder})"
        return title(self.run["figure"]) + other


def title(name: str) -> str:
    """The first line of a figure's documentation; its name if the figure is no longer there."""
    path = _FIGURES / f"{name}.py"
    if not path.exists():
        return name
    return ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]


def _claim(given: dict) -> Claim:
    # Figures made before claims said who is trusted have no such field.
    return Claim(**{"trust": "not said", **given})


def read(folder: Path) -> Made:
    """What a figure left in its folder; raises ConfigError where that cannot be read."""
    try:
        run = json.loads((folder / "run.json").read_text())
        claims = [_claim(given) for given in json.loads((folder / "claims.json").read_text())]
        tables = (folder / "table.md").read_text().strip()
        for name in ("figure", "command", "date", "python", "device"):
            run[name] + ""
        run["smoke"], run["seconds"] + 0.0, run["versions"].items()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{folder} is no finished figure ({type(error).__name__}: {error}); make it again or move it away"
        ) from error
    picture = folder / "figure.png"
    return Made(folder.name, run, claims, tables, picture if picture.exists() else None)


def found(workdir: Path, failed: dict[str, str]) -> tuple[list[Made], list[str]]:
    """Every figure under a directory, but for those that failed just now; and what is wrong with folders."""
    folders = sorted(path.parent for path in workdir.glob("*/run.json"))
    made, wrong = [], []
    for folder in folders:
        if folder.name not in failed:
            try:
                made.append(read(folder))
            except ConfigError as error:  # a neighbour that is broken takes no report away
                wrong.append(str(error))
    return made, wrong


def circumstances(made: Made) -> str:
    """Time, hardware and versions of a figure, and whether it is a small version."""
    run = made.run
    versions = ", ".join(f"{package} {version}" for package, version in run["versions"].items())
    small = " A small version, which shows that everything works and nothing else." if run["smoke"] else ""
    return (
        f"{run['seconds']:.0f} seconds (earlier, interrupted calls not counted) on {run['device']}; "
        f"{run['date']}, Python {run['python']}, {versions}.{small}"
    )


def _tally(figures: list[Made]) -> str:
    """How many claims have which verdict; those of small versions apart, for they show nothing."""
    counts = Counter(claim.verdict for made in figures if not made.run["smoke"] for claim in made.claims)
    small = sum(len(made.claims) for made in figures if made.run["smoke"])
    said = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]]
    number = sum(counts.values())
    text = f"{number} claim{'s' * (number != 1)}: {', '.join(said)}." if said else ""
    if small:
        text += f" {small} claims are of small versions, whose verdicts mean nothing."
    return text.strip()


def as_markdown(
    figures: list[Made], failed: dict[str, str], command: dict[str, str], wrong: Sequence[str] = ()
) -> str:
    """The report in Markdown: claims, then every figure with its tables.

    Args:
      figures: what was made.
      failed: names of figures that failed, and their errors.
      command: of each of them.
      wrong: what is wrong with folders that could not be read.
    """
    parts = ["# Report", "## Claims of the papers"]
    rows = [
        [*claim, made.folder + (" (small)" if made.run["smoke"] else "")]
        for made in figures
        for claim in made.claims
    ]
    if rows:
        parts += [_tally(figures), markdown([*CLAIM_HEADER, "figure"], rows)]
    else:
        parts.append("None of these figures speaks to a claim.")
    for made in figures:
        parts += [f"## {made.heading}", f"```\n{made.run['command']}\n```", circumstances(made)]
        if made.picture:
            parts.append(f"![{made.folder}]({made.folder}/figure.png)")
        parts.append(made.tables)
    for name, error in failed.items():
        parts += [f"## {title(name)}", f"```\n{command[name]}\n```", f"**Failed**: {error}"]
    if wrong:
        parts += ["## Left out", *wrong]
    return "\n\n".join(parts) + "\n"


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1.5rem; }
img { max-width: 100%; height: auto; background: white; }
pre { background: var(--soft); padding: .6rem .8rem; overflow-x: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; margin: 1rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; }
th { white-space: nowrap; }
.claims td:nth-child(2), .claims td:nth-child(3) { min-width: 14rem; }
.claims td:nth-child(5) { min-width: 12rem; } .claims td:nth-child(6) { min-width: 7rem; }
.verdict { white-space: nowrap; font-weight: 600; border-radius: .3rem; padding: .1rem .4rem; color: black; }
.holds { background: #9fd8a4; } .does-not-hold { background: #f2a6a0; }
.holds-in-part { background: #dfe39a; } .not-decided, .not-tested { background: #ccc; }
.soft { color: #777; font-size: .9rem; }
"""


def _anchor(folder: str) -> str:
    return "figure-" + urllib.parse.quote(folder, safe="")


def _source(source: str) -> str:
    """The source, with a link for every arXiv id in it."""
    link = r'<a href="https://arxiv.org/abs/\g<0>">\g<0></a>'
    return re.sub(r"\b\d{4}\.\d{4,5}\b", link, html.escape(source))


def _claim_rows(figures: list[Made]) -> str:
    rows = []
    for made in figures:
        for claim in made.claims:
            kind = claim.verdict.replace(" ", "-")
            small = " (small)" if made.run["smoke"] else ""
            cells = [
                _source(claim.source),
                html.escape(claim.claim),
                html.escape(claim.measured),
                f'<span class="verdict {html.escape(kind)}">{html.escape(claim.verdict)}</span>',
                html.escape(claim.why),
                html.escape(claim.trust),
                f'<a href="#{_anchor(made.folder)}">{html.escape(made.folder)}</a>{small}',
            ]
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in (*CLAIM_HEADER, "figure"))
    return f'<div class="wide"><table class="claims"><tr>{head}</tr>\n' + "\n".join(rows) + "</table></div>"


def _tables(text: str) -> str:
    """Tables of a figure as HTML; HTML within them is shown, not interpreted."""
    made = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image").render(text)
    return made.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def as_html(
    figures: list[Made], failed: dict[str, str], command: dict[str, str], wrong: Sequence[str] = ()
) -> str:
    """The report as one page of HTML that needs no other file; arguments as of `as_markdown`."""
    parts = ["<h1>Report</h1>"]
    if any(made.claims for made in figures):
        parts += [f"<p>{_tally(figures)}</p>", "<h2>Claims</h2>", _claim_rows(figures)]
        parts.append(
            '<p class="soft">A claim holds where confidence bounds lie on its side of the threshold that '
            "the column <i>why</i> names, does not hold where they lie on the other side, and is not decided "
            "in between.</p>"
        )
    else:
        parts.append("<p>None of these figures speaks to a claim.</p>")
    parts.append("<h2>Figures</h2><ul>")
    for made in figures:
        parts.append(f'<li><a href="#{_anchor(made.folder)}">{html.escape(made.heading)}</a></li>')
    parts.append("</ul>")
    for made in figures:
        parts.append(f'<h2 id="{_anchor(made.folder)}">{html.escape(made.heading)}</h2>')
        parts.append(f"<pre>{html.escape(made.run['command'])}</pre>")
        parts.append(f'<p class="soft">{html.escape(circumstances(made))}</p>')
        if made.picture:
            data = base64.b64encode(made.picture.read_bytes()).decode()
            alt = html.escape(made.heading, quote=True)
            parts.append(f'<img alt="{alt}" src="data:image/png;base64,{data}">')
        parts.append(_tables(made.tables))
    for name, error in failed.items():
        parts.append(f"<h2>{html.escape(title(name))}</h2><pre>{html.escape(command[name])}</pre>")
        parts.append(f"<p><b>Failed</b>: {html.escape(error)}</p>")
    if wrong:
        parts += ["<h2>Left out</h2>", *(f"<p>{html.escape(text)}</p>" for text in wrong)]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Report</title><style>{_STYLE}</style>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def write(workdir: Path, failed: dict[str, list[str]], errors: dict[str, str]) -> None:
    """Writes report.md and report.html.

    Args:
      workdir: where figures lie, each in a folder.
      failed: arguments of Python for the figures that failed, by name.
      errors: what they failed with.
    """
    figures, wrong = found(workdir, errors)
    command = {name: f"python {shlex.join(arguments)}" for name, arguments in failed.items()}
    (workdir / "report.md").write_text(as_markdown(figures, errors, command, wrong))
    (workdir / "report.html").write_text(as_html(figures, errors, command, wrong))
