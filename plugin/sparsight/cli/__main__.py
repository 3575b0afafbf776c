"""`python -m sparsight.cli`: the command line where the script is not on PATH."""

from sparsight.cli.main import main

main()
