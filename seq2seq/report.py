"""Write one page about a sweep, several sweeps or single runs: tables, figures, the best command.

Started as ``seq2seq-report FOLDER [FOLDER ...]`` or ``scripts/report``. What stands on the page is
the business of `sweep.page`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

EPILOG = """\
A sweep may be finished, still running or killed: the page shows what there is. Beside it lie a
picture and the data of each figure, and runs.csv with all that is known of each run.

  seq2seq-report multirun/copy-rnn/2026-01-31_12-00-00-000000
  seq2seq-report sweep_a sweep_b --output comparison --metric test/exact_match
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of ``seq2seq-report``.

    Args:
        arguments: of the command line; None for those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="seq2seq-report",
        description="Write one page about a sweep, several sweeps or single runs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", metavar="FOLDER", nargs="+", type=Path, help="of a sweep, a run, or several"
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        type=Path,
        help="page (.html) or folder for it; left out: report/index.html in the first FOLDER",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="a figure of metrics.json, such as test/exact_match; left out: sweep.objective",
    )
    asked = parser.parse_args(arguments)
    # Imported once the command line is known to be right.
    from seq2seq.sweep.page import write_report

    try:
        page = write_report(asked.folders, metric=asked.metric, output=asked.output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(os.fspath(page))


if __name__ == "__main__":
    main()
