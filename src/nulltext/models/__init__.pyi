from .families import FAMILIES as FAMILIES
from .families import Family as Family
from .latent_diffusion import LatentDiffusion as LatentDiffusion
from .load import find_device as find_device
from .load import from_pipe as from_pipe
from .text import ClipText as ClipText
from .text import TextConditioner as TextConditioner
