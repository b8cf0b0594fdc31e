"""What `nulltext benchmark pie` was asked for, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nulltext.cli.arguments import listed
from nulltext.constants import __version__
from nulltext.errors import ModelError, OptionError

if TYPE_CHECKING:
    from nulltext.evaluation.pie.benchmark import Protocol
    from nulltext.evaluation.pie.dataset import PieItem
    from nulltext.evaluation.pie.metrics import Networks
    from nulltext.models.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class PieRequest:
    """The command line's options, by their long names."""

    folder: Path
    output: Path
    methods: str | None
    categories: str | None
    limit: int | None
    dino: str | None
    clip: str | None
    lpips: Path | None
    steps: int | None
    inner_steps: int | None
    resume: bool | None
    seed: int

    def open(self) -> tuple[list[PieItem], list[PieItem]]:
        """(all edits of the folder, those to run).

        Raises:
            UserError: an option is out of range, the folder is no PIE-Bench, or a library is
                missing.
        """
        from nulltext.errors import require
        from nulltext.evaluation.pie.dataset import read_pie, select_categories

        require("skimage.metrics", "study", "The benchmark's SSIM")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"The limit is {self.limit}; choose 1 edit or more.")
        if self.resume and not self.output.is_dir():
            raise OptionError(f"There is no '{self.output}' to continue; leave --resume out.")
        if self.lpips is not None and not self.lpips.is_file():
            raise ModelError(f"There is no file '{self.lpips}'; docs/pie.md says how to write it.")
        self.protocol()
        self.lines()
        everything = read_pie(self.folder)
        items = everything
        if self.categories is not None:
            items = select_categories(items, listed(self.categories, "categories", str))
        return everything, items[: self.limit]

    def protocol(self) -> Protocol:
        """The published one, with what was asked to differ."""
        from nulltext.evaluation.pie.benchmark import Protocol

        given: dict[str, Any] = {"seed": self.seed, "inner_steps": self.inner_steps}
        if self.steps is not None:
            given["num_steps"] = self.steps
        return Protocol(**given)

    def lines(self) -> tuple[str, ...]:
        """The methods that are compared."""
        from nulltext.evaluation.pie.benchmark import METHODS
        from nulltext.inversion.registry import method_named

        if self.methods is None:
            return METHODS
        names = dict.fromkeys(listed(self.methods, "methods", str))
        for name in names:
            method_named(name)
        return tuple(names)

    def networks(self, model: LatentDiffusion) -> Networks:
        """What looks at the pictures."""
        from nulltext.evaluation.pie.metrics import load_networks

        return load_networks(self.dino, self.clip, self.lpips, model.device)

    def settings(
        self,
        everything: Sequence[PieItem],
        model: LatentDiffusion,
        protocol: Protocol,
        networks: Networks,
    ) -> dict[str, Any]:
        """What all rows of a folder have in common; the rest only chooses among rows."""
        from nulltext.evaluation.pie.dataset import items_digest

        height, width = model.resolution
        return {
            "nulltext": __version__,
            "benchmark": "PIE-Bench",
            "model": f"{model.name} ({model.fingerprint[:8]})",
            "size": f"{width} x {height} px",
            "dtype": str(model.unet.dtype).removeprefix("torch."),
            **{name.replace("_", " "): value for name, value in asdict(protocol).items()},
            **networks.names,
            "edits": items_digest(everything),
        }
