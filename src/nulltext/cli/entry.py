"""The console script: Ctrl-C is quiet before anything else is imported."""

from __future__ import annotations

import sys

EXIT_INTERRUPTED = 130


def main() -> None:
    """`cli.main.main`, whose own imports take a third of a second."""
    try:
        from nulltext.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
