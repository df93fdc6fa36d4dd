"""GenEval's detector, with torch: against the official processors, and small random networks."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from densegrpo_jax.data.geneval import COLOURS, OBJECTS
from densegrpo_jax.rewards import GenevalReward
from densegrpo_jax.rewards.local import geneval_detector as D
from densegrpo_jax.rewards.local.geneval_rule import Detection


def released_labels():
    """COCO's classes as id2label of the released networks spells them."""
    other = {
        'motorcycle': 'motorbike',
        'airplane': 'aeroplane',
        'couch': 'sofa',
        'potted plant': 'pottedplant',
        'tv': 'tvmonitor',
    }
    other |= {
        'dining table': 'diningtable',
        'computer mouse': 'mouse',
        'tv remote': 'remote',
        'computer keyboard': 'keyboard',
    }
    return {i: other.get(name, name) for i, name in enumerate(OBJECTS)}


@pytest.mark.parametrize(
    'labels', [dict(enumerate(OBJECTS)), released_labels()], ids=['geneval', 'released']
)
def test_labels_become_geneval_s_names(labels):
    assert D.object_names(labels) == dict(enumerate(OBJECTS))
    assert D.object_names({**labels, 80: 'street sign'}) == dict(enumerate(OBJECTS))
    del labels[41]
    with pytest.raises(
        ValueError, match=r"no class 'cup' \(1 of 80 are missing; unused labels: \['LABEL_41'\]\)"
    ):
        D.object_names({**labels, 41: 'LABEL_41'})


def test_size_of_the_detector_s_input():
    assert D.input_size(512, 512, 800) == (800, 800)
    assert D.input_size(512, 768, 800) == (800, 1200)
    assert D.input_size(512, 1024, 800) == (667, 1333)  # mmdet's bound on the longer side


def test_instances_agree_with_the_official_processor():
    """Classes, confidences and masks against transformers' own post-processing, where scaling does
    not matter (384 px throughout).
    """
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    rng = np.random.default_rng(0)
    class_logits = torch.tensor(rng.normal(size=(20, 81)) * 4, dtype=torch.float32)
    class_logits[3, [5, 7]] = 20.0  # one query, two objects
    coarse = torch.tensor(rng.normal(size=(20, 4, 4)) * 9, dtype=torch.float32)
    mask_logits = torch.nn.functional.interpolate(coarse[None], (96, 96), mode='bilinear')[0]
    size = (384, 384)
    ours = D.find_instances(class_logits, mask_logits, size, size, size, dict(enumerate(OBJECTS)))
    outputs = transformers.modeling_outputs.ModelOutput(
        class_queries_logits=class_logits[None], masks_queries_logits=mask_logits[None]
    )
    processor = transformers.Mask2FormerImageProcessorPil()
    [theirs] = processor.post_process_instance_segmentation(
        outputs, threshold=0.3, target_sizes=[size], return_binary_maps=True
    )
    assert len(ours) == len(theirs['segments_info']) > 5
    key = lambda pair: (pair[0], round(pair[1], 4))
    mine = sorted(((i.detection.name, i.detection.score, i) for i in ours), key=key)
    official = sorted(
        (
            (OBJECTS[s['label_id']], s['score'], m)
            for s, m in zip(theirs['segments_info'], theirs['segmentation'])
        ),
        key=key,
    )
    for (name, score, instance), (label, confidence, mask) in zip(mine, official):
        assert name == label and score == pytest.approx(confidence, abs=2e-6)
        np.testing.assert_array_equal(instance.mask, mask.numpy() == 1)
    assert {'bus', 'truck'} <= {name for name, *_ in mine}


def test_masks_are_cut_to_the_picture_and_scaled_back():
    """A 40 x 56 picture seen at 80 x 112 in an input of 96 x 128: what the padding holds does not
    count, and a box ends behind its mask.
    """
    torch = pytest.importorskip('torch')
    masks = torch.full((3, 24, 32), -9.0)
    # input rows 20-40 and columns 40-80: the picture's rows 10-20, columns 20-40
    masks[0, 5:10, 10:20] = 9.0
    masks[1, 20:, :] = 9.0  # padding alone
    masks[2, :, 28:] = 9.0
    logits = torch.full((3, 81), -20.0)
    logits[[0, 1, 2], [41, 19, 27]] = 20.0
    [cup] = D.find_instances(
        logits, masks, (96, 128), (80, 112), (40, 56), dict(enumerate(OBJECTS))
    )
    assert (
        cup.detection.name == 'cup' and cup.detection.colour is None and cup.detection.score > 0.9
    )
    np.testing.assert_allclose(cup.detection.box, (20, 10, 40, 20), atol=1)
    x0, y0, x1, y1 = map(int, cup.detection.box)
    assert (
        cup.mask.shape == (40, 56)
        and cup.mask[y0:y1, x0:x1].all()
        and cup.mask.sum() == (y1 - y0) * (x1 - x0)
    )
    assert (
        D.find_instances(logits - torch.eye(81)[41] * 40, masks, (96, 128), (80, 112), (40, 56), {})
        == []
    )


def test_around_an_object_all_is_grey():
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
    mask = np.zeros((40, 56), bool)
    mask[10:20, 20:40] = True
    mask[12, 25] = False
    crop = np.asarray(
        D.cut_out(image, D.Instance(Detection('cup', (20.0, 10.0, 40.0, 20.0), 0.9), mask))
    )
    expected = image[10:20, 20:40].copy()
    expected[2, 5] = 0x99
    np.testing.assert_array_equal(crop, expected)


@pytest.mark.parametrize('shape', [(10, 20), (300, 228), (33, 32), (5, 9)])
def test_clip_input_agrees_with_the_official_processor(shape):
    transformers = pytest.importorskip('transformers')
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    processor = transformers.CLIPImageProcessorPil(
        size={'shortest_edge': 32}, crop_size={'height': 32, 'width': 32}
    )
    ours = D.clip_input(D.Image.fromarray(image), 32)
    np.testing.assert_allclose(ours, processor(images=image)['pixel_values'][0], atol=1e-5)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Small random networks in the layout of the released ones: every query of this Mask2Former is
    sure to see a cup.
    """
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp('geneval')
    swin = transformers.SwinConfig(
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1] * 4,
        window_size=4,
        image_size=64,
        out_features=[f'stage{i}' for i in range(1, 5)],
    )
    mask2former = transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(
            backbone_config=swin,
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=16,
            dim_feedforward=16,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            num_queries=3,
            id2label=released_labels(),
        )
    )
    with torch.no_grad():
        mask2former.class_predictor.weight.zero_()
        mask2former.class_predictor.bias[OBJECTS.index('cup')] = 20.0
    mask2former.save_pretrained(root / 'mask2former')
    tower = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    words, looks = (
        {**tower, 'vocab_size': 586, 'eos_token_id': 585},
        {**tower, 'image_size': 32, 'patch_size': 8},
    )
    clip = transformers.CLIPConfig(text_config=words, vision_config=looks, projection_dim=8)
    transformers.CLIPModel(clip).save_pretrained(root / 'clip')
    shutil.copytree(
        Path(D.__file__).parents[2] / 'assets/tiny/tokenizer', root / 'clip', dirs_exist_ok=True
    )
    return root


@pytest.fixture(scope='module')
def detector(folders):
    return D.GenevalDetector(
        str(folders / 'mask2former'), str(folders / 'clip'), torch_device='cpu', side=64
    )


CUPS = {'tag': 'colors', 'include': [{'class': 'cup', 'count': 2, 'color': 'red'}]}


def pictures(count):
    return np.random.default_rng(1).integers(0, 256, (count, 40, 56, 3)).astype(np.uint8)


def test_detects_with_networks_in_folders(detector, folders):
    """Objects, boxes and colours of a batch; the colours against CLIP's own forward pass and the
    recipe written out.
    """
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    images = pictures(3)
    found = detector(
        images,
        [
            CUPS,
            {**CUPS, 'tag': 'counting'},
            {'tag': 'single_object', 'include': [{'class': 'cup', 'count': 1}]},
        ],
    )
    assert [len(objects) for objects in found] == [3, 3, 3]
    assert {d.name for objects in found for d in objects} == {'cup'}
    # no cup passes 0.9, and no colour is asked for
    assert [sum(d.colour is not None for d in objects) for objects in found] == [2, 0, 0]

    model = transformers.CLIPModel.from_pretrained(folders / 'clip')
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders / 'clip')
    processor = transformers.CLIPImageProcessorPil(
        size={'shortest_edge': 32}, crop_size={'height': 32, 'width': 32}
    )
    with torch.inference_mode():
        instances, *_ = detector._instances(images)  # a batch of one may be rounded otherwise
        for instance, seen in zip(instances, found[0], strict=True):
            assert instance.detection == seen._replace(colour=None)
            pixels = torch.tensor(
                np.stack(processor(images=D.cut_out(images[0], instance))['pixel_values'])
            )
            likeness = []
            for colour in COLOURS:
                texts = [
                    f'a photo of a {colour} cup',
                    f'a photo of a {colour}-colored cup',
                    f'a photo of a {colour} object',
                ]
                out = model(
                    **tokenizer(texts, padding=True, return_tensors='pt'), pixel_values=pixels
                )
                # the embeddings of the forward pass are of unit length
                centre = out.text_embeds.mean(0)
                likeness.append(float(out.image_embeds[0] @ centre / centre.norm()))
            assert (
                seen.colour in (None, COLOURS[int(np.argmax(likeness))]) and np.ptp(likeness) > 1e-3
            )


def test_threads_and_batches_do_not_change_what_is_found(detector, folders):
    pytest.importorskip('torch')
    images = pictures(4)
    alone = [detector(images[i : i + 1], [CUPS])[0] for i in range(4)]
    detector._prototypes.clear()
    together, start = [None] * 4, threading.Barrier(4)

    def work(i):
        start.wait(10)
        together[i] = detector(images[i : i + 1], [CUPS])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for step in ('start', 'join'):
        for thread in threads:
            getattr(thread, step)()
    assert together == alone
    for one, many in zip(alone, detector(images, [CUPS] * 4)):
        assert [(d.name, d.box, d.colour) for d in one] == [(d.name, d.box, d.colour) for d in many]
        np.testing.assert_allclose([d.score for d in one], [d.score for d in many], rtol=1e-5)
    reward = GenevalReward(
        str(folders / 'mask2former'), str(folders / 'clip'), torch_device='cpu', side=64
    )
    scores = reward(images, ['two red cups'] * 4, [CUPS] * 4)
    assert scores.valid.all()
    assert scores.values['geneval'].tolist() == [0.25] * 4  # three cups for two: parts 1/2 and 0


def test_models_that_cannot_be_used_are_named(folders, tmp_path, monkeypatch):
    pytest.importorskip('torch')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(
        FileNotFoundError,
        match="no Mask2FormerForUniversalSegmentation at '.*nowhere': give a folder",
    ):
        D.GenevalDetector(str(tmp_path / 'nowhere'))
    with pytest.raises(FileNotFoundError, match='no CLIPModel at'):
        D.GenevalDetector(str(folders / 'mask2former'), str(tmp_path))
    with pytest.raises(ValueError, match="torch_device is 'cud'"):
        D.GenevalDetector(torch_device='cud')
    from safetensors.numpy import load_file, save_file

    shutil.copytree(folders / 'clip', tmp_path / 'clip')
    weights = load_file(tmp_path / 'clip/model.safetensors')
    del weights['visual_projection.weight']
    save_file(weights, tmp_path / 'clip/model.safetensors', {'format': 'pt'})
    with pytest.raises(
        ValueError, match=r'clip.* lacks 1 weights of CLIPModel, such as visual_projection\.weight'
    ):
        D.GenevalDetector(str(folders / 'mask2former'), str(tmp_path / 'clip'))


def test_a_missing_torch_is_explained(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'torch', None)
    with pytest.raises(
        ModuleNotFoundError,
        match=r'torch is not installed: pip install -r requirements-geneval\.txt',
    ):
        GenevalReward()
