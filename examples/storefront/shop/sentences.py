"""What a shopper is told when something goes wrong: what it means for them, and what to do."""

from __future__ import annotations

from vault.client import (
    CallError,
    ConsentRequired,
    Contention,
    InvalidArgument,
    NotAvailable,
    OutcomeUnknown,
    Overloaded,
)

_FIELDS = {
    "card.pan": ("number", "This card number is not right. Please compare each digit with your card."),
    "card.expiry": ("expiry", "This card has expired, or the date is mistyped. Please look at your card."),
    "card.holder_name": ("name", "Please write the name as it stands on the card, without digits."),
    "card.security_code": ("code", "The security code is the 3 digits on the back, or 4 on the front of an Amex."),
    "expiry": ("expiry", "This date is past or too far away. Please look at your card."),
}
"""Fields of the vault's requests: which of ours they come from, and what to say."""

AWAY = (
    "Our card vault does not answer right now. Nothing was charged. Please press the button again in a moment: "
    "it is still the same order, so you cannot pay twice."
)
_ACCOUNT_AWAY = "Our card vault does not answer right now. Please try again in a moment; doing it twice does no harm."

TROUBLES = {
    "away": AWAY,
    "processor": (
        "The payment processor did not answer, so we do not know yet whether this order is paid. Please try again: "
        "it knows this order by its number and charges it once at most."
    ),
    "retype": "This card can no longer be used for this order. Nothing was charged. Please choose a card again.",
}
"""Why an order is not paid yet."""

NOTICES = {
    "added": "It is in your basket.",
    "default": "This card is now your default.",
    "expiry": "The new expiry date is saved.",
    "removed": "The card is removed. This receipt shows it.",
    "erased": "Everything the vault kept about your cards is erased. This receipt shows it.",
    "proof": "The vault's signed log was asked for the proof.",
    "retype": TROUBLES["retype"],
    "choose": "Please choose one of your cards, or type one in.",
    "account-away": _ACCOUNT_AWAY,
    "account-gone": "That card is no longer there.",
    "account-busy": "Too much at once. Please try again in a moment.",
    "account-date": _FIELDS["expiry"][1],
}
"""What a page may say after a redirect. The address holds one of these words, never a text."""


def field_errors(error: InvalidArgument) -> dict[str, str]:
    """By field of our form."""
    found = {}
    for violation in error.violations:
        for path, (field, sentence) in _FIELDS.items():
            if violation.field == path or violation.field.startswith(path + "."):
                found[field] = sentence
    return found


def sentence(error: CallError) -> str:
    """At the checkout."""
    match error:
        case OutcomeUnknown():
            return AWAY
        case Overloaded() | Contention():
            return "There is a rush just now. Nothing was charged. Please press the button again in a moment."
        case NotAvailable():
            return "That card is no longer there. Please choose another one. Nothing was charged."
        case ConsentRequired():
            return "You have not agreed, or no longer agree, that we keep this card. Please type it in."
        case InvalidArgument():
            return "Please look at the fields below. Nothing was charged."
        case _:
            return f"This did not work, and trying again will not help. Nothing was charged. {_reference(error)}"


def notice(error: CallError) -> str:
    """On the account page: a word of `NOTICES`."""
    match error:
        case OutcomeUnknown():
            return "account-away"
        case NotAvailable():
            return "account-gone"
        case InvalidArgument():
            return "account-date"
        case _:
            return "account-busy"


def _reference(error: CallError) -> str:
    return f"Tell us this reference: {error.error_id}." if error.error_id else ""
