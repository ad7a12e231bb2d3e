"""What transcripts hold beside words: tags of sounds, and names of who speaks. Nobody says them, so they come out.

Out come what stands in angle or square brackets (`<unk>`, `[laughter]`, `<|en|>`), sounds by their usual names in
other brackets or between asterisks (`(laughs)`, `{breath}`, `*coughs*`), and labels of speakers (`Speaker 1:`,
`SPEAKER_00:`; `Interviewer:` and the speaker's own name where a line begins). Words in parentheses stay: people say
them. Brackets within a word stay, too (`colo[u]r`).
"""

import re

SOUNDS = (
    r"laugh(?:s|ter|ing)?|chuckl(?:es?|ing)|giggl(?:es?|ing)|noises?|music|applause|clapping|cough(?:s|ing)?|"
    r"sigh(?:s|ing)?|breath(?:s|es?|ing)?|inhal(?:es?|ing)|exhal(?:es?|ing)|gasps?|sniff(?:s|les?|ing)?|"
    r"sneez(?:es?|ing)|clears? throat|throat clear(?:s|ing)|lip ?smacks?|silence|pauses?|inaudible|unintelligible|"
    r"indistinct|unclear|cross ?talk|beeps?|clicks?|static|foreign language|speaks? foreign language"
)
QUALIFIED = rf"(?:(?:background|crowd|audience|long|short|brief|soft|loud) )?(?:{SOUNDS})(?: playing| softly| loudly)?"
TAG = re.compile(
    r"<\|[^<>]*\|>|</?[^\W\d_][^<>]{0,60}>|"  # not "2 < 3"
    r"[\[［【]+[^\[\]［］【】]{4,}[\]］】]+|(?<!\w)[\[［【]+[^\[\]［］【】]*[\]］】]+(?!\w)|"
    rf"[({{*（]+ *(?:{QUALIFIED}) *[)}}*）]+",
    re.IGNORECASE,
)
TAGS = re.compile(rf"(?:(?:{TAG.pattern})\s*)+", re.IGNORECASE)
ROLES = "speaker|spkr?|participant|interviewer|interviewee|respondent|moderator|narrator|announcer|host|guest|caller"
LABEL = re.compile(
    rf"(?<!\S)(?:{ROLES})(?:[ _#-]*\d+|[ _-][a-z]) ?(?:\(\d[\d:.]*\) ?)?:\s*|"  # numbered, wherever it stands
    rf"^[ \t]*(?:{ROLES}) ?:\s*",
    re.IGNORECASE | re.MULTILINE,
)
MARKS = frozenset("<[［【({*（:")  # a text with none of them has neither tags nor labels
CLOSING = ".,;:!?…"


def without_tags(text: str, speaker: str = "") -> tuple[str, tuple[str, ...]]:
    """A transcript without what nobody says in it.

    Args:
        text: As it was written.
        speaker: Whose name, with a colon, may begin a line.

    Returns:
        The words, and what was taken out, in order: tags first, then labels. A text without any is returned as it is.

    >>> without_tags("Speaker 1: well [laughter], I <unk> know")
    ('well, I know', ('[laughter]', '<unk>', 'Speaker 1:'))
    """
    if MARKS.isdisjoint(text):
        return text, ()
    found: list[str] = []
    words, done = "", 0
    for match in TAGS.finditer(text):
        found += TAG.findall(match[0])
        words += text[done : match.start()].rstrip()
        done = match.end()
        words += "" if text[done : done + 1] in (*CLOSING, "") else " "
    words += text[done:]
    if found:
        words = words.lstrip(f"{CLOSING} ")

    def label(match: re.Match[str]) -> str:
        found.append(match[0].strip())
        return ""

    if ":" in words:
        words = LABEL.sub(label, words)
    if ":" in words and any(map(str.isalpha, speaker)):
        words = re.sub(rf"^[ \t]*{re.escape(speaker.strip())} ?:\s*", label, words, flags=re.IGNORECASE | re.MULTILINE)
    return (words.strip(), tuple(found)) if found else (text, ())


def is_tag(label: str) -> bool:
    """Whether a word of an alignment is none, but a tag.

    >>> is_tag("[laughter]"), is_tag("laughter")
    (True, False)
    """
    return TAG.fullmatch(label) is not None
