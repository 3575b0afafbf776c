"""Vision-language models of transformers as readers."""

import logging

# bitsandbytes warns of every cast of every int8 layer, and, when it is imported, of a kernel on the Hub that is not
# fetched: we fetch nothing.
for _name in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
    logging.getLogger(_name).setLevel(logging.ERROR)
