"""What `nulltext study` was asked for, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nulltext.cli.arguments import listed
from nulltext.constants import __version__
from nulltext.errors import OptionError

if TYPE_CHECKING:
    from nulltext.evaluation.datasets import CaptionedPhoto
    from nulltext.evaluation.judges import Judge
    from nulltext.evaluation.plan import StudyPlan
    from nulltext.models.latent_diffusion import LatentDiffusion

QUICK_PHOTOS = 4


@dataclass(frozen=True)
class StudyRequest:
    """The command line's options, by their long names."""

    folder: Path
    output: Path
    quick: bool
    limit: int | None
    sample: int | None
    methods: str | None
    experiments: str | None
    iterations: str | None
    edits: Path | None
    split: str
    clip: str | None
    steps: int | None
    guidance: float | None
    resume: bool | None
    seed: int

    def open(self) -> tuple[StudyPlan, list[CaptionedPhoto], list[CaptionedPhoto]]:
        """(plan, all photos, photos to study).

        Raises:
            UserError: an option is out of range, the folder has no photos, or a library is missing.
        """
        from nulltext.errors import require
        from nulltext.evaluation.datasets import read_photos, sample_photos

        plan = self._plan()
        require("skimage.metrics", "study", "The study's SSIM")
        require("matplotlib.figure", "study", "The study's plots")
        if self.resume and not self.output.is_dir():
            raise OptionError(f"There is no '{self.output}' to continue; leave --resume out.")
        all_photos = read_photos(self.folder, split=self.split, edits=self.edits)
        if self.sample is not None:
            all_photos = sample_photos(all_photos, self.sample, self.seed)
        limit = QUICK_PHOTOS if self.quick and self.limit is None else self.limit
        if limit is not None and limit < 1:
            raise OptionError(f"The limit is {limit}; choose 1 photo or more.")
        return plan, all_photos, all_photos[:limit]

    def settings(
        self,
        plan: StudyPlan,
        all_photos: Sequence[CaptionedPhoto],
        model: LatentDiffusion,
        judge: Judge,
    ) -> dict[str, Any]:
        """What all rows of a folder have in common; the rest only chooses among rows."""
        from nulltext.evaluation.datasets import photos_digest

        return {
            "nulltext": __version__,
            "model": f"{model.name} ({model.fingerprint[:8]})",
            "dtype": str(model.unet.dtype).removeprefix("torch."),
            "steps T": plan.num_steps,
            "guidance w": plan.guidance_scale,
            "N beyond the curve": plan.inner_steps,
            "strengths": list(plan.strengths),
            "seed": plan.seed,
            "judge of edits": judge.name,
            "photos and captions": photos_digest(all_photos),
        }

    def without_edits(self, items: Sequence[CaptionedPhoto]) -> str:
        """What to tell about photos that have no edit prompt; empty if all have one."""
        missing = sum(item.target is None for item in items)
        if not missing:
            return ""
        return (
            f"{missing} of {len(items)} photos have no edit prompt, so no rows of editing; "
            'give some with --edits FILE, lines of {"file": …, "target": …}.'
        )

    def _plan(self) -> StudyPlan:
        from nulltext.evaluation.plan import EXPERIMENTS, QUICK, STANDARD, check_variants

        given: dict[str, Any] = {"seed": self.seed}
        if self.steps is not None:
            given["num_steps"] = self.steps
        if self.guidance is not None:
            given["guidance_scale"] = self.guidance
        if self.iterations is not None:
            given["iterations"] = tuple(sorted(set(listed(self.iterations, "iterations", int))))
        if self.methods is not None:
            given["variants"] = check_variants(listed(self.methods, "methods", str))
        if self.experiments is not None:
            named = listed(self.experiments, "experiments", str)
            unknown = [name for name in named if name not in EXPERIMENTS]
            given["experiments"] = tuple(unknown + [n for n in EXPERIMENTS if n in named])
        return replace(QUICK if self.quick else STANDARD, **given)
