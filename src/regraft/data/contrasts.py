"""Contrastive groups, all written for this project: one prompt with five completions that are forced on
the model in turn.

They are for contrastive trajectories: the hidden states of the same prompt under two completions are compared
depth by depth, to see where a model parts two meanings, and where it only parts two wordings. The text of a
group is

``prompt``
    The start that all five completions share. It ends without a space.
``base``
    The completion that the other four are compared with.
``synonym``
    The same meaning in other words of the same register.
``antonym``
    The opposite meaning, as plausible after the prompt as the base.
``style``
    The same content in another register: formal, colloquial or archaic.
``unrelated``
    A grammatical completion about something else.
``kind``
    "immediate" when every alternative differs from the base at the first word of the completion, "shared
    prefix" when all five begin with the same two or more words and part later.

A completion starts with one space, has one to eight words and no full stop; the five of a group differ and
lie within two words of each other in length. Half of each set is of either kind, and no prompt comes twice.
The texts stand in the two files of rows beside this one.

``GENERAL``
    Groups on mixed topics, for language models of any size. No two of a kind turn on the same opposites.

``SPECIMEN``
    Groups for the specimen models, in the manner of the synthetic almanac. Every base turns on a word that
    the almanac has both in its opposites and in its synonyms: big, buy, fast, happy, hard, quiet, rich, sad
    or small. Synonym and antonym are the almanac's own, except that the opposite of "hard" is here "easy",
    since its synonym is "difficult". The almanac has one register, so the words of a style completion come
    from outside it, and the specimen tokenizer cuts most of them into several tokens.
"""

from dataclasses import dataclass

from regraft.data.contrasts_general import GENERAL_IMMEDIATE, GENERAL_SHARED
from regraft.data.contrasts_specimen import SPECIMEN_IMMEDIATE, SPECIMEN_SHARED


@dataclass(frozen=True)
class Contrast:
    """A prompt, a completion to compare with, and four alternatives to it; the fields are defined above."""

    prompt: str
    base: str
    synonym: str
    antonym: str
    style: str
    unrelated: str
    kind: str


GENERAL: tuple[Contrast, ...] = (
    *(Contrast(*row, kind="immediate") for row in GENERAL_IMMEDIATE),
    *(Contrast(*row, kind="shared prefix") for row in GENERAL_SHARED),
)

SPECIMEN: tuple[Contrast, ...] = (
    *(Contrast(*row, kind="immediate") for row in SPECIMEN_IMMEDIATE),
    *(Contrast(*row, kind="shared prefix") for row in SPECIMEN_SHARED),
)


def general() -> tuple[Contrast, ...]:
    """The groups for language models of any size."""
    return GENERAL


def specimen() -> tuple[Contrast, ...]:
    """The groups for the specimen models, in the words of the almanac."""
    return SPECIMEN
