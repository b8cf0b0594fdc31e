from .captioner import Caption as Caption
from .captioner import Captioner as Captioner
from .captioner import CaptionModel as CaptionModel
from .folder import bundled_captioners as bundled_captioners
from .folder import load_captioner as load_captioner
from .folder import save_captioner as save_captioner
