"""Write the tables of options into README and docs/options.md, from the fields of the options."""

from __future__ import annotations

import sys
from pathlib import Path

from nulltext.jobs.options import OPTIONS, InversionOptions, Kind, Option, options_of

TABLE_BEGIN = "<!-- options: written by `make options` -->"
TABLE_END = "<!-- end of options -->"


def options_table() -> str:
    """The options of an edit as a table of Markdown."""
    rows = [
        "| option | value | also of `invert` | in a job | in `--over` | what it does |",
        "|---|---|---|---|---|---|",
    ]
    inverting = options_of(InversionOptions)
    for option in OPTIONS.values():
        cells = [
            "IMAGE" if option.about.positional else f"`{option.flag}`",
            _said_value(option),
            "yes" if option.name in inverting else "",
            "" if option.about.no_job else f"`{option.name}`",
            f"`{option.about.knob}`" if option.about.knob else "",
            option.help,
        ]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


MOST_USED = (
    "target",
    "then",
    "editor",
    "strength",
    "negative",
    "weight",
    "region",
    "mask",
    "blend",
    "full",
    "size",
    "budget",
    "method",
    "steps",
    "guidance",
)
"""The options that README names."""


def short_table() -> str:
    """The most used options as a table of Markdown."""
    rows = ["| option | what it does |", "|---|---|"]
    rows += [f"| `{OPTIONS[name].flag}` | {OPTIONS[name].help} |" for name in MOST_USED]
    return "\n".join(rows) + "\n"


def _said_value(option: Option) -> str:
    if option.kind is Kind.CHOICE:
        return ", ".join(f"`{name}`" for name in option.choices)
    low, high = option.about.low, option.about.high
    if low is None:
        return option.kind.value
    return f"{option.kind.value} from {low:g}" + ("" if high is None else f" to {high:g}")


def main() -> None:
    """Write the tables between their markers: `python docs/options_tables.py README OPTIONS`."""
    for name, table in zip(sys.argv[1:], (short_table(), options_table()), strict=True):
        page = Path(name)
        before, _, rest = page.read_text(encoding="utf-8").partition(TABLE_BEGIN)
        _, _, after = rest.partition(TABLE_END)
        text = f"{before}{TABLE_BEGIN}\n{table}{TABLE_END}{after}"
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
