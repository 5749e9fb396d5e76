"""Benchmarks, what runs a student, and its predictions"""
from .benchmarks import Benchmark, BENCHMARKS, load_benchmark, task_config
from .backends import backend_of
from .evaluate import (
    check_predictions,
    disputed,
    evaluate,
    PREDICTION_COLUMNS,
    prediction_files,
    prediction_schema,
    predictions_of,
    read_predictions,
)
from .ask import compare_answers, Comparison, load_student, Reply, reply_to, Student

__all__ = [
    "BENCHMARKS", "Benchmark", "Comparison", "PREDICTION_COLUMNS", "Reply", "Student", "backend_of",
    "check_predictions", "compare_answers", "disputed", "evaluate", "load_benchmark", "load_student",
    "prediction_files", "prediction_schema", "predictions_of", "read_predictions", "reply_to", "task_config",
]
