"""Indirect object identification: "When Mary and John went to the store, John gave a drink to" -> " Mary".

The subject S occurs twice, the indirect object IO once. In the corrupted prompt the second subject is a third name:
"When Mary and John went to the store, Paul gave a drink to", which leaves nothing to tell Mary from John.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from acdc.errors import AcdcError
from acdc.task import Example, Task, Tokenizer

from .words import check_prompts_extend, single_tokens, token_ids, token_position

TEMPLATES = (
    "When {IO} and {S} went to the {PLACE}, {S} gave a {OBJECT} to",
    "After {IO} and {S} met at the {PLACE}, {S} handed a {OBJECT} to",
    "While {IO} and {S} waited at the {PLACE}, {S} passed a {OBJECT} to",
    "When {IO} and {S} came to the {PLACE}, {S} offered a {OBJECT} to",
    "As {IO} and {S} walked to the {PLACE}, {S} showed a {OBJECT} to",
    "Once {IO} and {S} arrived at the {PLACE}, {S} sold a {OBJECT} to",
    "After {IO} and {S} went to the {PLACE}, {S} lent a {OBJECT} to",
    "Because {IO} and {S} worked at the {PLACE}, {S} brought a {OBJECT} to",
    "Since {IO} and {S} lived near the {PLACE}, {S} took a {OBJECT} to",
    "While {IO} and {S} stayed at the {PLACE}, {S} sent a {OBJECT} to",
    "When {IO} and {S} stopped at the {PLACE}, {S} threw a {OBJECT} to",
    "Before {IO} and {S} drove to the {PLACE}, {S} gave a {OBJECT} to",
    "Last week {IO} and {S} bought a {OBJECT}, and {S} gave it to",
    "Yesterday {IO} and {S} found a {OBJECT}, and {S} then gave it to",
    "At the {PLACE}, {IO} and {S} argued, and then {S} said to",
    "Then, {IO} and {S} had a long talk. Later {S} said to",
    "Then, {IO} and {S} went to the {PLACE}. {S} gave a {OBJECT} to",
    "Then, {IO} and {S} had a lot of fun at the {PLACE}. {S} gave a {OBJECT} to",
    "Then, {IO} and {S} were working at the {PLACE}. {S} decided to give a {OBJECT} to",
    "While {IO} and {S} were walking to the {PLACE}, {S} gave a {OBJECT} to",
    "When {IO} and {S} got a {OBJECT} at the {PLACE}, {S} decided to give it to",
    "One day {IO} and {S} found a {OBJECT} at the {PLACE}. {S} gave it to",
    "After the lunch, {IO} and {S} went to the {PLACE}. {S} gave a {OBJECT} to",
    "The {PLACE} that {IO} and {S} visited had a {OBJECT}. {S} gave it to",
)
NAMES = (
    "Aaron", "Adam", "Alan", "Albert", "Alex", "Alice", "Amanda", "Amy", "Andrea", "Andrew", "Andy", "Angela",
    "Anna", "Anne", "Anthony", "Arthur", "Barbara", "Ben", "Benjamin", "Betty", "Bill", "Bob", "Brad", "Brandon",
    "Brian", "Bruce", "Carl", "Carol", "Caroline", "Catherine", "Charles", "Charlotte", "Chris", "Christopher",
    "Claire", "Craig", "Daniel", "David", "Deborah", "Dennis", "Diana", "Donald", "Dorothy", "Douglas", "Edward",
    "Elizabeth", "Ellen", "Emily", "Emma", "Eric", "Eva", "Fiona", "Frank", "Fred", "Gary", "George", "Gordon",
    "Graham", "Greg", "Hannah", "Harold", "Harry", "Heather", "Helen", "Henry", "Howard", "Hugh", "Ian",
    "Isabella", "Jack", "Jacob", "James", "Jamie", "Jane", "Janet", "Jason", "Jean", "Jeff", "Jennifer", "Jeremy",
    "Jessica", "Jim", "Joan", "Joe", "John", "Jonathan", "Joseph", "Joshua", "Judith", "Julia", "Julie", "Justin",
    "Karen", "Kate", "Katherine", "Kathy", "Keith", "Kelly", "Ken", "Kenneth", "Kevin", "Kim", "Kyle", "Larry",
    "Laura", "Lauren", "Lawrence", "Lee", "Leon", "Leonard", "Lewis", "Linda", "Lisa", "Louis", "Louise", "Lucas",
    "Lucy", "Luke", "Lynn", "Maggie", "Margaret", "Maria", "Marie", "Martha", "Martin", "Mary", "Matt", "Matthew",
    "Max", "Megan", "Melissa", "Michael", "Michelle", "Mike", "Molly", "Nancy", "Nathan", "Neil", "Nicholas",
    "Nick", "Nicole", "Nina", "Oliver", "Olivia", "Pamela", "Patricia", "Patrick", "Paul", "Peter", "Philip",
    "Rachel", "Ralph", "Raymond", "Rebecca", "Richard", "Rick", "Robert", "Robin", "Roger", "Ronald", "Rose",
    "Roy", "Russell", "Ruth", "Ryan", "Sally", "Sam", "Samantha", "Samuel", "Sandra", "Sara", "Sarah", "Scott",
    "Sean", "Sharon", "Simon", "Sophia", "Sophie", "Stephanie", "Stephen", "Steve", "Steven", "Stuart", "Susan",
    "Teresa", "Terry", "Thomas", "Tim", "Timothy", "Todd", "Tom", "Tony", "Tyler", "Vanessa", "Victor",
    "Victoria", "Vincent", "Virginia", "Walter", "Wendy", "William", "Zachary",
)
PLACES = (
    "store", "school", "park", "library", "museum", "restaurant", "hospital", "office", "garden", "beach",
    "market", "station", "church", "theater", "airport", "hotel", "bank", "farm", "zoo", "gym", "house", "city",
    "shop", "bakery", "cafe", "mall", "studio", "club", "stadium", "university", "bridge", "pool", "lake",
)
OBJECTS = (  # all begin with a consonant: the templates say "a"
    "drink", "book", "ring", "letter", "gift", "ball", "basket", "necklace", "computer", "snack", "ticket", "pen",
    "phone", "camera", "map", "key", "toy", "hat", "coin", "card", "cake", "cup", "flower", "present", "bottle",
    "box", "watch", "painting", "photo", "guitar", "jacket", "lamp", "knife", "sandwich", "newspaper", "pencil",
    "bag", "blanket", "candle", "cookie", "drum", "mirror", "note", "puzzle", "scarf", "violin",
)
SLOT = re.compile(r"\{(IO|S|PLACE|OBJECT)\}")


def ioi(tokenizer: Tokenizer, *, n: int = 32, seed: int = 0, templates: Sequence[str] = TEMPLATES,
        names: Sequence[str] = NAMES, same_length: bool = True) -> Task:
    """Indirect object identification: "When Mary and John went to the store, John gave a drink to" -> " Mary".

    Names, places and objects that are not single tokens for `tokenizer` are left out (`provenance` lists them), so
    all prompts of a template have one length. With `same_length`, only the templates of the commonest length are
    used (the shortest of a tie): every prompt then fits into the same batch. Half of the examples are ABBA (IO
    first), half BABA, and templates take turns; no clean prompt occurs twice.

    A template holds {IO} and {S} in either order, then {S} again, each after a space, and may hold {PLACE} and
    {OBJECT}; it ends where the answer begins. The other order is derived from it.

    Roles: IO, S1, S1+1 (the token after S1), S2, end. S2 is the only position where clean and corrupted differ.

    Misleads where a model prefers one name whatever the prompt says: read the metric over many prompts.
    Source: Wang et al. 2022, arXiv 2211.00593.

        task = ioi(tokenizer, n=100)
        batches = task.batches(tokenizer)
    """
    check_prompts_extend(tokenizer)
    words = _Words(_usable(tokenizer, "names", names, at_least=3), _usable(tokenizer, "places", PLACES),
                   _usable(tokenizer, "objects", OBJECTS))
    if not templates:
        raise AcdcError("ioi needs at least one template, such as 'When {IO} and {S} met, {S} waved to'; none given")
    orders = dict.fromkeys(_orders(template) for template in templates)
    pairs = [tuple(_Wording(tokenizer, order, words) for order in pair) for pair in orders]
    by_length: dict[int, list[tuple[_Wording, ...]]] = {}
    for pair in pairs:
        by_length.setdefault(pair[0].length, []).append(pair)
    if same_length:
        pairs = by_length[min(by_length, key=lambda length: (-len(by_length[length]), length))]
    rng = random.Random(seed)
    drawn = _draw(pairs, n, same_length, rng)
    lengths = sorted({pair[0].length for pair in pairs})
    return Task(
        name="ioi",
        examples=tuple(wording.example(tokenizer, number, rng) for wording, number in drawn),
        description=(
            "Indirect object identification, ABBA and BABA, the second subject replaced by a third name; "
            f"{' or '.join(map(str, lengths))} tokens a prompt; {len(words.names)} of {len(names)} names are single "
            "tokens and used"
        ),
        source="Wang et al. 2022, arXiv 2211.00593",
        provenance={
            "builder": "ioi", "n": n, "seed": seed, "same_length": same_length,
            "templates": [pair[0].template for pair in pairs], "names": list(words.names),
            "dropped": {"names": [name for name in names if name not in words.names],
                        "places": [place for place in PLACES if place not in words.places],
                        "objects": [obj for obj in OBJECTS if obj not in words.objects]},
        },
    )


@dataclass(frozen=True)
class _Words:
    """The words that are single tokens, with their tokens."""

    names: dict[str, int]
    places: dict[str, int]
    objects: dict[str, int]


class _Wording:
    """One template in one order, for one tokenizer: where its names stand, and its prompts, numbered."""

    def __init__(self, tokenizer: Tokenizer, template: str, words: _Words) -> None:
        self.template = template
        self.tokens = words.names
        self.names, self.places, self.objects = list(words.names), list(words.places), list(words.objects)
        # A slot that the template lacks has one filling, which is not read.
        self.n_places = len(self.places) if "{PLACE}" in template else 1
        self.n_objects = len(self.objects) if "{OBJECT}" in template else 1
        self.n_prompts = len(self.names) * (len(self.names) - 1) * self.n_places * self.n_objects
        fill = {"IO": self.names[0], "S": self.names[1], "PLACE": self.places[0], "OBJECT": self.objects[0]}
        prompt, starts = _render(template, fill, fill["S"])
        self.length = len(token_ids(tokenizer, prompt))
        at = {role: token_position(tokenizer, prompt, starts[role], fill[slot])
              for role, slot in (("IO", "IO"), ("S1", "S"), ("S2", "S"))}
        self.roles = {"IO": at["IO"], "S1": at["S1"], "S1+1": at["S1"] + 1, "S2": at["S2"],
                      "end": self.length - 1}

    def example(self, tokenizer: Tokenizer, number: int, rng: random.Random) -> Example:
        """The example with clean prompt `number`; the third name is drawn."""
        number, obj = divmod(number, self.n_objects)
        number, place = divmod(number, self.n_places)
        io, s = divmod(number, len(self.names) - 1)
        s += s >= io  # numbers the names other than IO
        fill = {"IO": self.names[io], "S": self.names[s], "PLACE": self.places[place],
                "OBJECT": self.objects[obj]}
        third = rng.choice([name for name in self.names if name not in (fill["IO"], fill["S"])])
        clean, corrupted = (self._prompt(tokenizer, fill, s2) for s2 in (fill["S"], third))
        return Example(clean, corrupted, f" {fill['IO']}", f" {fill['S']}", self.template, dict(self.roles))

    def _prompt(self, tokenizer: Tokenizer, fill: Mapping[str, str], s2: str) -> str:
        """The prompt, checked to be as long as its template's others and to have its names where the roles say."""
        prompt, _ = _render(self.template, fill, s2)
        ids = token_ids(tokenizer, prompt)
        expected = {self.roles["IO"]: fill["IO"], self.roles["S1"]: fill["S"], self.roles["S2"]: s2}
        if len(ids) != self.length or any(ids[at] != self.tokens[name] for at, name in expected.items()):
            raise AcdcError(
                f"this tokenizer splits {prompt!r} otherwise than the other prompts of its template: into "
                f"{[tokenizer.decode([i]) for i in ids]}, where {self.length} tokens are expected and, by position, "
                f"{expected}. Leave out that template or those names"
            )
        return prompt


def _orders(template: str) -> tuple[str, str]:
    """The template with the indirect object first (ABBA) and with the subject first (BABA)."""
    texts, slots = SLOT.split(template)[::2], SLOT.findall(template)
    people = [slot for slot in slots if slot in ("IO", "S")]
    if (
        people not in (["IO", "S", "S"], ["S", "IO", "S"])
        or not texts[0].strip()
        or not all(text.endswith(" ") for text in texts[:-1])
        or template.endswith(" ")
        or any(brace in text for text in texts for brace in "{}")
    ):
        raise AcdcError(
            f"template {template!r} cannot be used. It must hold {{IO}} and {{S}} in either order, then {{S}} "
            "once more; it may hold {PLACE} and {OBJECT}. It must begin with a word, have a space before each slot "
            "and end without one, such as 'When {IO} and {S} met, {S} waved to'"
        )
    swapped = template.replace("{IO}", "{}").replace("{S}", "{IO}", 1).replace("{}", "{S}")
    return (template, swapped) if people[0] == "IO" else (swapped, template)


def _render(template: str, fill: Mapping[str, str], s2: str) -> tuple[str, dict[str, int]]:
    """The prompt, and the character at which each of its words begins: IO, S1, S2, ..."""
    prompt, starts = "", {}
    for i, part in enumerate(SLOT.split(template)):
        if i % 2 == 0:
            prompt += part
            continue
        role = part if part != "S" else "S2" if "S1" in starts else "S1"
        starts[role] = len(prompt)
        prompt += s2 if role == "S2" else fill[part]
    return prompt, starts


def _draw(pairs: Sequence[tuple[_Wording, ...]], n: int, same_length: bool,
          rng: random.Random) -> list[tuple[_Wording, int]]:
    """`n` distinct prompts as (wording, number): orders alternate, templates take turns until they run out."""
    wordings = [wording for pair in rng.sample(pairs, len(pairs)) for wording in pair]
    possible = sum(wording.n_prompts for wording in wordings)
    if not 1 <= n <= possible:
        remedy = "; same_length=False uses templates of all lengths" if same_length and n > possible else ""
        raise AcdcError(f"cannot make {n:,} different ioi examples: ask for 1 to {possible:,}{remedy}")
    used = [0] * len(wordings)
    turns: list[int] = []
    while len(turns) < n:
        free = [i for i, wording in enumerate(wordings) if used[i] < wording.n_prompts][: n - len(turns)]
        for i in free:
            used[i] += 1
        turns += free
    numbers = [iter(rng.sample(range(w.n_prompts), k)) for w, k in zip(wordings, used, strict=True)]
    return [(wordings[i], next(numbers[i])) for i in turns]


def _usable(tokenizer: Tokenizer, kind: str, words: Sequence[str], at_least: int = 1) -> dict[str, int]:
    tokens = single_tokens(tokenizer, words)
    if len(tokens) < at_least:
        split = [word for word in words if word not in tokens]
        raise AcdcError(
            f"ioi needs {at_least} or more {kind} that are single tokens after a space; this tokenizer has "
            f"{len(tokens)} of {len(words)} (not {', '.join(split[:9])}{', ...' if len(split) > 9 else ''}). "
            f"{'Pass other names, or give' if kind == 'names' else 'Give'} the prompts as a file"
        )
    return tokens
