"""The console script: Ctrl-C is quiet before anything else is imported."""

from __future__ import annotations

import sys

from nulltext.cli import EXIT_INTERRUPTED


def main() -> None:
    """Run `cli.main.main`, whose own imports take a third of a second."""
    try:
        from nulltext.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
