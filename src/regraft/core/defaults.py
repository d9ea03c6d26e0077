"""Defaults that many commands share, each in one place; the command line reads them here without importing an
experiment."""

PROMPT_COUNT = 20
"""Prompts that suit a model and are measured where nobody says how many."""
REPORT_COUNT = 8
"""Prompts that a chapter of a report measures, and passages of a text that it reads, where nobody says how
many."""
COMPLETION_TOKENS = 24
"""Longest completion, in tokens; a model that does not end by itself is cut there."""
SEQUENCE_LENGTH = 128
"""Tokens of a sequence that a graft is trained and measured on."""
QUANTIZATION_GROUP = 128
"""Inputs that share a scale."""
CLEAN_PROMPT = "The time displayed is 9:00 am. Therefore, it is currently the"
"""A sentence whose answer hangs on one token."""
CORRUPT_PROMPT = "The time displayed is 9:00 pm. Therefore, it is currently the"
"""The same with the other token."""
ANSWER = " morning"
"""What follows the one."""
WRONG_ANSWER = " night"
"""What follows the other."""

STUDIO_PORT = 8421
"""Where `regraft studio` listens where nothing is said."""
