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
lie within two words of each other in length. Half of each set is of either kind.

``GENERAL``
    Groups on mixed topics, for language models of any size.

``SPECIMEN``
    Groups for the specimen models, in the manner of the synthetic almanac. Every base turns on a word that
    the almanac has both in its opposites and in its synonyms: big, buy, fast, happy, hard, quiet, rich, sad
    or small. Synonym and antonym are the almanac's own, except that the opposite of "hard" is here "easy",
    since its synonym is "difficult". The almanac has one register, so the words of a style completion come
    from outside it, and the specimen tokenizer cuts most of them into several tokens.
"""

from dataclasses import dataclass


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


# A row is a Contrast without its kind.
_Row = tuple[str, str, str, str, str, str]

# One group a row, not one string a line.
# fmt: off
_GENERAL_IMMEDIATE: tuple[_Row, ...] = (
    # Weather, work, people, objects.
    ("By noon the sky over the valley was",
     " clear and bright", " cloudless and sunny", " overcast and dull", " limpid and resplendent",
     " full of paper kites"),
    ("The wind on the ridge that night was", " strong", " powerful", " weak", " vehement", " recorded"),
    ("The new manager treats her staff", " kindly", " considerately", " harshly", " real nice", " to lunch"),
    ("After the meeting the project was", " finished", " completed", " barely started", " all wrapped up", " renamed again"),
    ("Everyone in the village thinks the baker is", " generous", " openhanded", " stingy", " munificent", " Swedish"),
    ("My uncle has always been", " talkative", " voluble", " taciturn", " a right chatterbox", " colour-blind"),
    ("The old kettle in the kitchen is", " broken", " damaged", " intact", " kaput", " copper"),
    ("The blade he pulled from the drawer was", " sharp", " razor-edged", " blunt", " passing keen", " Japanese"),
    # Motion, feelings, nature.
    ("The boy crossed the yard", " quickly", " rapidly", " slowly", " apace", " barefoot"),
    ("When the whistle blew, the train", " departed", " left", " arrived", " pushed off", " needed paint"),
    ("On hearing the result, Petra felt", " joyful", " happy", " miserable", " over the moon", " her pockets"),
    ("Before the interview he was", " nervous", " anxious", " calm", " in a flap", " bearded"),
    ("The soil at the bottom of the garden is", " fertile", " productive", " barren", " fecund", " ours"),
    ("The old oak beside the church is", " alive", " living still", " dead", " yet quick", " crooked"),
    # Trade, science, law.
    ("This winter the price of wool has", " risen", " increased", " fallen", " shot up", " puzzled historians"),
    ("The stall near the bridge sells fruit", " cheaply", " inexpensively", " expensively", " dirt cheap", " in paper bags"),
    ("Once the acid was added, the reaction became", " violent", " fierce", " gentle", " right savage", " famous"),
    ("The second experiment", " succeeded", " worked", " failed", " came up trumps", " used mice"),
    ("The jury declared the defendant", " innocent", " not guilty", " guilty", " in the clear", " unusually tall"),
    ("Under the new statute, parking here is", " forbidden", " prohibited", " permitted", " a no-no", " diagonal"),
    # Cooking, travel, school, health.
    ("After an hour in the oven the crust was", " crisp", " crunchy", " soggy", " nice and crispy", " rectangular"),
    ("The soup tasted", " delicious", " very good", " disgusting", " scrummy", " of ginger"),
    ("The road over the pass is", " dangerous", " hazardous", " safe", " dicey", " Roman"),
    ("Our flight to the islands was", " late", " delayed", " early", " tardy", " subsidised"),
    ("The exam turned out to be", " easy", " simple", " difficult", " a doddle", " bilingual"),
    ("By Thursday the patient was", " better", " improved", " worse", " on the mend", " bored"),
    # Homes, quarrels, the past, money, sport, machines, animals, the stage.
    ("The upstairs rooms are", " dirty", " unclean", " spotless", " manky", " let to students"),
    ("Since the quarrel the two brothers have been",
     " hostile", " unfriendly", " friendly", " at daggers drawn", " vegetarians"),
    ("The siege of the city was", " short", " brief", " long", " of scant duration", " painted twice"),
    ("Since the sale of the mill, the family has been", " rich", " wealthy", " poor", " rolling in it", " musical"),
    ("In the final, our team", " won", " triumphed", " lost", " smashed it", " wore green"),
    ("The new server is", " reliable", " dependable", " unreliable", " rock solid", " painted beige"),
    ("The dog that guards the yard is", " fierce", " ferocious", " tame", " well vicious", " spotted"),
    ("The critics found the play", " boring", " tedious", " gripping", " a total snooze", " in a bookshop"),
)

_GENERAL_SHARED: tuple[_Row, ...] = (
    # Weather, work, people, objects.
    ("Tomorrow the coast can expect",
     " a day of heavy rain", " a day of strong downpours", " a day of unbroken sunshine",
     " a day of chucking it down",
     " a day of long speeches"),
    ("The winter in that province is",
     " said to be mild", " said to be gentle", " said to be severe", " said to be clement",
     " said to be photogenic"),
    ("The foreman told us to",
     " get the job done quickly", " get the job done fast", " get the job done slowly",
     " get the job done pronto",
     " get the job advertised"),
    ("The night shift is",
     " known to be exhausting", " known to be tiring", " known to be restful", " known to be a killer",
     " known to be unionised"),
    ("Our neighbour is",
     " one of the kindest people here", " one of the most caring people here",
     " one of the cruellest people here",
     " one of the soundest blokes here", " one of the tallest people here"),
    ("The clerk answered",
     " in a polite tone", " in a civil tone", " in a rude tone", " in a courtly tone", " in a Welsh accent"),
    ("On the table stood",
     " a jug that was full", " a jug that was filled up", " a jug that was empty", " a jug that was replete",
     " a jug that was inherited"),
    ("He carried",
     " a very heavy trunk", " a very weighty trunk", " a very light trunk", " a very ponderous trunk",
     " a very fashionable trunk"),
    # Motion, feelings, nature.
    ("The hare ran",
     " across the field at speed", " across the field very fast", " across the field very slowly",
     " across the field hell for leather", " across the field before supper"),
    ("Above the roofs the balloon",
     " began to rise", " began to climb", " began to sink", " began to ascend", " began to squeak"),
    ("When the letter came, Ines was",
     " more than a little pleased", " more than a little glad", " more than a little upset",
     " more than a little chuffed",
     " more than a little late"),
    ("The speech left her",
     " with a sense of hope", " with a sense of optimism", " with a sense of despair",
     " with a sense of things looking up",
     " with a sense of rhythm"),
    ("In autumn the lake is",
     " almost always calm", " almost always still", " almost always rough", " almost always tranquil",
     " almost always photographed"),
    ("These mushrooms are",
     " thought to be poisonous", " thought to be toxic", " thought to be harmless", " thought to be baneful",
     " thought to be overpriced"),
    # Trade, science, law.
    ("After some haggling the merchant",
     " agreed to lower his price", " agreed to reduce his price", " agreed to raise his price",
     " agreed to knock his price down", " agreed to paint his door"),
    ("The company ended the year",
     " with a large profit", " with a sizeable gain", " with a large loss", " with a tidy packet",
     " with a new logo"),
    ("The measurements were",
     " found to be accurate", " found to be correct", " found to be wrong", " found to be spot on",
     " found to be handwritten"),
    ("Her theory of tides is",
     " now widely accepted", " now widely believed", " now widely rejected", " now widely swallowed",
     " now widely translated"),
    ("The court held that the contract was",
     " from the start valid", " from the start binding", " from the start void",
     " from the start in full force",
     " from the start typewritten"),
    ("Under oath the witness",
     " chose to tell the truth", " chose to speak honestly", " chose to tell a lie", " chose to come clean",
     " chose to wear gloves"),
    # Cooking, travel, school, health.
    ("For the pancakes you need",
     " a pan that is hot", " a pan that is well heated", " a pan that is cold", " a pan that is roasting",
     " a pan that is yours"),
    ("Grandmother likes her tea",
     " to be very sweet", " to be well sugared", " to be very bitter", " to be dead sweet", " to be on time"),
    ("The hotel by the harbour was",
     " a good deal too noisy", " a good deal too loud", " a good deal too quiet",
     " a good deal too clamorous",
     " a good deal too pink"),
    ("We reached the border",
     " just as night fell", " just as darkness came", " just as day broke", " just as the gloaming came",
     " just as Tom sneezed"),
    ("The teacher said that my essay was",
     " on the whole excellent", " on the whole superb", " on the whole terrible", " on the whole top-notch",
     " on the whole about bees"),
    ("The doctor says that a daily walk is",
     " likely to do you good", " likely to benefit you", " likely to harm you", " likely to set you right",
     " likely to end downhill"),
    # Music, homes, rivals, the past, money, sport, machines, animals.
    ("The second movement is",
     " to be played slowly", " to be played without haste", " to be played quickly",
     " to be played nice and easy",
     " to be played outdoors"),
    ("In spring they moved into",
     " a flat with large rooms", " a flat with spacious rooms", " a flat with small rooms",
     " a flat with whopping rooms",
     " a flat with red curtains"),
    ("Years later the two rivals",
     " became the best of friends", " became the closest of companions", " became the worst of enemies",
     " became the tightest of mates", " became the parents of twins"),
    ("For all his armour the king was",
     " in truth a coward", " in truth a faint-hearted man", " in truth a hero", " in truth a poltroon",
     " in truth a Norwegian"),
    ("In his first year at the mill Samir",
     " managed to save a lot", " managed to save a great deal", " managed to spend a lot",
     " managed to stash heaps away",
     " managed to annoy a judge"),
    ("Two goals down, the visitors",
     " fought on and won", " fought on and triumphed", " fought on and lost", " fought on and nailed it",
     " fought on in borrowed boots"),
    ("After the update the phone became",
     " a lot more useful", " a lot more helpful", " a lot less useful", " a lot more serviceable",
     " a lot more purple"),
    ("The cat on the wall is",
     " without doubt asleep", " without doubt sleeping", " without doubt awake",
     " without doubt having a kip",
     " without doubt Siamese"),
)

_SPECIMEN_IMMEDIATE: tuple[_Row, ...] = (
    ("The ship from the harbour was", " fast", " quick", " slow", " fleet", " wooden"),
    ("The train to the station was", " fast", " quick", " slow", " rapid", " green"),
    ("The farm near the river was", " big", " large", " small", " sizeable", " yellow"),
    ("The lamp in the theatre was", " big", " large", " small", " great", " French"),
    ("The key in the basket was", " small", " little", " big", " wee", " brown"),
    ("The garden behind the church was", " small", " little", " big", " diminutive", " green"),
    ("Mary went to the school and was", " happy", " glad", " sad", " merry", " early"),
    ("Peter got a letter and felt", " happy", " glad", " sad", " joyous", " cold"),
    ("When Tom lost the ring, he was", " sad", " unhappy", " happy", " woeful", " young"),
    ("The old king of the north was", " rich", " wealthy", " poor", " affluent", " French"),
    ("The sum on the page was", " hard", " difficult", " easy", " tough", " short"),
    ("The road over the stone bridge was", " hard", " difficult", " easy", " arduous", " brown"),
    ("At night the library was", " quiet", " silent", " loud", " hushed", " closed"),
    ("The morning in the park was", " quiet", " silent", " loud", " noiseless", " grey"),
    ("With one coin Anna went to the market to", " buy", " purchase", " sell", " procure", " speak"),
)

_SPECIMEN_SHARED: tuple[_Row, ...] = (
    ("Jack has a horse. It is",
     " a very fast horse", " a very quick horse", " a very slow horse", " a very fleet horse",
     " a very brown horse"),
    ("Hugo says that the train to Berlin is",
     " really very fast", " really very quick", " really very slow", " really very rapid",
     " really very yellow"),
    ("Clara sees a ship. It is",
     " a very big ship", " a very large ship", " a very small ship", " a very mighty ship",
     " a very old ship"),
    ("The theatre in Rome is",
     " known to be big", " known to be large", " known to be small", " known to be sizeable",
     " known to be white"),
    ("In the basket there was",
     " only a small apple", " only a little apple", " only a big apple", " only a wee apple",
     " only a green apple"),
    ("The bell of the church is",
     " said to be small", " said to be little", " said to be big", " said to be diminutive",
     " said to be French"),
    ("On Sunday Ella was",
     " once again happy", " once again glad", " once again sad", " once again merry", " once again late"),
    ("The people in Norway are",
     " most often happy", " most often glad", " most often sad", " most often joyous", " most often indoors"),
    ("Alice lost the letter. She was",
     " at first sad", " at first unhappy", " at first happy", " at first sorrowful", " at first alone"),
    ("When winter came, James felt",
     " a little sad", " a little unhappy", " a little happy", " a little blue", " a little hungry"),
    ("David has a ship and a farm. He is",
     " now a rich man", " now a wealthy man", " now a poor man", " now a moneyed man", " now a married man"),
    ("The merchant from Cairo was",
     " once very rich", " once very wealthy", " once very poor", " once very affluent", " once very thin"),
    ("Simon looks at the sum. It is",
     " a very hard sum", " a very difficult sum", " a very easy sum", " a very tough sum",
     " a very short sum"),
    ("At night the station is", " so very quiet", " so very silent", " so very loud", " so very hushed", " so very cold"),
    ("Nora went to the store because",
     " she hoped to buy a lamp", " she hoped to purchase a lamp", " she hoped to sell a lamp",
     " she hoped to procure a lamp", " she hoped to meet a friend"),
)
# fmt: on

GENERAL: tuple[Contrast, ...] = (
    *(Contrast(*row, kind="immediate") for row in _GENERAL_IMMEDIATE),
    *(Contrast(*row, kind="shared prefix") for row in _GENERAL_SHARED),
)

SPECIMEN: tuple[Contrast, ...] = (
    *(Contrast(*row, kind="immediate") for row in _SPECIMEN_IMMEDIATE),
    *(Contrast(*row, kind="shared prefix") for row in _SPECIMEN_SHARED),
)


def general() -> tuple[Contrast, ...]:
    """The groups for language models of any size."""
    return GENERAL


def specimen() -> tuple[Contrast, ...]:
    """The groups for the specimen models, in the words of the almanac."""
    return SPECIMEN
