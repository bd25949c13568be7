"""Subject-verb agreement: "The teachers next to the car" -> " are"."""

import random

from acdc.errors import unknown_name
from acdc.task import Task, Tokenizer

from .held_out import HeldOut
from .templates import Design, Fill, Pair, Rows, draw
from .words import Words

TEMPLATES = {
    "simple": (
        "I know that the {subject}", "We think that the {subject}", "They say that the {subject}",
        "He said that the {subject}", "She believes that the {subject}", "You know that the {subject}",
    ),
    "relative": (
        "The {subject} that the {attractor} admired", "The {subject} that the {attractor} liked",
        "The {subject} that the {attractor} hated", "The {subject} that the {attractor} knew",
    ),
    "prepositional": (
        "The {subject} next to the {attractor}", "The {subject} close to the {attractor}",
        "The {subject} across from the {attractor}", "The {subject} in front of the {attractor}",
    ),
}
NOUNS = (
    ("actor", "actors"), ("artist", "artists"), ("author", "authors"), ("baker", "bakers"), ("banker", "bankers"),
    ("boy", "boys"), ("captain", "captains"), ("cat", "cats"), ("dancer", "dancers"), ("doctor", "doctors"),
    ("dog", "dogs"), ("driver", "drivers"), ("farmer", "farmers"), ("girl", "girls"), ("king", "kings"),
    ("lawyer", "lawyers"), ("nurse", "nurses"), ("officer", "officers"), ("painter", "painters"),
    ("parent", "parents"), ("pilot", "pilots"), ("player", "players"), ("poet", "poets"), ("prince", "princes"),
    ("scientist", "scientists"), ("singer", "singers"), ("soldier", "soldiers"), ("student", "students"),
    ("teacher", "teachers"), ("writer", "writers"),
)
VERBS = {"is": ("is", "are"), "was": ("was", "were"), "has": ("has", "have")}


SOURCE = "Linzen et al. 2016, arXiv 1611.01368; Marks et al. 2024, arXiv 2403.19647"


def subject_verb_agreement(tokenizer: Tokenizer, *, n: int = 32, seed: int = 0, split: str | None = None,
                           by: str | None = None, verb: str = "is", same_length: bool = True) -> Task:
    """Subject-verb agreement: "I know that the teachers" -> " are"; the subject's number differs when corrupted.

    `verb`: "is", "was" or "has". Half of the fillings have a plural subject; clean and corrupted subject are two forms
    of one noun; the wrong answer is the other form of the verb.

    Roles: determiner (the token before the subject), subject, end (which is the subject).

    Misleads as to what a circuit does at a distance: the subject is the last word.
    Source: Linzen et al. 2016, arXiv 1611.01368; structures as in Marks et al. 2024, arXiv 2403.19647.

        task = subject_verb_agreement(tokenizer, n=64)
    """
    words = Words("subject_verb_agreement", tokenizer, HeldOut(split, by))
    return _agreement(words, "simple", verb, n=n, seed=seed, same_length=same_length)


def agreement_relative(tokenizer: Tokenizer, *, n: int = 32, seed: int = 0, split: str | None = None,
                       by: str | None = None, verb: str = "is", same_length: bool = True) -> Task:
    """Subject-verb agreement across a relative clause: "The teachers that the king admired" -> " are".

    As `subject_verb_agreement`, with a noun between subject and verb. This *attractor* always has the other number than
    the clean subject, so that the verb must not agree with the last noun.

    Roles: determiner (the token before the subject), subject, attractor, end.

    Misleads as to the corrupted prompt: both nouns have one number there, so that agreement with either gives the same
    verb; only the clean prompts tell whether a model agrees with the subject.
    Source: Linzen et al. 2016, arXiv 1611.01368; structures as in Marks et al. 2024, arXiv 2403.19647.

        task = agreement_relative(tokenizer, n=64, verb="was")
    """
    words = Words("agreement_relative", tokenizer, HeldOut(split, by))
    return _agreement(words, "relative", verb, n=n, seed=seed, same_length=same_length)


def agreement_prepositional(tokenizer: Tokenizer, *, n: int = 32, seed: int = 0, split: str | None = None,
                            by: str | None = None, verb: str = "is", same_length: bool = True) -> Task:
    """Subject-verb agreement across a prepositional phrase: "The teachers next to the king" -> " are".

    As `agreement_relative`, with a phrase between subject and verb. The attractor is the last word, so that its role is
    `end`.

    Roles: determiner (the token before the subject), subject, attractor, end.

    Misleads as `agreement_relative` does.
    Source: Linzen et al. 2016, arXiv 1611.01368; structures as in Marks et al. 2024, arXiv 2403.19647.

        task = agreement_prepositional(tokenizer, n=64)
    """
    words = Words("agreement_prepositional", tokenizer, HeldOut(split, by))
    return _agreement(words, "prepositional", verb, n=n, seed=seed, same_length=same_length)


def _agreement(words: Words, structure: str, verb: str, *, n: int, seed: int, same_length: bool) -> Task:
    if verb not in VERBS:
        raise unknown_name(f"verb of task {words.task!r}", verb, VERBS)
    nouns = words.take_rows("nouns", NOUNS, at_least=2)
    rows = [
        (noun[number], noun[1 - number], other[1 - number], VERBS[verb][number], VERBS[verb][1 - number])
        for noun in nouns for other in nouns for number in (0, 1) if other != noun
    ]
    if structure == "simple":  # without an attractor, a row for each form of each noun
        rows = list({row[0]: row for row in rows}.values())

    def complete(fill: Fill, rng: random.Random) -> Pair:
        return Pair({"subject": fill["other number"]}, answer=f" {fill['answer']}", wrong=f" {fill['wrong']}")

    design = Design(
        name=words.task,
        description=f"Subject-verb agreement ({structure}, {verb}), the subject in the other number when corrupted",
        source=SOURCE,
        roles={"determiner": "subject-1", "subject": "subject", "attractor": "attractor"},
        choices=(Rows(("subject", "other number", "attractor", "answer", "wrong"), rows),),
        complete=complete,
        options={"verb": verb},
    )
    return draw(design, TEMPLATES[structure], words, n=n, seed=seed, same_length=same_length)
