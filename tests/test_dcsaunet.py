"""DCSAU-Net against the reference implementation's output, sizes, and its sharing of weights."""

import numpy as np
import pytest
import torch
from reference_weights import reference

from lesionlib.engine.errors import InputError
from lesionlib.segmentation.dcsaunet import DCSAUNet, load_reference_state_dict


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_same_output_as_the_reference():
    outputs, state, x = reference("dcsau_net")
    model = load_reference_state_dict(DCSAUNet(), state).eval().double()
    with torch.no_grad():
        difference = np.abs(model(x.double()).numpy() - outputs["out"]).max()
    assert difference < 3e-5 * np.abs(outputs["out"]).max()


def test_keys_are_those_of_the_reference():
    _, state, _ = reference("dcsau_net")
    with torch.device("meta"):
        ours = DCSAUNet().state_dict()
    assert len(ours) == 593
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in state.items()}


def test_number_of_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in DCSAUNet().parameters()) == 2_598_785


def test_training_one_instance_leaves_another_alone():
    torch.manual_seed(0)
    one, other = DCSAUNet(), DCSAUNet()
    before = {key: x.clone() for key, x in other.state_dict().items()}
    first = {key: x.clone() for key, x in one.state_dict().items()}
    optimiser = torch.optim.SGD(one.parameters(), lr=0.1)
    one(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimiser.step()
    assert all(torch.equal(x, before[key]) for key, x in other.state_dict().items())
    moved = [key for key, x in one.state_dict().items() if not torch.equal(x, first[key])]
    assert {key.split(".")[0] for key in moved} == {key.split(".")[0] for key in first}
    assert not {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in other.parameters()}


@pytest.mark.parametrize("channels, classes, size", [(3, 1, (16, 48)), (4, 3, (32, 16))])
def test_logits_have_the_size_of_the_input(channels, classes, size):
    model = DCSAUNet(channels, classes).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, channels, *size)).shape == (1, classes, *size)


@pytest.mark.parametrize("shape", [(1, 3, 40, 64), (1, 3, 64, 8), (1, 1, 64, 64), (3, 64, 64)])
def test_wrong_input_is_refused(shape):
    with torch.device("meta"), pytest.raises(ValueError, match="multiples of 16|takes"):
        DCSAUNet().eval()(torch.zeros(shape))


def test_batch_of_one_cannot_be_trained():
    with torch.device("meta"), pytest.raises(ValueError, match="batch of one"):
        DCSAUNet()(torch.zeros(1, 3, 32, 32))


def test_wrong_checkpoint_names_the_keys():
    _, state, _ = reference("dcsau_net")
    state["up9.weight"] = state.pop("out_conv.bias")
    with pytest.raises(InputError, match=r"(?s)out_conv\.bias.*up9\.weight"):
        load_reference_state_dict(DCSAUNet(), state)
