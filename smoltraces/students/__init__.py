"""Models, tokens, training and decoding"""
from .models import cache_folder, EMBEDDED, embedded_student, load_model, load_tokenizer, locate, prepare, switches
from .sequences import encode, encode_row, show_mask
from .memory import fit, needs_table
from .training import finetune, learning_rate, merge, push_student, recipe_of
from .callbacks import plot_training, tokens_per_second
from .decoding import Answer, answers

__all__ = [
    "Answer", "EMBEDDED", "answers", "cache_folder", "embedded_student", "encode", "encode_row", "finetune", "fit",
    "learning_rate", "load_model", "load_tokenizer", "locate", "merge", "needs_table", "plot_training", "prepare",
    "push_student", "recipe_of", "show_mask", "switches", "tokens_per_second",
]
