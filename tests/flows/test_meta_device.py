"""Models that are built without memory, on the device ``meta``, and filled afterwards."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pushforward.flows import Chain, Flow, Gaussian, Permutation, build
from pushforward.flows.networks.residual import MaskedLinear
from tests.fixtures.models import MODELS, Model, given, inputs_of

Perturb = Callable[[nn.Module], nn.Module]


def assert_same_density(found: Model, expected: Model) -> None:
    points, context = inputs_of(expected)
    assert torch.equal(found.eval().log_prob(points, context), expected.eval().log_prob(points, context))
    samples = []
    for model in (found, expected):
        torch.manual_seed(3)
        samples.append(model.sample((), context))
    assert torch.equal(*samples)


def on_meta(name: str) -> Model:
    with torch.device("meta"):
        model = MODELS[name]()
    places = {name: t.device.type for name, t in (*model.named_parameters(), *model.named_buffers())}
    assert places == dict.fromkeys(places, "meta")
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_model_from_meta_takes_over_a_state_dict(name: str, perturb: Perturb) -> None:
    expected = MODELS[name]()
    perturb(expected)
    model = on_meta(name).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)  # what to_empty leaves is arbitrary
    model.load_state_dict(expected.state_dict())
    assert_same_density(model, expected)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_on_meta_is_assigned_a_state_dict(name: str, perturb: Perturb) -> None:
    expected = MODELS[name]()
    perturb(expected)
    model = on_meta(name)
    model.load_state_dict(copy.deepcopy(expected.state_dict()), assign=True)
    assert_same_density(model, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["nsf-c", "nsf-ar", "nsf-ar, transformer", "nsf-c, around"])
def test_weights_in_another_dtype_are_assigned_too(name: str, dtype: torch.dtype) -> None:
    expected = MODELS[name]().to(dtype)
    model = on_meta(name)
    model.load_state_dict(expected.state_dict(), assign=True)
    points, context = inputs_of(expected)
    found = model.log_prob(points, context)
    assert found.dtype == dtype
    assert torch.equal(found, expected.log_prob(points, context))


def test_masks_and_orders_are_there_without_a_state_dict() -> None:
    """So that one may initialise the weights oneself after ``to_empty``, as sharded training does."""
    model = on_meta("nsf-ar, around").to_empty(device="cpu")
    expected = MODELS["nsf-ar, around"]()
    for name, buffer in expected.named_buffers():
        if name.endswith("mask"):
            assert torch.equal(model.get_buffer(name), buffer)
    for module in model.modules():
        if isinstance(module, Permutation):
            points = torch.arange(3.0)
            assert module(points)[0].tolist() == module.order


def test_to_empty_keeps_the_masks_of_a_real_model_and_meta_those_of_a_moved_one() -> None:
    flow = build("maf", 3, layers=2, hidden=8)
    masks = {name: buffer.clone() for name, buffer in flow.named_buffers()}
    for moved in (copy.deepcopy(flow).to_empty(device="cpu"), copy.deepcopy(flow).to("meta").to_empty(device="cpu")):
        for name, buffer in moved.named_buffers():
            if name.rpartition(".")[2] in ("mask", "_order", "_back"):
                assert torch.equal(buffer, masks[name]), name


def test_a_mask_changed_by_hand_stays_when_the_model_is_converted() -> None:
    layer = MaskedLinear(2, 2, torch.tensor([[True, False], [True, True]]))
    layer.mask[0, 1] = 1.0
    assert layer.double().half().float().mask.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_values_on_meta_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^MaskedLinear: expected values of mask; got a tensor on the device meta$"):
        MaskedLinear(2, 2, torch.ones(2, 2, device="meta"))


@pytest.mark.parametrize("name", MODELS)
def test_the_default_device_does_not_matter_to_a_model_elsewhere(name: str) -> None:
    """With ``torch.set_default_device("cuda")`` a model on the CPU goes on working; meta stands for the GPU here."""
    model = MODELS[name]().eval()
    points, context = inputs_of(model)
    expected = model.log_prob(points, context)
    with torch.device("meta"):
        found = model.log_prob(points, context)
        samples = model.sample((), context)
        model.load_state_dict(model.state_dict())
        if isinstance(model, Flow):
            model.score_function(points, context)
            model.rsample_and_log_prob((), context, path=not name.startswith("base"))
            model.latents(*given(points, context))
    assert torch.equal(found, expected)
    assert samples.device.type == "cpu"


@pytest.mark.parametrize("name", MODELS)
def test_the_default_dtype_is_that_of_a_new_model_only(name: str) -> None:
    single = MODELS[name]().eval()
    points, context = inputs_of(single)
    torch.set_default_dtype(torch.float64)
    try:
        double = MODELS[name]().eval()
        assert {t.dtype for t in double.state_dict().values() if t.is_floating_point()} == {torch.float64}
        assert double.log_prob(points, context).dtype == torch.float64
        assert single.log_prob(points, context).dtype == single.sample((), context).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_random_order_does_not_depend_on_the_default_device() -> None:
    torch.manual_seed(5)
    expected = Permutation.random(20).order
    torch.manual_seed(5)
    with torch.device("meta"):
        assert Permutation.random(20).order == expected


def test_loading_into_meta_without_assign_only_warns_as_torch_does() -> None:
    with torch.device("meta"):
        flow = Flow(Gaussian(3), Chain(build("realnvp", 3, layers=1, hidden=8).bijection.bijections))  # type: ignore[arg-type]
    state = Flow(Gaussian(3), build("realnvp", 3, layers=1, hidden=8).bijection).state_dict()
    with pytest.warns(UserWarning, match="no-op"):
        flow.load_state_dict(state)
