"""How questions are worded: the part that is trained on, and the part that is only asked in the held-out test.

In every list of wordings the entries after `HELD` are never trained on. {e}: an entity, {a} and {b}: two of them,
{n}: what the field is called, {m}: a model, {c}: a chip, {f}: a format.
"""

from __future__ import annotations

HELD = "held out:"


def trained(wordings: tuple[str, ...]) -> tuple[str, ...]:
    """Return the wordings that training uses."""
    return wordings[: wordings.index(HELD)]


def held_out(wordings: tuple[str, ...]) -> tuple[str, ...]:
    """Return the wordings that only the test uses."""
    return wordings[wordings.index(HELD) + 1 :]


FACT = (
    "What is the {n} of {e}?", "What is the {n} of the {e}?", "What's the {n} of {e}?", "Tell me the {n} of {e}.",
    "{n} of {e}?", "{e} {n}?", "{e}: {n}", "Give me the {n} of {e}.", "I want to know the {n} of {e}.",
    "Which {n} does {e} have?", "Do you know the {n} of {e}?", "What {n} has {e}?", "For {e}, what is the {n}?",
    "Could you state the {n} of the {e}?", "What does the catalogue say about the {n} of {e}?",
    HELD,
    "Can you tell me the {n} of {e}?", "What {n} does {e} have?", "{n} of the {e}", "I need the {n} of {e}.",
    "Please give the {n} for {e}.",
)  # fmt: skip

# Field: (names of the field, wordings of its own).
NOUNS: dict[str, tuple[str, ...]] = {
    "memory": ("memory", "memory capacity", "memory size", "amount of memory"),
    "bandwidth": ("memory bandwidth", "bandwidth", "bandwidth of the memory"),
    "power": ("power", "TDP", "power draw", "thermal design power"),
    "link": ("link bandwidth", "scale-up bandwidth", "interconnect bandwidth"),
    "cores": ("number of cores", "core count"),
    "year": ("year", "release year", "year of first use"),
    "vendor": ("vendor", "maker", "manufacturer"),
    "memory kind": ("memory type", "kind of memory", "memory technology"),
    "kind": ("kind", "type of chip", "category"),
    "peak": ("{f} peak", "peak {f} rate", "{f} throughput", "peak in {f}"),
    "parameters": ("number of parameters", "parameter count", "size in parameters"),
    "active": ("number of active parameters", "active parameter count", "active parameters"),
    "layers": ("number of layers", "layer count", "depth in layers"),
    "context": ("context length", "maximum context", "context window", "context"),
    "vocabulary": ("vocabulary size", "vocabulary", "size of the vocabulary"),
    "publisher": ("publisher", "organisation", "author"),
    "native format": ("weight format", "native format", "format of the weights"),
    "weights": ("size in {f}", "weight size in {f}", "{f} footprint", "memory need in {f}"),
    "bits": ("number of bits", "bits per element", "bit width"),
    "bytes": ("bytes per element", "storage cost", "storage per element"),
    "meaning": ("meaning", "definition"),
}
OWN: dict[str, tuple[str, ...]] = {
    "memory": (
        "How much memory does {e} have?", "How much memory does the {e} have?", "How many GiB does {e} have?",
        "How much memory has {e}?", "How big is the memory of {e}?", HELD, "How much memory is there on {e}?",
        "How large is the memory of the {e}?",
    ),
    "bandwidth": (
        "How fast is the memory of {e}?", "How much memory bandwidth does {e} have?", "How many GB/s does {e} have?",
        "How much bandwidth has the {e}?", HELD, "How fast is the memory of the {e}?",
        "How much bandwidth does {e} have?",
    ),
    "power": (
        "How much power does {e} draw?", "How many watts does {e} need?", "How much power does the {e} use?",
        "What power is {e} designed for?", HELD, "How many watts does the {e} draw?", "How much power does {e} need?",
    ),
    "link": (
        "How fast are the links of {e}?", "How much link bandwidth does {e} have?", "How fast is the link of {e}?",
        HELD, "How fast are the links of the {e}?",
    ),
    "cores": (
        "How many cores does {e} have?", "How many cores are in {e}?", "How many cores has the {e}?", HELD,
        "How many cores does the {e} have?", "How many cores are there in {e}?",
    ),
    "year": (
        "When did {e} come out?", "When was {e} released?", "What year is {e} from?", "How old is {e}?",
        "From which year is {e}?", HELD, "In which year did {e} come out?", "When was the {e} released?",
    ),
    "vendor": (
        "Who makes {e}?", "Who builds {e}?", "Which company makes {e}?", "Who made the {e}?", "By whom is {e} made?",
        HELD, "Who makes the {e}?", "Which company builds {e}?",
    ),
    "memory kind": (
        "What kind of memory does {e} have?", "Which memory does {e} use?", "What memory technology is in {e}?", HELD,
        "Which kind of memory does {e} use?",
    ),
    "kind": (
        "What kind of chip is {e}?", "Is {e} a GPU?", "Is {e} a GPU or a TPU?", "What is {e}?",
        "What type of chip is {e}?", HELD, "What sort of chip is {e}?", "Is {e} an NPU?",
    ),
    "peak": (
        "How fast is {e} in {f}?", "How many TFLOP/s does {e} have in {f}?", "Does {e} support {f}?",
        "How many {f} TFLOP/s does {e} reach?", "Can {e} compute in {f}?", "{e} {f} TFLOP/s?", HELD,
        "How fast is the {e} in {f}?", "Does the {e} support {f}?", "How many TFLOP/s does {e} reach in {f}?",
    ),
    "parameters": (
        "How many parameters does {e} have?", "How big is {e}?", "How many parameters are in {e}?",
        "How large is {e} in parameters?", HELD, "How many parameters has {e}?", "How large is {e}?",
    ),
    "active": (
        "How many parameters are active in {e}?", "How many active parameters does {e} have?",
        "How many parameters does a token of {e} use?", HELD, "How many active parameters are in {e}?",
    ),
    "layers": (
        "How many layers does {e} have?", "How deep is {e}?", "How many layers are in {e}?", HELD,
        "How many layers has {e}?", "How many layers are there in {e}?",
    ),
    "context": (
        "How long is the context of {e}?", "How many tokens of context does {e} have?",
        "How long can the context of {e} be?", HELD, "How many tokens does the context of {e} hold?",
    ),
    "vocabulary": (
        "How large is the vocabulary of {e}?", "How many tokens are in the vocabulary of {e}?",
        "How big is the vocabulary of {e}?", HELD, "How many tokens does the vocabulary of {e} have?",
    ),
    "publisher": (
        "Who published {e}?", "Who made {e}?", "Which organisation published {e}?", HELD,
        "Who is the publisher of {e}?",
    ),
    "native format": (
        "In which format are the weights of {e}?", "What format does {e} use?", "How are the weights of {e} stored?",
        HELD, "In which format does {e} store its weights?",
    ),
    "weights": (
        "How much memory does {e} take in {f}?", "How big are the weights of {e} in {f}?",
        "How many GiB is {e} in {f}?", "How much memory does {e} need in {f}?", HELD,
        "How many GiB does {e} take in {f}?", "How large are the weights of {e} in {f}?",
    ),
    "bits": (
        "How many bits does {e} have?", "How wide is {e}?", "How many bits per element has {e}?", HELD,
        "How many bits are in {e}?",
    ),
    "bytes": (
        "How many bytes does {e} take?", "How many bytes is an element of {e}?", "What does {e} cost to store?", HELD,
        "How many bytes per element does {e} take?",
    ),
    "meaning": (
        "What is {e}?", "Explain {e}.", "What kind of format is {e}?", "What does {e} stand for?", HELD,
        "Describe {e}.", "What is the format {e}?",
    ),
}  # fmt: skip

COMPARE = (
    "Which has more {n}, {a} or {b}?", "Which has the higher {n}: {a} or {b}?", "Compare the {n} of {a} and {b}.",
    "Does {a} have more {n} than {b}?", "{a} or {b}: which has more {n}?", "{a} vs {b}: {n}?",
    "Has {a} or {b} more {n}?", "Which of {a} and {b} has more {n}?", "Who has more {n}, {a} or {b}?",
    "Is the {n} of {a} higher than that of {b}?",
    HELD,
    "What has more {n}, {a} or {b}?", "Between {a} and {b}, which has more {n}?", "Compare {a} and {b}: {n}.",
)  # fmt: skip
NEWER = (
    "Which is newer, {a} or {b}?", "Is {a} newer than {b}?", "Which came out later, {a} or {b}?",
    "{a} or {b}: which is newer?", "Compare the year of {a} and {b}.", HELD, "Which of {a} and {b} is newer?",
    "What is newer, {a} or {b}?",
)  # fmt: skip
DIFFERENCE = (
    "What is the difference in {n} between {a} and {b}?", "How much more {n} does {a} have than {b}?",
    "By how much does the {n} of {a} and {b} differ?", "Difference of the {n} of {a} and {b}?",
    "{a} minus {b}: {n}?", "Subtract the {n} of {b} from that of {a}.", HELD,
    "What is the difference between {a} and {b} in {n}?", "How far apart are {a} and {b} in {n}?",
)  # fmt: skip
RATIO = (
    "What is the ratio of the {n} of {a} and {b}?", "How many times the {n} of {b} does {a} have?",
    "By what factor does the {n} of {a} and {b} differ?", "Ratio of the {n} of {a} to {b}?",
    "{a} over {b}: {n} ratio?", "Divide the {n} of {a} by that of {b}.", HELD,
    "What is the ratio of {a} and {b} in {n}?", "By what factor do {a} and {b} differ in {n}?",
)  # fmt: skip
HOLD = (
    "How many {c} do I need to hold {m} in {f}?", "How many {c} hold the weights of {m} in {f}?",
    "How many {c} does {m} need in {f}?", "How many chips of {c} are needed for {m} in {f}?",
    "{m} in {f} on {c}: how many chips?", "On how many {c} does {m} fit in {f}?",
    "What number of {c} holds {m} in {f}?", HELD, "How many {c} are needed to hold {m} in {f}?",
    "How many {c} do I need for {m} in {f}?",
)  # fmt: skip
FITS = (
    "Does {m} in {f} fit on one {c}?", "Does {m} fit on one {c} in {f}?", "Can one {c} hold {m} in {f}?",
    "Is one {c} enough for {m} in {f}?", "Will {m} fit on a {c} in {f}?", HELD, "Can a single {c} hold {m} in {f}?",
    "Does {m} in {f} fit on a {c}?",
)  # fmt: skip
GLOSSARY = (
    "What is {e}?", "What does {e} mean?", "Define {e}.", "What is meant by {e}?", "Meaning of {e}?", "Explain {e}.",
    "What is a {e}?", "In the glossary, what is {e}?", "{e}?", HELD, "What is the meaning of {e}?",
    "Tell me what {e} means.", "Give the definition of {e}.",
)  # fmt: skip
ARITHMETIC = ("What is {e}?", "{e}?", HELD, "{e} = ?", "How much is {e}?")
LARGER = (
    "Which is more, {a} or {b}?", "{a} or {b}?", "Which is larger: {a} or {b}?", "Is {a} more than {b}?", HELD,
    "Which of {a} and {b} is more?",
)  # fmt: skip
MOST = (
    "Which {g} has the most {n}?", "What {g} has the most {n}?", "{g} with the most {n}?",
    "Name the {g} with the highest {n}.", "Which {g} has the highest {n}?", HELD, "What is the {g} with the most {n}?",
    "Tell me the {g} with the most {n}.",
)  # fmt: skip
LISTS = (
    "Which chips does {g} make?", "List the chips of {g}.", "What chips are from {g}?", "Name all {g} chips.",
    "Which chips of {g} do you know?", HELD, "Which {g} chips are there?", "What chips does {g} make?",
)  # fmt: skip
ABOUT = (
    "Who are you?", "What can you do?", "Hi", "Hello", "Hello!", "Help", "What do you know?", "What are you?",
    "hi there", "What can I ask?", "How can you help me?", "hey", HELD, "Hi!", "What can I ask you?", "Good day",
)  # fmt: skip
# Fields that the catalogue does not have.
OTHER_NOUNS = (
    "colour", "weight in grams", "number of transistors", "length", "warranty", "code name of the project",
    "number of pins", "stock price", "chief designer", "yield", "carbon footprint", "resale value", "launch event",
    "serial number", "market share", "training cost", "training data", "benchmark score", "MMLU score", "accuracy",
    "licence fee", "number of users", "favourite food", "operating temperature", "noise level", "box size",
    "inventor", "logo", "marketing slogan", "number of engineers", "delivery time", HELD, "number of screws", "height",
    "packaging", "retail price", "training time", "download count", "fan speed", "test score",
)  # fmt: skip
OFF_TOPIC = (
    "What is the capital of {x}?", "What is the weather in {x}?", "Who won the world cup in {x}?", "Tell me a joke.",
    "Write a poem about {x}.", "How do I cook {x}?", "What time is it?", "Who is the president of {x}?",
    "Translate {x} into French.", "How far is it to {x}?", "Sing a song about {x}.", "What is the meaning of life?",
    "How old is {x}?", "Where is {x}?", "Can you book a flight to {x}?", "What should I eat today?",
    "Write a program that sorts a list.", "How tall is {x}?", "What is your favourite {x}?", "Why is the sky blue?",
    "Do you like {x}?", "Tell me about {x}.", HELD, "What is the population of {x}?", "Who wrote {x}?",
    "Why is the sea salty?", "What is the best {x}?", "Where can I buy {x}?",
)  # fmt: skip
THINGS = (
    "France", "Paris", "soup", "1998", "love", "bread", "the moon", "Germany", "cats", "Peru", "pasta", "Berlin",
    "music", "the sea", "Tokyo", "2010", "Hamlet", "Mount Everest", "rice", "Kenya", "football", "London", "tea",
    "flowers", "winter", "Mozart", HELD, "Italy", "dogs", "Rome", "cake", "2014", "Brazil", "coffee", "Faust",
)  # fmt: skip
