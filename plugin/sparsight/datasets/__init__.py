"""Folders of questions with known answers: read, checked in full before anything starts, and given as cases.

rows      one question as every kind of folder gives it, and what is gathered from a folder
checks    what no folder may hold: ids twice, a group in two splits, missing files, boxes outside
cases     the rows of one split as cases; an image is read when its case is taken
folder    load_folder: which kind of folder it is, by its files
"""

from sparsight.datasets.cases import FolderCases
from sparsight.datasets.folder import load_folder

__all__ = ["FolderCases", "load_folder"]
