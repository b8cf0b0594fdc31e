from .pie.dataset import PieItem as PieItem
from .pie.dataset import read_pie as read_pie
