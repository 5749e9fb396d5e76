"""Seed problems, their answers, and what may be trained on"""
from ..schema import load_problems, Problem, problem_schema, question_id, to_problems
from .answers import extract, final_answer, strip_thinking, Verifier, verifier_version, verify
from .corpora import CORPORA, Corpus, embedded_problems, parse, read_rows, Task, TASKS
from .selection import build_problems, funnel, load_questions, near_duplicates, overlaps, surplus

__all__ = [
    "CORPORA", "Corpus", "Problem", "TASKS", "Task", "Verifier", "build_problems", "embedded_problems", "extract",
    "final_answer", "funnel", "load_problems", "load_questions", "near_duplicates", "overlaps", "parse",
    "problem_schema", "question_id", "read_rows", "strip_thinking", "surplus", "to_problems", "verifier_version",
    "verify",
]
