"""The phrasings of the held-out rows; no template is shared with `phrasings.TRAIN`."""

from __future__ import annotations

from sft_jax.demonstrations.phrasings import Language

HELD_OUT = Language(
    sentences={
        "timer": (
            "Begin a countdown labelled {label} lasting {minutes} minutes.",
            "How about a timer? The {label} will take {minutes} minutes.",
            "In {minutes} minutes I have to check the {label}, so keep time for me.",
            "Beep after {minutes} minutes so I don't overcook the {label}.",
            "need a {minutes} min countdown, it's for my {label}",
            "Would you mind watching the clock for the {label}, say {minutes} minutes?",
            "I am making {label}. Alert me once {minutes} minutes have passed.",
        ),
        "shop": (
            "Jot down {item} among the things to purchase.",
            "Our supply of {item} is gone. Include some in the groceries.",
            "Make sure we have {item} on the shopping list.",
            "no {item} again, on the list please",
            "Could we pick up {item} on our next trip to the market?",
            "I looked in the cupboard and found no {item}, so list some.",
            "Note down {item} for when I pass the supermarket.",
        ),
        "weather": (
            "What are the skies doing over {city}?",
            "Find out how hot {city} is today.",
            "I have a picnic in {city} today. Will it stay dry?",
            "any storms around {city} today?",
            "Would a light jacket be enough for {city}?",
            "Let me hear today's conditions for {city}.",
            "My train stops in {city} soon, so what's the weather?",
        ),
        "text": (
            "Get word to {to} that {message}.",
            'Reply to {to} with "{message}".',
            "Pass this on to {to}: {message}",
            "{to} asked me for an update, so text back that {message}.",
            'ping {to} and say "{message}"',
            "Inform {to} by text that {message}.",
            "A short note to {to}, please: {message}",
        ),
        "lights": (
            "Bring the lamps in the {room} to {percent} percent.",
            "The mood in the {room} is off, so light it at {percent}%.",
            "How about {percent} percent brightness for the {room}?",
            "For the {room} I want the lights at {percent} percent.",
            "switch {room} lighting over to {percent}%",
            "Let the {room} lights glow at {percent} percent, please.",
            "The painter is here, so keep the {room} lights at {percent} percent.",
        ),
        "event": (
            "Enter the {title} in my agenda for {day}, {time}.",
            "At {time} {on_day} I have a {title}, so record that.",
            "Reserve {time} {on_day} in my schedule for a {title}.",
            "gotta be at a {title} {on_day} at {time}, log it",
            "Please make room in the calendar for a {title}: {day} at {time}.",
            "My {title} starts at {time} {on_day}, so write it into the calendar.",
            "Could a {title} go into the planner for {day} at {time}?",
        ),
    },
    clauses={
        "timer": ("count {minutes} minutes for the {label}", "run the {label} timer for {minutes} minutes"),
        "shop": ("get {item} onto the grocery list", "write down {item} for the store"),
        "weather": ("see how the weather is in {city}", "find me the forecast for {city}"),
        "text": ('write "{message}" to {to}', 'message {to} "{message}"'),
        "lights": ("turn the {room} lamps to {percent} percent", "have the {room} lit at {percent}%"),
        "event": ("enter a {title} for {day} at {time}", "save the {title} {on_day} at {time} in the diary"),
    },
    joints=(
        "When you have a moment, {first} and {second}.",
        "{First}, and while you're at it, {second}.",
        "Before anything else {first}, next {second}.",
        "Would you {first}? Then {second}.",
    ),
    refusal_frames=(
        "Would it be possible to {action}?",
        "Do me a favour and {action}.",
        "I was hoping you would {action}.",
        "any chance you could {action}",
        "Next, {action}.",
    ),
)
