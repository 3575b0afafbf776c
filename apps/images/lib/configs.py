"""Names and texts that MONAI Label's clients show."""

NAME = "sparsight"
TITLE = "sparsight images"
ABOUT = "Ask a question about an image and see the few regions the answer rests on. Research use only."
ANSWER = "Type a question; the label map shows what the answer rests on"
LEARN = "Learn from the corrections so far; promote the result only if it is better"
TEACH_MOST = "The image where one more correction would teach most, with a question to ask about it"
GROUNDING = "How well the newest answer's evidence agrees with the submitted label"
