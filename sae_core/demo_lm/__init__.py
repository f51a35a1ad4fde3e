"""The small language model that ships with saescope, and the script that trained it.

`python -m sae_core.demo_lm.train` gathers the text (`text`), fits the tokenizer, trains the model and writes
the weights, the tokenizer and the model card beside this file. Plain `transformers` loads the folder.
"""

from pathlib import Path

DEMO_LM_FOLDER = Path(__file__).parent
