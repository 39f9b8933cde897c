"""Values for the requests: tool arguments, and errands that no tool can perform.

Every pool is split by hand into training and held-out values, disjoint across all pools. The values fit every template:
titles start with a consonant and are countable ("a haircut"), rooms take "in the", labels "the" and "a", minutes avoid
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


_HELD_OUT_NUMBERS = (7, 14, 22, 23, 26, 27, 33, 38, 42, 52, 55, 68, 85, 95)
"""Minutes and percentages of the held-out rows; no training row may contain any of them."""

TRAIN = Values(
    arguments={
        "minutes": tuple(n for n in range(2, 80) if n not in (8, 11, 18, *_HELD_OUT_NUMBERS)),
        "label": _split(
            "rice, bread, dough, pizza, soup, chicken, cake, stew, cherry pie, broccoli, roast beef, pumpkin, "
            "banana bread, risotto, ham, porridge, chili, gravy, turkey, pot roast, rice pudding, curry, quiche, "
            "tomato sauce, cheesecake, brownies, muffins, meringue, couscous, bulgur, lentils, chickpeas, dumplings, "
            "gnocchi, ravioli, tofu, trout, cod, mussels, brisket, pork belly, goulash, casserole, moussaka, paella, "
            "focaccia, bagels, pretzels, scones, flatbread, custard, caramel, fudge, strudel, tart, crumble, jam, "
            "chutney, stock, beetroot, parsnips, kale, sweet corn, green beans, hard-boiled eggs, tea, cold brew, "
            "hair dye, face mask, laundry, glue, varnish, parking meter, piano practice, stretching, nap, meditation"
        ),
        "item": _split(
            "milk, flour, brown sugar, olive oil, dish soap, paper towels, coffee beans, butter, cheddar, oats, "
            "apples, toothpaste, onions, black pepper, tomatoes, yoghurt, batteries, dog food, oranges, honey, tuna, "
            "shampoo, light bulbs, spinach, frozen peas, orange juice, baking powder, garlic, mushrooms, napkins, "
            "vinegar, salt, raspberries, blueberries, mangoes, pineapple, grapefruit, cucumbers, courgettes, leeks, "
            "celery, radishes, cabbage, ginger, turmeric, paprika, cinnamon, oregano, parsley, coriander, mustard, "
            "mayonnaise, ketchup, soy sauce, peanut butter, marmalade, crackers, tortillas, spaghetti, noodles, "
            "red lentils, kidney beans, sardines, anchovies, bacon, sausages, mozzarella, parmesan, cream cheese, "
            "sour cream, buttermilk, eggs, margarine, walnuts, hazelnuts, raisins, dried apricots, dark chocolate, "
            "vanilla extract, yeast, icing sugar, sparkling water, lemonade, green tea, cocoa, washing powder, "
            "fabric softener, bleach, sponges, bin bags, baking paper, tin foil, candles, matches, sticky tape, "
            "printer paper, envelopes, deodorant, conditioner, razor blades, cotton wool, plasters, sunscreen, "
            "hand cream, nappies, wet wipes, bird seed, fish food, rabbit hay, potting soil, tulip bulbs"
        ),
        "city": _split(
            "Oslo, Madrid, Lisbon, Vienna, Prague, Warsaw, Dublin, Athens, Cairo, Nairobi, Lagos, Mumbai, Delhi, "
            "Seoul, Tokyo, Osaka, Sydney, Auckland, Toronto, Chicago, Boston, Denver, Seattle, Mexico City, Bogota, "
            "Hamburg, Munich, Zurich, Milan, Naples, Lyon, Leeds, Bristol, Glasgow, Helsinki, Riga, New York, "
            "Santa Fe, "
            "Tallinn, Vilnius, Gdansk, Wroclaw, Brno, Graz, Salzburg, Innsbruck, Ljubljana, Zagreb, Dubrovnik, "
            "Sarajevo, Belgrade, Sofia, Bucharest, Istanbul, Ankara, Izmir, Tbilisi, Yerevan, Baku, Tashkent, "
            "Kathmandu, Colombo, Dhaka, Chennai, Bangalore, Jaipur, Karachi, Lahore, Bangkok, Phuket, Kuala Lumpur, "
            "Jakarta, Surabaya, Singapore, Hong Kong, Taipei, Kyoto, Sapporo, Fukuoka, Busan, Brisbane, Perth, "
            "Adelaide, Hobart, Wellington, Queenstown, Vancouver, Calgary, Montreal, Halifax, Portland, Phoenix, "
            "Tucson, Memphis, Nashville, Atlanta, Pittsburgh, Baltimore, Honolulu, Anchorage, Guadalajara, Quito, "
            "Cusco, Santiago, Valparaiso, Montevideo, Recife, Salvador, Marrakesh, Casablanca, Tunis, Accra, Kampala, "
            "Kigali, Lusaka, Harare, Durban, Reykjavik, Tromso, Gothenburg, Malmo, Aarhus, Rotterdam, Utrecht, Ghent, "
            "Bruges, Marseille, Bordeaux, Toulouse, Seville, Valencia, Malaga, Palermo, Bologna, Verona, Cardiff, "
            "Belfast, Aberdeen, Inverness, Norwich, Plymouth"
        ),
        "to": _split(
            "Anna, Ben, Carla, David, Emma, Felix, Grace, Hassan, Ines, Jack, Karin, Leo, Maria, Nora, Omar, Paula, "
            "Quentin, Rosa, Sam, Tina, Victor, Wendy, Yusuf, Zoe, Mum, Dad, Abigail, Ahmed, Alejandro, Alice, Amara, "
            "Andrei, Anjali, Arthur, Astrid, Beatrice, Bogdan, Camille, Chidi, Chloe, Conor, Dalia, Dimitri, Dorothy, "
            "Edgar, Eduardo, Eleni, Esther, Fatima, Fiona, Frank, Gabriela, George, Giulia, Greta, Gustav, Hannah, "
            "Harold, Hiroshi, Ibrahim, Ingrid, Isabel, Jamal, Jasmine, Joanna, Jorge, Juliette, Kamal, Katarzyna, "
            "Kenji, Kofi, Lars, Laura, Leila, Lorenzo, Lukas, Magnus, Malik, Margaret, Matteo, Mei, Miguel, Monika, "
            "Nadia, Natalie, Nikhil, Oliver, Olga, Oscar, Patrick, Pedro, Petra, Rachel, Rahul, Ravi, Rebecca, Ruth, "
            "Sanjay, Sofia, Stefan, Svetlana, Tariq, Thomas, Ursula, Valentina, Wei, Xavier, Yara, Zainab, Auntie Jo, "
            "Uncle Pete, my sister, my brother, my boss, our neighbour, the landlord, the plumber, the dentist, "
            "Doctor Singh, Mrs Hall, Mr Okafor, Coach Reed"
        ),
        "message": _split(
            "I am running late, dinner is ready, the keys are under the mat, I am at the station, "
            "the meeting moved to three, we are out of coffee, the parcel has arrived, I will be home by six, "
            "the car is fixed, the train is delayed, I found the tickets, lunch is on me, the baby is asleep, "
            "I left the door open, the shop closes at five, we won the game, I am stuck in traffic, "
            "the concert starts at eight, I can bring dessert, the doctor says all is well, the plumber is here, "
            "I lost my phone charger, the pool is open, school ends early today, I am in the back row, "
            "the cat came home, I need a lift to the airport, the heating is broken, the flight lands at nine, "
            "we are waiting outside, the rent is paid, I have a spare umbrella, the kids want pancakes, "
            "the bridge is closed, my battery is almost empty, the cake needs more sugar, I cannot find my glasses, "
            "the wifi is down again, the garden looks lovely, we booked the cottage, I am taking the later ferry, "
            "the exam went fine, the dog ate my sandwich, the lift is out of order, I signed the contract, "
            "there is soup in the fridge, the film begins in ten minutes, my new number works now, "
            "the delivery came to us by mistake, we picked the blue paint, I forgot to lock the bike, "
            "the match was cancelled, your jacket is still here, the hotel has no record of us, I owe you a coffee, "
            "the results are in, we are on platform four, the road is icy, the tickets cost thirty euros, "
            "I moved the ladder, the choir sings on Sunday, nobody answered the bell, the tap drips at night, "
            "we are having fish tonight, the baker kept two loaves for you, I left my scarf in the taxi, "
            "the sofa fits through the door, my interview went well, the moon looks huge, "
            "the pharmacy is open until ten"
        ),
        "room": _split(
            "kitchen, bedroom, hallway, bathroom, office, garage, attic, basement, nursery, dining room, living room, "
            "guest room, playroom, study, corridor, staircase, entrance, porch, balcony, terrace, patio, greenhouse, "
            "garden shed, barn, stable, utility room, cloakroom, dressing room, gym, sauna, home cinema, larder, "
            "reading corner, breakfast room, sun room, upstairs landing, spare bedroom, sewing room, loft, courtyard, "
            "reception, meeting room, waiting room, gallery, ballroom, boat house, carport, driveway"
        ),
        "percent": tuple(n for n in range(1, 101) if n not in _HELD_OUT_NUMBERS),
        "title": _split(
            "piano lesson, dentist appointment, team meeting, book club meeting, yoga class, haircut, birthday party, "
            "car service, vet visit, job interview, video call, swimming lesson, choir rehearsal, barbecue, "
            "guitar lesson, staff meeting, concert, football match, budget review, house viewing, school play, "
            "farewell lunch, wine tasting, driving test, physio session, garden party, phone call, flu shot, "
            "parents evening, board meeting, product launch, training day, fire drill, doctor visit, hearing test, "
            "dance recital, pottery course, sewing circle, language exchange, chemistry exam, maths tutorial, "
            "thesis defence, graduation ceremony, retirement dinner, christening, wedding, funeral, family reunion, "
            "holiday planning session, tax consultation, mortgage meeting, bank appointment, notary appointment, "
            "moving day, furniture delivery, gas inspection, chimney sweep visit, window cleaning, dog training class, "
            "riding lesson, ski trip, bike tour, river cruise, theatre night, ballet visit, quiz night, poker game, "
            "film premiere, charity run, marathon, basketball practice, volleyball game, judo training, "
            "climbing session, massage, manicure, tattoo session, photo shoot, podcast recording, radio interview"
        ),
        "day": _split(
            "Monday, Tuesday, Wednesday, Friday, Sunday, tomorrow, today, 3 May, 12 June, 21 March, 5 April, 30 July, "
            "16 October, 2 December, 1 January, 8 February, 19 March, 26 April, 14 May, 28 June, 7 July, 22 August, "
            "4 September, 25 October, 11 November, 31 December, 17 January, 13 February, 10 June, 29 August, "
            "6 November, "
            "15 December, 20 July, 24 March"
        ),
        "time": _split(
            "6:30, 6:45, 7:00, 7:20, 7:50, 8:10, 8:30, 8:55, 9:05, 9:30, 10:00, 10:15, 10:35, 11:00, 11:25, "
            "11:30, 12:00, 12:45, 13:00, 13:10, 13:50, 14:00, 14:30, 14:40, 15:00, 15:05, 15:55, 16:00, 16:20, "
            "16:45, 17:15, 17:30, 17:40, 18:00, 18:25, 18:35, 19:00, 19:30, 19:45, 20:00, 20:15, 20:50, 21:05, "
            "21:40, 22:10"
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
        "pick up the children, play the radio, call a taxi, pay my rent, start the washing machine, book a hotel, "
        "order a birthday cake, order some noodles, buy a train ticket, paint the fence, peel the potatoes, "
        "set the table, make the bed, tidy the playroom, polish my shoes, sew on a button, translate this menu, "
        "check my blood pressure, measure the carpet, repair the roof, tow the trailer, park the van, "
        "carry the boxes upstairs, bake a loaf of bread, boil some eggs, grind the coffee, squeeze some oranges, "
        "prune the roses, rake the leaves, groom the poodle, milk the goats, clean the fish tank, "
        "melt the ice on the windscreen, pump up the tyres, pour me a glass of water, wake the children"
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
