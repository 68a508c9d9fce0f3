"""The knobs of a row as kernels read them: in a table of float32, and in one of int32 whose last column has flags."""

import triton.language as tl

from pygen import knobs

# Neutral values by name, in the order in which the filters act.
NEUTRAL_FILTERS = {knob.name: knob.neutral for knob in knobs.FILTERS}
FILTERS = tuple(NEUTRAL_FILTERS)
_OTHERS = [knob for knob in knobs.KNOBS if knob.stage is not knobs.Stage.FILTER]
FLOAT_KNOBS = (*FILTERS, *(knob.name for knob in _OTHERS if knob.type is float))
INT_KNOBS = (*(knob.name for knob in _OTHERS if knob.type is int), "prompt_lengths")

# Columns of the table of float32 knobs that several files read. A filter's column is also its position in the order and
# its bit in the flags.
NUM_FLOAT_KNOBS = tl.constexpr(len(FLOAT_KNOBS))
NUM_FILTERS = tl.constexpr(len(FILTERS))
TOP_N_SIGMA = tl.constexpr(FILTERS.index("top_n_sigma"))
TOP_H = tl.constexpr(FILTERS.index("top_h"))
TOP_K = tl.constexpr(FILTERS.index("top_k"))
TOP_P = tl.constexpr(FILTERS.index("top_p"))
MIN_P = tl.constexpr(FILTERS.index("min_p"))

# Columns of the table of int32 knobs.
NUM_INT_KNOBS = tl.constexpr(len(INT_KNOBS) + 1)
PROMPT_LENGTH = tl.constexpr(INT_KNOBS.index("prompt_lengths"))
FLAGS = tl.constexpr(len(INT_KNOBS))

# Flags of a row: a bit for every filter that acts, then these.
FILTERED = tl.constexpr((1 << len(FILTERS)) - 1)
TOP_N_SIGMA_ACTS = tl.constexpr(1 << TOP_N_SIGMA.value)
TOP_H_ACTS = tl.constexpr(1 << TOP_H.value)
TOP_K_ACTS = tl.constexpr(1 << TOP_K.value)
TOP_P_ACTS = tl.constexpr(1 << TOP_P.value)
MIN_P_ACTS = tl.constexpr(1 << MIN_P.value)
NUCLEUS = tl.constexpr(1 << len(FILTERS))  # top_p comes first, so the scan sums masses
RACES = tl.constexpr(2 << len(FILTERS))  # no filter acts, so the scan draws
PENALIZED = tl.constexpr(4 << len(FILTERS))
COUNTED = tl.constexpr(8 << len(FILTERS))  # a presence or frequency penalty acts
MARKED = tl.constexpr(16 << len(FILTERS))  # some token is penalised, banned or suppressed
