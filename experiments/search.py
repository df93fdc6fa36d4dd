"""Command: searches the same prompts with every method at equal budgets, and says which claims
hold.

    # about an hour on two cores; stop it and run it again at will
    python -m experiments.search --workdir=runs/search
    # with a trained policy: search against training, and search on top of it
    python -m experiments.search --workdir=runs/search --policy=runs/tiny_ocr
    # only draws finished searches
    python -m experiments.search --workdir=runs/search --norun --out=docs/results/search

experiments/searching/cases.py names tasks, methods, budgets and claims. Every search is one of
`densegrpo_jax.search`, in WORKDIR/TASK/POLICY/METHOD/BUDGET; finished prompts are kept. OUT
(default WORKDIR/report) collects finished searches: prompts.csv, a PNG per task and README.md with
a verdict per claim. Prompts in prompts.csv are not searched again: to start anew, remove it. Exit
status as `densegrpo_jax.main`.
"""

from __future__ import annotations

import dataclasses
import pathlib
import types
from collections.abc import Sequence

import jax
from absl import flags, logging
from jax.sharding import Mesh

from densegrpo_jax.config import loading
from densegrpo_jax.config.command_line import define_folder, define_process_flags, run_main
from densegrpo_jax.runtime.progress import ProgressBar
from densegrpo_jax.runtime.stop import StopRequest
from densegrpo_jax.sampling.execution import execute
from densegrpo_jax.sampling.loading import check_policy, load_policy
from densegrpo_jax.sampling.session import Checked, check, load
from densegrpo_jax.search.run import make_budget, open_results, search
from experiments.reproduction.facts import commit
from experiments.reproduction.records import check_page, check_results
from experiments.searching import page
from experiments.searching.cases import BASE, BUDGETS, METHODS, TASKS, Case, Task, cases, chosen
from experiments.searching.records import Records


def configuration(task: Task, together: int):
    """The task's configuration, for searching `together` prompts at a time."""
    config = loading.load(task.config)
    with config.unlocked():
        config.reward = task.reward
        config.eval.panel = task.panel
    config.search.prompts = together
    return config


def _opened(task: str, count: int, mesh: Mesh, stop: StopRequest) -> Checked:
    config = configuration(TASKS[task], min(10, count))
    return check(config, mesh, stop, needs=('schedule', 'test'))


def with_method(session: Checked, case: Case) -> Checked:
    """The session with the settings of a case."""
    config = session.config.copy_and_resolve_references()
    config.search.update(nfe=case.budget, **METHODS[case.method])
    return dataclasses.replace(session, config=config)


def run(
    todo: Sequence[Case],
    count: int,
    policy: pathlib.Path | None,
    workdir: pathlib.Path,
    out: pathlib.Path,
    mesh: Mesh,
    stop: StopRequest,
) -> Records:
    """Runs every case, or its missing part, and stores it in `out` as soon as it is done."""
    records = Records.load(out)
    todo = [case for case in todo if len(records.rows.get(case, ())) != count]
    bar = ProgressBar(len(todo), label='searches')
    with bar:
        session, trained = None, None
        tasks = dict.fromkeys(case.task for case in todo)
        opened = {task: _opened(task, count, mesh, stop) for task in tasks}
        for case in todo:  # before the first load
            make_budget(with_method(opened[case.task], case))
            if case.policy != BASE:
                of = opened[case.task]
                check_policy(of.pipeline, of.config, policy)
        for i, case in enumerate(todo):
            if session is None or case.task != todo[i - 1].task:
                jax.clear_caches()
                task, checked = TASKS[case.task], opened[case.task]
                prompts = chosen(task, checked.test, count)
                session, trained = load(checked, [p.text for p in prompts], workdir), None
            of = with_method(session, case)
            if case.policy != BASE and trained is None:
                trained, step = load_policy(session.pipeline, session.config, mesh, policy)
                logging.info('searching with step %d of %s', step, policy)
            folder = case.folder(workdir)
            weights = trained if case.policy != BASE else None
            results = open_results(of, weights, prompts, folder, name=f'results {i}')
            search(of, weights, prompts, results)
            records.add(case, folder)
            records.save(out)
            bar.update(i + 1)
    return records


def main(flag) -> int:
    workdir = pathlib.Path(flag.workdir).expanduser().absolute()
    out = pathlib.Path(flag.out).expanduser().absolute() if flag.out else workdir / 'report'
    if not flag.tasks:
        raise ValueError(f'--tasks is empty; choose from {", ".join(TASKS)}')
    if unknown := [name for name in flag.tasks if name not in TASKS]:
        raise ValueError(
            f'--tasks={",".join(unknown)} is not known; choose from {", ".join(TASKS)}'
        )
    policy = pathlib.Path(flag.policy).expanduser().absolute() if flag.policy else None
    todo = list(cases(flag.tasks, flag.budgets, policy is not None))

    def work(folder: pathlib.Path, mesh: Mesh, stop: StopRequest) -> None:
        run(todo, flag.prompts, policy, folder, out, mesh, stop)

    status = 0
    check_page(out, page.TITLE)
    if not flag.run:
        check_results(bool(Records.load(out).rows), workdir, out)
    if flag.run:
        config = configuration(TASKS[flag.tasks[0]], 1)
        given = types.SimpleNamespace(config=config, **flag.flag_values_dict())
        folder = str(workdir)
        status = execute(given, flag.prompts, work, folder=folder, command='search')[0]
    facts = f'Code {commit()}, {jax.device_count()} x {jax.devices()[0].device_kind}.'
    made = page.write(out, Records.load(out), facts)
    logging.info('made %s', ', '.join(map(str, made)))
    return status


if __name__ == '__main__':
    define_folder('workdir', 'runs/search', 'Where the searches go.')
    define_folder('out', None, 'Folder for tables, figures and the page; default WORKDIR/report.')
    define_folder(
        'policy', None, 'Run of configs/tiny_ocr.py whose policy is used in searches too.'
    )
    flags.DEFINE_list('tasks', list(TASKS), f'Tasks: {", ".join(TASKS)}.')
    flags.DEFINE_multi_integer('budgets', list(BUDGETS), 'Network evaluations per prompt.')
    flags.DEFINE_integer('prompts', 40, 'Prompts of each task.', lower_bound=2)
    flags.DEFINE_bool('run', True, 'Run missing searches; false: only draw.')
    define_process_flags()
    run_main(main)
