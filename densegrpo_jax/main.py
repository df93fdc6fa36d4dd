"""Command: aligns a flow model with DenseGRPO.

    python -m densegrpo_jax.main --config=configs/tiny_ocr.py --workdir=runs/tiny_ocr \\
        [--config.iterations=100 ...]

On several hosts, run this command on each. TPU slices, Slurm steps and Open MPI are recognised;
elsewhere name the others with --coordinator, --num_processes and --process_id. All hosts must see
the work directory. The same command, run again, continues the run in the work directory.

Exit status: 0 finished; 75 stopped by a signal and resumable; 2 a configuration, file or prompt
cannot be used, or another run writes to the work directory; 69 other processes of the run did not
join: start all of them again; 130 stopped by Ctrl-C before the run holds its work directory; 1
anything else (with --require_gain, also too little gain). Also 75 if reward servers stay
unreachable for the reward's `give_up_s`: the run itself is intact, so a supervisor may restart it,
and it waits for the servers anew. In that case, and if a reward fails in another way (1), the last
completed update is saved.

A key of the command line that the method does not read is refused, as `--config.credit.gae_lambda`
with another rule than 'gae'; --unread=warn is for scripts that give one key to several methods.

A run goes on only with the code of your own, rewards and parts of the method, that it began with,
and with the servers' rewards; --own_code=warn lets it go on with what is there now.

--profile=5:2 traces iterations 5 and 6 with JAX's profiler, into WORKDIR/profile.
"""

from __future__ import annotations

import math
import pathlib
import shlex
import sys

from absl import flags, logging

from densegrpo_jax.config.command_line import (
    define_run_flags,
    given_keys,
    given_recipe,
    run_main,
    say_start,
)
from densegrpo_jax.config.flag_types import define_real
from densegrpo_jax.config.reads import REFUSE, WARN


def main(flag) -> int:
    from densegrpo_jax.config.method import own_parts
    from densegrpo_jax.config.unread import check_unread
    from densegrpo_jax.config.validation import validate
    from densegrpo_jax.runtime.profiling import check_profile, profile_of

    config = flag.config

    def check_keys() -> None:
        validate(config)
        check_unread(config, given_keys(), then=flag.unread)

    # A user's own module may compute when it is imported: not before the devices are set up.
    own = own_parts(config)
    if not own:
        check_keys()
    profile = profile_of(flag.profile) if flag.profile is not None else None
    if profile:
        check_profile(profile, config.iterations)
    say_start('train', flag.workdir)

    from densegrpo_jax.planning.utilisation import seconds_at_peak
    from densegrpo_jax.runtime.stop import FINISHED
    from densegrpo_jax.sampling.execution import execute
    from densegrpo_jax.training.run import run
    from densegrpo_jax.viewing.command import started_by
    from densegrpo_jax.viewing.started import Start
    from densegrpo_jax.viewing.state import TRAINING

    rollout, optim = config.rollout, config.optim
    batch = math.gcd(rollout.prompts_per_batch * rollout.group, optim.microbatch, config.eval.batch)

    def work(workdir, mesh, stop):
        if own:
            check_keys()
        command = shlex.join(started_by(sys.orig_argv, sys.argv[1:]))
        start = Start(command, given_recipe(), str(pathlib.Path.cwd()))
        how = dict(profile=profile, at_peak=seconds_at_peak, own_code=flag.own_code)
        return run(config, workdir, mesh, stop, started=start, **how)

    status, summary = execute(flag, batch, work, command=TRAINING)
    if status != FINISHED:
        return status
    gain = summary['after']['mean'] - summary['before']['mean']
    if flag.require_gain is not None and gain <= flag.require_gain:
        logging.error(
            'the evaluation score changed by %+.4f; more than %+.4f was required',
            gain,
            flag.require_gain,
        )
        return 1
    return FINISHED


if __name__ == '__main__':
    define_run_flags(listed=True, reads='main')
    least = 'Exit with status 1 unless the evaluation score rose by more than this.'
    define_real('require_gain', None, least)
    changed = 'What happens if code of your own has changed since the last checkpoint.'
    flags.DEFINE_enum('own_code', REFUSE, [REFUSE, WARN], changed)
    flags.DEFINE_string('profile', None, 'START:COUNT: iterations that the profiler traces.')
    flags.mark_flags_as_required(['config', 'workdir'])
    run_main(main)
