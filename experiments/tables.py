"""Tables that read well in a terminal and in Markdown."""


def markdown(header: list, rows: list[list]) -> str:
    """An aligned Markdown table; cells are converted with str, and a bar within one is escaped."""
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = [[str(name) for name in header], ["-" * max(3, len(str(name))) for name in header], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
