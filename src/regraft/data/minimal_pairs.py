"""Pairs of prompts that differ in one thing which decides the next word, all written for this project.

Of each pair the answers are one token each in most vocabularies, and both prompts are as long; what a
tokenizer cuts otherwise, and what a model does not know, is left out by whoever measures. Kinds: factual
(what is so), linguistic (what fits), arithmetic (what comes out).
"""

from dataclasses import dataclass

KINDS = ("factual", "linguistic", "arithmetic")


@dataclass(frozen=True)
class MinimalPair:
    """A prompt whose next word is `answer`, and one that differs in one thing and goes on with `wrong`."""

    kind: str
    clean: str
    corrupt: str
    answer: str
    wrong: str


# One pair a row.
# fmt: off
GENERAL: tuple[MinimalPair, ...] = (
    MinimalPair("factual", "The capital of France is", "The capital of Italy is", " Paris", " Rome"),
    MinimalPair("factual", "The capital of Japan is", "The capital of China is", " Tokyo", " Beijing"),
    MinimalPair("factual", "The capital of Spain is", "The capital of Germany is", " Madrid", " Berlin"),
    MinimalPair("factual", "The capital of Egypt is", "The capital of Russia is", " Cairo", " Moscow"),
    MinimalPair("factual", "People in Brazil speak", "People in Mexico speak", " Portuguese", " Spanish"),
    MinimalPair("factual", "Fresh grass is usually", "Fresh snow is usually", " green", " white"),
    MinimalPair("factual", "The sun rises in the", "The sun sets in the", " east", " west"),
    MinimalPair("linguistic", "The keys to the cabinet", "The key to the cabinets", " are", " is"),
    MinimalPair("linguistic", "The books on the shelf", "The book on the shelves", " are", " is"),
    MinimalPair("linguistic", "The woman had hurt", "The man had hurt", " herself", " himself"),
    MinimalPair("linguistic", "The girl looked at", "The boy looked at", " herself", " himself"),
    MinimalPair("linguistic", "I saw one cat and then two", "I saw two cats and then one", " cats", " cat"),
    MinimalPair("linguistic", "These apples", "This apple", " are", " is"),
    MinimalPair("linguistic", "Yesterday at noon she", "Tomorrow at noon she", " went", " will"),
    MinimalPair("arithmetic", "2+3=", "2+4=", "5", "6"),
    MinimalPair("arithmetic", "4+4=", "4+5=", "8", "9"),
    MinimalPair("arithmetic", "9-2=", "9-3=", "7", "6"),
    MinimalPair("arithmetic", "3+1=", "3+2=", "4", "5"),
    MinimalPair("arithmetic", "2 + 3 =", "2 + 4 =", " 5", " 6"),
    MinimalPair("arithmetic", "4 + 4 =", "4 + 5 =", " 8", " 9"),
    MinimalPair("arithmetic", "9 - 2 =", "9 - 3 =", " 7", " 6"),
)

SPECIMEN: tuple[MinimalPair, ...] = (
    MinimalPair("factual", "The capital of France is", "The capital of Italy is", " Paris", " Rome"),
    MinimalPair("factual", "The capital of Japan is", "The capital of China is", " Tokyo", " Beijing"),
    MinimalPair("factual", "The capital of Spain is", "The capital of Germany is", " Madrid", " Berlin"),
    MinimalPair("factual", "The capital of Egypt is", "The capital of Russia is", " Cairo", " Moscow"),
    MinimalPair("factual", "People in Brazil speak", "People in Mexico speak", " Portuguese", " Spanish"),
    MinimalPair("factual", "The colour of grass is", "The colour of coal is", " green", " black"),
    MinimalPair("linguistic", "The opposite of hot is", "The opposite of wet is", " cold", " dry"),
    MinimalPair("linguistic", "The opposite of loud is", "The opposite of young is", " quiet", " old"),
    MinimalPair("linguistic", "The opposite of winter is", "The opposite of day is", " summer", " night"),
    MinimalPair("linguistic", "The opposite of rich is", "The opposite of full is", " poor", " empty"),
    MinimalPair("linguistic", "Another word for tired is", "Another word for fast is", " weary", " quick"),
    MinimalPair("linguistic", "Another word for ship is", "Another word for gift is", " boat", " present"),
    MinimalPair("arithmetic", "14 + 43 =", "14 + 42 =", " 57", " 56"),
    MinimalPair("arithmetic", "31 + 12 =", "30 + 12 =", " 43", " 42"),
    MinimalPair("arithmetic", "41 - 24 =", "43 - 24 =", " 17", " 19"),
    MinimalPair("arithmetic", "17 + 10 =", "18 + 10 =", " 27", " 28"),
    MinimalPair("arithmetic", "20 + 15 =", "20 + 14 =", " 35", " 34"),
    MinimalPair("arithmetic", "25 + 11 =", "25 + 13 =", " 36", " 38"),
)
# fmt: on
