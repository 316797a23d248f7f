"""The words that decide what a sentence claims, by kind, with some of other languages.

Each is looked up word by word, in lower case: no pattern backtracks over an answer.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def verbal(word: str) -> bool:
    """Whether a word may be the verb of a sentence: a known one, or by its ending."""
    if word in VERBS or word in PAST or not word.isascii():
        return True
    return len(word) > 3 and word.endswith(("s", "ed")) and word not in _NO_VERBS


# With one of these anywhere, nobody vouches for the value.
DOUBT = _words(
    "maybe perhaps possibly probably presumably supposedly guess guesses guessing guessed unsure "
    "uncertain unclear doubt doubtful dunno idk whether unless otherwise depends depending except "
    "excluding unable unsolvable unanswerable anyone's random randomly excluded excludes ruled "
    "let speculate hypothetically insufficient indeterminate undetermined possibility suppose "
    "supposing assume assuming sorry arguably hopefully allegedly conceivably hmm tentative "
    "tentatively if n/a na peut-être pourrait devine vielleicht könnte vermutlich wahrscheinlich "
    "quizás quizá acaso podría probablemente peut-etre quizas podria forse talvez peutêtre "
    "возможно может наверное"
)
# Doubts in work before the answer, which may suppose, except and ask "if" and still be sure.
UNSURE = _words(
    "maybe perhaps possibly probably guess guessing unsure uncertain dunno idk sorry vielleicht "
    "quizás talvez forse peut-être"
)
NEGATION = _words(
    "not no never neither nor cannot none nothing without ain't non pas ne nicht kein keine "
    "keinen nie não nunca tampoco niemals jamais не нет"
)
# Before the value, or between the copula and the value, these make it a bound.
BOUND = _words(
    "least most than over under above below exceeding exceeds exceed beyond between within around "
    "about approximately roughly nearly almost circa ca approx approximate near close estimate "
    "estimated estimates estimating from outside inside upwards barely slightly bounded limited "
    "capped such instance ruled out including includes include nearest multiple multiples factor "
    "divisible either-or environ moins plus entre presque supérieur inférieur ungefähr etwa "
    "mindestens höchstens zwischen weniger mehr rund knapp über unter aproximadamente alrededor "
    "menos más mas mayor menor unos casi cerca almeno meno più oltre около примерно более менее "
    "больше меньше hasta jusqu'à bis maximal minimal"
)
# The value is only what something is done to: "the square of 5", "5 squared".
OPERATIONS = _words(
    "square cube root twice half double triple thrice third quarter reciprocal inverse factorial "
    "logarithm log power sum product difference quotient plus times"
)
OPERATED = _words(
    "squared cubed factorial divided doubled tripled halved plus minus multiplied modulo mod "
    "halves thirds fourths fifths sixths sevenths eighths ninths tenths"
)
# What a value is said to be where it is claimed: "5 is the answer".
SUBJECTS = _words(
    "answer solution result total value number sum amount correct right left remaining maximum "
    "minimum smallest largest least greatest needed required final what"
)
# A value after these alone, without a verb, is claimed: "the total: 5", "so only $5", "on day 5".
OPENERS = _words(
    "a the an so therefore thus hence then and finally final answer result total sum solution "
    "value only exactly just precisely in all of altogether overall it's that's there's here's "
    "he's she's they're there're here on for day days year or minus negative plus both either "
    "about approximately approx roughly around ca environ ungefähr circa area volume length width "
    "height perimeter probability profit cost price number amount average mean median speed "
    "distance time age ratio loss gain usd eur dollars dollar euros ans grand my your our correct "
    "leaving giving making getting yielding with simplifying solving conclusion end integer "
    "namely in en au de somme suma insgesamt thousand million return réponse antwort respuesta "
    "risposta resposta donc also entonces luego quindi portanto yes ok okay well now we i up down "
    "answer's january february march april may june july august september october november "
    "december"
)
# Verbs of the past that no ending shows.
PAST = _words(
    "ran won found read ate drank drove rode wrote lost left brought bought caught taught thought "
    "grew drew threw flew knew saw sang swam began gave did built sent lent met led fed cut put "
    "set hit let shot stood understood told slept kept swept walked became came went picks eat "
    "eat drink run walk drive ride write lose leave bring buy catch draw throw fly know see do "
    "build send keep become come go obtain find reach conclude reduce save score work read divide "
    "add collect include return must should"
)
_NO_VERBS = _words(
    "besides less plus minus times versus perhaps always towards afterwards hundred indeed need "
    "regardless nevertheless nonetheless this thus previous hers ours whereas"
)
# The value is what they speak of: "5 fails", "5 seems off", "5 comes close".
PREDICATES = _words(
    "fails fail failed seems seem seemed looks appears appeared sounds feels felt comes came goes "
    "went lacks contradicts violates exceeds breaks misses lies"
)
# A verb that does not claim what follows it: "I rejected 5", "Bob says 5".
REJECTING = _words(
    "considered tried rejected rejects reject deny denies denied fail fails failed said says say "
    "claims claimed suggests suggested ignored ignores excluded discarded avoids avoided"
)
FAILING = _words("fails fail failed failing refuses ceases ceased unlikely hard supposed ought")
MODALS = _words("may might could can")
# A number after one of these is a name.
LABELS = _words(
    "part parts equation equations eq eqn eqs step steps room floor page pages chapter option "
    "choice choose pick case question problem exercise example figure fig table line row column "
    "section theorem lemma corollary proposition method approach formula hint note ref reference "
    "appendix task item point scenario statement condition rule attempt try candidate guess "
    "version model type group team player bus track platform gate lane route level grade class "
    "unit module volume paragraph article clause subsection definition remark see factor error "
    "errors code suite apartment building house schritt teil étape partie paso parte gleichung "
    "équation ecuación"
)
# Between one of these and the copula a negation speaks of things, not of the claim: "the number
# of students who do not play is 12".
RELATIVE = _words("who which that of where whose with for in when to")
# Beside a negation before the copula: the claim is what is denied.
DISOWNED = _words(
    "true think thinks believe say says said sure know knows correct right case possible certain "
    "claim claims convinced wrong false incorrect untrue mistaken unlikely impossible"
)
EXTREMES = _words("minimum maximum min max")
# After the value: how sure one is, or that it is a bound ("5 at a minimum").
TAKEN_BACK = _words("sure certain confident confidence minimum maximum attempts tries")
FALSE = _words("wrong false incorrect untrue mistaken unlikely impossible")
# Between the values of a list.
SEPARATORS = _words("and or & et und y ou oder o e both either 和 及 或 与")
COPULAS = _words(
    "is are was were equals equal be equalling totals est sont ist sind es son vale beträgt "
    "ergibt vaut égale entspricht lautet è igual"
)
# A second claim after one of these is the conclusion of the first.
CONCLUDING = _words("so thus hence therefore then since because given as which whose")
# What follows one of these in a sentence is drawn from what is before it.
DRAWN = _words("so thus hence therefore then finally meaning leaving leaves making makes totaling")
CONSEQUENT = _words("so thus hence therefore")
# A counted noun after one of these is where, when or for what something is: "in 2 hours".
PLACING = _words(
    "in after for of per on at with from during every each past to until till before without"
)
DEFINITE = _words("the these those this its his her their my our all both")
# Between a subject and what is said of it.
VERBS = COPULAS | _words(
    "has have had costs cost pays pay paid makes make made takes take took needs need needed gets "
    "get got earns earn earned spends spend spent sells sell sold weighs weigh weighed uses use "
    "used gives give gave buys buy bought eats eat ate drives drive drove travels travel traveled "
    "receives receive received owes owe holds hold held contains contain produces produce will"
)
# A value right after one of these is claimed, even beside an equation.
CLAIMING = COPULAS | DRAWN | _words("and or but not answer equals rather instead say")
CONTRAST = _words("but rather instead which it's sondern sino mais 而是")
ABOUT = _words("about approximately approx approx. roughly around circa ca environ ungefähr")
# Words after a number that make it another number.
MAGNITUDES = _words(
    "hundred thousand million billion trillion dozen score gross pair half percent pct quarter "
    "third tenth k bn mn"
)
# What follows a value's noun: "12 marbles left".
TAIL_ENDS = _words(
    "left remaining in of for on to altogether total each every at after when because that which "
    "who from with so since as has have is are was were more long old tall away ago apart wide "
    "high deep together by be would will if over overall exactly only"
)
# Letters in a row that are a name in a formula.
FUNCTIONS = _words(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp max min lim gcd lcm "
    "mod det dim ker deg arg inf sup sqrt pi infty infinity"
)
# Words of two and three letters that stand beside a sign without being a product: "2 and -2".
SHORT = _words(
    "and or is are to of in by at for no not the an on per than was so but we it if as out has "
    "had get all any be et und ou est ist es son non el la le une un los das der die sum he she"
)
ARTICLES = _words("a an the of by in on at it is are was were its")
JOINERS = _words("and or & plus et und y ou oder o e 和 及 或 与")
ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)
TENS = ("thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred")
MONTHS = (
    *("january", "february", "march", "april", "june", "july", "august", "september"),
    *("october", "november", "december"),
)
