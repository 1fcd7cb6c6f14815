"""Plain-text tables: columns as wide as their widest cell."""

from collections.abc import Collection, Iterable, Sequence


def aligned(
    header: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)
) -> list[str]:
    """Lines of a table; nothing where there are no rows.

    Args:
        header: names of the columns.
        rows: as many cells each.
        left: columns that begin together; all others end together.
    """
    table = [header, *rows]
    if len(table) == 1:
        return []
    widths = [max(len(row[k]) for row in table) for k in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if k in left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
