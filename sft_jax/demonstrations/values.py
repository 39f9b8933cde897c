"""What the requests are about: argument values, and errands that no tool can run.

Every pool is split by hand into training and held-out values, disjoint across all pools. The values fit every template:
titles begin with a consonant and can be counted ("a haircut"), rooms take "in the", labels "the" and "a", minutes avoid
"an" (8, 11, 18), and messages are clauses that read the same after "that" and inside quotation marks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Values:
    """The pools of one split: values by argument name, tool results, errands to refuse, pairs of tools in one turn."""

    arguments: dict[str, tuple[str | int, ...]]
    skies: tuple[tuple[str, int], ...]
    errands: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    thanks: tuple[str, ...]


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


TRAIN = Values(
    arguments={
        "minutes": (5, 6, 9, 10, 12, 13, 15, 16, 17, 19, 20, 21, 24, 25, 28, 30, 32, 35, 36, 40, 45, 48, 50, 60),
        "label": _split(
            "rice, bread, dough, pizza, soup, chicken, cake, stew, cherry pie, broccoli, roast beef, pumpkin, "
            "banana bread, risotto, ham, porridge, chili, gravy, turkey, pot roast, rice pudding, curry, quiche, "
            "tomato sauce, cheesecake"
        ),
        "item": _split(
            "milk, flour, brown sugar, olive oil, dish soap, paper towels, coffee beans, butter, cheddar, oats, "
            "apples, toothpaste, onions, black pepper, tomatoes, yoghurt, batteries, dog food, oranges, honey, tuna, "
            "shampoo, light bulbs, spinach, frozen peas, orange juice, baking powder, garlic, mushrooms, "
            "napkins, vinegar, salt"
        ),
        "city": _split(
            "Oslo, Madrid, Lisbon, Vienna, Prague, Warsaw, Dublin, Athens, Cairo, Nairobi, Lagos, Mumbai, Delhi, "
            "Seoul, Tokyo, Osaka, Sydney, Auckland, Toronto, Chicago, Boston, Denver, Seattle, Mexico City, Bogota, "
            "Hamburg, Munich, Zurich, Milan, Naples, Lyon, Leeds, Bristol, Glasgow, Helsinki, Riga, New York, Santa Fe"
        ),
        "to": _split(
            "Anna, Ben, Carla, David, Emma, Felix, Grace, Hassan, Ines, Jack, Karin, Leo, Maria, Nora, Omar, Paula, "
            "Quentin, Rosa, Sam, Tina, Victor, Wendy, Yusuf, Zoe, Mum, Dad"
        ),
        "message": _split(
            "I am running late, dinner is ready, the keys are under the mat, I am at the station, "
            "the meeting moved to three, we are out of coffee, the parcel has arrived, I will be home by six, "
            "the car is fixed, the train is delayed, I found the tickets, lunch is on me, the baby is asleep, "
            "I left the door open, the shop closes at five, we won the game, I am stuck in traffic, "
            "the concert starts at eight, I can bring dessert, the doctor says all is well, the plumber is here, "
            "I lost my phone charger, the pool is open, school ends early today, I am in the back row, "
            "the cat came home"
        ),
        "room": _split(
            "kitchen, bedroom, hallway, bathroom, office, garage, attic, basement, nursery, dining room, living room, "
            "guest room, playroom, study"
        ),
        "percent": (5, 10, 15, 20, 25, 30, 40, 45, 50, 60, 65, 70, 75, 80, 90),
        "title": _split(
            "piano lesson, dentist appointment, team meeting, book club meeting, yoga class, haircut, birthday party, "
            "car service, vet visit, job interview, video call, swimming lesson, choir rehearsal, barbecue, "
            "guitar lesson, staff meeting, concert, football match, budget review, house viewing, school play, "
            "farewell lunch, wine tasting, driving test, physio session, garden party, phone call, flu shot"
        ),
        "day": _split(
            "Monday, Tuesday, Wednesday, Friday, Sunday, tomorrow, today, 3 May, 12 June, 21 March, 5 April, 30 July, "
            "16 October, 2 December"
        ),
        "time": _split(
            "9:30, 10:00, 10:15, 11:00, 11:30, 12:00, 13:00, 14:00, 14:30, 15:00, 16:00, 16:45, 17:30, "
            "18:00, 19:00, 19:30, 20:00, 20:15"
        ),
    },
    skies=(
        ("light rain", 18),
        ("clear skies", 24),
        ("thick fog", 11),
        ("heavy rain", 15),
        ("thunderstorms", 21),
        ("strong wind", 13),
        ("bright sunshine", 29),
        ("drizzle", 16),
        ("a few clouds", 17),
    ),
    errands=_split(
        "lock the front door, open the garage door, call my brother, order a pizza, book a flight, vacuum the floor, "
        "play some jazz, pay the electricity bill, print my boarding pass, water the plants, feed the cat, "
        "take a photo of the garden, turn up the heating, cancel my gym membership, read me my emails, "
        "start the dishwasher, mow the lawn, draw the curtains, record the film, buy two concert tickets, "
        "rent a car, transfer money to my landlord, wash the dishes, make me a coffee, charge my phone, find my keys, "
        "fix the leaking tap, iron my shirts, walk the dog, reserve a table at a restaurant, switch on the television, "
        "skip this song, change the channel, scan this letter, post a picture online, unlock the car, run a bath, "
        "cook dinner, clean the windows, sign this form, hire a babysitter, drive me to the airport, order a taxi, "
        "sell my old bike, update my laptop, back up my photos, close the blinds, turn on the fan, empty the bins, "
        "renew my passport, send flowers to my aunt, ship this parcel, check my bank balance, raise the thermostat, "
        "open the gate, find a plumber, delete my old emails, rewind the podcast, arm the burglar alarm, "
        "pick up the children, play the radio, call a taxi, pay my rent, start the washing machine, book a hotel"
    ),
    pairs=(
        ("timer", "shop"),
        ("lights", "timer"),
        ("timer", "event"),
        ("timer", "weather"),
        ("shop", "weather"),
        ("shop", "text"),
        ("lights", "shop"),
        ("weather", "text"),
        ("event", "weather"),
        ("text", "lights"),
        ("event", "text"),
    ),
    thanks=("Thanks!", "Great, thank you.", "thx", "Perfect, thanks a lot."),
)

HELD_OUT = Values(
    arguments={
        "minutes": (7, 14, 22, 23, 26, 33, 38, 42, 55),
        "label": _split("lasagne, cornbread, quinoa, granola, salmon, duck, polenta, cauliflower, sponge pudding"),
        "item": _split("almonds, shower gel, lemons, cornflakes, sunflower oil, pears, cat litter, basil, maple syrup"),
        "city": _split("Lima, Bergen, Porto, Manila, Havana, Ottawa, Krakow, Cape Town, Dakar, Hanoi, Turin"),
        "to": _split("Bruno, Clara, Diego, Elsa, Farid, Helga, Ivan, Lucy, Martin, Priya, Grandma"),
        "message": _split(
            "the bus broke down, I am on the roof, the guests have left, supper is cold, the printer works again, "
            "I passed the exam, the boat leaves at noon, we need two more chairs, the bakery is shut, "
            "I forgot my wallet, the window is stuck"
        ),
        "room": _split("library, pantry, studio, laundry room, conservatory, workshop, cellar, lounge, music room"),
        "percent": (22, 27, 33, 38, 52, 55, 68, 85, 95),
        "title": _split(
            "blood test, chess match, poetry reading, boiler inspection, Spanish lesson, cooking class, tennis match, "
            "museum tour, passport appointment, baby shower, wedding rehearsal"
        ),
        "day": _split("Thursday, Saturday, 9 August, 27 January, 14 September, 18 November, 23 February"),
        "time": _split("7:15, 8:45, 9:50, 10:40, 12:20, 13:35, 15:25, 16:10, 17:05, 18:50, 21:15"),
    },
    skies=(("gusty wind", 16), ("patchy clouds", 19), ("hazy sun", 23)),
    errands=_split(
        "hang up this picture, call a locksmith, put on my favourite album, bring in the mail, defrost the freezer, "
        "pay my parking fine, shovel the snow, fold the washing, hire a gardener, tune the guitar, order some sushi, "
        "brush the horse, sharpen the knives, charge the scooter"
    ),
    pairs=(("timer", "text"), ("shop", "event"), ("weather", "lights"), ("lights", "event")),
    thanks=("Lovely, cheers.", "Wonderful, much obliged."),
)
