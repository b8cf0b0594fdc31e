"""What an edit's file says of how it was made: `settings_of`'s record, and a job that repeats it.

    {"source": …, "target": …, …, "job": {"image": "a.jpg", "source": …, "target": […], …}}

The job is a line of a job file (`job_files`), with everything that was chosen for the user written
out: crop, method, steps, guidance. Beside the photo, and the mask if there was one, it makes the
same picture again; files are named without their folders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nulltext import constants
from nulltext.jobs.options import OPTIONS, EditOptions, arguments_of
from nulltext.models.choice import ModelChoice

if TYPE_CHECKING:
    from nulltext.editing.placing import Placed
    from nulltext.inversion.record import Inversion

_OUTPUTS = ("strip", "sweep", "over", "region_out", "keep_gps", "quality")
_SETTLED = ("inversion", "captioner", "budget", "fresh")
"""Options that say where an inversion comes from; the job says how to make it."""
PHOTO = "PHOTO"
"""Stands in a command for a photo whose name is not known."""


def settings_text(inversion: Inversion, placed: Placed, options: EditOptions | None) -> str:
    """Write the settings of an edit as JSON.

    Args:
        options: what was asked for, whose job goes in; None where only the library was asked.
    """
    from nulltext.editing.placing import settings_of

    values = settings_of(inversion, placed)
    if options is not None:
        values["job"] = job_of(options, inversion, placed)
    return json.dumps(values)


def job_of(options: EditOptions, inversion: Inversion, placed: Placed) -> dict[str, Any]:
    """Return the job, as JSON, that makes one picture of those that options ask for."""
    from nulltext.image.images import CropBox

    header, line = inversion.header, placed.spec.line
    job = {
        name: _plain(getattr(options, name))
        for name, option in OPTIONS.items()
        if option.about.no_job is None
        and name not in (*_OUTPUTS, *_SETTLED)
        and getattr(options, name) != option.default
    }
    targets = [spec.target for spec in line]
    job |= {
        "source": header.prompt,
        "target": targets[:1],
        "crop": str(CropBox.from_list(header.crop)),
        "method": header.method,
        "steps": inversion.num_steps,
        "guidance": header.guidance_scale,
    }
    if targets[1:]:
        job["then"] = targets[1:]
    else:
        for name in ("then", "then_strength"):
            job.pop(name, None)
    if inversion.is_encoded_only:
        del job["guidance"]  # of an inversion that was none
    if header.seed != constants.SEED:
        job["seed"] = header.seed
    if options.inversion is not None:
        height, width = inversion.photo.shape[-2:]
        job["size"] = f"{width}x{height}"
    for name in ("inner_steps", "pivot"):
        if isinstance(value := header.method_config.get(name), int | str):
            job[name] = value
    if len(options.prompts) > 1 and options.weight:  # some are for words of other targets
        used = {word for spec in line for word in getattr(spec.editor, "weights", {})}
        job["weight"] = [text for text in options.weight if text.rpartition("=")[0].strip() in used]
    return {name: job[name] for name in OPTIONS if job.get(name) not in (None, [])}


def job_at(job: Mapping[str, Any], opacity: float) -> dict[str, Any]:
    """Return the job that makes the same picture at another opacity."""
    job = {**job, "opacity": opacity}
    if opacity == 1:
        del job["opacity"]
    return {name: job[name] for name in OPTIONS if name in job}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Path):
        return value.name
    return value if isinstance(value, bool | int | float) else str(value)


def options_in(settings: Mapping[str, Any]) -> EditOptions | None:
    """Return the options of the job that settings hold; None where they hold none.

    Raises:
        ValueError: they hold something else.
    """
    job = settings.get("job")
    if not isinstance(job, dict):
        return None
    from nulltext.jobs.job_files import Job, parse_job

    parsed = parse_job(json.dumps(job).encode(), 1, Path())
    if not isinstance(parsed, Job):
        raise ValueError(parsed.reason)
    return parsed.edit_options()


def command_in(settings: Mapping[str, Any], output: str) -> list[str]:
    """Return the command line that repeats settings with a job; empty where they hold none.

    Files of models, too, are named without their folders. `PHOTO` stands for a photo that was not
    given, beside a saved inversion.
    """
    try:
        options = options_in(settings)
    except ValueError:
        return []
    if options is None:
        return []
    image = options.image or Path(PHOTO)
    editing = arguments_of(replace(options, image=image, output=Path(output)))
    return ["nulltext", "edit", *editing, *_model_in(settings).as_arguments()]


def _model_in(settings: Mapping[str, Any]) -> ModelChoice:
    """Return the model that settings name, with what was added to it."""
    added: dict[str, list[str]] = {"lora": [], "embedding": [], "vae": []}
    given = settings.get("adapters")
    for one in given if isinstance(given, list) else []:
        if isinstance(one, dict) and one.get("kind") in added:
            of = [f":{one[name]}" for name in ("weight", "token") if name in one]
            added[one["kind"]].append("".join([str(one.get("name")), *of]))
    return ModelChoice(
        model=str(settings.get("model") or constants.MODEL),
        lora=tuple(added["lora"]),
        embedding=tuple(added["embedding"]),
        vae=next(iter(added["vae"]), None),
        true_cfg=isinstance(given, list) and constants.TRUE_CFG in given,
    )
