"""Write the known figure of a model beside its weights, for `nulltext doctor`.

    python benchmarks/known_figure.py src/nulltext/models/bundled/flowers

Run it whenever the weights of the bundled model are replaced; `nulltext train` does it by itself
for a model that it exports.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nulltext.models.known_figure import deviations, read_known, write_known
from nulltext.models.load import load


def main() -> None:
    """Load the model on the processor, write, and read back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a model in diffusers format")
    folder = parser.parse_args().folder
    model = load(folder, device="cpu")
    path = write_known(model, folder)
    known = read_known(folder)
    assert known is not None
    worst = max(deviations(model, known).values())
    print(f"{path}: {model.fingerprint[:8]}, reproduced to {worst:.1g} of its size")


if __name__ == "__main__":
    main()
