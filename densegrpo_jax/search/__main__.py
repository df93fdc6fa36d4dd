"""Command: spends a budget of network evaluations on making the image of each prompt better, with
a base model or a trained policy.

    python -m densegrpo_jax.search --config=configs/tiny_ocr.py \\
        --prompt='A neon sign that says "HELLO"' --config.search.method=pg --config.search.nfe=240
    python -m densegrpo_jax.search --config=configs/tiny_ocr.py --workdir=runs/tiny_ocr --count=40

Without --prompt and --prompts it searches the evaluation's prompts. Writes OUT/search.jsonl (one
line per prompt, with every candidate's score), OUT/summary.md, and for each prompt a sheet and its
best image in OUT/images. After a stop, the same command continues. Several hosts share the work
if started as for `densegrpo_jax.main`. The exit status is as there.
"""

from __future__ import annotations

import pathlib

import numpy as np
from absl import flags, logging

from densegrpo_jax.config.command_line import (
    define_config,
    define_folder,
    define_policy_flags,
    define_process_flags,
    given_keys,
    run_main,
    say_start,
)
from densegrpo_jax.config.flag_types import define_whole
from densegrpo_jax.data.prompts import Prompt, PromptSet, check_text, columns, ocr_prompt


def chosen_prompts(config, given: list[str], file: str | None, count: int) -> list[Prompt]:
    """The first `count` prompts of the flags, or else of the evaluation."""
    from densegrpo_jax.rewards.build import reads_targets

    quoted = reads_targets(config.reward)
    texts = [check_text(text, '--prompt') for text in given]
    prompts = [ocr_prompt(text, '--prompt') if quoted else Prompt(text) for text in texts]
    if file:
        from densegrpo_jax.data.prompt_files import prompts_from

        prompts += list(prompts_from(file, quoted_target=quoted))
    if not prompts:
        from densegrpo_jax.sampling.conditioning import load_prompts

        prompts = list(load_prompts(config, 'eval'))
    return prompts[: count or None]


def given_images(config, folder: str) -> np.ndarray:
    """The images of a folder in the order of their names, uint8 [B, H, W, 3].

    Raises:
      ValueError, FileNotFoundError: the folder does not exist or has no image, or an image has
        another size or cannot be read.
    """
    from PIL import Image

    path, (height, width) = (
        pathlib.Path(folder).expanduser(),
        (config.model.height, config.model.width),
    )
    if not path.is_dir():
        raise FileNotFoundError(f'--from={folder}: the folder does not exist')
    files = sorted(
        f for f in path.iterdir() if f.suffix.lower() in ('.png', '.jpg', '.jpeg', '.webp')
    )
    if not files:
        raise ValueError(f'--from={folder} holds no image (.png, .jpg, .webp)')
    images = []
    for file in files:
        try:
            image = np.asarray(Image.open(file).convert('RGB'))
        except OSError as error:
            raise ValueError(f'{file} cannot be read as an image: {error}') from None
        if image.shape[:2] != (height, width):
            raise ValueError(
                f'{file} has {image.shape[1]} x {image.shape[0]} pixels; the model draws {width} x '
                f'{height}: resize it, or change config.model.height and width'
            )
        images.append(image)
    return np.stack(images)


def with_noise_of(run: pathlib.Path | None, config):
    """The configuration, with the noise that a run of it has calibrated for itself.

    Raises:
      ValueError: it calibrates, and there is no run.
    """
    from densegrpo_jax.sampling.noise import FILE

    if not config.noise.calibrate:
        return config
    if run is None:
        raise ValueError(
            'noise.calibrate=True: a search calibrates nothing. Give the --workdir of a run that '
            'has calibrated its noise, or the psi file of densegrpo_jax.calibrate as '
            '--config.noise.psi_path, with --config.noise.calibrate=False'
        )
    found = config.copy_and_resolve_references()
    found.noise.update(calibrate=False, psi_path=str(run / FILE))
    return found


def main(flag) -> int:
    from densegrpo_jax.config.unread import SEARCH, check_unread

    check_unread(flag.config, given_keys(), of=SEARCH, then=flag.unread)
    say_start('search', flag.out)

    from densegrpo_jax.evaluation.diversity import embedding_folder
    from densegrpo_jax.rewards.trial import try_own
    from densegrpo_jax.runtime.outputs import claim
    from densegrpo_jax.sampling.conditioning import check_prompts, content_hash
    from densegrpo_jax.sampling.execution import execute
    from densegrpo_jax.sampling.loading import find_step, load_policy
    from densegrpo_jax.sampling.session import check_parts, check_weights, load
    from densegrpo_jax.search.record import FILES, FOLDERS, SUMMARY
    from densegrpo_jax.search.run import (
        images_hash,
        make_budget,
        open_results,
        search,
        unseen_rewards,
    )

    def work(out: pathlib.Path, mesh, stop) -> None:
        source = flag['from'].value
        read = [pathlib.Path(source)] if source else []
        claim(out, FILES, FOLDERS, read=read, hosts=stop.communicator.hosts)
        run = pathlib.Path(flag.workdir).expanduser() if flag.workdir else None
        config = with_noise_of(run, flag.config)
        images = given_images(config, source) if source else None
        embedding_folder(config.eval.embedding)
        # before a base is looked for, which may be fetched
        step = find_step(run, flag.checkpoint) if run else None
        prompts = chosen_prompts(config, flag.prompt, flag.prompts, flag.count)
        also = {'--checkpoint': step, 'prompts': content_hash(PromptSet(tuple(prompts)))}
        also['images of --from'] = None if images is None else images_hash(images)
        checked = check_parts(config, mesh, stop, needs=('schedule', 'reward'))
        checked.reward.check(*columns(prompts))
        given = '--prompt' if flag.prompt else '--prompts' if flag.prompts else 'data.eval'
        check_prompts(checked.pipeline, PromptSet(tuple(prompts)), given)
        panel = unseen_rewards(checked, prompts)
        make_budget(checked, 0 if images is None else len(images))
        for reward in (checked.reward, *panel):
            try_own(reward, *columns(prompts), (config.model.height, config.model.width))
        check_weights(checked, also=also)
        policy = None
        if run:
            policy, _ = load_policy(
                checked.pipeline, config, mesh, run, str(step), checked.base_digest
            )
            logging.info('searching with step %d of %s', step, run)
        # what is wrong with earlier results is said before the prompts are encoded
        how = dict(given=images, panel=panel)
        results = open_results(checked, policy, prompts, out, restart=flag.restart, **how)
        session = load(checked, [p.text for p in prompts], out)
        search(session, policy, prompts, results, **how)
        logging.info('made %s, search.jsonl beside it, a sheet per prompt in images', out / SUMMARY)

    prompts = flag.config.search.prompts
    return execute(flag, prompts, work, folder=flag.out, command='search')[0]


if __name__ == '__main__':
    what = 'Configuration: model, reward, sampler, and `search`; else that of the run in --workdir.'
    define_config(what, reads='search', of_run=True)
    define_policy_flags('used')
    define_whole('count', 0, 'Search the first prompts only; 0 = all.', 0, 10_000_000)
    define_folder(
        'from', None, 'Folder of images that refine starts from, as the designs of each prompt.'
    )
    define_folder('out', 'runs/search', 'Folder for the results.')
    flags.DEFINE_bool('restart', False, 'Forget the results in --out.')
    define_process_flags()
    flags.mark_flag_as_required('config')
    run_main(main)
