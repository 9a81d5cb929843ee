"""Texts of the pseudo-speakers: commands with intents, requests with slots, and free sentences."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

# The words of Speech Commands v0.01 that are no keywords: its class _unknown_.
OTHER_WORDS = (
    "bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree", "wow",
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip

# --- The 31 intents of Fluent Speech Commands: (action, object, location)
_PLACES = ("none", "kitchen", "bedroom", "washroom")
INTENTS: tuple[tuple[str, str, str], ...] = (
    *(("change language", name, "none") for name in ("Chinese", "English", "German", "Korean", "none")),
    *((action, thing, "none") for action in ("activate", "deactivate") for thing in ("lamp", "music")),
    *((action, "lights", place) for action in ("activate", "deactivate") for place in _PLACES),
    *((action, "heat", place) for action in ("increase", "decrease") for place in _PLACES),
    *((action, "volume", "none") for action in ("increase", "decrease")),
    *(("bring", thing, "none") for thing in ("juice", "newspaper", "shoes", "socks")),
)
_COMMANDS: dict[tuple[str, str], str] = {
    ("change language", "none"): "change the language|use a different language|open the language settings|"
    "switch languages|i need to change the language",
    ("change language", "*"): "switch the language to {}|set the language to {}|change the language to {}|"
    "i want to hear {}|speak {} from now on",
    ("activate", "lamp"): "switch on the lamp|turn the lamp on|lamp on|turn on the lamp|put the lamp on",
    ("activate", "music"): "play music|start the music|put on some music|turn the music on|play the music",
    ("activate", "lights"): "turn on the lights{}|switch the lights on{}|lights on{}|i need the lights on{}",
    ("deactivate", "lamp"): "switch off the lamp|turn the lamp off|lamp off|turn off the lamp|put out the lamp",
    ("deactivate", "music"): "stop the music|pause the music|turn the music off|no more music|end the music",
    ("deactivate", "lights"): "turn off the lights{}|switch the lights off{}|lights off{}|no more lights{}",
    ("increase", "heat"): "turn up the heat{}|make it warmer{}|increase the temperature{}|it is too cold{}",
    ("decrease", "heat"): "turn down the heat{}|make it cooler{}|decrease the temperature{}|it is too hot{}",
    ("increase", "volume"): "turn up the volume|make it louder|i can not hear that|increase the volume|louder",
    ("decrease", "volume"): "turn down the volume|make it quieter|that is too loud|lower the volume|quieter",
    ("bring", "*"): "bring me the {}|get me the {}|fetch the {}|go and get the {}|i need the {}",
}


def command(intent: tuple[str, str, str], rng: np.random.Generator) -> str:
    """Return a random wording of an intent."""
    action, thing, place = intent
    wordings = _COMMANDS.get((action, thing)) or _COMMANDS[action, "*"]
    wording = str(rng.choice(wordings.split("|")))
    if thing in ("lights", "heat"):
        return wording.format("" if place == "none" else f" in the {place}")
    return wording.format(thing.lower())


# --- Requests as in SNIPS: intents with slots
_SLOTS: dict[str, str] = {
    "artist": "the silver foxes|mary stone|the night riders|tom winter|the paper boats|anna field|george hill|"
    "the old friends",
    "city": "london|boston|paris|chicago|dublin|rome|denver|madrid|oslo|vienna|portland|sydney",
    "condition_description": "rain|snow|wind|fog|storms|sunshine",
    "cuisine": "italian|french|indian|greek|thai|mexican|spanish",
    "movie_name": "the last train|a winter day|the golden door|the long road|under the bridge|the quiet sea",
    "music_item": "song|album|track|tune",
    "object_name": "the green garden|the lost city|a life at sea|the king of clocks|the blue mountain|"
    "letters from home|the empty chair",
    "party_size_number": "two|three|four|five|six|seven|eight|nine|ten",
    "playlist": "morning coffee|summer party|road trip|evening jazz|study time|sunday rock|deep sleep",
    "rating_value": "one|two|three|four|five",
    "restaurant_type": "restaurant|bar|cafe|diner|pub",
    "service": "spotify|youtube|pandora|deezer",
    "timeRange": "tomorrow|tonight|next week|on monday|on friday|this weekend|at noon|in the morning",
}
SLOTS = tuple(_SLOTS)
_REQUESTS: dict[str, str] = {
    "AddToPlaylist": "add this [music_item] to [playlist]|put [artist] on my [playlist] list|"
    "add the [music_item] by [artist] to [playlist]",
    "BookRestaurant": "book a table for [party_size_number] at a [cuisine] [restaurant_type] in [city]|"
    "find a [restaurant_type] in [city] for [party_size_number] people|"
    "i want [cuisine] food [timeRange]|book a [restaurant_type] in [city] [timeRange]",
    "GetWeather": "what is the weather in [city] [timeRange]|will there be [condition_description] in [city]|"
    "is there [condition_description] in [city] [timeRange]|tell me the weather for [city]",
    "PlayMusic": "play a [music_item] by [artist]|play [artist] on [service]|open [service] and play [playlist]|"
    "i want to hear [artist]",
    "RateBook": "give [object_name] [rating_value] stars|rate [object_name] [rating_value] of five",
    "SearchCreativeWork": "find the book [object_name]|look for the movie [movie_name]|show me [object_name]",
    "SearchScreeningEvent": "when is [movie_name] playing in [city]|find times for [movie_name] [timeRange]",
}


@dataclass(frozen=True)
class Request:
    """A request: its words in lower case, a slot or "O" for each word, and its intent."""

    words: tuple[str, ...]
    slots: tuple[str, ...]
    intent: str


def request(rng: np.random.Generator) -> Request:
    """Return a random request with at least one slot."""
    intent = str(rng.choice(list(_REQUESTS)))
    words: list[str] = []
    slots: list[str] = []
    for part in re.findall(r"\[\w+\]|[^\[\] ]+", str(rng.choice(_REQUESTS[intent].split("|")))):
        slot = part.strip("[]")
        chosen = str(rng.choice(_SLOTS[slot].split("|"))).split() if part.startswith("[") else [part]
        words += chosen
        slots += [slot if part.startswith("[") else "O"] * len(chosen)
    return Request(tuple(words), tuple(slots), intent)


# --- free sentences
_FREE = {
    "who": "the old man|my sister|a young girl|the captain|our neighbor|the doctor|a small dog|the farmer|"
    "his brother|the teacher|a tall stranger|the children|her uncle|the baker|two sailors|my best friend",
    "did": "found|opened|carried|painted|watched|followed|lost|bought|cleaned|remembered|described|moved|"
    "borrowed|noticed|wanted|dropped",
    "what": "a wooden box|the red kite|an empty bottle|the garden gate|a heavy bag|some fresh bread|"
    "the broken clock|a yellow coat|the silver key|a long letter|the kitchen table|an orange boat|"
    "the quiet horse|a map of the island|three brown eggs|the window",
    "where": "by the river|near the station|behind the church|in the forest|under the bridge|at the market|"
    "on the hill|in front of the house|across the street|along the beach|beside the fire|in the village",
    "when": "yesterday morning|before sunset|after the storm|every summer|late at night|last week|at noon|"
    "during the winter|on thursday|a year ago",
    "feeling": "it was very cold|nobody knew why|the sky was dark|we laughed about it|that was enough|"
    "the music had stopped|there was no time|everyone agreed|it seemed too easy|the water was deep",
}
_SHAPES = (
    "who did what",
    "who did what where",
    "who did what when",
    "when who did what",
    "where who did what",
    "who did what where when",
    "feeling and who did what",
    "feeling",
)
# Sentences of a small vocabulary: the first choices for each part.
_SIMPLE_SHAPES = ("who did what", "who did what where")
_SIMPLE_CHOICES = 8


def free_sentence(rng: np.random.Generator) -> str:
    """Return a random declarative sentence of 3 to 20 words, in lower case."""
    parts = str(rng.choice(_SHAPES)).split()
    return " ".join(str(rng.choice(_FREE[part].split("|"))) if part in _FREE else part for part in parts)


def simple_sentence(rng: np.random.Generator) -> str:
    """Return a random sentence of 6 to 12 words from a vocabulary of 58 words, in lower case."""
    parts = str(rng.choice(_SIMPLE_SHAPES)).split()
    return " ".join(str(rng.choice(_FREE[part].split("|")[:_SIMPLE_CHOICES])) for part in parts)
