"""Further wordings of the training part, beside those of wordings.py.

They widen the words that the network has met: the words of the held-out wordings occur here in other wordings.
"""

from __future__ import annotations

from tools.assistant import wordings as w

FACT = (
    "Can you give me the {n} of the {e}?", "Can you tell us the {n} of the {e}?", "What {n} does the {e} come with?",
    "I need to know the {n} of {e}.", "Please tell me the {n} of {e}.", "Give the {n} for {e}.", "the {n} of the {e}",
    "Please state the {n} of {e}.", "Please give me {e}'s {n}.", "{n} for {e}?", "I need {e}'s {n}.", "{e}, {n}",
    "Can you say what the {n} of {e} is?", "What {n} does {e} come with?", "Which {n} does the {e} have?",
    "Find the {n} for {e}.", "Tell me what {n} {e} has.", "Do you have the {n} of {e}?", "Please, the {n} of {e}.",
)  # fmt: skip
OWN: dict[str, tuple[str, ...]] = {
    "memory": (
        "How much memory is in {e}?", "How much memory is on the {e}?", "How large is the memory of {e}?",
        "How many GiB are there on {e}?", "Is there much memory on {e}?",
    ),
    "bandwidth": (
        "How fast is memory on {e}?", "How many GB/s does the {e} have?", "How fast does the {e} read its memory?",
        "How much bandwidth is there on {e}?",
    ),
    "power": (
        "How much power does the {e} draw?", "How many watts does {e} draw?", "How many watts does the {e} use?",
        "How much power is needed for {e}?",
    ),
    "link": (
        "How fast is the link of the {e}?", "How fast are the links on {e}?", "How much link bandwidth has {e}?",
        "How much link bandwidth does the {e} have?",
    ),
    "cores": ("How many cores are on the {e}?", "How many cores are there on {e}?", "How many cores has {e}?"),
    "year": (
        "When did the {e} come out?", "In which year was {e} released?", "What year did {e} come out?",
        "When was {e} first used?",
    ),
    "vendor": ("Who built {e}?", "Which company made the {e}?", "Who builds the {e}?", "What company makes {e}?"),
    "memory kind": (
        "Which kind of memory does {e} have?", "What kind of memory does the {e} use?", "Which memory is on {e}?",
    ),
    "kind": (
        "What sort of a chip is {e}?", "What sort of thing is {e}?", "Is {e} a TPU?", "Is the {e} a CPU?",
        "Is {e} an NPU or a GPU?",
        "Is the {e} an NPU?", "Is {e} a CPU?", "Describe {e}: what kind of chip is it?",
    ),
    "peak": (
        "How fast is {e} at {f}?", "Does {e} have {f}?", "Is {f} supported on the {e}?", "Does the {e} do {f}?",
        "How many TFLOP/s does the {e} have in {f}?", "How many TFLOP/s does the {e} reach in {f}?",
        "How many TFLOP/s of {f} does {e} reach?",
    ),
    "parameters": (
        "How many parameters are there in {e}?", "How many parameters has the {e}?", "How large a model is {e}?",
        "How large is the model {e}?",
    ),
    "active": ("How many active parameters has {e}?", "How many parameters of {e} are active?"),
    "layers": ("How many layers has the {e}?", "How many layers are there in the {e}?", "How many layers is {e} deep?"),
    "context": (
        "How many tokens does {e} hold in its context?", "How many tokens of context can {e} hold?",
        "How large is the context of {e}?",
    ),
    "vocabulary": (
        "How many tokens does {e} have in its vocabulary?", "How many tokens has the vocabulary of {e}?",
        "How many words does the vocabulary of {e} have?",
    ),
    "publisher": ("Who is behind {e}?", "Who published the {e}?", "Which organisation is the publisher of {e}?"),
    "native format": (
        "In what format does {e} store weights?", "Which format does {e} store?", "What do the weights of {e} use?",
    ),
    "weights": (
        "How many GiB does {e} need in {f}?", "How large is {e} in {f}?", "How large are {e}'s weights in {f}?",
        "In {f}, how much memory does {e} take?", "How many GiB do the weights of {e} take in {f}?",
    ),
    "bits": ("How many bits are there in {e}?", "How many bits has {e}?", "How many bits is an element of {e}?"),
    "bytes": ("How many bytes does an element of {e} take?", "How many bytes per element has {e}?"),
    "meaning": (
        "Describe the format {e}.", "What does the format {e} mean?", "Please describe {e}.", "Explain the format {e}.",
        "Describe what {e} is.",
    ),
}  # fmt: skip
COMPARE = (
    "What has the higher {n}, {a} or {b}?", "Between {a} and {b}, who has the higher {n}?",
    "Between {a} or {b}, what has the most {n}?", "Compare {a} with {b} in {n}.", "Compare {a} to {b}: {n}?",
    "Compare {n}: {a} and {b}", "{n}: {a} or {b}?", "What of {a} and {b} has more {n}?",
    "Of {a} and {b}, which has more {n}?", "Who wins in {n}, {a} or {b}?", "{a} and {b}: {n}",
)  # fmt: skip
NEWER = (
    "Between {a} and {b}, which is newer?", "What came out later, {a} or {b}?", "Which of {a} and {b} came out later?",
    "Of {a} and {b}, what is newer?", "What is the newer one, {a} or {b}?",
)  # fmt: skip
DIFFERENCE = (
    "What is the difference between the {n} of {a} and {b}?", "How far apart is the {n} of {a} and {b}?",
    "What's the difference in {n} between {a} and {b}?", "How much do {a} and {b} differ in {n}?",
    "How far is {a} from {b} in {n}?", "How far apart are the {n} of {a} and that of {b}?",
    "Tell me the difference between {a} and {b} in their {n}.", "{n} difference between {a} and {b}?",
)  # fmt: skip
RATIO = (
    "What is the ratio of {a} to {b} in {n}?", "By what factor is the {n} of {a} and {b} different?",
    "By what factor does {a} differ from {b} in {n}?", "What's the ratio of the {n} of {a} and {b}?",
    "{n} ratio of {a} and {b}?", "How many times more {n} is {a} than {b}?",
    "By what factor do the {n} of {a} and {b} differ?",
)  # fmt: skip
HOLD = (
    "How many {c} are needed for {m} in {f}?", "How many {c} do I need to run {m} in {f}?",
    "For {m} in {f}, how many {c} do I need?", "How many {c} hold {m} in {f}?", "How many {c} to hold {m} in {f}?",
    "I want to run {m} in {f}: how many {c} are needed?", "How many {c} are enough for {m} in {f}?",
)  # fmt: skip
FITS = (
    "Can a {c} hold {m} in {f}?", "Does {m} fit on a single {c} in {f}?", "Is a single {c} enough for {m} in {f}?",
    "Does {m} in {f} fit on the {c}?", "Will {m} in {f} fit on one {c}?", "In {f}, does {m} fit on a {c}?",
)  # fmt: skip
GLOSSARY = (
    "What is the definition of {e}?", "Tell me the meaning of {e}.", "Tell me what {e} is.", "Give the meaning of {e}.",
    "Give me a definition of {e}.", "Tell us what is meant by {e}.", "What's {e}?", "Describe {e}.",
)  # fmt: skip
ARITHMETIC = ("{e} =", "{e} is?", "Compute {e}.", "How much would {e} be?", "{e}", "What's {e} = ?")
MOST = (
    "What is the {g} with the highest {n}?", "Tell me which {g} has the most {n}.",
    "Tell me the {g} with the highest {n}.",
    "Of every {g}, which has the most {n}?", "What's the {g} with the most {n}?",
)  # fmt: skip
LISTS = (
    "Which {g} chips do you know?", "What {g} chips are there?", "Which chips are there from {g}?",
    "What are the chips that {g} makes?", "What does {g} make?",
)  # fmt: skip
ABOUT = ("hello there", "What can I ask you about?", "Hi there!", "Who am I talking to?", "hi")  # fmt: skip
OTHER_NOUNS = (
    "number of fans", "test time", "height of the rack", "number of downloads", "packaging cost", "retail name",
    "training hours", "speed of the fan", "count of screws in the box", "exam score", "sales", "owner's name",
    "magic number", "number of bugs", "repair cost", "smell", "phone number", "address", "birthday", "rating",
)  # fmt: skip
OFF_TOPIC = (
    "What is the population in {x}?", "Who wrote about {x}?", "Where can I find {x}?", "Where can I eat {x}?",
    "What is the best song?", "Why is {x} salty?", "Why is the grass green?", "What is the best way to {x}?",
    "Who invented {x}?", "Is {x} good?", "Can I buy {x}?", "How many people live in {x}?", "What is {x} made of?",
)  # fmt: skip
THINGS = (
    "Spain", "Madrid", "Egypt", "Oslo", "milk", "horses", "birds", "Chile", "Canada", "2006", "1966", "Macbeth",
    "sugar", "Vienna", "India", "summer", "the sun", "beer", "fish", "Poland", "tennis", "apples", "Athens",
)  # fmt: skip
ADDED: dict[tuple[str, ...], tuple[str, ...]] = {
    w.FACT: FACT, w.COMPARE: COMPARE, w.NEWER: NEWER, w.DIFFERENCE: DIFFERENCE, w.RATIO: RATIO, w.HOLD: HOLD,
    w.FITS: FITS, w.GLOSSARY: GLOSSARY, w.ARITHMETIC: ARITHMETIC, w.MOST: MOST,
    w.LISTS: LISTS, w.ABOUT: ABOUT, w.OTHER_NOUNS: OTHER_NOUNS,
    w.OFF_TOPIC: OFF_TOPIC, w.THINGS: THINGS,
    **{w.OWN[key]: more for key, more in OWN.items()},
}  # fmt: skip
