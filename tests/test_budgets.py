"""Budgets: a name fills the gaps, and what is said outright wins."""

from __future__ import annotations

import pytest

from nulltext import constants
from nulltext.constants import Budget, Solver
from nulltext.errors import OptionError
from nulltext.inversion.budgets import BUDGETS, budget_named, planned
from nulltext.inversion.null_text import NullText
from nulltext.inversion.solvers.registry import SOLVERS


def test_the_command_line_names_every_solver_and_budget():
    assert {s.value for s in Solver} == set(SOLVERS)
    assert {b.value for b in Budget} == set(BUDGETS)
    assert {b.solver for b in BUDGETS.values()} <= set(SOLVERS)


def test_the_paper_budget_is_the_paper():
    plan = planned("null-text", budget="paper")
    assert plan.method == NullText()
    assert (plan.num_steps, plan.method.solver, plan.method.inner_steps) == (50, "adam", 10)


def test_nothing_said_is_the_default_budget():
    budget = BUDGETS[constants.BUDGET]
    assert planned("null-text").method == budget.method()
    assert planned("null-text").num_steps == budget.num_steps


def test_fewer_timesteps_tolerate_more_at_each():
    ours, papers = BUDGETS["fast"], BUDGETS["paper"]
    share = papers.num_steps / ours.num_steps
    loose, strict = ours.method().tolerance_at(3), papers.method().tolerance_at(3)
    assert loose == pytest.approx(share * strict)
    as_many = planned("null-text", budget="fast", num_steps=papers.num_steps).method
    assert as_many.tolerance_at(3) == pytest.approx(strict)
    fewer_papers = planned("null-text", budget="paper", num_steps=10).method
    assert fewer_papers.tolerance_at(3) == pytest.approx(strict)


def test_what_is_said_outright_wins():
    assert planned("null-text", budget="fast").method.start == "prompt"
    own = {"solver": "adam", "num_steps": 7, "inner_steps": 4, "null_start": "empty"}
    plan = planned("null-text", budget="fast", **own)
    assert (plan.num_steps, plan.method.solver, plan.method.inner_steps) == (7, "adam", 4)
    assert plan.method.start == "empty"
    assert planned("null-text", budget="paper", null_start="prompt").method.start == "prompt"


@pytest.mark.parametrize(("solver", "budget"), [("adam", "paper"), ("secant", "balanced")])
def test_a_solver_alone_brings_its_own_budget(solver, budget):
    assert planned("null-text", solver=solver) == planned("null-text", budget=budget)


def test_from_the_empty_prompt_there_is_the_papers_work():
    assert planned("null-text", null_start="empty") == planned("null-text", budget="paper")
    ours = planned("null-text", solver="secant", null_start="empty").method
    assert (ours.start, ours.inner_steps) == ("empty", NullText.inner_steps)
    assert planned("null-text", budget="fast", null_start="prompt").method.inner_steps == 1


def test_other_methods_keep_the_default_steps_and_refuse_null_texts_options():
    assert planned("ddim").num_steps == constants.NUM_STEPS
    assert planned("ddim", num_steps=3).num_steps == 3
    for option in ("budget", "solver", "null_start"):
        name = option.replace("_", "-")
        with pytest.raises(OptionError, match=rf"--{name} is for --method null-text"):
            planned("ddim", **{option: "fast"})
    with pytest.raises(OptionError, match="--inner-steps is not an option of the method ddim"):
        planned("ddim", inner_steps=2)
    assert planned("global-null", inner_steps=2).method.inner_steps == 2


def test_unknown_names_are_refused():
    with pytest.raises(OptionError, match="no budget 'huge'"):
        budget_named("huge")
    with pytest.raises(OptionError, match="no solver 'newton'"):
        planned("null-text", solver="newton")
