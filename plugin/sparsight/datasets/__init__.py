"""Folders of questions with known answers: read, checked in full before anything starts, and given as cases.

rows       one question as every kind of folder gives it
checks     what no folder may hold: ids twice, a group in two splits, missing files, boxes outside
cases      the rows of one split as cases; an image is read when its case is taken
records    files of records: JSON, JSONL, CSV
gathered   what becomes of a published set's records: rows, and counts of what is left out
published  published sets, each a function from its folder to rows
folder     load_folder: which kind of folder it is, by its files
"""

from sparsight.datasets.cases import Asked, FolderCases
from sparsight.datasets.folder import load_folder

__all__ = ["Asked", "FolderCases", "load_folder"]
