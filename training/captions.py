"""Captions for every style: what the text encoder learns from, and the table of styles it knows.

Each style has paraphrases, which training samples inside templates and beside phrases of content
("a man riding a bike"), so that the encoder learns which words matter and which do not. Held-out
paraphrases are never sampled; they tell whether it understood. British spelling is written here,
and American spelling is sampled as often.

This file knows nothing of filters, of the tokenizer or of the model.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CONTENTS",
    "HELD_OUT",
    "PARAPHRASES",
    "TEMPLATES",
    "americanise",
    "canonical",
    "caption_bank",
    "sample_caption",
    "styles_table",
]


@dataclass(frozen=True)
class _Words:
    """All that is said of one style; the items of a list are divided by "|"."""

    summary: str
    paraphrases: str  # the first one is the canonical caption
    held_out: str
    keywords: str  # what the runtime looks for in a prompt


_WORDS: dict[str, _Words] = {
    "photo": _Words(
        "the source, unchanged",
        "photo|a photograph|a realistic photo|unchanged|the original video|keep it as it is"
        "|no change|photorealistic|a natural photo|real footage|leave it as is|unedited footage"
        "|true to life|the same video",
        "the original footage, unchanged|keep the video as it is|a natural, realistic look",
        "photo|photograph|photographic|photorealistic|realistic|unchanged|original|as it is|as is"
        "|no change|without change|unedited|untouched|natural|real footage|true to life|the same"
        "|real life|plain video|no style|leave it alone",
    ),
    "oil": _Words(
        "flat dabs of rich colour",
        "oil painting|an impasto oil painting|painted in oils|in the style of Van Gogh"
        "|oil on canvas|an oil paint canvas|a classical oil painting|thick brush strokes"
        "|a painting by Rembrandt|an impressionist painting|a Monet painting|painterly"
        "|an old master painting|rich oil colours|a painted canvas",
        "an oil painting on canvas|thick oil paint|a Van Gogh painting|a canvas painted in oil",
        "oil painting|oil paint|oils|oil on canvas|oil colour|in oil|painted|painting|painterly"
        "|paint|canvas|impasto|brush stroke|brushstroke|van gogh|starry night|rembrandt|monet"
        "|impressionist|impressionism|old master|classical painting",
    ),
    "cartoon": _Words(
        "flat bright areas with dark outlines (experimental: outlines are soft)",
        "cartoon|a cartoon|an animated cartoon|comic book|a comic strip|anime|cel shaded"
        "|a cel-shaded animation|like an animated film|toon shading|drawn as a cartoon"
        "|a comic with bold black outlines|flat colours and dark outlines|a Saturday morning toon",
        "an animated comic|a cartoon film with bold outlines|anime with flat colours",
        "cartoon|cartoonish|comic|comic book|comic strip|anime|manga|drawn as a cartoon|cel shaded"
        "|cel shading|cell shaded|toon|animated|animation|flat colour|bold outline"
        "|bold black outline|black outline|dark outline|pixar|disney|ghibli",
    ),
    "watercolour": _Words(
        "pale washes on white paper",
        "watercolour painting|a watercolour|watercolours|painted in watercolour|a watercolour wash"
        "|aquarelle|soft washes of paint|a pale watercolour|water colour|gouache on paper"
        "|a delicate watercolour sketch|wet paint on paper|pastel washes"
        "|a watercolour illustration",
        "a soft watercolour|an aquarelle on paper|pale washes of watercolour",
        "watercolour|watercolour painting|watercolour sketch|watercolour illustration|water colour"
        "|aquarelle|gouache|soft wash|pale wash|ink wash|pastel wash|wet paint|wash of paint"
        "|paint on paper|wash of watercolour|painted in watercolour|watercolour paint",
    ),
    "pencil": _Words(
        "graphite on white paper",
        "pencil sketch|a pencil drawing|drawn in pencil|a graphite drawing|a sketch"
        "|a hand-drawn sketch|sketched with a pencil|a charcoal drawing|a drawing on paper"
        "|graphite on white paper|a page from a sketchbook|pencil art|a hand drawn picture"
        "|shaded with pencil",
        "a drawing in graphite|a pencil sketch on paper|hand drawn with a pencil",
        "pencil|pencil sketch|pencil drawing|pencil art|drawing|drawn|hand drawn|sketch|sketchbook"
        "|graphite|charcoal|drawn in pencil|sketched with a pencil|shaded with pencil"
        "|pencil shading|line art",
    ),
    "sepia": _Words(
        "a brown-toned old print",
        "sepia|sepia tone|a sepia photograph|an old photograph|a vintage photo|antique brown tones"
        "|a faded old film|brown tinted|an aged photo|like the nineteenth century|nostalgic sepia"
        "|a Victorian photograph|old-fashioned brown|a vintage film",
        "an antique sepia photo|a faded vintage photograph|old brown tones",
        "sepia|sepia tone|sepia photograph|old photo|old photograph|vintage|vintage photo"
        "|vintage photograph|vintage film|antique photo|antique brown|faded|faded photo"
        "|faded old photo|old film|brown tone|brown tint|brown toned|aged photo|aged|nostalgic"
        "|old fashioned|victorian|victorian photograph|nineteenth century|daguerreotype"
        "|sepia photo|old brown tone|old movie|old fashioned brown",
    ),
    "noir": _Words(
        "black and white with deep shadows",
        "film noir|black and white|noir|high-contrast black and white|monochrome"
        "|a black and white film|a detective film noir|dramatic black and white|b&w|greyscale"
        "|black & white photography|a dark noir movie|without colour|silver screen classic",
        "a black & white noir|high contrast monochrome|a dramatic monochrome film",
        "noir|film noir|black and white|black and white film|black and white photo"
        "|black and white photograph|black and white photography|black white|b and w|bw|monochrome"
        "|monochromatic|greyscale|high contrast|without colour|no colour|colourless|desaturated"
        "|silver screen|noir movie|hitchcock",
    ),
    "night": _Words(
        "moonlight, with lamps left warm",
        "night|at night|night time|a moonlit scene|in the moonlight|after dark|midnight|night-time"
        "|a dark blue night|day for night|under the moon|nocturnal|a night scene|late at night",
        "a scene in the moonlight|after midnight|a moonlit night",
        "night|night time|nighttime|nightfall|moonlit|moonlight|after dark|midnight|nocturnal"
        "|nocturne|day for night|dark blue|dark blue night|night scene|at night|late at night"
        "|under the moon|moonlit night",
    ),
    "golden-hour": _Words(
        "warm low sun with a soft glow",
        "golden hour|at golden hour|sunset|at sunset|warm evening light|golden light|sunrise"
        "|a warm sunset glow|low evening sun|magic hour|in warm sunlight|bathed in golden light"
        "|late afternoon sun|warm golden tones",
        "a golden sunset|warm light at sunset|the glow of the evening sun",
        "golden hour|golden light|golden tone|golden glow|golden sunset|golden sunlight|magic hour"
        "|sunset|sunrise|sundown|dusk|dawn|warm light|warm glow|warm sunlight|warm tone"
        "|warm golden|evening light|evening sun|warm evening light|late afternoon|afternoon sun"
        "|low sun|sunlit|sunset glow|sun glow",
    ),
    "neon": _Words(
        "glowing coloured outlines on black (experimental: lines are soft)",
        "neon outlines|neon|neon lights|glowing neon|glowing outlines|cyberpunk|synthwave"
        "|neon tubes|glowing edges in the dark|electric neon lines|like Tron|glow in the dark"
        "|bright glowing lines on black|a neon sign",
        "glowing neon lines|cyberpunk neon|bright neon edges",
        "neon|neon outline|neon light|neon line|neon edge|neon tube|neon sign|neon glow"
        "|glowing neon|glowing outline|glowing edge|glowing line|cyberpunk|synthwave|vaporwave"
        "|tron|glow in the dark|electric neon|fluorescent|luminous|blacklight|lines on black",
    ),
    "mosaic": _Words(
        "blocks of one colour each",
        "pixel mosaic|pixel art|pixelated|8-bit|8-bit pixel art|a mosaic|big pixels|a retro game"
        "|blocky pixels|a mosaic of square tiles|pixelised|made of coloured blocks|16-bit graphics"
        "|low resolution pixels",
        "a retro pixel game|8-bit graphics|a mosaic of pixels",
        "mosaic|pixel|pixel art|pixelated|pixelate|pixelised|pixelise|8 bit|8bit|16 bit|16bit"
        "|eight bit|blocky pixel|coloured block|square tile|tile|retro game|low resolution|low res"
        "|video game|minecraft|bit graphics|8 bit pixel art|retro pixel game",
    ),
    "blueprint": _Words(
        "white lines on blue paper (experimental: lines are soft)",
        "blueprint|a blueprint|an architect's blueprint|a technical drawing|white lines on blue"
        "|a cyanotype|blueprint drawing|an engineering plan|a technical blueprint|a schematic"
        "|blue print|white outlines on blue paper|an engineering drawing|a construction plan",
        "a technical plan on blue paper|an engineering blueprint"
        "|a drawing with white lines on blue",
        "blueprint|blue print|blueprint drawing|technical drawing|technical plan"
        "|technical blueprint|architectural drawing|architectural plan|engineering drawing"
        "|engineering plan|construction plan|schematic|cyanotype|blue paper|white line"
        "|white line on blue|white outline|white outline on blue paper|on blue",
    ),
}

PARAPHRASES: dict[str, tuple[str, ...]] = {
    name: tuple(words.paraphrases.split("|")) for name, words in _WORDS.items()
}
"""Style name -> what training calls it; the first of each is canonical."""

HELD_OUT: dict[str, tuple[str, ...]] = {
    name: tuple(words.held_out.split("|")) for name, words in _WORDS.items()
}
"""Style name -> paraphrases that ``sample_caption`` never gives."""

TEMPLATES: tuple[str, ...] = (
    "{x}",
    "{x}",
    "{x} style",
    "{x}, high quality",
    "{x}, detailed",
    "make it {x}",
    "make it look like {x}",
    "make this video {x}",
    "turn this into {x}",
    "turn it into {x} please",
    "restyle this as {x}",
    "I want {x}",
    "in the style of {x}",
    "give it the look of {x}",
    "apply {x}",
    "render as {x}",
    "{x} of {content}",
    "{x} showing {content}",
    "{content}, {x}",
    "{content} as {x}",
    "{content} in {x} style",
    "a video of {content}, {x}",
    "a clip of {content} turned into {x}",
    "{x}, {content}, best quality",
)
"""Where a paraphrase ``x`` and a phrase of content may stand."""

_CONTENTS = (
    "a man riding a bike|a woman walking a dog|two people talking|a cat on a sofa"
    "|a car on the road|cars on a highway|a street with people|children playing football"
    "|a girl with long hair|a person cooking dinner|hands typing on a keyboard"
    "|a cup of coffee on a table|someone pouring tea|a horse jumping over a fence"
    "|a camel in the zoo|a black swan on a lake|a bear walking|a bird in a tree"
    "|waves on a beach|a boat on the river|a mountain|a forest path|a field of flowers"
    "|a kitchen|a living room|an office|a busy market|a train station|a bridge over water"
    "|a robot arm picking up a cup|a machine at work|a hand moving cups|a bowl of fruit"
    "|an apple and a banana|a plate of food|a man playing guitar|a woman playing the violin"
    "|a band on stage|a dancer|people dancing|a yoga class|a man running|a skier in the snow"
    "|a surfer|a skateboard trick|a baseball player|a tennis match|a speech by a politician"
    "|an interview|a portrait of a woman|an old man smiling|a baby laughing|a dog in the grass"
    "|a flock of ducks|a city from above|a house with a garden|rain on a window"
    "|a fire in the fireplace|a truck turning|a bus stop|a plane taking off|a toy on the floor"
    "|a shelf of books|a person opening a drawer"
)

CONTENTS: tuple[str, ...] = tuple(_CONTENTS.split("|"))
"""What a clip may show. None of it says anything about a style."""

_AMERICAN = (("olour", "olor"), ("grey", "gray"), ("Grey", "Gray"), ("ised", "ized"))


def americanise(text: str) -> str:
    """``text`` with American spelling: color, gray, pixelized."""
    for british, american in _AMERICAN:
        text = text.replace(british, american)
    return text


def _known(style: str) -> _Words:
    if style not in _WORDS:
        raise ValueError(f"unknown style {style!r}; known: {', '.join(_WORDS)}")
    return _WORDS[style]


def canonical(style: str) -> str:
    """The caption that stands for a style.

    Raises:
        ValueError: unknown style.
    """
    _known(style)
    return PARAPHRASES[style][0]


def sample_caption(style: str, rng: random.Random) -> str:
    """A random caption of a style: paraphrase, template, content, spelling and letter case.

    One in five is the canonical paraphrase, because that is what most people type.

    Raises:
        ValueError: unknown style.
    """
    _known(style)
    paraphrases = PARAPHRASES[style]
    phrase = paraphrases[0] if rng.random() < 0.2 else rng.choice(paraphrases)
    text = rng.choice(TEMPLATES).format(x=phrase, content=rng.choice(CONTENTS))
    if rng.random() < 0.5:
        text = americanise(text)
    case = rng.random()
    if case < 0.2:
        text = text[0].upper() + text[1:]
    elif case < 0.3:
        text = text.upper()
    return text + "." if rng.random() < 0.1 else text


def caption_bank() -> tuple[str, ...]:
    """All sentences that captions are made of, in both spellings and a fixed order.

    Every template is given once with every paraphrase, contents in turn; nothing held out.
    """
    bank: dict[str, None] = {}
    turn = 0
    for phrases in PARAPHRASES.values():
        for phrase in phrases:
            for template in TEMPLATES:
                text = template.format(x=phrase, content=CONTENTS[turn % len(CONTENTS)])
                turn += "{content}" in template
                bank[text] = None
                bank[americanise(text)] = None
    return tuple(bank)


def styles_table() -> list[dict[str, Any]]:
    """Contents of a model folder's ``styles.json``: name, prompt, summary and keywords by style."""
    return [
        {
            "name": name,
            "prompt": canonical(name),
            "summary": words.summary,
            "keywords": words.keywords.split("|"),
        }
        for name, words in _WORDS.items()
    ]
