"""What the sentence rules know by heart: abbreviations, words that begin sentences, the punctuation of many scripts."""

# ruff: noqa: RUF001  # the marks of many scripts look alike

from __future__ import annotations

__all__ = [
    "CLOSERS",
    "DOES_NOT_END",
    "ENDS_BEFORE_STARTER",
    "MONTHS",
    "NEEDS_NUMBER",
    "OPENERS",
    "SPACED_END",
    "STARTERS",
    "WIDE_END",
]


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


SPACED_END = ".!?…‼⁇⁈⁉‽؟۔։"
"""Marks that end a sentence where white space follows."""

WIDE_END = "。｡．！？।॥።፧፨។៕။"
"""Marks that end a sentence with or without white space after it."""

CLOSERS = "\"'”’»›)]}」』）】》〉｣＂*_`\u0301\ufe0e\ufe0f\u200d"
"""What may stand between a sentence's mark and its end: quotes, brackets, emphasis, what joins onto the mark."""

OPENERS = "\"'“‘„‚«‹([{¿¡「『（【《〈｢*_`"
"""What may stand before a sentence's first word."""

DOES_NOT_END = _words(
    """
    mr mrs ms mx dr prof rev fr hon pres gov sen rep supt det insp capt cmdr cpl col lt maj sgt gen adm pvt brig messrs
    mme mlle mgr st ste mt e.g i.e cf vs viz ca approx resp incl excl eq eqs fig figs pron
    fru frl bzw bspw vgl evtl ggf inkl zzgl sog sra srta dra dott avv
    """
)
"""Abbreviations, lower-cased, after which the sentence goes on."""

NEEDS_NUMBER = _words(
    """
    no nos nr num ref refs n° núm vol vols p pp pg pgs sec secs sect ch chap art arts para paras pt pts ex exs tab tbl
    app div ed eds bd bde abb abs anm kap s f ff nº op ver rev v cap
    """
)
"""Abbreviations after which the sentence goes on if a number or a Roman numeral follows."""

ENDS_BEFORE_STARTER = _words(
    """
    inc ltd co corp bros llc plc assn dept univ est govt admin natl intl jr sr esq etc al ibid ave blvd rd hwy apt bldg
    jan feb apr aug sep sept oct nov dec tue tues thu thur thurs fri
    min max avg hrs hr mins secs lbs lb oz ft tel ext orig transl trans illus repl misc usw u.a d.h z.b ph.d m.d b.a m.a
    calif colo conn fla kan mich minn mont neb nev okla penn tenn tex wis wyo
    """
)
"""Abbreviations that may end a sentence: they do if a word follows that begins sentences."""

STARTERS = _words(
    """
    The A An This That These Those It Its He She They We You I In On At By For From With Without Within As After Before
    When While Where Although Though However But And Or Nor So Then There Here If Since Because During Despite Until
    His Her Their Our My Your What Who Whose Why How Which Some Many Most Several Other Others Another Each Every Both
    All Also According Among Between Under Over About Against Into Through Throughout Today Later Earlier Meanwhile
    Moreover Furthermore Additionally Thus Therefore Hence Instead Finally First Second Third Once Only Even Such
    Unlike Like Following Now Yet Not No Nothing Nobody One Two Three To Of Upon Whether Are Is Was Were Do Does Did Can
    Der Die Das Den Dem Ein Eine Einen Es Er Sie Wir Ihr Im Am Mit Nach Bei Auch Aber Und Doch Dort Dann Diese Dieser
    Le La Les Un Une Des Il Elle Ils Elles On Nous Vous Ce Cette Ces Dans Pour Par Mais Puis Ainsi
    El Los Las Una Unos En Por Para Pero Con Se Su Sus Este Esta Lo Gli I È Nel Nella Questo Questa O Os As Um Uma Em
    """
)
"""Words that, with a capital, seldom stand elsewhere than at the beginning of a sentence."""

MONTHS = _words(
    """
    Januar Jänner Februar März April Mai Juni Juli August September Oktober November Dezember Jahrhundert Jahrhunderts
    """
)
"""German nouns before which `3.` is an ordinal."""
