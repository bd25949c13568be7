"""Indirect object identification: "When Mary and John went to the store, John gave a drink to" -> " Mary".

The subject S occurs twice, the indirect object IO once. In the corrupted prompt the second subject is a third name:
"When Mary and John went to the store, Paul gave a drink to", which leaves nothing to tell Mary from John.
"""

import random
from collections.abc import Sequence

from acdc.errors import AcdcError
from acdc.task import Task, Tokenizer

from .held_out import HeldOut
from .templates import SLOT, Design, Different, Fill, Pair, Rows, draw
from .words import Words

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
def ioi(tokenizer: Tokenizer, *, n: int = 32, seed: int = 0, split: str | None = None, by: str | None = None,
        templates: Sequence[str] = TEMPLATES, names: Sequence[str] = NAMES, same_length: bool = True) -> Task:
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
    words = Words("ioi", tokenizer, HeldOut(split, by))
    people = words.take("names", names, at_least=3, option="names")

    def complete(fill: Fill, rng: random.Random) -> Pair:
        third = rng.choice([name for name in people if name not in (fill["IO"], fill["S"])])
        return Pair({"S2": third}, answer=f" {fill['IO']}", wrong=f" {fill['S']}")

    design = Design(
        name="ioi",
        description="Indirect object identification, ABBA and BABA, the second subject replaced by a third name",
        source="Wang et al. 2022, arXiv 2211.00593",
        roles=("IO", "S1", "S1+1", "S2"),
        choices=(
            Different(("IO", "S"), people),
            Rows(("PLACE",), [(place,) for place in words.take("places", PLACES)]),
            Rows(("OBJECT",), [(thing,) for thing in words.take("objects", OBJECTS)]),
        ),
        complete=complete,
    )
    return draw(design, [_orders(template) for template in templates], words, n=n, seed=seed, same_length=same_length)


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
        or not set(slots) <= {"IO", "S", "PLACE", "OBJECT"}
    ):
        raise AcdcError(
            f"template {template!r} cannot be used. It must hold {{IO}} and {{S}} in either order, then {{S}} "
            "once more; it may hold {PLACE} and {OBJECT}. It must begin with a word, have a space before each slot "
            "and end without one, such as 'When {IO} and {S} met, {S} waved to'"
        )
    swapped = template.replace("{IO}", "{}").replace("{S}", "{IO}", 1).replace("{}", "{S}")
    return (template, swapped) if people[0] == "IO" else (swapped, template)
