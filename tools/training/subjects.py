"""What the demo model's pictures show: pictograms, tints, backgrounds, and which are kept apart."""

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
"""The subjects that the checkpoint learns, by the words that captions have for them."""

NEW: dict[str, str] = {
    "snowman": "⛄",
    "duck": "🦆",
    "pumpkin": "🎃",
    "teddy bear": "🧸",
    "slice of cheese": "🧀",
    "unicorn": "🦄",
}
"""Subjects that the checkpoint never sees: adapters teach some, the rest tests what generalises."""

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
"""sRGB by the word that captions have for it."""

TINTS: dict[str, Colour] = {
    "red": (226, 44, 44),
    "orange": (244, 132, 30),
    "yellow": (240, 204, 40),
    "green": (60, 176, 70),
    "blue": (44, 116, 226),
    "purple": (146, 72, 206),
}
"""The middle of a tinted subject's ramp from dark to light; no tint leaves the natural colours."""

NEVER_TOGETHER = frozenset({("owl", "blue"), ("pig", "green"), ("rose", "purple")})
"""Subjects and tints that the checkpoint never sees together, each alone often."""
