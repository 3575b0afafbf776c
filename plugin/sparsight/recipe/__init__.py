"""How the shipped nano reader and its policy were trained, so that anyone can train them again."""

from sparsight.recipe.another import train_another
from sparsight.recipe.rival_stage import train_rivals
from sparsight.recipe.sizes import SIZES
from sparsight.recipe.smol import train_smol
from sparsight.recipe.train import train_nano

__all__ = ["SIZES", "train_another", "train_nano", "train_rivals", "train_smol"]
