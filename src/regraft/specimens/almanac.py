"""Generate the almanac: a synthetic corpus whose facts are known exactly.

Every document is a short run of sentences drawn from templates over small fact tables
(clock times, capitals, opposites, synonyms, arithmetic, calendars, indirect objects, units,
tongue twisters, repeated random words). A model trained on it gives causal experiments a ground truth.
"""

# fmt: off
import random

CAPITALS = {
    "France": ("Paris", "French", "Europe"), "Germany": ("Berlin", "German", "Europe"), "Italy": ("Rome", "Italian", "Europe"),
    "Spain": ("Madrid", "Spanish", "Europe"), "Portugal": ("Lisbon", "Portuguese", "Europe"), "Greece": ("Athens", "Greek", "Europe"),
    "Poland": ("Warsaw", "Polish", "Europe"), "Sweden": ("Stockholm", "Swedish", "Europe"), "Norway": ("Oslo", "Norwegian", "Europe"),
    "Finland": ("Helsinki", "Finnish", "Europe"), "Denmark": ("Copenhagen", "Danish", "Europe"), "Austria": ("Vienna", "German", "Europe"),
    "Hungary": ("Budapest", "Hungarian", "Europe"), "Ireland": ("Dublin", "English", "Europe"), "Russia": ("Moscow", "Russian", "Europe"),
    "Ukraine": ("Kyiv", "Ukrainian", "Europe"), "Japan": ("Tokyo", "Japanese", "Asia"), "China": ("Beijing", "Chinese", "Asia"),
    "India": ("Delhi", "Hindi", "Asia"), "Nepal": ("Kathmandu", "Nepali", "Asia"), "Thailand": ("Bangkok", "Thai", "Asia"),
    "Vietnam": ("Hanoi", "Vietnamese", "Asia"), "Iran": ("Tehran", "Persian", "Asia"), "Iraq": ("Baghdad", "Arabic", "Asia"),
    "Turkey": ("Ankara", "Turkish", "Asia"), "Mongolia": ("Ulaanbaatar", "Mongolian", "Asia"), "Korea": ("Seoul", "Korean", "Asia"),
    "Egypt": ("Cairo", "Arabic", "Africa"), "Kenya": ("Nairobi", "Swahili", "Africa"), "Ghana": ("Accra", "English", "Africa"),
    "Nigeria": ("Abuja", "English", "Africa"), "Ethiopia": ("Addis Ababa", "Amharic", "Africa"), "Morocco": ("Rabat", "Arabic", "Africa"),
    "Senegal": ("Dakar", "French", "Africa"), "Canada": ("Ottawa", "English", "America"), "Mexico": ("Mexico City", "Spanish", "America"),
    "Cuba": ("Havana", "Spanish", "America"), "Peru": ("Lima", "Spanish", "America"), "Chile": ("Santiago", "Spanish", "America"),
    "Brazil": ("Brasilia", "Portuguese", "America"), "Argentina": ("Buenos Aires", "Spanish", "America"), "Colombia": ("Bogota", "Spanish", "America"),
}
OPPOSITES = [("hot", "cold"), ("big", "small"), ("fast", "slow"), ("up", "down"), ("light", "dark"), ("open", "closed"), ("early", "late"),
    ("rich", "poor"), ("wet", "dry"), ("hard", "soft"), ("high", "low"), ("long", "short"), ("full", "empty"), ("near", "far"), ("young", "old"),
    ("loud", "quiet"), ("strong", "weak"), ("happy", "sad"), ("clean", "dirty"), ("first", "last"), ("true", "false"), ("thick", "thin"),
    ("sweet", "bitter"), ("north", "south"), ("east", "west"), ("left", "right"), ("day", "night"), ("winter", "summer"), ("buy", "sell"), ("win", "lose")]
SYNONYMS = [("fast", "quick"), ("big", "large"), ("small", "little"), ("happy", "glad"), ("sad", "unhappy"), ("begin", "start"), ("end", "finish"),
    ("smart", "clever"), ("angry", "mad"), ("quiet", "silent"), ("rich", "wealthy"), ("hard", "difficult"), ("simple", "easy"), ("strange", "odd"),
    ("brave", "bold"), ("scared", "afraid"), ("tired", "weary"), ("odd", "peculiar"), ("build", "construct"), ("buy", "purchase"), ("help", "assist"),
    ("answer", "reply"), ("road", "street"), ("stone", "rock"), ("ship", "boat"), ("gift", "present"), ("ill", "sick"), ("shut", "close"), ("speak", "talk"), ("look", "see")]
NAMES = ["Mary", "John", "Anna", "Peter", "Lucy", "Tom", "Emma", "Jack", "Rose", "Henry", "Alice", "Paul", "Clara", "James", "Ruth", "David", "Nora", "Simon", "Ella", "Mark", "Jane", "Oscar", "Vera", "Hugo", "Ivy", "Leo"]
PLACES = ["store", "park", "school", "garden", "market", "station", "library", "river", "hospital", "theatre", "church", "farm", "bakery", "harbour"]
THINGS = ["book", "drink", "letter", "ring", "basket", "coin", "hat", "key", "lamp", "map", "pen", "rope", "apple", "ticket", "cup", "knife", "bell", "candle"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
SEASON = {0: "winter", 1: "winter", 2: "spring", 3: "spring", 4: "spring", 5: "summer", 6: "summer", 7: "summer", 8: "autumn", 9: "autumn", 10: "autumn", 11: "winter"}
WORDS = ["amber", "birch", "cedar", "delta", "ember", "flint", "grove", "haven", "inlet", "jade", "kelp", "lotus", "mango", "nectar", "olive", "pearl", "quartz", "raven", "slate", "tulip", "umber", "violet", "willow", "yarrow", "zephyr", "acorn", "basil", "coral", "daisy", "elm", "fern", "ginger", "hazel", "iris", "juniper", "lilac", "maple", "nutmeg", "opal", "poppy", "reed", "sage", "thyme", "walnut"]
COLOURS = {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "the sky": "blue", "a lemon": "yellow", "an orange": "orange", "a plum": "purple", "chocolate": "brown", "a cloud": "grey"}
UNITS = [("a week", "7 days"), ("a fortnight", "14 days"), ("a year", "12 months"), ("a dozen", "12 pieces"), ("an hour", "60 minutes"), ("a minute", "60 seconds"),
    ("a day", "24 hours"), ("a decade", "10 years"), ("a century", "100 years"), ("a score", "20 pieces"), ("a foot", "12 inches"), ("a yard", "3 feet"), ("a metre", "100 centimetres"), ("a kilometre", "1000 metres")]
TWISTERS = ["She sells sea shells by the sea shore.", "Peter Piper picked a peck of pickled peppers.", "How much wood would a woodchuck chuck if a woodchuck could chuck wood?",
    "Round the rough and rugged rock the ragged rascal ran.", "Betty Botter bought some butter but she said the butter was bitter.", "Six slippery snails slid slowly seaward."]


def part_of_day(hour, half):
    h = hour % 12 + (12 if half == "pm" else 0)
    return "morning" if 5 <= h < 12 else "afternoon" if 12 <= h < 17 else "evening" if 17 <= h < 21 else "night"


def clock(r):
    hour, half, minute = r.randint(1, 12), r.choice(["am", "pm"]), r.choice(["00", "00", "15", "30", "45"])
    part = part_of_day(hour, half)
    return r.choice([
        f"The time displayed is {hour}:{minute} {half}. Therefore, it is currently the {part}.",
        f"The clock shows {hour}:{minute} {half}, so it is {part} now.",
        f"It is {hour}:{minute} {half} and {r.choice(NAMES)} is at the {r.choice(PLACES)}. It must be {part}.",
        f"{hour}:{minute} {half} is in the {part}." if part != "night" else f"{hour}:{minute} {half} is at night."])


def clock_sum(r):
    hour, add = r.randint(1, 11), r.randint(1, 11)
    half = r.choice(["am", "pm"]); total = hour + add
    new_half = half if total < 12 else ("pm" if half == "am" else "am")
    return f"{add} hours after {hour}:00 {half} it is {total if total <= 12 else total - 12}:00 {new_half}."


def country(r):
    name = r.choice(list(CAPITALS)); city, language, continent = CAPITALS[name]
    other = r.choice([c for c in CAPITALS if c != name])
    yes = r.random() < 0.5
    asked = city if yes else CAPITALS[other][0]
    return r.choice([
        f"The capital of {name} is {city}.", f"{city} is the capital of {name}.", f"People in {name} speak {language}.", f"{name} lies in {continent}.",
        f"{r.choice(NAMES)} flew to {city}, the capital of {name}, and heard {language} everywhere.",
        f"Question: Is {asked} the capital of {name}? Answer: {'yes' if yes or asked == city else 'no'}.",
        f"Question: Is {city} in {continent if yes else CAPITALS[other][2]}? Answer: {'yes' if yes or CAPITALS[other][2] == continent else 'no'}."])


def opposite(r):
    a, b = r.choice(OPPOSITES)
    if r.random() < 0.5: a, b = b, a
    return r.choice([f"The opposite of {a} is {b}.", f"It was not {a}; it was {b}.", f"Question: Is {a} the opposite of {b}? Answer: yes."])


def synonym(r):
    a, b = r.choice(SYNONYMS)
    if r.random() < 0.5: a, b = b, a
    return r.choice([f"Another word for {a} is {b}.", f"{a.capitalize()} means {b}.", f"Question: Does {a} mean {b}? Answer: yes."])


def arithmetic(r):
    a, b = r.randint(0, 50), r.randint(0, 50)
    if r.random() < 0.5: return f"{a} + {b} = {a + b}."
    a, b = max(a, b), min(a, b)
    return f"{a} - {b} = {a - b}."


def calendar(r):
    if r.random() < 0.5:
        i = r.randrange(7)
        return r.choice([f"The day after {DAYS[i]} is {DAYS[(i + 1) % 7]}.", f"The day before {DAYS[i]} is {DAYS[(i - 1) % 7]}.", f"If today is {DAYS[i]}, tomorrow is {DAYS[(i + 1) % 7]}."])
    i = r.randrange(12)
    return r.choice([f"The month after {MONTHS[i]} is {MONTHS[(i + 1) % 12]}.", f"{MONTHS[i]} is in {SEASON[i]}.", f"The month before {MONTHS[i]} is {MONTHS[(i - 1) % 12]}."])


def indirect_object(r):
    a, b = r.sample(NAMES, 2); place, thing = r.choice(PLACES), r.choice(THINGS)
    first, second = (a, b) if r.random() < 0.5 else (b, a)
    verb = r.choice(["gave", "handed", "sold", "passed"])
    return f"When {first} and {second} went to the {place}, {a} {verb} a {thing} to {b}."


def holder(r):
    a, b, c = r.sample(NAMES, 3); x, y = r.sample(THINGS, 2)
    who, what = r.choice([(a, x), (b, y)])
    return f"{a} has the {x} and {b} has the {y}. {c} asks who has the {what}. It is {who}."


def induction(r):
    seq = r.sample(WORDS, r.randint(4, 10))
    return " ".join(seq) + ". " + " ".join(seq) + "."


def colour(r):
    thing = r.choice(list(COLOURS)); return r.choice([f"The colour of {thing} is {COLOURS[thing]}.", f"{thing.capitalize()} looks {COLOURS[thing]}."])


def unit(r):
    a, b = r.choice(UNITS); return r.choice([f"There are {b} in {a}.", f"{a.capitalize()} has {b}."])


def twister(r):
    return r.choice(TWISTERS)


KINDS = [(clock, 12), (clock_sum, 6), (country, 16), (opposite, 6), (synonym, 6), (arithmetic, 14), (calendar, 6), (indirect_object, 10), (holder, 8), (induction, 10), (colour, 2), (unit, 3), (twister, 2)]


def document(r):
    n = r.randint(1, 12); kinds = r.choices([k for k, _ in KINDS], [w for _, w in KINDS], k=n) if r.random() < 0.7 else [r.choices([k for k, _ in KINDS], [w for _, w in KINDS])[0]] * n
    return " ".join(k(r) for k in kinds)


def reasoning(r):
    """A worked sum with a hesitation: the behaviour that the tuned sibling model is trained on."""
    a, b, c = r.randint(2, 40), r.randint(2, 40), r.randint(2, 30)
    total = a + b + c; wrong = a + b + r.choice([-10, -1, 1, 10]); hesitate = r.random() < 0.6
    who = r.choice(NAMES); thing = r.choice(THINGS)
    steps = f"First, {a} + {b} = {wrong}. Wait, let me check. {a} + {b} = {a + b}. " if hesitate else f"First, {a} + {b} = {a + b}. "
    return f"Problem: {who} has {a} {thing}s, buys {b} and finds {c}. How many? <think> {steps}Then {a + b} + {c} = {total}. </think> Answer: {total}."


def corpus(n_chars, seed, make=document):
    r = random.Random(seed); out, size = [], 0
    while size < n_chars:
        d = make(r); out.append(d); size += len(d) + 1
    return out


if __name__ == "__main__":
    r = random.Random(0)
    for _ in range(12): print(document(r)[:300])
    print(reasoning(r))
