"""Name one thing of a kind: many answers are right, and which one is named is the strategy."""

from __future__ import annotations

import re

from polyepo.domains import Domain, Problem, Split, Strategy, Verdict

KINDS = {
    "a fruit": "apple banana orange pear grape mango cherry peach plum lemon lime kiwi pineapple strawberry blueberry "
    "raspberry watermelon melon apricot fig papaya coconut pomegranate avocado grapefruit cranberry blackberry guava",
    "a vegetable": "carrot potato tomato onion cabbage broccoli spinach lettuce pea bean cucumber pepper celery beet "
    "radish turnip cauliflower asparagus kale pumpkin squash zucchini eggplant leek garlic corn",
    "a planet of the solar system": "mercury venus earth mars jupiter saturn uranus neptune",
    "a colour of the rainbow": "red orange yellow green blue indigo violet",
    "a country in Africa": "nigeria egypt kenya ethiopia ghana morocco algeria tunisia libya sudan uganda tanzania "
    "rwanda angola zambia zimbabwe botswana namibia mozambique malawi senegal mali niger chad cameroon gabon congo "
    "somalia eritrea benin togo liberia guinea gambia lesotho madagascar mauritius seychelles djibouti",
    "a country in South America": "brazil argentina chile peru colombia venezuela ecuador bolivia paraguay uruguay "
    "guyana suriname",
    "a prime number below 100": "2 3 5 7 11 13 17 19 23 29 31 37 41 43 47 53 59 61 67 71 73 79 83 89 97",
    "an even number below 20": "2 4 6 8 10 12 14 16 18 0",
    "a month of the year": "january february march april may june july august september october november december",
    "a day of the week": "monday tuesday wednesday thursday friday saturday sunday",
    "a farm animal": "cow pig sheep goat horse chicken duck goose turkey donkey rooster hen llama rabbit",
    "a wild animal": "lion tiger elephant bear wolf fox deer giraffe zebra monkey gorilla leopard cheetah hippo "
    "hippopotamus rhino rhinoceros crocodile snake kangaroo panda koala moose jaguar eagle",
    "a bird": "eagle hawk owl sparrow robin crow raven pigeon dove duck swan goose parrot penguin ostrich flamingo "
    "peacock woodpecker hummingbird canary seagull falcon turkey chicken stork heron finch cardinal",
    "a fish": "salmon tuna trout cod shark bass carp catfish herring sardine mackerel goldfish eel halibut pike perch "
    "anchovy snapper tilapia swordfish",
    "an insect": "ant bee wasp butterfly moth fly mosquito beetle grasshopper cricket dragonfly ladybug termite "
    "cockroach flea firefly mantis",
    "a musical instrument": "piano guitar violin flute drum trumpet cello saxophone clarinet harp trombone tuba banjo "
    "oboe accordion harmonica viola bassoon ukulele xylophone organ",
    "a chemical element": "hydrogen helium lithium carbon nitrogen oxygen fluorine neon sodium magnesium aluminum "
    "silicon phosphorus sulfur chlorine argon potassium calcium iron copper zinc silver gold tin lead mercury uranium "
    "nickel cobalt platinum iodine titanium radium",
    "a metal": "iron copper gold silver zinc tin lead aluminum nickel titanium platinum mercury steel cobalt lithium "
    "sodium magnesium tungsten chromium uranium bronze brass",
    "a sport": "soccer football basketball tennis baseball golf hockey cricket rugby swimming volleyball boxing "
    "cycling running skiing surfing badminton archery fencing gymnastics wrestling rowing",
    "a shape": "circle square triangle rectangle oval pentagon hexagon octagon diamond star cube sphere cone cylinder "
    "pyramid ellipse rhombus trapezoid polygon",
    "a part of the human body": "head hand foot arm leg eye ear nose mouth heart brain lung liver stomach knee elbow "
    "finger toe neck shoulder back chest skin hair tongue hip ankle wrist",
    "a piece of furniture": "chair table bed sofa couch desk bookcase dresser wardrobe stool bench cabinet shelf "
    "armchair bookshelf nightstand cupboard lamp",
    "a kitchen tool": "knife fork spoon pan pot whisk spatula ladle grater blender peeler bowl oven toaster mixer "
    "kettle tongs",
    "a drink": "water tea coffee milk juice soda beer wine lemonade cocoa whiskey vodka rum smoothie cola champagne",
    "a language": "english french spanish german italian chinese japanese arabic russian portuguese hindi korean "
    "greek latin dutch swedish turkish polish mandarin bengali swahili hebrew",
    "a capital city in Europe": "paris london berlin rome madrid lisbon vienna athens dublin warsaw prague budapest "
    "brussels amsterdam copenhagen stockholm oslo helsinki bern moscow kyiv sofia bucharest",
    "a state of the USA": "california texas florida ohio georgia virginia washington oregon nevada utah colorado "
    "arizona alaska hawaii maine vermont iowa kansas michigan illinois indiana alabama tennessee kentucky montana "
    "idaho minnesota wisconsin missouri arkansas louisiana mississippi oklahoma nebraska delaware maryland",
    "a river": "nile amazon mississippi danube thames rhine ganges yangtze volga seine congo niger missouri colorado "
    "tigris euphrates mekong indus",
    "a flower": "rose tulip daisy lily sunflower orchid violet daffodil carnation iris lavender marigold poppy lotus "
    "jasmine peony dandelion hibiscus",
    "a tree": "oak pine maple birch willow cedar elm ash fir spruce palm redwood sequoia cypress beech poplar apple "
    "cherry eucalyptus",
    "a gemstone": "diamond ruby emerald sapphire opal topaz amethyst garnet jade pearl turquoise quartz aquamarine "
    "peridot",
    "a profession": "doctor teacher lawyer engineer nurse farmer chef carpenter plumber pilot artist scientist writer "
    "actor dentist accountant architect electrician baker police firefighter journalist soldier",
    "a means of transport": "car bus train plane bicycle bike boat ship airplane motorcycle truck subway tram taxi "
    "helicopter ferry scooter",
    "a season of the year": "spring summer autumn winter fall",
    "a piece of clothing": "shirt pants dress skirt jacket coat hat sock shoe sweater jeans scarf glove tie suit "
    "blouse shorts belt boot vest",
    "a weather condition": "rain snow sun wind fog storm cloud hail thunder lightning sunny rainy cloudy windy snowy "
    "hurricane tornado drizzle",
}
HELD_OUT = {"a fruit", "a country in Africa", "a prime number below 100", "a bird", "a sport", "a state of the USA",
            "a chemical element", "a piece of clothing"}  # fmt: skip
_EXAMPLE = [
    {"role": "system", "content": "You name things."},
    {"role": "user", "content": "Name a toy."},
    {"role": "assistant", "content": "ball"},
]
_WORD = re.compile(r"[a-z0-9]+")


class Naming(Domain):
    """Asked as chat messages, after one example: "Name a fruit." A fruit of the list must be named."""

    def problems(self, split: Split) -> list[Problem]:
        """A problem for each kind of thing; the held-out kinds are never trained on."""
        return [
            Problem(
                problem_id=kind,
                domain=self.name,
                prompt=[*_EXAMPLE, {"role": "user", "content": f"Name {kind}."}],
                metadata={"accepted": names.split()},
            )
            for kind, names in KINDS.items()
            if (kind in HELD_OUT) == (split == "heldout")
        ]

    def verify(self, problem: Problem, response: str) -> Verdict:
        """1 if the response names one of the things, in the singular or the plural; the first one counts."""
        name = named(response, problem.metadata["accepted"])
        return Verdict(float(name is not None), name)

    def strategy(self, problem: Problem, response: str) -> Strategy | None:
        """The thing that is named; None if none is."""
        name = named(response, problem.metadata["accepted"])
        return None if name is None else Strategy("naming", name)


def named(response: str, accepted: list[str]) -> str | None:
    """The first of the accepted names that a response mentions, in the singular."""
    known = {form: name for name in accepted for form in (name, name + "s", name + "es")}
    return next((known[word] for word in _WORD.findall(response.lower()) if word in known), None)
