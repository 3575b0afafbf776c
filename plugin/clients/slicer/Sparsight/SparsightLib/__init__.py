"""The parts of the Slicer module. Python 3.9, and nothing that Slicer does not bring."""
