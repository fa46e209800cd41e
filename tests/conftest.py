import signal
import threading

import pytest
import torch
from hypothesis import settings

# Our own warnings are errors unless a test expects them. Named here rather than in the project's configuration, which
# is read before coverage is measured and would import the package too early.
FILTERS = (
    "error::captum_iba.errors.CaptumIBAWarning",
    "ignore:The feature statistics come from:captum_iba.errors.CaptumIBAWarning",
    "ignore:The trained bottleneck still lets:captum_iba.errors.CaptumIBAWarning",
    "ignore:Through the trained bottleneck:captum_iba.errors.CaptumIBAWarning",
    "ignore:The training ended after:captum_iba.errors.CaptumIBAWarning",
)


def pytest_configure(config):
    # started in the background, a shell has interruptions ignored; some tests are about them
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in FILTERS:
        config.addinivalue_line("filterwarnings", line)


# two test processes on a machine with two cores
torch.set_num_threads(1)
# no timed tests: a busy machine must not fail one
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def squeezenet_weights(tmp_path_factory):
    """State dict of torchvision's squeezenet1_1 with random weights: a file, as nothing is downloaded in tests."""
    import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.squeezenet1_1(weights=None)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(model.state_dict(), path)
    return path
