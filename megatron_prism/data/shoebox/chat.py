"""Short dialogues from templates: greetings, requests, and questions about earlier statements."""

from __future__ import annotations

import random

from megatron_prism.data.chat_format import chat_turn

NAMES = (
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gina",
    "Hugo",
    "Iris",
    "Jon",
    "Kira",
    "Leo",
    "Mia",
    "Noah",
)
CITIES = ("Oslo", "Lima", "Cairo", "Paris", "Delhi", "Quito", "Tokyo", "Rome", "Dakar", "Perth")
FOODS = ("soup", "rice", "bread", "salad", "noodles", "beans", "pasta", "curry", "pancakes", "stew")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "orange", "purple")
PETS = ("a cat", "a dog", "a rabbit", "a parrot", "a turtle", "two fish")
HOBBIES = ("reading", "cycling", "painting", "chess", "swimming", "gardening", "cooking", "singing")
# Statements about the user: values, statement, reply, later question, its answer.
FACTS = {
    "name": (NAMES, "My name is {0}.", "Nice to meet you, {0}.", "What is my name?", "Your name is {0}."),
    "city": (CITIES, "I live in {0}.", "I hope you like {0}.", "Where do I live?", "You live in {0}."),
    "food": (FOODS, "I like {0} most.", "Good choice, I can suggest recipes for {0}.", "What do I like to eat?",
             "You like {0} most."),
    "colour": (COLOURS, "My favourite colour is {0}.", "There are many things in {0}.",
               "What is my favourite colour?", "Your favourite colour is {0}."),
    "pet": (PETS, "I have {0}.", "That must be nice, having {0}.", "Do I have a pet?", "Yes, you have {0}."),
    "hobby": (HOBBIES, "In my free time I enjoy {0}.", "I am glad that you enjoy {0}.", "What do I enjoy?",
              "You enjoy {0}."),
}  # fmt: skip
REQUESTS = {
    "Can you suggest a colour?": ("How about {0}?", COLOURS),
    "What should I cook tonight?": ("You could make {0}.", FOODS),
    "Where could I travel?": ("You could visit {0}.", CITIES),
    "I need a new hobby.": ("You could try {0}.", HOBBIES),
    "Which pet fits a small flat?": ("Maybe {0}.", PETS),
}
OPENINGS = (
    ("Hello!", "Hello! How can I help you?"),
    ("Hi, do you have a minute?", "Of course. What is it about?"),
    ("Good morning.", "Good morning! What can I do for you?"),
)
CLOSINGS = (
    ("Thank you.", "You are welcome."),
    ("That is all, thanks.", "Gladly. Have a nice day!"),
    ("Great, goodbye.", "Goodbye!"),
)


def dialogue(rng: random.Random) -> str:
    """An opening, one to three statements, a question about one of them, a request, and sometimes a closing."""
    turns = [rng.choice(OPENINGS)] if rng.random() < 0.5 else []
    recalled = []
    for name in rng.sample(list(FACTS), rng.randrange(1, 4)):
        values, statement, reply, question, answer = FACTS[name]
        value = rng.choice(values)
        turns.append((statement.format(value), reply.format(value)))
        recalled.append((question, answer.format(value)))
    later = [rng.choice(recalled)]
    if rng.random() < 0.6:
        request = rng.choice(list(REQUESTS))
        template, values = REQUESTS[request]
        later.append((request, template.format(rng.choice(values))))
    turns += rng.sample(later, len(later))
    if rng.random() < 0.5:
        turns.append(rng.choice(CLOSINGS))
    return "\n".join(chat_turn(question, answer) for question, answer in turns)
