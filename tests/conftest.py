import torch
from hypothesis import settings

# two test processes on a machine with two cores
torch.set_num_threads(1)
# no timed tests: a busy machine must not fail one
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
