"""Budgets: a preset fills the gaps, and options beside it win."""

from __future__ import annotations

import pytest

from nulltext import constants
from nulltext.constants import Budget
from nulltext.errors import OptionError
from nulltext.inversion.budgets import BUDGETS, budget_named, planned
from nulltext.inversion.null_text import NullText
from nulltext.inversion.secant import SecantNullText


def test_the_command_line_names_every_budget():
    assert {b.value for b in Budget} == set(BUDGETS)


def test_the_paper_budget_is_the_paper():
    plan = planned(budget="paper")
    assert (plan.method, plan.num_steps) == (NullText(), 50)
    assert plan.method.inner_steps == 10


def test_without_options_the_default_budget_holds():
    assert planned() == BUDGETS[constants.BUDGET]
    assert planned().method.name == constants.METHOD


def test_fewer_timesteps_tolerate_more_at_each():
    fast, paper = BUDGETS["fast"], BUDGETS["paper"]
    share = paper.num_steps / fast.num_steps
    for name in ("loss_tolerance", "loss_tolerance_slope"):
        assert getattr(fast.method, name) == pytest.approx(share * getattr(paper.method, name))


def test_options_beside_a_budget_win():
    plan = planned(budget="fast", num_steps=7, inner_steps=4, null_start="empty")
    assert (plan.num_steps, plan.method.inner_steps, plan.method.start) == (7, 4, "empty")
    assert planned(budget="fast").method.start == "prompt"


def test_a_name_is_one_algorithm():
    assert planned("null-text") == planned(budget="paper")
    assert planned("null-text-secant") == planned(budget="balanced")
    with pytest.raises(OptionError, match="--budget fast is the method null-text-secant"):
        planned("null-text", budget="fast")
    assert planned("null-text", budget="paper") == planned(budget="paper")


def test_from_the_empty_prompt_there_is_the_papers_work():
    ours = planned(null_start="empty").method
    assert (ours.start, ours.inner_steps) == ("empty", NullText.inner_steps)
    assert planned(null_start="prompt").method == SecantNullText()


def test_other_methods_keep_the_default_steps_and_refuse_options_of_null_text():
    assert planned("ddim").num_steps == constants.NUM_STEPS
    assert planned("ddim", num_steps=3).num_steps == 3
    with pytest.raises(OptionError, match="--budget fast is the method null-text-secant"):
        planned("ddim", budget="fast")
    with pytest.raises(OptionError, match="--null-start is for --method null-text-secant"):
        planned("ddim", null_start="prompt")
    with pytest.raises(OptionError, match="--inner-steps is not an option of the method ddim"):
        planned("ddim", inner_steps=2)
    assert planned("global-null", inner_steps=2).method.inner_steps == 2


def test_unknown_names_are_refused():
    with pytest.raises(OptionError, match="no budget 'huge'"):
        budget_named("huge")
    with pytest.raises(OptionError, match="no inversion method 'newton'"):
        planned("newton")
