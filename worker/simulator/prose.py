"""The words of an answer: they say that they are simulated, and follow from the arguments alone."""

from itertools import accumulate

MARK = "[simulated]"
REASONING = f"{MARK} Thinking it over, and counting the tokens that this takes."

CHARACTERS_PER_TOKEN = 4
_EXCERPT_LENGTH = 72
_SENTENCES = (
    "Let us take it step by step. ",
    "First we note what is given, then what is asked. ",
    "Each step follows from the one before it. ",
    "No model thought about this: the words only fill the length that was ordered. ",
    "The numbers are added up with care, and then added up again. ",
    "A good check is to work backwards from the end. ",
    "That agrees with what we began with. ",
    "A real answer would now surprise you a little. ",
    "So the rest is only arithmetic. ",
    "And that is all there is to it. ",
)
_FILLER = "".join(_SENTENCES)
_STARTS = (0, *accumulate(len(sentence) for sentence in _SENTENCES[:-1]))


def tokens_in(characters: int) -> int:
    """Tokens that so many characters count as: one for every four, and at least one."""
    return max(1, -(-characters // CHARACTERS_PER_TOKEN))


def write_answer(question: str, tokens: int, key: int, *, is_cut: bool) -> str:
    """An answer of about so many tokens that repeats the beginning of the question.

    It is never shorter than `MARK`. `key` chooses the words that follow. It ends with a whole
    sentence if there is room for one, or in the middle of a word if `is_cut`.
    """
    room = max(tokens * CHARACTERS_PER_TOKEN, len(MARK))
    opening = f"{MARK} You asked: {_excerpt(question)} "
    text = (opening + _filler(room - len(opening), key))[:room]
    if is_cut or room == len(MARK):
        return text
    return _ended(text, len(opening))


def _excerpt(question: str) -> str:
    words = " ".join(question[: 2 * _EXCERPT_LENGTH].split())
    if len(words) > _EXCERPT_LENGTH:
        words = words[:_EXCERPT_LENGTH].rpartition(" ")[0] + "..."
    return f'"{words}"'


def _filler(length: int, key: int) -> str:
    start = _STARTS[key % len(_STARTS)]
    rounds = max(0, start + length) // len(_FILLER) + 1
    return (_FILLER * rounds)[start : start + max(0, length)]


def _ended(text: str, opening: int) -> str:
    end_of_sentence = text.rfind(".", opening) + 1
    if end_of_sentence:
        return text[:end_of_sentence]
    whole_words = text.rpartition(" ")[0].rstrip(" ,:")
    return whole_words if whole_words.endswith((".", '"')) else whole_words + "."
