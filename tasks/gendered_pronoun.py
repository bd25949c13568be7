"""Gendered pronouns: "So Mary is such a good cook, isn't" -> " she"."""

import random

from acdc.task import Task, Tokenizer

from .held_out import HeldOut
from .templates import Design, Fill, Pair, Rows, draw
from .words import Words

TEMPLATES = (
    "So {name} is such a good cook, isn't",
    "So {name} is such a good teacher, isn't",
    "So {name} is such a good friend, isn't",
    "So {name} is such a great singer, isn't",
    "Well, {name} is a good doctor, isn't",
    "I think {name} is really very smart, isn't",
    "I met {name} at school again last week, and",
    "I like to talk to {name} a lot because",
)
WOMEN = (
    "Alice", "Amanda", "Amy", "Angela", "Anna", "Barbara", "Betty", "Carol", "Catherine", "Charlotte", "Claire",
    "Deborah", "Diana", "Dorothy", "Elizabeth", "Ellen", "Emily", "Emma", "Fiona", "Hannah", "Heather", "Helen",
    "Jane", "Janet", "Jennifer", "Jessica", "Joan", "Julia", "Julie", "Karen", "Kate", "Laura", "Linda", "Lisa",
    "Louise", "Lucy", "Margaret", "Maria", "Marie", "Martha", "Mary", "Michelle", "Molly", "Nancy", "Nicole",
    "Olivia", "Patricia", "Rachel", "Rebecca", "Rose", "Ruth", "Sally", "Sandra", "Sara", "Sarah", "Sharon",
    "Sophia", "Sophie", "Stephanie", "Susan", "Victoria", "Wendy",
)
MEN = (
    "Aaron", "Adam", "Alan", "Albert", "Andrew", "Anthony", "Arthur", "Ben", "Benjamin", "Bill", "Bob", "Brian",
    "Bruce", "Carl", "Charles", "Christopher", "Daniel", "David", "Dennis", "Donald", "Douglas", "Edward", "Eric",
    "Frank", "Fred", "Gary", "George", "Greg", "Harold", "Harry", "Henry", "Howard", "Hugh", "Jack", "Jacob",
    "James", "Jason", "Jeff", "Jim", "Joe", "John", "Joseph", "Joshua", "Justin", "Keith", "Kenneth", "Kevin",
    "Larry", "Luke", "Mark", "Martin", "Matthew", "Michael", "Mike", "Nathan", "Nicholas", "Oliver", "Patrick",
    "Paul", "Peter", "Philip", "Ralph", "Raymond", "Richard", "Robert", "Roger", "Ronald", "Ryan", "Scott", "Simon",
    "Stephen", "Steve", "Steven", "Thomas", "Tim", "Tom", "Tony", "Victor", "Walter", "William",
)


def gendered_pronoun(tokenizer: Tokenizer, *, n: int = 32, seed: int = 0, split: str | None = None,
                     by: str | None = None, same_length: bool = True) -> Task:
    """Gendered pronouns: "So Mary is such a good cook, isn't" -> " she"; a name of the other gender when corrupted.

    Names that are mostly women's or mostly men's (in English), as many of the one as of the other where there are
    enough; the wrong answer is the other pronoun.

    Roles: name, end.

    Misleads where it is read as more than it is: what a model has learnt of names and of two pronouns.
    Source: Mathwin et al. 2023, "Identifying a Preliminary Circuit for Predicting Gendered Pronouns in GPT-2 Small".

        task = gendered_pronoun(tokenizer, n=64)
    """
    words = Words("gendered_pronoun", tokenizer, HeldOut(split, by))
    names = {"she": words.take("women's names", WOMEN), "he": words.take("men's names", MEN)}
    fewer = min(map(len, names.values()))

    def complete(fill: Fill, rng: random.Random) -> Pair:
        other = "he" if fill["pronoun"] == "she" else "she"
        return Pair({"name": rng.choice(names[other])}, answer=f" {fill['pronoun']}", wrong=f" {other}")

    design = Design(
        name="gendered_pronoun",
        description="The pronoun for a name, a name of the other gender in the corrupted prompt",
        source="Mathwin et al. 2023, Identifying a Preliminary Circuit for Predicting Gendered Pronouns in GPT-2 Small",
        roles=("name",),
        choices=(Rows(("name", "pronoun"), [(name, pronoun) for pronoun in names for name in names[pronoun][:fewer]]),),
        complete=complete,
    )
    return draw(design, TEMPLATES, words, n=n, seed=seed, same_length=same_length)
