from .guidance import NoisePredictor as NoisePredictor
from .guidance import guide as guide
from .guidance import guided_noise as guided_noise
from .schedule import Schedule as Schedule
