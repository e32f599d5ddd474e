"""A terminal picture (SVG) of lines that a real run printed; fonts are the viewer's own, nothing is fetched."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 108


def save(lines: Sequence[str], path: Path, title: str) -> None:
    """Draw the lines as a terminal shows them."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(Text.from_ansi(line), overflow="ellipsis", no_wrap=True, crop=True)
    svg = console.export_svg(title=title)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    path.write_text(re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL))
