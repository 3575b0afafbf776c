"""What was learned here: a page that a person can read (`sparsight report`), and cards of every policy version."""
