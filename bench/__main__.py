"""`./dev bench [CASE …]`: how fast the parts are against the limit they cannot pass, each pair in turn, as a ratio.

A B A B … so that a machine that changes its speed changes both; the median of the pairs' ratios with the smallest and
largest is printed. Never a timed assertion: this reports. A case is a module with `measure` (the figures) and `told`
(one line about them); it is imported when it is asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

CASES = ("decode", "embedder", "plan", "stall", "storage")
LONG = ("budget", "compare", "identity", "trial")  # minutes on the whole stack: only where it is named


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev bench", description="Ratios within one run.")
    parser.add_argument(
        "case", nargs="*", metavar="CASE", help=f"{', '.join(CASES)} (all without one); {', '.join(LONG)}"
    )
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--rows", type=int, metavar="N", help="of the large table of compare")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file")
    options = parser.parse_args()
    if unknown := set(options.case) - {*CASES, *LONG}:
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join((*CASES, *LONG))}")
    found = {}
    for name in options.case or CASES:
        case = import_module(f"bench.{name}")
        sizes = {"rows": options.rows} if name == "compare" else {}
        found[name] = case.measure(is_quick=options.quick, **sizes)
        print(f"{name:<10}{case.told(found[name])}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
