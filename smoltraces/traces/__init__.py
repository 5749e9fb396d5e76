"""Teachers, the answers they were paid for, and the training sets made of them"""
from ..schema import (
    load_variant,
    messages,
    question_text,
    row_of_each,
    SYSTEM,
    system,
    SYSTEM_CODE,
    TEMPLATE,
    trace_schema,
)
from .store import Request, Response, Store
from .client import ask, Endpoint, estimate, split_thinking
from .batch import ask_batch
from .published import import_traces, published_traces, split_output
from .teachers import prompt, PROMPTS, respond, teacher, TEACHERS
from .variants import build_variants

__all__ = [
    "Endpoint", "PROMPTS", "Request", "Response", "SYSTEM", "SYSTEM_CODE", "Store", "TEACHERS", "TEMPLATE", "ask",
    "ask_batch", "build_variants", "estimate", "import_traces", "load_variant", "messages", "prompt",
    "published_traces", "question_text", "respond", "row_of_each", "split_output", "split_thinking", "system",
    "teacher", "trace_schema",
]
