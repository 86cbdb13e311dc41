"""DeepLabV3+: output shapes, input scaling, seeds, and unusable encoders."""

import pytest
import torch

from lungseg.config import ModelSettings, TrainSettings
from lungseg.config.recipes import TRAIN
from lungseg.errors import InputError, SettingsError
from lungseg.model.network import LungNetwork, build_network, exclusive_logits, skip_weight_init

torch.set_num_threads(1)  # two threads are ten times slower on a busy machine

SMALL = ModelSettings(encoder="tu-test_efficientnet", weights="none")  # 0.6 million weights
RECIPE_ENCODERS = sorted({recipe.model.encoder for _, recipe in TRAIN.values() if isinstance(recipe, TrainSettings)})


def seeded(settings: ModelSettings, seed: int = 0) -> LungNetwork:
    torch.manual_seed(seed)
    return build_network(settings)


@pytest.mark.parametrize("encoder", RECIPE_ENCODERS)
def test_every_recipe_encoder_predicts_logits(encoder: str) -> None:
    network = seeded(ModelSettings(encoder=encoder, weights="none")).eval()
    with torch.inference_mode():
        logits = network(torch.rand(1, 1, 64, 80))
    assert logits.shape == (1, 1, 64, 80)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("encoder", RECIPE_ENCODERS)
def test_every_weight_gets_a_gradient(encoder: str) -> None:
    network = seeded(ModelSettings(encoder=encoder, weights="none")).train()
    network(torch.rand(2, 1, 64, 64)).square().mean().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []


def test_paper_recipe_uses_resnet50() -> None:
    paper = TRAIN["paper"][1]
    assert isinstance(paper, TrainSettings)
    assert paper.model == ModelSettings(encoder="resnet50", weights="imagenet")
    network = seeded(paper.model.model_copy(update={"weights": "none"}))
    # Source of the number: torchvision's ResNet-50 has 25 557 032 weights, its classifier 2 049 000 of them.
    assert sum(p.numel() for p in network.net.encoder.parameters()) == 25_557_032 - 2_049_000


def test_tiny_network_has_under_a_million_parameters() -> None:
    tiny = TRAIN["tiny"][1]
    assert isinstance(tiny, TrainSettings)
    network = seeded(tiny.model.model_copy(update={"weights": "none"})).eval()
    assert round(sum(weights.numel() for weights in network.parameters()) / 1e6, 2) == 0.76
    with torch.inference_mode():
        assert network(torch.rand(1, 1, 64, 64)).shape == (1, 1, 64, 64)


def test_output_is_not_limited_to_probabilities() -> None:
    network = seeded(SMALL).eval()
    with torch.no_grad():
        network.net.segmentation_head[0].bias.fill_(-7.0)
        below = network(torch.rand(2, 1, 64, 64))
        network.net.segmentation_head[0].bias.fill_(7.0)
        above = network(torch.rand(2, 1, 64, 64))
    assert below.min() < 0
    assert above.max() > 1


@pytest.mark.parametrize(
    ("encoder", "mean", "std"),
    [
        ("tu-tf_efficientnet_lite0", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("mobilenet_v2", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_encoder_receives_three_scaled_channels(encoder: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    network = seeded(ModelSettings(encoder=encoder, weights="none")).eval()
    seen: list[torch.Tensor] = []
    network.net.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    grey = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        network(grey)
    expected = torch.cat([(grey - m) / s for m, s in zip(mean, std, strict=True)], dim=1)
    torch.testing.assert_close(seen[0], expected)


def test_input_scaling_is_part_of_the_state_dict() -> None:
    network, other = seeded(SMALL), seeded(SMALL, seed=1)
    network.mean.fill_(0.25)
    other.load_state_dict(network.state_dict())
    assert other.mean.unique().tolist() == [0.25]
    assert not any(name in ("mean", "std") for name, _ in network.named_parameters())


def test_seed_determines_the_weights() -> None:
    first, same, other = (seeded(SMALL, seed).state_dict() for seed in (3, 3, 4))
    assert first.keys() == same.keys()
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_no_weights_are_loaded_without_pretrained() -> None:
    settings = ModelSettings(encoder=SMALL.encoder, weights="/no/such/file.pth")
    with pytest.raises(InputError, match="cannot be read"):
        build_network(settings)
    assert build_network(settings, pretrained=False).mean.shape == (1, 3, 1, 1)


def test_encoder_without_published_weights_builds() -> None:
    network = seeded(ModelSettings(encoder="tu-lcnet_035", weights="none")).eval()
    with torch.inference_mode():
        assert network(torch.rand(1, 1, 64, 64)).shape == (1, 1, 64, 64)


@pytest.mark.parametrize(
    "encoder",
    [
        "resnet51",
        "tu-no_such_model",
        "",
        "../resnet50",
        "inceptionv4",  # max pooling: cannot be dilated
        "tu-vit_tiny_patch16_224",  # one resolution only
        "tu-swin_tiny_patch4_window7_224",  # takes no output stride
        "tu-hrnet_w18_small",  # fails an assertion on it
    ],
)
def test_unusable_encoder_is_a_settings_error(encoder: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build_network(ModelSettings(encoder=encoder, weights="none"))
    message = str(caught.value)
    assert f"--model.encoder {encoder}:" in message
    assert "pass resnet50, mobilenet_v2 or another" in message
    assert "\n" not in message
    assert len(message) < 300


def test_skipped_weight_init_changes_only_the_weights() -> None:
    initialised = seeded(SMALL)
    with skip_weight_init():
        skipped = build_network(SMALL, pretrained=False)
    assert {name: value.shape for name, value in skipped.state_dict().items()} == {
        name: value.shape for name, value in initialised.state_dict().items()
    }
    skipped.load_state_dict(initialised.state_dict())
    image = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        assert torch.equal(skipped.eval()(image), initialised.eval()(image))
    again = seeded(SMALL)  # weights are drawn as before
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in initialised.state_dict().items())


def test_each_class_has_an_output_of_its_own() -> None:
    network = build_network(SMALL, classes=3).eval()
    assert network(torch.rand(2, 1, 64, 64)).shape == (2, 3, 64, 64)


def test_exclusive_logits_have_the_probabilities_of_a_softmax() -> None:
    scores = 3 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([torch.zeros(2, 1, 4, 4), scores], dim=1).softmax(dim=1)[:, 1:]
    torch.testing.assert_close(torch.sigmoid(exclusive_logits(scores)), expected)
