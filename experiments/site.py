"""A hook of mkdocs: publishes a report of figures with the pages.

  CEPAM_JAX_FIGURES=/tmp/report mkdocs build --strict

Under that folder lies what `python -m experiments.figures --all --workdir=/tmp/report` (or --report) made.
The page becomes report.html of the site, and "Reproducing the papers" has a link to it. Without the variable
the site has no report. Nothing of the project is imported: the site's environment has nothing of it.
"""

import os
import shutil
from pathlib import Path

VARIABLE = "CEPAM_JAX_FIGURES"
PAGE = "reproducing.md"
_LINK = '<p><a href="../report.html">The report of all figures</a>, as they were made for this site.</p>'


def report() -> Path | None:
    """The page to publish; None where none is asked for.

    Raises:
      FileNotFoundError: the folder has none.
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        return None
    page = Path(folder, "report.html")
    if not page.is_file():
        raise FileNotFoundError(f"{VARIABLE} is {folder!r}, and there is no report.html in it")
    return page


def on_page_content(html: str, page, **_) -> str:
    """The page on reproducing, with a link in front."""
    return _LINK + html if page.file.src_uri == PAGE and report() else html


def on_post_build(config, **_) -> None:
    """Copies the report beside the pages."""
    page = report()
    if page:
        shutil.copyfile(page, Path(config["site_dir"], "report.html"))
