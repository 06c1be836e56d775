"""Pix2PixHD against the reference implementation's outputs; losses, resuming, generation."""

import numpy as np
import pytest
import torch
from reference_weights import reference
from torch import nn

from lesionlib.engine import training as loop
from lesionlib.engine.errors import InputError
from lesionlib.engine.settings import Augmentation, Pix2PixHD, Training
from lesionlib.generators import budget, pix2pixhd
from lesionlib.generators.perceptual import PerceptualLoss
from lesionlib.generators.pix2pixhd import Examples, Terms

SMALL = dict(batch=2, lr=2e-4, channels=4, downsample=2, blocks=1, disc_channels=4)
FINE = dict(steps=3, fine_steps=5, fixed_steps=2, log_every=1)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 256, (7, 16, 16, 3), np.uint8),
        rng.integers(0, 2, (7, 16, 16), np.uint8),
    )


def networks(plus=False, n_enhancers=0, seed=0, **options):
    return pix2pixhd.networks(Pix2PixHD(**SMALL | options), seed, plus, n_enhancers)


def train(
    data, folder, record=None, log_every=10, save_every=500, precision="no", plus=False, **options
):
    own = Pix2PixHD(**SMALL | options)
    training = Training(generator_seeds=[3], save_every=save_every, precision=precision)
    extra = dict(plus=plus, log_every=log_every)
    return pix2pixhd.train(Examples(*data), folder, own, training, record or {}, **extra)


def train_finely(data, folder, **options):
    """Coarse to fine, on the data twice as large."""
    large = [np.repeat(np.repeat(x, 2, 1), 2, 2) for x in data]
    return train(large, folder, enhancers=1, **FINE | options)


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours.numpy() - theirs).max() < 3e-5 * np.abs(theirs).max()


@torch.no_grad()
def run(model, name):
    outputs, state, x = reference(name)
    assert list(model.state_dict()) == list(state)
    return pix2pixhd.load_reference_state_dict(model, state).double()(x.double()), outputs


def test_global_generator_is_the_reference():
    y, outputs = run(pix2pixhd.GlobalGenerator(2, 3, 8, 3, 2), "pix2pixhd_global_generator")
    assert_close(y, outputs["out"])


def test_local_enhancer_is_the_reference():
    model = pix2pixhd.LocalEnhancer(2, 3, 8, n_downsample=2, n_blocks=2, n_blocks_local=1)
    y, outputs = run(model, "pix2pixhd_local_enhancer")
    assert_close(y, outputs["out"])


def test_discriminator_is_the_reference():
    y, outputs = run(pix2pixhd.MultiscaleDiscriminator(5, 8), "pix2pixhd_multiscale_discriminator")
    assert [len(scale) for scale in y] == [5, 5]
    for i, scale in enumerate(y):
        for j, layer in enumerate(scale):
            assert_close(layer, outputs[f"out_{i}_{j}"])


def test_two_enhancers_return_the_size_of_the_input():
    model = pix2pixhd.LocalEnhancer(2, 3, 2, 1, 1, n_enhancers=2, n_blocks_local=1)
    assert {key.split(".")[0] for key in model.state_dict()} == {
        "model",
        "model1_1",
        "model1_2",
        "model2_1",
        "model2_2",
    }
    assert model(torch.zeros(1, 2, 32, 48)).shape == (1, 3, 32, 48)


def test_numbers_of_parameters():
    with torch.device("meta"):
        generator = pix2pixhd.GlobalGenerator(3, 3)
        discriminator = pix2pixhd.MultiscaleDiscriminator(6)
    assert sum(p.numel() for p in generator.parameters()) == 182_443_267
    assert sum(p.numel() for p in discriminator.parameters()) == 5_535_618


def test_discriminator_grids_at_256():
    with torch.no_grad():
        outputs = pix2pixhd.MultiscaleDiscriminator(6, 2)(torch.zeros(1, 6, 256, 256))
    assert [[layer.shape[-1] for layer in scale] for scale in outputs] == [
        [129, 65, 33, 34, 35],
        [65, 33, 17, 18, 19],
    ]


def test_discriminator_has_512_channels_at_most():
    with torch.device("meta"):
        model = pix2pixhd.MultiscaleDiscriminator(6, 256)
    widths = [len(model.get_parameter(f"scale1_layer{i}.0.weight")) for i in range(5)]
    assert widths == [256, 512, 512, 512, 1]


def test_wrong_checkpoint_names_the_keys():
    _, state, _ = reference("pix2pixhd_global_generator")
    with pytest.raises(InputError, match=r"(?s)model\.14\.conv_block.*model\.25"):
        pix2pixhd.load_reference_state_dict(pix2pixhd.GlobalGenerator(2, 3, 8, 3, 1), state)


def test_gan_loss_by_hand():
    earlier = torch.tensor([9.0])  # plays no part
    outputs = [[earlier, torch.tensor([0.0, 2.0])], [earlier, torch.tensor([3.0])]]
    assert pix2pixhd.gan_loss(outputs, True).item() == 1 + 4
    assert pix2pixhd.gan_loss(outputs, False).item() == 2 + 9


def test_feature_matching_loss_by_hand():
    fake = [
        [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([50.0])],
        [torch.tensor([4.0], requires_grad=True), torch.tensor([50.0])],
    ]
    real = [
        [torch.tensor([0.0, 0.0], requires_grad=True), torch.tensor([0.0])],
        [torch.tensor([1.0], requires_grad=True), torch.tensor([0.0])],
    ]
    loss = pix2pixhd.feature_matching_loss(fake, real, n_layers=3)
    assert loss.item() == (1.5 + 3) * (4 / 4) * (1 / 2)
    loss.backward()
    assert real[0][0].grad is None and fake[0][0].grad is not None


def test_vgg_loss_by_hand_and_without_normalisation():
    loss = pix2pixhd.VGGLoss(nn.Sequential(*[nn.Identity()] * 30))
    a, b = torch.full((1, 3, 2, 2), 0.5), torch.full((1, 3, 2, 2), -0.5)
    assert loss(a, b).item() == 1 / 32 + 1 / 16 + 1 / 8 + 1 / 4 + 1


def test_vgg_weights_are_read_from_the_disk_only(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert pix2pixhd.vgg_loss_or_none("off") is None
    assert pix2pixhd.vgg_loss_or_none("disk") is None
    assert isinstance(pix2pixhd.vgg_loss_or_none("auto"), PerceptualLoss)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="no VGG19 weights"):
        pix2pixhd.vgg_loss_or_none(str(tmp_path / "missing.pth"))
    with torch.device("meta"):
        from torchvision.models import vgg19

        shapes = {key: x.shape for key, x in vgg19().state_dict().items() if "features" in key}
    (tmp_path / "checkpoints").mkdir()
    torch.save(
        {key: torch.full(shape, 0.01, dtype=torch.float16) for key, shape in shapes.items()},
        tmp_path / "checkpoints" / "vgg19-dcbb9e9d.pth",
    )
    loss = pix2pixhd.vgg_loss_or_none("disk")
    assert pix2pixhd.vgg_loss_or_none("auto").name == loss.name == "VGG19"
    assert [type(part[-1]) for part in loss.slices] == [nn.ReLU] * 5
    assert [part[-2].out_channels for part in loss.slices] == [64, 128, 256, 512, 512]
    fake = torch.zeros(1, 3, 16, 16, requires_grad=True)
    loss(fake, torch.ones(1, 3, 16, 16)).backward()
    assert fake.grad is not None and not any(p.requires_grad for p in loss.parameters())


def test_gradients_belong_to_their_own_losses():
    generator, discriminator = networks(downsample=1)
    x = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    c = pix2pixhd.one_hot(np.eye(16, dtype=np.uint8)[None].repeat(2, 0))
    losses = pix2pixhd.gradients(generator, discriminator, x, c, Terms())
    ours = [p.grad.clone() for p in [*generator.parameters(), *discriminator.parameters()]]
    fake = generator(c)
    of_fake = discriminator(torch.cat([c, fake], 1))
    of_real = discriminator(torch.cat([c, x], 1))
    gan = pix2pixhd.gan_loss(of_fake, True)
    match = pix2pixhd.feature_matching_loss(of_fake, of_real, 3)
    g = torch.autograd.grad(gan + 10 * match, list(generator.parameters()), retain_graph=True)
    d_fake, d_real = pix2pixhd.gan_loss(of_fake, False), pix2pixhd.gan_loss(of_real, True)
    d = torch.autograd.grad((d_fake + d_real) / 2, list(discriminator.parameters()))
    for a, b in zip(ours, [*g, *d], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    by_hand = dict(d_real=d_real, d_fake=d_fake, g_gan=gan, g_feat=match)
    assert losses == pytest.approx({name: loss.item() for name, loss in by_hand.items()}, rel=1e-4)


def stop_after(monkeypatch, steps):
    class Bar(list):
        def __iter__(self):
            for i, step in enumerate(super().__iter__()):
                if i == steps:
                    raise KeyboardInterrupt
                yield step

        def set_postfix(self, *args, **kwargs):
            pass

    monkeypatch.setattr(loop, "progress", lambda iterable, **_: Bar(iterable))


def test_resuming_gives_the_same_bits(data, tmp_path, monkeypatch):
    options = dict(steps=6, save_every=3, log_every=2, record={"a": 1})
    whole = train(data, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)  # step 4 is logged, step 3 is the last one saved
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "parts", **options)
    torch.manual_seed(99)  # the global generator plays no part
    parts = train(data, tmp_path / "parts", **options)
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    log = (tmp_path / "whole" / "log.csv").read_text()
    assert log == (tmp_path / "parts" / "log.csv").read_text()
    lines = [line.split(",") for line in log.splitlines()]
    assert lines[0] == ["step", "d_real", "d_fake", "g_gan", "g_feat", "lr"]
    assert [line[0] for line in lines[1:]] == ["2", "4", "6"]
    assert [float(line[-1]) for line in lines[1:]] == pytest.approx(
        [2e-4, 2e-4, 2e-4 / 3], rel=1e-3
    )  # constant for half of the steps, then linear to 0


def test_finished_training_returns_at_once_unless_its_record_changes(data, tmp_path, monkeypatch):
    first = train(data, tmp_path, record={"lr": 1}, steps=2)
    stop_after(monkeypatch, 0)
    again = train(data, tmp_path, record={"lr": 1}, steps=2)
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))
    with pytest.raises(KeyboardInterrupt):  # it starts afresh
        train(data, tmp_path, record={"lr": 2}, steps=2)


def test_a_download_that_fails_leaves_the_loss_off_and_says_so(tmp_path, monkeypatch, capsys):
    import urllib.request

    def refused(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", refused)
    monkeypatch.setattr(urllib.request, "urlopen", refused)
    assert pix2pixhd.vgg_loss_or_none("download") is None
    assert "WARNING: VGG19 could not be downloaded (no network)" in capsys.readouterr().out


def test_coarse_to_fine_keeps_the_global_generator_fixed_at_first(data, tmp_path):
    both = train_finely(data, tmp_path / "a", fine_steps=2)
    state = torch.load(tmp_path / "a" / "coarse" / "checkpoint.pt", weights_only=True)["model"]
    own = {f"0.{k}": x for k, x in both.state_dict().items()}
    inner = [k for k in own if k.startswith("0.model.")]
    assert inner and all(torch.equal(own[k], state[k]) for k in inner)
    assert len(inner) == sum(k.startswith("0.model.") for k in state) - 2  # without its last conv
    later = train_finely(data, tmp_path / "b").state_dict()
    assert not all(torch.equal(later[k[2:]], state[k]) for k in inner)
    log = (tmp_path / "a" / "coarse" / "log.csv").read_text().splitlines()
    assert len(log) == 4 and len((tmp_path / "b" / "log.csv").read_text().splitlines()) == 6


def test_coarse_to_fine_takes_the_discriminator_along(data, tmp_path, monkeypatch):
    given = []
    run = loop.Loop.run

    def spy(self):
        given.append({k: x.clone() for k, x in self.task.model[1].state_dict().items()})
        return run(self)

    monkeypatch.setattr(loop.Loop, "run", spy)
    train_finely(data, tmp_path)
    state = torch.load(tmp_path / "coarse" / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(given[1][k], state[f"1.{k}"]) for k in given[0])
    assert {k.split("_")[0] for k in given[1]} - {k.split("_")[0] for k in given[0]} == {"scale2"}


def test_an_enhancer_survives_saving(data, tmp_path):
    generator = train_finely(data, tmp_path, fine_steps=1)
    pix2pixhd.save(generator, tmp_path / "model")
    again = pix2pixhd.load(tmp_path / "model")
    assert isinstance(again, pix2pixhd.LocalEnhancer)
    assert all(map(torch.equal, generator.state_dict().values(), again.state_dict().values()))


def test_bf16_trains_to_nearly_the_same_losses(data, tmp_path):
    logs = []
    for precision in ("no", "bf16"):
        train(data, tmp_path / precision, precision=precision, steps=2, log_every=1)
        logs.append(np.loadtxt(tmp_path / precision / "log.csv", delimiter=",", skiprows=1))
    np.testing.assert_allclose(*logs, rtol=0.05)
    assert not np.array_equal(*logs)


def test_a_loss_that_is_no_number_stops_with_the_remedy(data, tmp_path):
    with pytest.raises(InputError, match="is (nan|inf).* after step .*lower pix2pixhd_lr"):
        train(data, tmp_path, steps=9, lr=1e30)


def test_keys_of_a_data_parallel_checkpoint_are_understood():
    outputs, state, x = reference("pix2pixhd_global_generator")
    model = pix2pixhd.GlobalGenerator(2, 3, 8, 3, 2)
    pix2pixhd.load_reference_state_dict(model, {f"module.{k}": v for k, v in state.items()})
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())


@pytest.mark.parametrize("n_layers, n_scales", [(2, 1), (4, 3)])
def test_discriminators_of_other_sizes(n_layers, n_scales):
    model = pix2pixhd.MultiscaleDiscriminator(3, 4, n_layers, n_scales)
    outputs = model(torch.zeros(1, 3, 64, 48))
    assert [len(scale) for scale in outputs] == [n_layers + 2] * n_scales
    assert all(scale[-1].shape[1] == 1 for scale in outputs)
    sides = [scale[0].shape[-2:] for scale in outputs]
    assert [tuple(side) for side in sides] == [(33, 25), (17, 13), (9, 7)][:n_scales]
    assert set(k.split("_layer")[0] for k in model.state_dict()) == {
        f"scale{i}" for i in range(n_scales)
    }


def shown(images, masks):
    """Every image and mask in all eight orientations, as bytes, with their number."""
    for i, pair in enumerate(np.concatenate([images, masks[..., None]], axis=3)):
        for k in range(4):
            for turned in (np.rot90(pair, k), np.rot90(pair, k).transpose(1, 0, 2)):
                yield turned.tobytes(), i


def test_without_warps_every_pair_is_shown_once_an_epoch_in_one_of_eight_orientations(data):
    examples = Examples(*data, Augmentation(trainings=["controlnet"]))
    assert all(map(torch.equal, examples.batch(5, 4, 1), examples.batch(5, 4, 1)))
    x, c = examples.batch(0, 7, 1)
    assert torch.equal(c.sum(1), torch.ones(7, 16, 16))
    pixels = ((x + 1) * 127.5).round().byte()
    pairs = torch.cat([pixels, c[:, 1:].byte()], dim=1).permute(0, 2, 3, 1).contiguous().numpy()
    known = dict(shown(*data))
    assert sorted(known[pair.tobytes()] for pair in pairs) == list(range(7))
    turns = set()
    for step in range(30):
        x, _ = examples.batch(step, 7, 1)
        turns |= {x.numpy().tobytes() for x in x}
    assert 7 * 6 < len(turns) <= 7 * 8


def test_image_and_mask_are_warped_together(data):
    rng = np.random.default_rng(0)
    masks = np.kron(rng.integers(0, 2, (6, 4, 4), np.uint8), np.ones((1, 8, 8), np.uint8))
    images = np.repeat(masks[..., None] * 200, 3, axis=3)
    x, c = Examples(images, masks, Augmentation(share=1.0)).batch(0, 6, 0)
    bright = (x[:, 0] + 1) * 127.5 > 100
    assert torch.equal(bright.float(), c[:, 1]) and torch.equal(c.sum(1), torch.ones(6, 32, 32))
    known = dict(shown(images, masks))
    pixels = ((x + 1) * 127.5).round().byte()
    pairs = torch.cat([pixels, c[:, 1:].byte()], dim=1).permute(0, 2, 3, 1).contiguous().numpy()
    assert not any(pair.tobytes() in known for pair in pairs)


def test_images_seen_count_both_stages():
    assert budget.images_seen(Pix2PixHD(batch=3, steps=5, fine_steps=7)) == 15
    assert budget.images_seen(Pix2PixHD(batch=3, steps=5, fine_steps=7, enhancers=1)) == 36


def test_generating_is_independent_of_the_batch_size_and_survives_saving(tmp_path):
    generator = networks(seed=1)[0].to(memory_format=torch.channels_last)
    masks = np.random.default_rng(0).integers(0, 2, (5, 16, 16), np.uint8)
    one = np.stack(list(pix2pixhd.generate(generator, masks, batch=1)))
    assert one.shape == (5, 16, 16, 3) and one.dtype == np.uint8
    three = np.stack(list(pix2pixhd.generate(generator, masks, batch=3)))
    assert np.abs(one.astype(int) - three).max() <= 1
    pix2pixhd.save(generator, tmp_path / "model")
    loaded = np.stack(list(pix2pixhd.generate(pix2pixhd.load(tmp_path / "model"), masks, batch=3)))
    assert np.abs(three.astype(int) - loaded).max() <= 1
    with pytest.raises(InputError, match="no Pix2PixHD"):
        pix2pixhd.load(tmp_path)


def test_wrong_shapes_and_masks_are_refused(data, tmp_path):
    images, masks = data
    with pytest.raises(ValueError, match="uint8"):
        train((images, masks[:3]), tmp_path, steps=1)
    with pytest.raises(ValueError, match="halvings"):
        train(data, tmp_path, downsample=4, steps=1)
    with pytest.raises(ValueError, match="0 and 1"):
        train((images, masks * 255), tmp_path, steps=1)


def test_plus_has_no_transposed_convolutions_and_bounded_critics():
    generator, critic = networks(plus=True)
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in generator.modules())
    critic.eval()
    with torch.no_grad():
        for _ in range(30):  # power iterations
            critic.train()(torch.zeros(1, 5, 16, 16))
    convolutions = [m for m in critic.modules() if isinstance(m, nn.Conv2d)]
    norms = [torch.linalg.matrix_norm(m.weight.flatten(1), 2).item() for m in convolutions]
    assert len(norms) == 10 and norms == pytest.approx([1.0] * 10, rel=0.02)
    resized = networks(resize=True)
    assert list(resized[0].state_dict()) == [
        name for name in generator.state_dict() if "style" not in name
    ]
    plain = networks(resize=False)
    assert any(isinstance(m, nn.ConvTranspose2d) for m in plain[0].modules())
    for both in (critic, plain[1]):
        assert sum(isinstance(m, nn.InstanceNorm2d) for m in both.modules()) == 6


@pytest.mark.parametrize("enhancers", [0, 1])
def test_plus_paints_one_mask_in_many_ways_that_depend_on_seed_and_number_alone(
    data, tmp_path, enhancers
):
    large = [np.repeat(np.repeat(x, 2, 1), 2, 2) for x in data]
    sizes = dict(steps=2, fine_steps=2, fixed_steps=1, log_every=1, enhancers=enhancers)
    generator = train(large, tmp_path, plus=True, **sizes)
    header = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert header == "step,d_real,d_fake,g_gan,g_feat,g_div,lr"
    masks = np.repeat(large[1][:1], 5, axis=0)
    made = np.stack(list(pix2pixhd.generate(generator, masks, batch=2)))
    assert len({image.tobytes() for image in made}) == 5
    some = np.stack(list(pix2pixhd.generate(generator, masks[:2], [3, 1])))
    assert np.abs(some.astype(int) - made[[3, 1]]).max() <= 1
    other = np.stack(list(pix2pixhd.generate(generator, masks, seed=1)))
    assert np.abs(other.astype(int) - made).max() > 1
    pix2pixhd.save(generator, tmp_path / "model")
    again = pix2pixhd.load(tmp_path / "model")
    assert again.config == generator.config and again.config["noise"] == 8
    assert (np.stack(list(pix2pixhd.generate(again, masks, batch=2))) == made).all()


def test_colours_are_whitened_and_a_missing_region_has_the_mean_colour():
    rng = np.random.default_rng(0)
    masks = np.zeros((40, 8, 8), np.uint8)
    masks[:, 2:5, 2:6] = 1
    masks[0] = 0
    images = np.where(masks[..., None] == 1, rng.integers(0, 120, (40, 1, 1, 3)), 0)
    images = (images + rng.integers(0, 130, (40, 1, 1, 3))).astype(np.uint8)
    found = pix2pixhd.Examples(images, masks).colours().numpy()
    assert found.shape == (40, 6) and np.abs(found.mean(0)).max() < 1e-5
    assert np.abs(found.T @ found / 40 - np.eye(6)).max() < 0.02
    means = pix2pixhd._region_means(images[0], masks[0])
    assert (means[:3] == means[3:]).all() and means[0] == images[0, 0, 0, 0]
    means = pix2pixhd._region_means(images[1], masks[1])
    assert (means == [*images[1, 0, 0], *images[1, 3, 3]]).all()


def test_in_training_plus_is_told_the_colours_of_the_real_image(data, tmp_path, monkeypatch):
    seen, gradients = [], pix2pixhd.gradients

    def noting(*networks_and_batch, **more):
        seen.append(networks_and_batch[-1])
        return gradients(*networks_and_batch, **more)

    monkeypatch.setattr(pix2pixhd, "gradients", noting)
    train(data, tmp_path, plus=True, steps=2, batch=2)
    colours = pix2pixhd.Examples(*data).colours()
    for step, noise in enumerate(seen):
        rows = loop.batch_at(step, 2, len(data[0]), 3)
        assert torch.equal(noise[:2, :6], colours[rows])
        assert noise.shape == (3, 8) and noise[:, 6:].unique().numel() == 6


def test_resuming_plus_gives_the_same_bits(data, tmp_path, monkeypatch):
    whole = train(data, tmp_path / "whole", plus=True, steps=4, save_every=2)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "parts", plus=True, steps=4, save_every=2)
    parts = train(data, tmp_path / "parts", plus=True, steps=4, save_every=2)
    assert all(map(torch.equal, whole.state_dict().values(), parts.state_dict().values()))


def test_diversity_loss_by_hand_and_its_gradient_moves_images_apart():
    a, b = torch.zeros(1, 3, 8, 8, requires_grad=True), torch.full((1, 3, 8, 8), 0.5)
    loss = pix2pixhd.diversity_loss(a, b, torch.zeros(1, 2), torch.ones(1, 2))
    assert loss.item() == pytest.approx(1 / 0.5, rel=1e-4)
    loss.backward()
    assert (a.grad > 0).all()  # smaller a, larger distance from b
    fine = torch.zeros(1, 3, 16, 16)
    fine[..., ::2, ::2], fine[..., 1::2, ::2] = 1.0, -1.0  # no other colour, seen from afar
    assert pix2pixhd.diversity_loss(fine, 0 * fine, a[0, 0], b[0, 0]).item() > 1e4


def test_the_perceptual_loss_sees_as_many_images_as_the_settings_say(data, tmp_path):
    seen = []

    class Spy(nn.Module):
        def forward(self, fake, real):
            seen.append((len(fake), len(real)))
            return (fake - real).abs().mean()

    for number in (0, 1):
        own = Pix2PixHD(**SMALL | dict(steps=1, vgg_images=number))
        pix2pixhd.train(Examples(*data), tmp_path / str(number), own, Training(), {}, vgg=Spy())
    assert seen == [(2, 2), (1, 1)]


def test_at_first_transposed_convolutions_interpolate():
    found = [m for m in networks(resize=False)[0].modules() if isinstance(m, nn.ConvTranspose2d)]
    for layer in found:
        nn.init.zeros_(layer.bias)
        with torch.no_grad():
            y = layer(torch.arange(8.0).expand(1, layer.in_channels, 8, 8))[0, :, :-1, :-1]
        steps = y.diff(dim=2)
        torch.testing.assert_close(steps, steps[:, :1, :1].expand_as(steps), rtol=1e-3, atol=1e-5)
        assert y.diff(dim=1).abs().max() < 1e-4 < steps.abs().max()
    assert len(found) == 2


def test_masks_of_other_values_are_refused_when_generating():
    with pytest.raises(ValueError, match="0 and 1"):
        next(pix2pixhd.generate(networks()[0], np.full((1, 16, 16), 255, np.uint8)))
