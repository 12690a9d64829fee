"""Subjects, tints and backgrounds of the demo model's pictures."""

BASE: dict[str, str] = {
    "fox": "🦊",
    "cat": "🐱",
    "panda": "🐼",
    "frog": "🐸",
    "pig": "🐷",
    "penguin": "🐧",
    "owl": "🦉",
    "turtle": "🐢",
    "octopus": "🐙",
    "crab": "🦀",
    "fish": "🐟",
    "butterfly": "🦋",
    "ladybug": "🐞",
    "apple": "🍎",
    "banana": "🍌",
    "bunch of grapes": "🍇",
    "strawberry": "🍓",
    "pineapple": "🍍",
    "slice of watermelon": "🍉",
    "pair of cherries": "🍒",
    "carrot": "🥕",
    "mushroom": "🍄",
    "cactus": "🌵",
    "fir tree": "🌲",
    "sunflower": "🌻",
    "rose": "🌹",
    "slice of pizza": "🍕",
    "burger": "🍔",
    "donut": "🍩",
    "birthday cake": "🎂",
    "cup of coffee": "☕",
    "soccer ball": "⚽",
    "balloon": "🎈",
    "gift": "🎁",
    "top hat": "🎩",
    "crown": "👑",
    "key": "🔑",
    "bell": "🔔",
    "light bulb": "💡",
    "camera": "📷",
    "car": "🚗",
    "rocket": "🚀",
    "sailboat": "⛵",
    "guitar": "🎸",
    "house": "🏠",
    "castle": "🏰",
    "umbrella": "☂",
    "robot": "🤖",
}
"""The checkpoint's subjects: emoji by the phrase used in captions."""

NEW: dict[str, str] = {
    "snowman": "⛄",
    "duck": "🦆",
    "pumpkin": "🎃",
    "teddy bear": "🧸",
    "slice of cheese": "🧀",
    "unicorn": "🦄",
}
"""Subjects the checkpoint is not trained on: for adapters, and to test generalisation."""

SUBJECTS = {**BASE, **NEW}

Colour = tuple[int, int, int]

BACKGROUNDS: dict[str, Colour] = {
    "white": (248, 248, 248),
    "black": (30, 30, 36),
    "red": (206, 54, 58),
    "yellow": (246, 205, 70),
    "green": (84, 172, 92),
    "blue": (58, 120, 214),
    "purple": (140, 86, 190),
    "pink": (246, 168, 196),
}
"""sRGB by the word used in captions."""

TINTS: dict[str, Colour] = {
    "red": (226, 44, 44),
    "orange": (244, 132, 30),
    "yellow": (240, 204, 40),
    "green": (60, 176, 70),
    "blue": (44, 116, 226),
    "purple": (146, 72, 206),
}
"""The middle of a tint's ramp from dark to light; without a tint, colours are natural."""

NEVER_TOGETHER = frozenset({("owl", "blue"), ("pig", "green"), ("rose", "purple")})
"""Combinations of subject and tint held out of the checkpoint's training."""
