"""A study by several processes: the rows of a study by one, also after a kill."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path

import pytest

from nulltext.errors import WorkerError
from nulltext.evaluation.datasets import read_photos
from nulltext.evaluation.metrics import DiffusionJudge
from nulltext.evaluation.plan import StudyPlan
from nulltext.evaluation.rows import key_of, open_results, read_results
from nulltext.evaluation.study import StudyWorker, parallel_study_steps, plan_study, study_steps
from nulltext.models.choice import ModelChoice
from support.processes import PATIENCE, let_go, session_killed_when

PLAN = StudyPlan(num_steps=4, experiments=("guidance",), inversion_guidances=(1, 2, 4, 8))


@pytest.fixture
def items(tmp_path, photo):
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = []
    for turn in range(4):
        photo.rotate(90 * turn).save(folder / f"{turn}.png")
        lines.append({"file": f"{turn}.png", "caption": "a cat", "target": "a dog"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_photos(folder, split="validation", edits=None)


def rows_by_key(folder):
    """Figures by key, and that no row is there twice."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    rows = {key_of(row): row for row in read_results(folder)[1]}
    assert len(lines) == len(rows)
    return rows


def measured(row):
    return {name: value for name, value in row["figures"].items() if value is not None}


@pytest.mark.slow
def test_a_crew_makes_the_rows_of_one_and_loses_none_when_it_is_killed(
    model, tiny_sd1, items, tmp_path
):
    judge = DiffusionJudge(tiny_sd1)

    def planned(book):
        return plan_study(items, items, PLAN, book.keys, judge.unet_evaluations)

    with open_results(tmp_path / "alone", {"a": 1}, fresh=False) as book:
        infos = list(study_steps(tiny_sd1, planned(book), PLAN, book, judge))
    worker = StudyWorker(ModelChoice(model, device="cpu"), None, PLAN, tmp_path / "crew")
    with open_results(tmp_path / "crew", {"a": 1}, fresh=False) as book:
        steps = parallel_study_steps(worker, 1, planned(book), book)
        next(steps)
        next(steps)
        (process,) = multiprocessing.active_children()
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"signal 9.*same command again"):
            list(steps)
        kept = len(book.rows)
        assert 1 <= kept < infos[-1].rows
    with open_results(tmp_path / "crew", {"a": 1}, fresh=False) as book:
        schedule = planned(book)
        assert sum(len(tasks) for _, tasks in schedule.photos) == infos[-1].rows - kept
        last = list(parallel_study_steps(worker, 2, schedule, book))[-1]
    assert last.rows == last.all_rows == infos[-1].rows
    assert last.evaluations == last.all_evaluations
    assert not multiprocessing.active_children()
    alone, crew = rows_by_key(tmp_path / "alone"), rows_by_key(tmp_path / "crew")
    assert alone.keys() == crew.keys()
    for key, row in alone.items():
        assert crew[key]["undefined"] == row["undefined"]
        assert measured(crew[key]) == pytest.approx(measured(row), rel=1e-3, abs=1e-4), key
        assert all((tmp_path / "crew" / name).is_file() for name in crew[key]["pictures"].values())


def test_whatever_a_study_does_can_be_handed_out(items):
    everything = plan_study(items, items, StudyPlan(), (), 20)
    for photo in everything.photos:
        item, tasks = pickle.loads(pickle.dumps(photo))
        assert (item, [task.key for task in tasks]) == (photo[0], [t.key for t in photo[1]])


@pytest.mark.slow
def test_a_crew_dies_with_its_study(model, items, tmp_path):
    rows = tmp_path / "out" / "results.jsonl"
    with session_killed_when(
        lambda: rows.is_file() and rows.stat().st_size,
        *("study", items[0].path.parent, "--model", model, "-o", tmp_path / "out"),
        *("--workers", 2, "--quick"),
    ) as session:
        deadline = time.monotonic() + PATIENCE
        while members(session):
            assert time.monotonic() < deadline, "the crew works on"
            time.sleep(0.1)


def test_a_forked_command_line_keeps_no_pipe_of_the_tests():
    ends = os.pipe()
    child = os.fork()
    if not child:
        kept = len(ends)
        try:
            let_go()
            null = Path(os.devnull).stat().st_rdev
            kept = sum(os.fstat(end).st_rdev != null for end in ends)
        finally:
            os._exit(kept)  # never back into the tests
    for end in ends:
        os.close(end)
    assert os.waitpid(child, 0)[1] == 0


def members(session):
    """Processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own = entry.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(entry.parent.name)
    return found


def test_a_crew_of_nobody_is_refused(run, model, items, tmp_path):
    folder = items[0].path.parent
    code, _, err = run("study", folder, "--model", model, "-o", tmp_path / "x", "--workers", "0")
    assert code == 2
    assert "--workers is 0" in err
    assert not (tmp_path / "x").exists()
