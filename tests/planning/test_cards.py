"""The cards that people own: their figures, and the ladder of settings that says what fits them."""

import pytest

from configs import flux_ocr, tiny_ocr_long
from densegrpo_jax.planning import cards
from densegrpo_jax.planning.chips import CHIPS, GPUS, chip_of, description
from densegrpo_jax.planning.plan import plan
from densegrpo_jax.planning.topology import parse
from tests.planning.planned import small


@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        ('NVIDIA A100-SXM4-40GB', 'a100-40'),
        ('NVIDIA A100 80GB PCIe', 'a100'),
        ('NVIDIA A100-SXM4-80GB', 'a100'),
        ('NVIDIA L40S', 'l40s'),
        ('NVIDIA GeForce RTX 4090', 'rtx4090'),
        ('NVIDIA GeForce RTX 5090', 'rtx5090'),
        ('NVIDIA H100 80GB HBM3', 'h100'),
        ('NVIDIA H200', 'h200'),
        ('NVIDIA B200', 'b200'),
        ('TPU v5 lite', 'v5e'),
        ('TPU v5', 'v5p'),
        ('TPU v6 lite', 'v6e'),
        ('TPU7x', 'tpu7x'),
    ],
)
def test_devices_are_known_by_their_kind(kind, name):
    assert chip_of(kind) == (name, CHIPS[name])


@pytest.mark.parametrize(
    'kind',
    [
        *('cpu', 'NVIDIA L40', 'AMD Instinct MI300X', ''),
        # other cards of nearly these names
        *('NVIDIA H100 PCIe', 'NVIDIA H100 NVL', 'NVIDIA GH200 480GB', 'NVIDIA GB200'),
        *('NVIDIA GeForce RTX 4090 Laptop GPU', 'NVIDIA GeForce RTX 4090 D', 'GRID A100D-80C'),
        *('NVIDIA H100 80GB HBM3 MIG 1g.10gb', 'NVIDIA L40S-48Q'),  # parts of one
    ],
)
def test_other_devices_have_no_figures(kind):
    assert chip_of(kind) is None


def test_figures_are_in_their_units():
    """A card's usable memory is a little less than its memory; a byte costs tens to hundreds of
    operations on each of them, and leaving the device costs more than its memory.
    """
    for name, chip in CHIPS.items():
        assert 10 < chip.gib < 180 and 50 < chip.flops / chip.bandwidth < 600, name
        assert chip.link < chip.bandwidth, name
    for name in GPUS:
        gpu = CHIPS[name].gpu
        assert 0.92 < chip_share(name) < 0.94, name
        assert f'core_count: {gpu.cores}' in description(gpu)
        assert f'memory_bandwidth: {CHIPS[name].bandwidth:.0f} ' in description(gpu)


def chip_share(name):
    return CHIPS[name].gib * 2**30 / CHIPS[name].gpu.memory


def test_a_name_with_a_dash_is_a_topology():
    assert parse('a100-40:2').chip.gib < 40 and parse('a100-40:2').count == 2


@pytest.mark.parametrize(('text', 'count'), [('h100:8', None), ('cards:1', 1), ('cards:16', 16)])
def test_the_question_about_all_cards(text, count):
    assert cards.count_of(text) == count


@pytest.mark.parametrize('text', ['cards', 'cards:', 'cards:0', 'cards:2x2', 'cards:1025'])
def test_that_question_needs_a_number(text):
    with pytest.raises(ValueError, match='expected cards:N'):
        cards.count_of(text)


def test_a_ladder_changes_memory_and_speed_alone():
    """Numbers stay as long as possible; groups, steps and prompts stay always."""
    config = flux_ocr.get_config('devices=1')
    steps = list(cards.ladder(config, 1))
    assert steps[0] == {} and steps[-1]['model.quantize'] == 'nf4'
    formats = [step.get('model.quantize', 'none') for step in steps]
    assert formats == sorted(formats, key=cards.FORMATS.index)
    keys = {key for step in steps for key in step}
    assert keys <= {
        *('model.quantize', 'model.remat', 'optim.microbatch', 'eval.batch'),
        'rollout.prompts_per_batch',
    }
    least = steps[-1]
    assert (least['optim.microbatch'], least['eval.batch']) == (1, 1)
    assert len(steps) == len({tuple(step.items()) for step in steps})


def test_an_evaluation_of_a_ladder_holds_the_images_of_a_guard():
    config = flux_ocr.get_config('devices=1')
    config.guard.update(on=True, images=5)
    for step in cards.ladder(config, 1):
        assert step.get('eval.batch', config.eval.batch) >= 5


def test_batches_of_a_ladder_divide_over_the_mesh():
    for step in cards.ladder(flux_ocr.get_config('devices=8'), 8):
        assert step.get('optim.microbatch', 8) % 8 == 0 and step.get('eval.batch', 8) % 8 == 0


def test_trained_weights_are_not_quantised():
    assert all('model.quantize' not in step for step in cards.ladder(tiny_ocr_long.get_config(), 1))


def test_the_least_change_that_fits_each_card(caplog):
    """Needs that are made up: 60 GiB as it is, 40 with smaller batches, 25 in 8 bits."""
    planned = []

    def needs(config, topology, utilisation):
        planned.append(config)
        gib = 60.0 if config.optim.microbatch > 1 else 40.0
        gib = gib if config.model.quantize == 'none' else 25.0
        return {
            'phases': {'rollout': {'gib': 20.0}, 'update': {'gib': gib}},
            'resident_gib': 18.0,
            'estimated_on_cpu': True,
            'seconds_per_iteration': 10.0,
            'iterations': 360,
        }

    config = flux_ocr.get_config('devices=1')
    with caplog.at_level('INFO'):
        result = cards.fitting(config, 1, 0.4, needs)
    steps = [line.message for line in caplog.records if line.message.startswith('setting ')]
    assert len(steps) == len(planned)  # a compilation takes minutes
    assert 'the configuration as it is: 60.0 GiB, fits ' in steps[0] and 'h200' in steps[0]
    fits = result['fits']
    assert fits['h100']['changes'] == fits['h200']['changes'] == fits['b200']['changes'] == {}
    assert fits['l40s']['gib'] == 40.0 and 'model.quantize' not in fits['l40s']['changes']
    assert fits['rtx5090']['changes'] == {'model.quantize': 'int8'}
    assert fits['rtx4090'] is None
    assert len(planned) == len(list(cards.ladder(config, 1)))
    # an h100 takes 2250 / 989 of the time of a b200
    assert fits['b200']['card_hours'] == pytest.approx(1.0)
    assert fits['h100']['seconds_per_iteration'] == pytest.approx(10 * 2250 / 989)
    text = cards.table(result)
    assert 'rtx4090' in text and 'DOES NOT FIT: 25.0 GiB at least' in text
    [row] = [line for line in text.splitlines() if line.startswith('rtx5090')]
    assert row.endswith('--config.model.quantize=int8')
    assert 'the configuration as it is' in text


@pytest.mark.slow
def test_every_card_holds_the_miniature():
    """With the CPU's compiler in the place of the card's: one step of the ladder is enough."""
    config = small()
    reference = parse('b200:1')._replace(compiler='no_such_compiler')
    result = cards.fitting(config, 1, 0.4, plan, reference)
    assert result['estimated_on_cpu'] and len(result['tried']) == 1
    assert all(row and row['changes'] == {} for row in result['fits'].values())
    assert set(result['fits']) == set(GPUS)
