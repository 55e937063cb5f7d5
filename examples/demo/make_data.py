"""Make the demo's data: short customer messages, each with one of four intents.

Messages are templates with slots, written in different styles (typos, shouting, chatty, terse).
Train and test share neither a template nor a greeting, so a tuned model has to understand the
message; it cannot have seen its wording. The same seed gives the same rows.

Run it alone to look at the rows:

    python examples/demo/make_data.py --folder /tmp/demo-data
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path

INTENTS = ("delivery", "payment", "repair", "account")
NUM_TRAIN = 480
NUM_TEST = 64
SEED = 7

ITEMS = {
    "train": ["laptop", "lamp", "headphones", "kettle", "washing machine", "camera", "scooter"],
    "test": ["blender", "phone", "printer", "toaster", "game console", "vacuum cleaner"],
}
DAYS = {
    "train": ["Monday", "last week", "three days ago", "the 4th", "before the weekend"],
    "test": ["Thursday", "a fortnight ago", "the 19th", "earlier this month"],
}
AMOUNTS = {
    "train": ["$20", "40 euros", "12.99", "$150", "75 dollars"],
    "test": ["$18", "63 euros", "9.50", "$210"],
}

TEMPLATES: dict[str, dict[str, list[str]]] = {
    "train": {
        "delivery": [
            "where is my {item}? I ordered it {day}",
            "the tracking page has not moved since {day}",
            "my parcel still has not arrived",
            "how long until the {item} gets here",
            "the driver left my {item} with a stranger",
            "can you ship the {item} to my office instead",
            "courier says delivered but there is nothing at my door",
            "I need the {item} by Friday, will it make it",
            "package is stuck at the depot since {day}",
            "do you deliver to islands",
            "nobody rang the bell and the truck drove off with my {item}",
            "has the {item} been sent out",
            "my order is late again",
            "please leave the box with my neighbour",
            "what time will the postman bring the {item}",
            "the map shows my package in another city",
            "it was supposed to be here {day}, where is it",
            "can I pick the {item} up at the post office",
            "when do you dispatch orders made {day}",
            "the shipping date moved for the third time",
            "my {item} went to my old street",
            "is express shipping possible for the {item}",
            "the carrier lost my box",
            "what happened to my shipment from {day}",
            "a van stopped here but nobody handed me the {item}",
            "you promised arrival {day} and I am still waiting",
            "how can I follow my shipment",
            "the {item} was thrown over the fence by the delivery man",
            "will somebody come again tomorrow with my package",
            "which day does the {item} come",
        ],
        "payment": [
            "you charged me {amount} twice",
            "I need an invoice for the {item}",
            "why is there a fee of {amount} on my statement",
            "my card was declined but the money is gone",
            "the discount code was not taken off the total",
            "the receipt shows {amount}, I should have paid less",
            "can I pay for the {item} in instalments",
            "a payment of {amount} that I do not recognise",
            "the tax on my bill from {day} looks wrong",
            "do you take PayPal for the {item}",
            "{amount} was debited from my bank account {day}, what for",
            "my coupon gave me nothing off",
            "the price at checkout is higher than on the page",
            "I paid {amount} but the order says unpaid",
            "what do you want {amount} for",
            "the bill must have our VAT number",
            "visa was refused, which cards work",
            "is there a surcharge for paying by credit card",
            "the {item} cost me more than the advertised price",
            "two transactions of {amount} on {day} for one {item}",
            "can I get a copy of the receipt from {day}",
            "I was billed for something I did not buy",
            "my gift voucher does not work at checkout",
            "the amount you took is {amount} too high",
            "can I split the {amount} over several months",
            "my bank says you withdrew {amount} again",
            "please correct the company address on my bill",
            "I see an unknown charge of {amount}",
            "the credit card form shows an error when I pay",
            "was my transfer of {amount} booked",
        ],
        "repair": [
            "the {item} does not switch on any more",
            "my {item} makes a strange noise",
            "the screen of my {item} stays black",
            "the {item} stopped working after one day",
            "the battery of the {item} is empty within an hour",
            "my {item} is broken, can you fix it",
            "the {item} gets very hot and smells burnt",
            "a button on the {item} is stuck",
            "there is no sound from my {item}",
            "the {item} turns itself off since {day}",
            "I dropped my {item} and the glass is cracked",
            "how much does it take to have a {item} repaired",
            "do you have spare parts for the {item}",
            "the {item} keeps crashing",
            "the plug of my {item} is loose",
            "water got into my {item}",
            "the {item} shows error 7",
            "my {item} will not charge",
            "the fan of the {item} rattles",
            "the {item} is leaking",
            "the light on the {item} only blinks red",
            "my {item} is dead, is there a technician",
            "the display flickers since {day}",
            "can somebody look at my faulty {item}",
            "the wheel of my {item} came off",
            "the {item} freezes all the time",
            "one speaker of the {item} is silent",
            "the lid of my {item} does not close",
            "the {item} vibrates so much that it moves",
            "the cable of the {item} is torn",
        ],
        "account": [
            "I forgot my password",
            "the site will not let me log in since {day}",
            "please change the email on my profile",
            "delete my account and all my data",
            "how do I turn off the newsletter",
            "the code for two step login never comes",
            "my user name is spelled wrong",
            "someone else signed in as me {day}",
            "I cannot update my phone number in settings",
            "my profile got locked after too many tries",
            "the password reset mail never arrived",
            "how do I open a new account",
            "unsubscribe me from all your emails",
            "the app logs me out every five minutes",
            "I got married, please update my last name",
            "can two people share one login",
            "it says my email is already registered",
            "how can I see the data that you store about me",
            "I think somebody knows my password",
            "the sign in button does nothing",
            "I want to change my birthday in my profile",
            "please remove my old phone from the security settings",
            "do not send me advertising any more",
            "I never get the verification code for the app",
            "the link to choose a new password is dead",
            "where do I change my personal data",
            "my account was hacked {day}",
            "I want to log in with another mail address",
            "close my account for ever please",
            "why can I not sign in today",
        ],
    },
    "test": {
        "delivery": [
            "still waiting for the {item} that was due {day}",
            "has my order left the warehouse yet",
            "the van never came {day}, when will it be back",
            "which courier is bringing my {item}",
            "my box was dropped at the wrong house",
            "what is the status of my shipment",
            "can the {item} come on a Saturday",
            "estimated arrival keeps changing for my {item}",
        ],
        "payment": [
            "there are two debits of {amount} for one purchase",
            "send me a bill with our company name for the {item}",
            "you took {amount} too much from my bank",
            "what is this {amount} charge from {day}",
            "credit card refused at checkout for the {item}",
            "the voucher did not lower the price",
            "I was overcharged for the {item}",
            "is it possible to pay {amount} monthly",
        ],
        "repair": [
            "the {item} will not start",
            "my {item} has been defective since {day}",
            "can you mend a {item} that fell down the stairs",
            "the motor of the {item} is humming and nothing moves",
            "the {item} has a broken switch",
            "my {item} does not react when I press anything",
            "the {item} loses power after ten minutes",
            "is there a workshop that fixes the {item}",
        ],
        "account": [
            "I can not sign in any more",
            "reset link for my password does not work",
            "how can I close my profile for good",
            "I want to use a new email address to log in",
            "stop sending me marketing mails",
            "my login was hacked {day}",
            "the app asks for a verification code I never get",
            "where can I edit my personal details",
        ],
    },
}
OPENINGS = {
    "train": ["", "", "", "hi, ", "hello! ", "hey team, ", "good morning, "],
    "test": ["", "", "dear support, ", "excuse me, ", "good evening, "],
}
CLOSINGS = {
    "train": ["", "", "", " thanks", ", please help", "?? ", "!!", " :("],
    "test": ["", "", " thank you", ", can you look into it", " !", " asap"],
}


def make_rows(split: str, *, num_rows: int, seed: int = SEED) -> list[dict[str, str]]:
    """Rows of one split, shuffled, every intent equally often, no message twice.

    Args:
        split: ``train`` or ``test``.
        num_rows: How many; a multiple of the number of intents.
        seed: Same seed, same rows.

    Returns:
        Records with ``input`` (the message) and ``output`` (its intent).
    """
    rng = random.Random(f"{split}-{seed}")
    rows: list[dict[str, str]] = []
    for intent in INTENTS:
        rows += _rows_of_intent(split, intent, num_rows // len(INTENTS), rng)
    rng.shuffle(rows)
    return rows


def _rows_of_intent(
    split: str, intent: str, num_rows: int, rng: random.Random
) -> list[dict[str, str]]:
    templates = TEMPLATES[split][intent]
    messages: dict[str, str] = {}
    turn = 0
    while len(messages) < num_rows:
        message = _write(split, templates[turn % len(templates)], rng)
        messages.setdefault(message.casefold(), message)
        turn += 1
    return [{"input": message, "output": intent} for message in messages.values()]


def _write(split: str, template: str, rng: random.Random) -> str:
    text = template.format(
        item=rng.choice(ITEMS[split]),
        day=rng.choice(DAYS[split]),
        amount=rng.choice(AMOUNTS[split]),
    )
    text = rng.choice(OPENINGS[split]) + text + rng.choice(CLOSINGS[split])
    style = rng.random()
    if style < 0.25:
        text = text.lower()
    elif style < 0.32:
        text = text.upper()
    else:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.25:
        text = _with_typo(text, rng)
    return text.strip()


def _with_typo(text: str, rng: random.Random) -> str:
    """Swap two neighbouring letters, or drop one, inside a word."""
    places = [i for i in range(1, len(text) - 1) if text[i].isalpha() and text[i + 1].isalpha()]
    at = rng.choice(places)
    if rng.random() < 0.5:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + text[at + 1 :]


def write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Write ``train.jsonl`` and ``test.jsonl`` into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    write_jsonl(folder / "train.jsonl", make_rows("train", num_rows=NUM_TRAIN))
    write_jsonl(folder / "test.jsonl", make_rows("test", num_rows=NUM_TEST))
    print(f"wrote {NUM_TRAIN} train and {NUM_TEST} test rows to {folder}")


if __name__ == "__main__":
    main()
