"""Command: scores a base model and any number of checkpoints, of one run or of several, with the
same prompts and the same noise.

    python -m densegrpo_jax.evaluate --config=configs/tiny_ocr.py
    python -m densegrpo_jax.evaluate --workdir=runs/tiny_ocr --checkpoint=best --checkpoint=latest
    python -m densegrpo_jax.evaluate --config=configs/tiny_ocr.py \\
        --checkpoint=runs/a:best --checkpoint=runs/b:120 --group=4 --kl_prompts=32

Without --config the configuration is that of the run in --workdir.

In addition to the training reward it scores the rewards of `eval.panel`, on the evaluation's
prompts or on `eval.panel_prompts`; with --group=G the diversity of G images per prompt; with
--kl_prompts=N the KL of the policies from the base.

Writes OUT/summary.md, OUT/scores.csv (a row per prompt and policy), a contact sheet per policy and
OUT/side_by_side.png. Finished scores are in OUT/scores.jsonl, and the prompts' conditioning in
OUT/text (or `config.text_cache`): after a stop the same command continues, and a further checkpoint
is scored without repeating the others. Several hosts share the work if started as for
`densegrpo_jax.main`; the first one writes. The exit status is as there.
"""

from __future__ import annotations

import pathlib

from absl import flags, logging

from densegrpo_jax.config.command_line import (
    define_config,
    define_folder,
    define_process_flags,
    run_main,
    say_start,
)
from densegrpo_jax.config.flag_types import define_whole


def main(flag) -> int:
    say_start('evaluate', flag.out)

    from densegrpo_jax.evaluation.evaluate import evaluate
    from densegrpo_jax.evaluation.panel import choose
    from densegrpo_jax.sampling.execution import execute

    def work(out: pathlib.Path, mesh, stop) -> None:
        named = flag.checkpoint or (['best'] if flag.workdir else [])
        policies = choose(named, flag.workdir, base=flag.base)
        if flag['kl_prompts'].present and not named:
            raise ValueError(
                f'--kl_prompts={flag.kl_prompts} is of policies, and only the base is scored: '
                'leave it out, or give --workdir or --checkpoint'
            )
        options = dict(group=flag.group, kl_prompts=flag.kl_prompts, restart=flag.restart)
        evaluate(flag.config, policies, out, mesh=mesh, stop=stop, **options)
        made = (str(p) for p in sorted(out.iterdir()) if p.suffix in ('.md', '.csv', '.png'))
        logging.info('made %s', ', '.join(made))

    return execute(flag, flag.config.eval.batch, work, folder=flag.out, command='evaluate')[0]


if __name__ == '__main__':
    what = 'Configuration: model, reward, evaluation prompts, ODE steps; else that of --workdir.'
    define_config(what, reads='evaluate', of_run=True)
    define_folder(
        'workdir', None, 'Training run whose checkpoints are scored, with the base model.'
    )
    flags.DEFINE_multi_string(
        'checkpoint',
        [],
        "'best' (default), 'latest' or a step of --workdir; or RUN:NAME of any run. Repeatable.",
    )
    flags.DEFINE_bool('base', True, 'Score the base model.')
    define_folder('out', 'runs/evaluation', 'Folder for the results.')
    flags.DEFINE_bool('restart', False, 'Forget the scores in --out.')
    define_whole(
        'group', 1, 'Images per prompt; with more than one, diversity is measured.', 1, 10_000
    )
    measured = 'Number of prompts on which the KL from the base is measured; 0 = none.'
    define_whole('kl_prompts', 32, measured, 0, 1_000_000)
    define_process_flags()
    flags.mark_flag_as_required('config')
    run_main(main)
