"""Write a table as aligned text, for people."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a header and rows as lines of left-aligned columns, two spaces apart.

    >>> print(text_table(["graph", "calls"], [["unet", "4"], ["vae_decode", "1"]]))
    graph       calls
    unet        4
    vae_decode  1
    """
    columns = zip(header, *rows, strict=True)
    widths = [max(map(len, column)) for column in columns]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows))
    return "\n".join(line.rstrip() for line in lines)
