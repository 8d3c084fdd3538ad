"""Write the demo text: short everyday documents from a seeded grammar, one JSON object per line.

    python make_text.py [--out ../text/demo.jsonl] [--documents 20000] [--seed 1]

Standard library only; the same seed gives the same bytes on Python 3.9 and later (only
random.random() is drawn from, whose sequence Python guarantees).
"""
import argparse
import json
import random
import re
from pathlib import Path

HERE = Path(__file__).parent

MEN = "Adam Ben Carlos David Emil Felix George Henry Ivan Jack Karim Leo Martin Noah Oscar Paul Rafael Samuel Tom Victor William Yusuf".split()
WOMEN = "Alice Beatrice Clara Dora Emma Fatima Grace Hannah Ines Julia Karin Laura Maria Nora Olivia Priya Rosa Sofia Teresa Vera Wanda Zoe".split()
CITIES = "Berlin Madrid Rome Vienna Prague Lisbon Dublin Oslo Warsaw Athens Zurich Milan Hamburg Lyon Porto Bristol Geneva Krakow Naples Seville".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
SMALL = "two three four five six seven eight nine".split()
ORDINALS = "second third fourth fifth sixth seventh eighth ninth".split()
WHEN = ["yesterday", "last night", "this morning", "last week", "a year ago", "on {day}", "last {month}", "before lunch", "in {month}"]
COMPARATIVES = "older newer bigger smaller better cheaper nicer prettier".split()
LATER = ["tomorrow", "next week", "tonight", "on {day}", "next {month}", "in {n} days", "at {hour}"]
RELATIVES = {"her": "sister mother aunt daughter grandmother niece".split(), "his": "brother father uncle son grandfather nephew".split()}

# Verbs whose forms do not follow the rules: base -> past, participle.
IRREGULAR = {k: v.split() for k, v in {
    "beat": "beat beaten", "blow": "blew blown", "break": "broke broken", "bind": "bound bound", "bring": "brought brought", "build": "built built",
    "burn": "burnt burnt", "buy": "bought bought", "cast": "cast cast", "catch": "caught caught", "cut": "cut cut",
    "dig": "dug dug", "drink": "drank drunk", "drive": "drove driven", "fall": "fell fallen",
    "feed": "fed fed", "fight": "fought fought", "find": "found found", "flee": "fled fled", "fly": "flew flown",
    "forecast": "forecast forecast", "forget": "forgot forgotten", "freeze": "froze frozen", "get": "got got", "give": "gave given", "grind": "ground ground",
    "hang": "hung hung", "hear": "heard heard", "hide": "hid hidden", "hit": "hit hit", "hold": "held held", "keep": "kept kept",
    "knit": "knitted knitted", "lead": "led led", "leave": "left left", "let": "let let", "lie": "lay lain", "light": "lit lit",
    "lose": "lost lost", "make": "made made", "mow": "mowed mown", "overtake": "overtook overtaken", "pay": "paid paid",
    "plead": "pleaded pleaded", "put": "put put", "read": "read read", "repay": "repaid repaid",
    "rewrite": "rewrote rewritten", "ride": "rode ridden", "ring": "rang rung", "say": "said said", "sell": "sold sold",
    "send": "sent sent", "sew": "sewed sewn", "shake": "shook shaken", "shear": "sheared shorn", "shoot": "shot shot", "show": "showed shown",
    "sing": "sang sung", "sleep": "slept slept", "slide": "slid slid", "sow": "sowed sown", "speak": "spoke spoken",
    "split": "split split", "spread": "spread spread", "stand": "stood stood", "steal": "stole stolen", "stick": "stuck stuck",
    "string": "strung strung", "swear": "swore sworn", "sweep": "swept swept", "swim": "swam swum", "take": "took taken",
    "teach": "taught taught", "throw": "threw thrown", "tread": "trod trodden", "wake": "woke woken", "wear": "wore worn",
    "weave": "wove woven", "win": "won won", "withdraw": "withdrew withdrawn", "write": "wrote written",
}.items()}
DOUBLE_IN_LONG_VERBS = {"cancel", "debug", "forget", "label", "repot", "transfer", "unplug"}


def one_syllable(verb):
    return len(re.findall(r"[aeiouy]+", verb)) == 1


def stem(verb):
    """The stem before -ed and -ing, with its last consonant doubled where English doubles it."""
    closed = re.search(r"[^aeiou][aeiou][^aeiouwxy]$", verb) or re.search(r"qu[aeiou][^aeiouwxy]$", verb)
    return verb + verb[-1] if closed and (one_syllable(verb) or verb in DOUBLE_IN_LONG_VERBS) else verb


def regular_past(verb):
    if verb.endswith("e"):
        return verb + "d"
    return verb[:-1] + "ied" if re.search(r"[^aeiou]y$", verb) else stem(verb) + "ed"


def inflect(phrase, form):
    """The phrase with its first word as base, s, past, participle or ing."""
    verb, _, rest = phrase.partition(" ")
    if form == "s":
        ending = "ies" if re.search(r"[^aeiou]y$", verb) else "es" if re.search(r"(s|x|z|ch|sh|o)$", verb) else "s"
        verb = (verb[:-1] if ending == "ies" else verb) + ending
    elif form == "ing":
        dropped = verb[:-1] if re.search(r"[^eoy]e$", verb) else verb
        verb = "lying" if verb == "lie" else "tying" if verb == "tie" else (dropped if dropped != verb else stem(verb)) + "ing"
    elif form in ("past", "participle"):
        past = IRREGULAR.get(verb) or [regular_past(verb)] * 2
        verb = past[form == "participle"]
    return f"{verb} {rest}".strip()


FORMS = {"do": "base", "does": "s", "did": "past", "done": "participle", "doing": "ing"}

# Frames shared by all topics. {p} is the person who does {do}; {p2} goes with {do2}, ...
FRAMES = """
{When} the {p} {did}
{Name} {did} {place}
On {day} the {p} {did} and then {did2}
The {p} has never {done} before
By {hour} the {p} had {done}
Will the {p} {do} {later}?
Have you ever {done}?
Why did the {p} {do}?
How long does it take to {do}?
It took {name} {mins} minutes to {do}
{Name} did not {do}, so the {p} {did} instead
While the {p} was {doing}, {name} {did2}
The {p} does not {do} on {day}
Nobody could remember who had {done}
The {p} will {do} {later}
{Name} is going to {do} {later}, and {name} has promised to help
"Did you {do}?" asked {name}. "Not yet," said the {p}
"I would rather {do} than {do2}," said {name}
"Please {do} before {hour}," said the {p2}
"Who {did}?" "It was {name}," answered the {p2}
The {thing} {place} was {adj}
The {ware} {place} is {comp} than the one in {city}
This {ware} is {comp} than the one {name} bought in {city}
What a {adj} {thing}!
The {ware} costs {price}, and the {ware} costs {price}
{Name} gave me a {ware} for my birthday
We still need a {ware}, a {ware} and some {many}
There were {num} {many} {place}
There are too many {many} and not enough {many} {place}
"{N} {many} are better than none," said the {p}
Have you seen the {ware} that {name} left {place}?
Whose {ware} is this?
Is that your {ware}, or does it belong to the {p}?
Dear {name}, {when} I {did}, and {later} I will {do2}. Best wishes, {name}
Dear {name}, thank you for the {ware}. It is even {comp} than the old one. Yours, {name}
My {relative} works as a {p} in {city}
{Name} wanted to be a {p}, but {he} never learned to {do}
As a child, {name} loved to {do}
If it is too late to {do}, we can {do2} {later}
The {p} spent the whole morning {place}
In {month} {year} a {p} from {city} {did}
{City}, {day}. A {p} {did} {when}
The {p} {does} every {day}
Every {month} {name} {does} {place}
{Name} and {name} met {place} {when}
First {do}, then {do2}
Don't forget to {do} before you {do2}
Instead of {doing}, {name} {did2}
After {doing}, the {p} took a short rest
Without a {ware} it is hard to {do}
{Name} knows how to {do}, but {he} has forgotten how to {do2}
The {p} asked {name} to {do}
The {p} and the {p2} talked about the {many} {place}
Never {do} when you are tired
{Name} hates {doing}, whereas {name} enjoys it
Someone left a {ware} {place}
Where is the {ware}? The {p} needs it
Both the {thing} and the {thing} were {adj}
According to {name}, the {p} {did} at least {n} times
Before {year} nobody had {done}
I have been {doing} since {hour}
"{Say}," said {name}
"{Say}," said the {p2}
"{Say}," {name} whispered
"{Say}!" {name} shouted
"{Say}," said {name}, and the {p2} nodded
"{Say}," it said on a note {place}
"{Ask}?" asked {name}
"{Ask}?" the {p2} wanted to know
"{Ask}?" "{Say}."
{Ask}?
{Name} asked: "{Ask}?"
""".strip().splitlines()

FACT_FRAMES = """
{Fact}
{Fact}
{Fact}
{Fact}
{Fact}
{Name} told me that {fact}
"{Fact}," said {name}
The {p} explained that {fact}
Everyone knew that {fact}
{Fact}, and the {p2} {did2}
{Fact}, but nobody told the {p2}
I heard {when} that {fact}
""".strip().splitlines()
ORDER_FRAMES = ["{Fact}", "{Fact}", '"{Fact}," said the {p}', '"{Fact}," {name} advised', "{Name} always says: {Fact}"]
ASKING = re.compile(r"(Have|Will|Would|Did) you")
ORDERS = {"Fry", "Cut", "Add", "Take", "Brush", "Put", "Plant", "Mix", "Whisk", "Click", "Leave", "Serve", "Grill"}
KEEP_CAPITAL = re.compile(r"(I|I'm|[A-Z].*[A-Z].*)$")


def read_topics(path):
    topics = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            topics[line[1:-1]] = topic = {"do": []}
        elif line and not line.startswith("#"):
            key, _, values = line.partition(": ")
            values = [v.strip() for v in values.split(";")]
            if key.startswith("do"):
                who = [p.strip() for p in key[2:].split(",") if p.strip()]
                topic["do"] += [(v, tuple(who)) for v in values]
            else:
                topic[key] = values
    for topic in topics.values():
        topic["ware"] = [t for t in topic["thing"] if not t.endswith("*")]
        topic["thing"] = [t.rstrip("*") for t in topic["thing"]]
        topic["ask"] += [s for s in topic["say"] if ASKING.match(s)]
        topic["say"] = [s for s in topic["say"] if not ASKING.match(s)]
    return topics


class Sentence:
    """One sentence being written. `used` is the document's: no slot repeats a word."""

    def __init__(self, rng, topic, used):
        self.rng, self.topic, self.used = rng, topic, used
        self.phrases, self.fact, self.he = {}, None, "he"

    def pick(self, options):
        fresh = [o for o in options if o not in self.used] or options
        choice = fresh[int(self.rng.random() * len(fresh))]
        self.used.add(choice)
        return choice

    def between(self, low, high, step=1):
        return low + step * int(self.rng.random() * ((high - low) // step + 1))

    def phrase(self, number):
        """The verb phrase with this number and who does it; chosen at first use."""
        if number not in self.phrases:
            text, who = self.pick(self.topic["do"])
            self.phrases[number] = (self.fill(text), self.pick(who or self.topic["person"]))
        return self.phrases[number]

    def number(self, slot):
        if slot == "price":
            return self.pick([f"£{self.between(2, 90)}", f"{self.between(1, 60)}.{self.pick(['20', '50', '80', '90'])} euros"])
        if slot == "money":
            return self.pick([f"£{self.between(2, 900)},000", f"{self.between(100, 900, 50)} euros", f"{self.between(2, 90)},000 dollars"])
        if slot == "hour":
            small = self.pick(SMALL)
            clock = f"{self.between(10, 23)}:{self.between(10, 55, 5)}"
            return self.pick([f"{small} o'clock", f"half past {small}", f"a quarter to {small}", clock])
        low, high, step = {"teens": (11, 19, 1), "num": (20, 95, 1), "mins": (10, 55, 5), "big": (1100, 4900, 100), "year": (1890, 2024, 1)}[slot]
        value = self.between(low, high, step)
        return f"{value:,}" if slot == "big" else str(value)

    def slot(self, slot):
        base = slot.rstrip("2") if slot not in self.topic else slot
        if base in FORMS:
            return inflect(self.phrase(slot[-1:] == "2")[0], FORMS[base])
        if base == "p":
            return self.phrase(slot[-1:] == "2")[1]
        if slot == "name":
            name = self.pick(MEN + WOMEN)
            self.he = "he" if name in MEN else "she"
            return name
        if slot == "he":
            return self.he
        if slot == "relative":
            return self.pick(RELATIVES["her"] + RELATIVES["his"])
        if slot in ("when", "later"):
            return self.fill(self.pick(WHEN if slot == "when" else LATER))
        if slot == "early":
            return f"{self.pick(['five', 'six', 'seven', 'half past five', 'half past six'])} in the morning"
        lists = {"city": CITIES, "day": DAYS, "month": MONTHS, "n": SMALL, "nth": ORDINALS, "comp": COMPARATIVES}
        if slot in lists:
            return self.pick(lists[slot])
        if slot in self.topic:
            return self.fill(self.pick(self.topic[slot]))
        return self.number(slot)

    def fill(self, template):
        def put(match):
            slot = match.group(1)
            if slot == "fact":
                return lower_first(self.fill(self.fact))
            text = self.fill(self.fact) if slot == "Fact" else self.slot(slot[0].lower() + slot[1:])
            return text[0].upper() + text[1:] if slot[0].isupper() else text

        return re.sub(r"\{(\w+)\}", put, template)


def lower_first(text):
    """Lower-cases a sentence's first letter unless its first word is a name, a number or I."""
    first = text.split()[0].rstrip(",")
    proper = first in MEN + WOMEN + CITIES + DAYS + MONTHS or not first.isalpha() or KEEP_CAPITAL.match(first)
    return text if proper or first in LEAVE_CAPITAL else text[0].lower() + text[1:]


LEAVE_CAPITAL = set("Mars Venus Jupiter Saturn Mercury Neptune Uranus United Rovers City Athletic Albion Labour Hamlet Juliet "
                    "Riesling Merlot Chardonnay Pinot Cabernet Sauvignon".split())


def finish(text):
    """Articles before vowels, one capital at the start, one full stop at the end."""
    text = re.sub(r"\b([Aa]) (?!one\b|uni[^n]|use[df]|euro)(?=[aeiouAEIOX])", r"\1n ", text)
    text = text[0].upper() + text[1:]
    return text if re.search(r'[.?!]["]?$', text) else text + "."


def sentence(rng, topic, used):
    s = Sentence(rng, topic, used)
    if rng.random() >= 0.42:
        return finish(s.fill(s.pick(FRAMES)))
    s.fact = s.pick(topic["fact"])
    return finish(s.fill(s.pick(ORDER_FRAMES if s.fact.split()[0] in ORDERS else FACT_FRAMES)))


def document(rng, topics):
    topic, used = topics[list(topics)[int(rng.random() * len(topics))]], set()
    text = sentence(rng, topic, used)
    if rng.random() < 0.3 and not text.startswith("Dear"):
        text += " " + sentence(rng, topic, used)
    return text


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("--out", type=Path, default=HERE.parent / "text" / "demo.jsonl")
    ap.add_argument("--documents", type=int, default=20000)
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()
    rng, topics, seen = random.Random(args.seed), read_topics(HERE / "topics.txt"), set()
    with open(args.out, "w", encoding="utf-8", newline="\n") as out:
        while len(seen) < args.documents:
            text = document(rng, topics)
            if text not in seen:
                seen.add(text)
                out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
