"""Acronyms: "The Chief Executive Officer (C.E." -> "O"."""

import random

from acdc.task import Task, Tokenizer

from .held_out import HeldOut
from .templates import Design, Different, Fill, Pair, draw
from .words import Words

TEMPLATES = (
    "The {word1} {word2} {word3} ({letter1}.{letter2}.",
    "A {word1} {word2} {word3} ({letter1}.{letter2}.",
    "My {word1} {word2} {word3} ({letter1}.{letter2}.",
    "Our {word1} {word2} {word3} ({letter1}.{letter2}.",
    "This {word1} {word2} {word3} ({letter1}.{letter2}.",
    "Their {word1} {word2} {word3} ({letter1}.{letter2}.",
)
WORDS = (
    "Academy", "Action", "Agency", "Area", "Art", "Bank", "Board", "Book", "Business", "Center", "Central", "Chief",
    "City", "Climate", "College", "Community", "Council", "Data", "Department", "Design", "Digital", "Education",
    "Energy", "Environmental", "European", "Executive", "Family", "Federal", "Film", "Food", "Fund", "General",
    "Global", "Government", "Group", "Health", "History", "Home", "House", "Human", "Image", "Industry",
    "Information", "Institute", "International", "Island", "Journal", "Justice", "Kingdom", "Labor", "Land",
    "Language", "Law", "Library", "Local", "Management", "Market", "Medical", "Museum", "Music", "National",
    "Network", "New", "Office", "Open", "Organization", "Park", "People", "Power", "Program", "Public", "Quality",
    "Radio", "Research", "Review", "River", "Safety", "School", "Science", "Security", "Service", "Social", "State",
    "System", "Technology", "Time", "Trade", "Union", "United", "University", "Valley", "Video", "Village",
    "Visual", "Water", "Women", "World", "Yellow", "Young", "Youth",
)


def acronym(tokenizer: Tokenizer, *, n: int = 32, seed: int = 0, split: str | None = None, by: str | None = None,
            same_length: bool = True) -> Task:
    """Acronyms: "The Chief Executive Officer (C.E." -> "O"; the third word is another in the corrupted prompt.

    Three nouns or adjectives drawn by chance, which make no name that a model knows. The
    wrong answer is the initial of the corrupted prompt's third word.

    Roles: word1, word2, word3, letter1, letter2, end.

    Differs from the paper: a point follows each letter, because most tokenizers join letters without one ("CE"), and
    then which tokens are read and predicted depends on the letters.
    Source: García-Carrasco et al. 2024, arXiv 2405.04156.

        task = acronym(tokenizer, n=64)
    """
    words = Words("acronym", tokenizer, HeldOut(split, by))
    nouns = words.take("words", WORDS, at_least=4)

    def complete(fill: Fill, rng: random.Random) -> Pair:
        used, initial = {fill["word1"], fill["word2"]}, fill["word3"][0]
        other = rng.choice([word for word in nouns if word[0] != initial and word not in used])
        return Pair({"word3": other}, answer=initial, wrong=other[0])

    slots = tuple((f"word{i}", f"letter{i}") for i in (1, 2, 3))
    design = Design(
        name="acronym",
        description="The third letter of an acronym, another third word in the corrupted prompt",
        source="García-Carrasco et al. 2024, arXiv 2405.04156",
        roles=("word1", "word2", "word3", "letter1", "letter2"),
        choices=(Different(slots, [(word, word[0]) for word in nouns]),),
        complete=complete,
    )
    return draw(design, TEMPLATES, words, n=n, seed=seed, same_length=same_length)
