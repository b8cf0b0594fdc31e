"""Budgets: a preset fills the gaps, and options beside it win."""

from __future__ import annotations

import pytest

from nulltext import constants
from nulltext.constants import Budget
from nulltext.errors import OptionError
from nulltext.inversion.budgets import BUDGETS, budget_named, planned
from nulltext.inversion.fixed_point import FixedPoint
from nulltext.inversion.null_text import NullText


def test_the_command_line_names_every_budget():
    assert {b.value for b in Budget} == set(BUDGETS)


def test_the_paper_budget_is_the_paper():
    plan = planned(budget="paper")
    assert (plan.method, plan.num_steps) == (NullText(), 50)
    assert plan.method.inner_steps == 10


def test_without_options_the_default_budget_holds():
    assert planned() == BUDGETS[constants.BUDGET]
    assert planned().method.name == constants.METHOD


def test_no_default_takes_a_gradient():
    assert not any(BUDGETS[name].method.differentiates for name in ("fast", "balanced"))


def test_options_beside_a_budget_win():
    plan = planned(budget="paper", num_steps=7, inner_steps=4, pivot="fixed-point")
    assert (plan.num_steps, plan.method) == (7, NullText(inner_steps=4, pivot="fixed-point"))


def test_a_name_is_one_algorithm():
    assert planned("null-text") == planned(budget="paper")
    assert planned("fixed-point") == planned(budget="balanced")
    with pytest.raises(OptionError, match="--budget fast is the method fixed-point"):
        planned("null-text", budget="fast")
    assert planned("null-text", budget="paper") == planned(budget="paper")


def test_the_default_has_the_one_pivot():
    assert planned(pivot="fixed-point").method == FixedPoint()
    with pytest.raises(OptionError, match="--pivot is not an option of the method fixed-point"):
        planned(pivot="ddim")


def test_other_methods_keep_the_default_steps_and_refuse_options_that_they_lack():
    assert planned("ddim").num_steps == constants.NUM_STEPS
    assert planned("ddim", num_steps=3).num_steps == 3
    with pytest.raises(OptionError, match="--budget fast is the method fixed-point"):
        planned("ddim", budget="fast")
    for options in ({"inner_steps": 2}, {"pivot": "fixed-point"}):
        (name,) = options
        flag = name.replace("_", "-")
        with pytest.raises(OptionError, match=f"--{flag} is not an option of the method ddim"):
            planned("ddim", **options)
    assert planned("global-null", inner_steps=2).method.inner_steps == 2


def test_unknown_names_are_refused():
    with pytest.raises(OptionError, match="no budget 'huge'"):
        budget_named("huge")
    with pytest.raises(OptionError, match="no inversion method 'newton'"):
        planned("newton")
    with pytest.raises(OptionError, match="any more; fixed-point is in its place"):
        planned("null-text-secant")
