"""MONAI Label's tasks over the five verbs, for stock clients (3D Slicer, REST) that know nothing of us."""
