from .family import ClipText as ClipText
from .family import Family as Family
from .family import TextConditioner as TextConditioner
from .latent_diffusion import LatentDiffusion as LatentDiffusion
from .load import find_device as find_device
from .load import from_pipe as from_pipe
from .pipelines import FAMILIES as FAMILIES
