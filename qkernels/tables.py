"""Tables as text."""


def size(count: int) -> str:
    return f"{count:,}"


def table(head: list[str], rows: list[list[str]], right: set[int]) -> str:
    """Columns as wide as their widest cell; those in ``right`` are aligned right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = [row[i].rjust(width) if i in right else row[i].ljust(width) for i, width in enumerate(widths)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
