"""What a trace sounds like: pivots, backtracking, stages, the style score, comparisons and views"""
from .measure import BATCH, INITIALS, PIVOT_COLOURS, PIVOT_TYPES, STAGES, Backtrack, Lexicon, Pivot, Stage
from .measure import as_json, backtracks, batches, coverage, file_batches, files_of, lexicon, measure, measure_texts
from .measure import pivots, stages, style_parts, summary, thought, transitions, with_ids
from .compare import FEATURES, Probe, compare, plot_compare, probe, replicates
from .viewer import explore, highlight, page, print_traces, show, view
from .corpus import measure_corpus

__all__ = [
    "BATCH", "Backtrack", "FEATURES", "INITIALS", "Lexicon", "PIVOT_COLOURS", "PIVOT_TYPES", "Pivot", "Probe",
    "STAGES", "Stage", "as_json", "backtracks", "batches", "compare", "coverage", "explore", "file_batches",
    "files_of", "highlight", "lexicon", "measure", "measure_corpus", "measure_texts", "page", "pivots",
    "plot_compare", "print_traces", "probe", "replicates", "show", "stages", "style_parts", "summary", "thought",
    "transitions", "view", "with_ids",
]
