"""Build the order sentences of configs/orders_json.yaml: a format to learn, no facts. Run: python data/orders/build.py

Every row asks for an order as one line of JSON. Valid and test hold combinations and one sentence form each that
training has not seen.
"""

import itertools
import json
import random
from pathlib import Path

ITEMS = ("oat loaf", "rye loaf", "plum tart", "apple tart", "sesame bun", "cheese roll", "honey cake", "walnut cake")
SIZES = ("small", "medium", "large")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}

TRAIN_FORMS = (
    "Could I get {number} {size} {item} for {day}?",
    "I'd like to order {number} {size} {item}, to be picked up on {day}.",
    "For {day}, please put aside {number} {size} {item}.",
    "Hello, {number} {size} {item} on {day}, please.",
    "We need {number} {size} {item} by {day}.",
    "{day}: {number} {size} {item}. Thanks!",
)
VALID_FORMS = ("Please have {number} {size} {item} ready on {day}.",)
TEST_FORMS = ("My mother wants {number} {size} {item} this {day}, is that possible?",)
ROWS = {"train": 160, "valid": 24, "test": 24}


def build_rows() -> dict[str, list[dict[str, str]]]:
    """The rows of each split; no combination of number, size, item and day is in two of them."""
    orders = list(itertools.product(NUMBERS, SIZES, ITEMS, DAYS))
    random.Random(0).shuffle(orders)
    splits = {}
    for split, forms in (("train", TRAIN_FORMS), ("valid", VALID_FORMS), ("test", TEST_FORMS)):
        own, orders = orders[: ROWS[split]], orders[ROWS[split] :]
        splits[split] = [_row(forms[index % len(forms)], *order) for index, order in enumerate(own)]
    return splits


def _row(form: str, number: str, size: str, item: str, day: str) -> dict[str, str]:
    order = {"item": item, "size": size, "quantity": NUMBERS[number], "day": day[:3].lower()}
    named = item if number == "one" else item.replace("loaf", "loave") + "s"
    return {"question": form.format(number=number, size=size, item=named, day=day), "answer": json.dumps(order)}


def main() -> None:
    for split, rows in build_rows().items():
        path = Path(__file__).parent / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
