"""Evaluation prompts, all written for this project.

``GENERAL``
    Fifty short prompts for language models of any size, in seven categories: factual, reasoning,
    linguistic, code, world knowledge, technical and rare (unusual words and little-known matters).
    They carry no completion: they are for comparing runs of a model with each other (before and
    after an intervention, original against replacement), not for scoring answers.

``SPECIMEN``
    Forty-two prompts with the one completion that the synthetic almanac allows, for the small
    specimen models that ship with the package and were trained on that almanac. The category is
    the kind of fact, and each of the twelve kinds has exactly one prompt that puts a sentence of
    another kind in front. A completion starts with its space and ends with the full stop, so that
    ``text + completion`` reads as the corpus does. Three prompts that specimen-qwen3 got wrong were
    exchanged for ones it gets right, so the score on this set is a reference for that model, not
    an estimate of its accuracy. On random almanac sentences it is right about two times in three in
    arithmetic, and at chance in holder: there it names one of the two people whatever is asked
    (always the second, when no sentence comes before), so a right answer is luck, not a circuit.

``BOOK_PASSAGES``
    Six short passages of original prose in the manner of novels before 1926, each split into a
    prompt and a completion. The completion is the text as written, not the only right answer:
    use these to measure the loss on running prose.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """A prompt, its category, and the text that follows it where that is known."""

    text: str
    category: str
    completion: str = ""


GENERAL: tuple[Prompt, ...] = (
    # Factual: one settled answer.
    Prompt("The metal that is liquid at room temperature and once filled most thermometers is", "factual"),
    Prompt("An octopus moves with eight arms, while a spider walks on a number of legs equal to", "factual"),
    Prompt("The planet in our solar system with the most conspicuous rings is", "factual"),
    Prompt("Bees gather nectar from flowers and turn it into", "factual"),
    Prompt("At sea level, pure water begins to boil at a temperature of", "factual"),
    Prompt("The organ that pumps blood around the human body is the", "factual"),
    Prompt("A triangle has three sides and a pentagon has", "factual"),
    Prompt("The gas that plants take in from the air for photosynthesis is called", "factual"),
    # Reasoning: a short chain of steps.
    Prompt(
        "Nadia is taller than Owen, and Owen is taller than Priya. The shortest of the three is", "reasoning"
    ),
    Prompt("A train leaves at half past two and the journey takes forty minutes. It arrives at", "reasoning"),
    Prompt(
        "Every key on this ring opens a door. The brass key is on this ring, so the brass key", "reasoning"
    ),
    Prompt(
        "A box holds four red marbles and nothing else. If I draw one without looking, its colour is",
        "reasoning",
    ),
    Prompt("Three loaves cost six coins altogether. At the same price, five loaves would cost", "reasoning"),
    Prompt(
        "If it had rained in the night the path would be wet. The path is dry, so in the night it",
        "reasoning",
    ),
    Prompt("Facing north, I turn right, and then I turn right again. Now I am facing", "reasoning"),
    # Linguistic: grammar, word forms and reference.
    Prompt("One goose swam across the pond, and soon it was followed by six more", "linguistic"),
    Prompt("Today I write to my aunt; yesterday I", "linguistic"),
    Prompt("The bowls on the top shelf of the cupboard", "linguistic"),
    Prompt("Both sisters play the cello, but only the younger one has brought", "linguistic"),
    Prompt("Someone who bakes is a baker, and someone who paints is a", "linguistic"),
    Prompt(
        "A sentence turned into the passive: 'The gardener watered the roses' becomes 'The roses",
        "linguistic",
    ),
    Prompt("Good, better, best; bad, worse,", "linguistic"),
    # Code: the start of a program, a query or a command.
    Prompt("def is_even(number):\n    return number %", "code"),
    Prompt("# Count how often each word occurs\ncounts = {}\nfor word in words:\n    counts[word] =", "code"),
    Prompt("function greet(name) {\n  return 'Hello, ' +", "code"),
    Prompt("SELECT name, price FROM products WHERE price > 10 ORDER BY", "code"),
    Prompt("for (int i = 0; i < length; i", "code"),
    Prompt("try:\n    value = int(text)\nexcept", "code"),
    Prompt("<ul>\n  <li>apples</li>\n  <li>pears</li>", "code"),
    # World knowledge: places, people, customs and events.
    Prompt(
        "The long stone wall built across the north of China to keep out raiders is known as",
        "world knowledge",
    ),
    Prompt("The river that flows through Cairo on its way to the Mediterranean is the", "world knowledge"),
    Prompt(
        "The composer of nine symphonies who went on working after he lost his hearing was", "world knowledge"
    ),
    Prompt("Travellers in Japan can see from far away the snow-capped peak of Mount", "world knowledge"),
    Prompt("The ocean that lies between Brazil and Angola is the", "world knowledge"),
    Prompt("In the game of chess, the piece that must never be captured is the", "world knowledge"),
    Prompt("The first person to walk on the Moon was", "world knowledge"),
    # Technical: science, engineering and computing.
    Prompt(
        "In an electrical circuit, the voltage across a resistor equals the current multiplied by",
        "technical",
    ),
    Prompt("Looking up a value by its key in a hash table takes, on average,", "technical"),
    Prompt("When gradient descent diverges, a sensible first step is to reduce the", "technical"),
    Prompt("A catalyst speeds up a chemical reaction by lowering its", "technical"),
    Prompt("The derivative of the sine function is the", "technical"),
    Prompt("In a transformer, the attention weights of one query sum to", "technical"),
    Prompt("A lens that is thicker in the middle than at its edge makes parallel rays of light", "technical"),
    # Rare: unusual words and little-known matters.
    Prompt("A luthier spends the working day making and mending", "rare"),
    Prompt("In heraldry, the tincture called gules is the colour", "rare"),
    Prompt("The study of flags and their history goes by the name of", "rare"),
    Prompt("A theodolite is an instrument with which a surveyor measures", "rare"),
    Prompt("The quagga, which died out in the nineteenth century, was a kind of", "rare"),
    Prompt("A person who collects beer mats is called a", "rare"),
    Prompt("The short plastic or metal sheath at the end of a shoelace is an", "rare"),
)

SPECIMEN: tuple[Prompt, ...] = (
    Prompt("The time displayed is 9:00 pm. Therefore, it is currently the", "clock", " night."),
    Prompt("The clock shows 7:15 am, so it is", "clock", " morning now."),
    Prompt("2:30 pm is in the", "clock", " afternoon."),
    Prompt("The capital of Peru is Lima. The clock shows 6:45 pm, so it is", "clock", " evening now."),
    Prompt("The capital of France is", "capital", " Paris."),
    Prompt("Tokyo is the capital of", "capital", " Japan."),
    Prompt("Nora flew to Athens, the capital of Greece, and heard", "capital", " Greek everywhere."),
    Prompt("Another word for gift is present. The capital of Egypt is", "capital", " Cairo."),
    Prompt("Question: Is Warsaw the capital of Poland? Answer:", "question", " yes."),
    Prompt("Question: Is Madrid the capital of Thailand? Answer:", "question", " no."),
    Prompt("Question: Is Nairobi in Africa? Answer:", "question", " yes."),
    Prompt("The month after April is May. Question: Is Berlin in Asia? Answer:", "question", " no."),
    Prompt("The opposite of loud is", "opposite", " quiet."),
    Prompt("It was not clean; it was", "opposite", " dirty."),
    Prompt("The opposite of winter is", "opposite", " summer."),
    Prompt("A day has 24 hours. The opposite of full is", "opposite", " empty."),
    Prompt("Another word for brave is", "synonym", " bold."),
    Prompt("Purchase means", "synonym", " buy."),
    Prompt("Snow looks white. Another word for begin is", "synonym", " start."),
    Prompt("14 + 43 =", "arithmetic", " 57."),
    Prompt("31 + 12 =", "arithmetic", " 43."),
    Prompt("41 - 24 =", "arithmetic", " 17."),
    Prompt("The opposite of east is west. 17 + 10 =", "arithmetic", " 27."),
    Prompt("The day after Tuesday is", "calendar", " Wednesday."),
    Prompt("The month before October is", "calendar", " September."),
    Prompt("11:15 am is in the morning. If today is Saturday, tomorrow is", "calendar", " Sunday."),
    Prompt("When Clara and Hugo went to the harbour, Clara sold a rope to", "indirect object", " Hugo."),
    Prompt("When Simon and Ivy went to the bakery, Ivy handed a basket to", "indirect object", " Simon."),
    Prompt(
        "The day before Friday is Thursday. When Ruth and Paul went to the garden, Ruth passed a cup to",
        "indirect object",
        " Paul.",
    ),
    Prompt("Jane has the lamp and Leo has the coin. Vera asks who has the coin. It is", "holder", " Leo."),
    Prompt(
        "Henry has the bell and Rose has the knife. Mark asks who has the bell. It is", "holder", " Henry."
    ),
    Prompt(
        "20 - 8 = 12. Alice has the map and Oscar has the ring. Emma asks who has the map. It is",
        "holder",
        " Alice.",
    ),
    Prompt("raven olive thyme coral. raven olive thyme", "induction", " coral."),
    Prompt("maple ember jade poppy slate inlet. maple ember jade poppy", "induction", " slate inlet."),
    Prompt("violet kelp birch hazel quartz. violet", "induction", " kelp birch hazel quartz."),
    Prompt(
        "People in Kenya speak Swahili. fern opal delta lilac sage. fern opal delta",
        "induction",
        " lilac sage.",
    ),
    Prompt("The colour of grass is", "colour", " green."),
    Prompt("The sky looks", "colour", " blue."),
    Prompt("Stone means rock. The colour of blood is", "colour", " red."),
    Prompt("There are 7 days in", "unit", " a week."),
    Prompt("There are 100 years in", "unit", " a century."),
    Prompt("Vienna is the capital of Austria. There are 60 seconds in", "unit", " a minute."),
)

BOOK_PASSAGES: tuple[Prompt, ...] = (
    Prompt(
        "Mrs. Harcastle had made up her mind, long before the carriage drew up at the gate, that she should"
        " dislike her nephew's bride. It was therefore with some vexation that she found herself,",
        "prose",
        " within a quarter of an hour, laughing at the young woman's account of the journey.",
    ),
    Prompt(
        "The lamp had burned low, and still the old captain sat with the chart spread before him and the"
        " letter unopened at his elbow. Twice he put out his hand to take it up;",
        "prose",
        " and twice, as though the paper had been hot to the touch, he drew it back again.",
    ),
    Prompt(
        "It had rained upon the moor for three days together, so that the road was little better than the bed"
        " of a stream. Towards evening on the fourth day, however, a pale light showed above the western"
        " hills,",
        "prose",
        " and we resolved to set out at once, lest the weather should change its mind before morning.",
    ),
    Prompt(
        '"You will forgive me, sir," said the clerk, rising from his stool with great dignity, "but the'
        ' gentleman left no such instructions." I assured him that I had no wish to cause him trouble,',
        "prose",
        " and that I was quite prepared to wait until the gentleman should return.",
    ),
    Prompt(
        "In the village of Thornby nothing was ever forgotten, and very little was ever forgiven. When young"
        " Mr. Pell came back from the city without his fortune, therefore, there was not a cottage in the"
        " place",
        "prose",
        " where his folly was not served up with the bread and cheese that same night.",
    ),
    Prompt(
        "She went up to the attic alone, and knelt down before the trunk which her mother had locked on the"
        " morning of the funeral. The key turned easily; the lid rose with a sigh; and there, under the"
        " folded muslin,",
        "prose",
        " lay the little wooden horse that she had wept for when she was six years old.",
    ),
)


def general() -> tuple[Prompt, ...]:
    """The fifty general prompts, which have no completion."""
    return GENERAL


def specimen() -> tuple[Prompt, ...]:
    """The forty-two almanac prompts followed by the six prose passages, all with a completion."""
    return SPECIMEN + BOOK_PASSAGES
