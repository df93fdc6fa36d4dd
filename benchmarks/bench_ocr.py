"""Speed and accuracy of the OCR reward: python -m benchmarks.bench_ocr [--images 864] [--mode
detect] [--sweep] [--scenes 200]

Scores distinct rendered images (32 x 96 words of the miniature; 512 x 512 with a word in it for
--mode detect) and prints, for 1 and 2 worker threads, wall time, images per second and processor
seconds per image. On a busy machine only the last is meaningful. --sweep
instead times batch sizes and widths of the recogniser on one thread, with the mean score on clean,
noisy and blurred images. --scenes instead reads that many cluttered 512 x 512 scenes of known
text, detector and recogniser on one thread, a third of them with a second sign, and prints the mean
scores with and without the penalty on extra text.
"""

import argparse
import time

import numpy as np
from PIL import Image, ImageFilter

from densegrpo_jax.data.prompts import tiny_eval_prompts
from densegrpo_jax.data.scenes import scene_prompts
from densegrpo_jax.rewards import OcrReward, Scorer, ocr_score
from tools.make_miniature.render import render, render_scene


def pictures(count: int, mode: str, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """`count` distinct images of held-out words, uint8 [count, H, W, 3], and their prompts."""
    prompts, rng = tiny_eval_prompts(), np.random.default_rng(seed)
    prompts = [prompts[i % len(prompts)] for i in range(count)]
    images = [render(prompt.target, prompt.metadata['scene'], rng) for prompt in prompts]
    if mode == 'detect':
        scenes = np.full((count, 512, 512, 3), 128, np.uint8)
        for scene, image in zip(scenes, images):
            top = rng.integers(0, 512 - 96)
            scene[top : top + 96, 112:400] = np.asarray(
                Image.fromarray(image).resize((288, 96), Image.Resampling.BICUBIC)
            )
        images = scenes
    return np.asarray(images), [prompt.text for prompt in prompts]


def noisy(images: np.ndarray, s: float) -> np.ndarray:
    """x_s = (1 - s) x + s eps in [-1, 1]."""
    x = (1 - s) * (images / 127.5 - 1) + s * np.random.default_rng(1).standard_normal(images.shape)
    return np.uint8(np.round((np.clip(x, -1, 1) + 1) * 127.5))


def blurred(images: np.ndarray, radius: float) -> np.ndarray:
    return np.stack(
        [
            np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
            for image in images
        ]
    )


def throughput(images, prompts, mode, workers) -> None:
    with Scorer(OcrReward(mode), workers) as scorer:
        scorer.submit(images[:32], prompts[:32]).result()  # loads the models
        before, wall, cpu = scorer.counts, time.perf_counter(), time.process_time()
        scores = scorer.submit(images, prompts).result()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        count = scorer.counts.scored - before.scored
    print(
        f'workers {workers}: {wall:6.2f} s wall, {count / wall:6.1f} images/s, '
        f'{1000 * cpu / count:6.2f} CPU-ms/image (CPU time / workers: {cpu / workers:.2f} s), '
        f'mean score {scores.values["ocr"].mean():.3f}',
        flush=True,
    )


def sweep(images, prompts) -> None:
    sets = {
        'clean': images,
        's=0.2': noisy(images, 0.2),
        's=0.4': noisy(images, 0.4),
        'blur 1.5': blurred(images, 1.5),
    }
    metadata = [{}] * len(prompts)
    for options in [{'batch_size': n} for n in (1, 2, 4, 8, 16)] + [
        {'width_scale': w / 144} for w in (72, 96, 104, 120, 144, 160)
    ]:
        reward = OcrReward(**options)
        reward(images[:16], prompts[:16], metadata[:16])
        cpu = time.process_time()
        means = [
            f'{name} {reward(x, prompts, metadata).values["ocr"].mean():.3f}'
            for name, x in sets.items()
        ]
        cpu = (time.process_time() - cpu) / len(sets) / len(images)
        print(f'{options}: {1000 * cpu:.2f} CPU-ms/image; {", ".join(means)}', flush=True)


def scenes(count: int, seed: int = 0) -> None:
    """A third of the scenes have another scene's text on a second sign."""
    rng = np.random.default_rng(seed)
    targets, others = (
        [prompt.target for prompt in scene_prompts(count, s)] for s in (seed, seed + 1)
    )
    extra = [other if i % 3 == 2 else '' for i, other in enumerate(others)]
    images = np.stack(
        [render_scene(target, rng, extra=more) for target, more in zip(targets, extra)]
    )
    reward = OcrReward('detect')
    reward.read(images[:2])  # loads the models
    wall, cpu = time.perf_counter(), time.process_time()
    texts = reward.read(images)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f'{count} scenes of 512 x 512 px: {count / wall:.1f} images/s, {1000 * cpu / count:.0f} '
        'CPU-ms/image'
    )
    for name, second in (('one sign', False), ('a second sign', True)):
        pairs = [
            (text, target)
            for text, target, more in zip(texts, targets, extra)
            if bool(more) is second
        ]
        plain, strict = (
            [ocr_score(text, target, penalty) for text, target in pairs] for penalty in (0.0, 1.0)
        )
        print(
            f'{name} ({len(pairs)} scenes): mean score {np.mean(plain):.3f}, '
            f'{np.mean(np.equal(plain, 1)):.0%} read in full; with extra_text_penalty 1: '
            f'{np.mean(strict):.3f}'
        )
    worst = sorted((ocr_score(text, target), target, text) for text, target in zip(texts, targets))[
        :5
    ]
    print(
        'worst:',
        '; '.join(f'{score:.2f} {target!r} read as {text!r}' for score, target, text in worst),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--images', type=int, default=864)
    parser.add_argument('--mode', choices=('recognise', 'detect'), default='recognise')
    parser.add_argument('--sweep', action='store_true')
    parser.add_argument('--scenes', type=int, default=0)
    args = parser.parse_args()
    if args.scenes:
        scenes(args.scenes)
        return
    images, prompts = pictures(args.images, args.mode)
    if args.sweep:
        sweep(images, prompts)
    else:
        for workers in (1, 2):
            throughput(images, prompts, args.mode, workers)


if __name__ == '__main__':
    main()
