"""A conversation at the counter of a lost property office, as data for `minillm.statistical.eliza`."""

from minillm.statistical.eliza import Keyword, Rule, Script

REFLECTIONS = {
    "i am": "you are",
    "i'm": "you are",
    "i was": "you were",
    "i've": "you have",
    "i'd": "you would",
    "i'll": "you will",
    "am i": "are you",
    "was i": "were you",
    "you are": "I am",
    "you're": "I am",
    "you were": "I was",
    "you have": "I have",
    "are you": "am I",
    "i": "you",
    "me": "you",
    "my": "your",
    "mine": "yours",
    "myself": "yourself",
    "your": "my",
    "yours": "mine",
    "yourself": "myself",
    "to you": "to me",
    "for you": "for me",
    "about you": "about me",
    "from you": "from me",
    "with you": "with me",
    "you": "I",
}

KEYWORDS = (
    Keyword("lost", 10, (
        Rule("* my * lost", ("Since when is your {2} lost?",), ("You spoke of your {2}. What was it like?",)),
        Rule("* lost my *", (
            "Your {2}, I see. Where did you last have it in your hand?",
            "And your {2}: was there a name in it?",
        ), ("Let us come back to your {2}. Who else has touched it?",)),
        Rule("* lost *", ("What would you do if {2} came back today?", "Are you sure it was lost, and not left?")),
    )),
    Keyword("forgot", 9, (
        Rule("* i forgot *", ("How did you notice that you forgot {2}?", "Do you often forget things like {2}?")),
    )),
    Keyword("left", 8, (
        Rule("* i left * in|on|at the *", (
            "People leave many things in the {3}. Did you go back to it?",
            "Who was with you in the {3}?",
        ), ("I am still thinking of the {3}. What did it look like there?",)),
        Rule("* i left *", ("Where would {2} go without you?",)),
    )),
    Keyword("found", 8, (
        Rule("* have you found *", ("What would it mean if I had found {2}?",)),
        Rule("* found *", ("Finding is the easier half. Who shall have {2} now?",)),
    )),
    Keyword("stole", 7, (
        Rule("* stole *", ("Why would {1} need {2}?", "Did you see it with your own eyes?")),
    )),
    Keyword("remember", 6, (
        Rule("* i don't|cannot|can't remember *", ("Begin with the weather. What was the day like?",)),
        Rule("* do you remember *", ("I remember what is written down. Tell me about {2}.",)),
        Rule("* i remember *", ("What else comes back with {2}?", "Was {2} before or after it was gone?")),
    )),
    Keyword("sorry", 6, (
        Rule("*", ("Nobody is sorry at this counter. Go on.", "It is only a thing. Or is it more than that?")),
    )),
    Keyword("my", 4, (
        Rule("* my mother|father|sister|brother|wife|husband|daughter|son *", (
            "So it runs in the family. Did the others lose things too?",
            "What does your family say about it?",
        )),
        Rule("* my *", (
            "Your {2}. Can you describe that more closely?",
            "How long has it been your {2}?",
        ), ("Earlier you said: your {2}. Has that to do with it?",)),
    )),
    Keyword("because", 3, (
        Rule("* because *", ("Would it still be gone if not {2}?", "Is that the whole reason?")),
    )),
    Keyword("i'm", 3, (
        Rule("* i'm *", ("Since when are you {2}?", "Are many people {2}, do you think?")),
    )),
    Keyword("am", 3, (
        Rule("* i am *", ("Since when are you {2}?", "Are many people {2}, do you think?")),
    )),
    Keyword("are", 2, (
        Rule("* are you *", ("Would it help you if I were {2}?", "I am whatever is written on the door. {2}?")),
        Rule("* you are *", ("What makes you think that I am {2}?",)),
    )),
    Keyword("you", 1, (
        Rule("* can|could you *", ("I can look. Whether I can {2} is another matter.",)),
        Rule("* you * me", ("How would I {2} you from behind a counter?",)),
        Rule("* i * you", ("What makes you {2} me?", "Do you {2} everybody who asks questions?")),
    )),
    Keyword("yes", 0, (Rule("*", ("Good. I write that down.", "And then?")),)),
    Keyword("no", 0, (Rule("*", ("No is also an answer. What would have been a yes?", "Then what was it?")),)),
    Keyword("hello", 0, (Rule("*", ("Good evening. What is missing?",)),)),
    Keyword("goodbye", 20, (Rule("*", ("Come back on Thursday. Most things come on Thursdays.",)),)),
)  # fmt: skip

SCRIPT = Script(
    greeting="Lost property office, good evening. What is missing?",
    keywords=KEYWORDS,
    reflections=REFLECTIONS,
    fallbacks=(
        "I am listening.",
        "Take your time. What happened before that?",
        "Most people say that. What do you say?",
        "Would you spell that for the form?",
    ),
)
