from .pie import PieItem as PieItem
from .pie import read_pie as read_pie
