from .loop import TrainInfo as TrainInfo
from .recipe import Recipe as Recipe
from .recipe import load_recipe as load_recipe
