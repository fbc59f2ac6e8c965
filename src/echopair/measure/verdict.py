"""What became of a run, in words: the one verdict that the text report, the page and the commands pass on a document.

Pure. First whether every byte came back, then how much that was, then what failed.
"""

from __future__ import annotations

from typing import NamedTuple

from echopair.measure.document import Document
from echopair.text import count, duration, size

GOOD, FAIR, POOR = "good", "fair", "poor"
CHECKED = {
    "full": "Every byte came back",
    "length": "Every message came back at its length",
    "none": "Every message was answered, unchecked",
}
SIGNALS = {129: "SIGHUP", 130: "SIGINT", 143: "SIGTERM"}


class Verdict(NamedTuple):
    """How well it went (GOOD, FAIR, POOR), the headline, and the figures behind it as a sentence without its stop."""

    tone: str
    headline: str
    story: str

    def __str__(self) -> str:
        return f"{self.headline}: {self.story}."


def verdict(document: Document) -> Verdict:
    """Return the verdict on a result document."""
    messages, status, load = document["messages"], document["exit_status"], document["load"]
    every = CHECKED.get(load["verify"], "Every message was answered")
    never = _never_sent(document)
    troubles = _troubles(document, never)
    crossed = [threshold["expression"] for threshold in document["thresholds"] if threshold["failed"]]
    if crossed:
        troubles.append(f"failed for {', '.join(crossed)}")
    signal = SIGNALS.get(status)
    tone, headline = next(
        (tone, headline)
        for holds, tone, headline in (
            (messages["mismatched"], POOR, "Not every byte came back intact"),
            (any(error["error"] == "extra" for error in document["errors"]), POOR, "More came back than was sent"),
            (signal and not document["duration_s"], FAIR, f"Interrupted by {signal} before anything was measured"),
            (signal and document["errors"], POOR, f"Failed, and interrupted by {signal}"),
            (signal, FAIR, f"Interrupted by {signal} after {duration(document['duration_s'])}"),
            (not messages["echoed"] and (document["errors"] or status == 1), POOR, "Failed"),
            (messages["unanswered"], POOR, "Not every byte came back"),
            (never, POOR, never),
            (status == 99 and not document["errors"], POOR, f"{every}, but a threshold was crossed"),
            (status or document["errors"], POOR, f"{every}, but not all went well"),
            (not messages["echoed"], FAIR, "No message was sent"),
            (True, GOOD, every),
        )
        if holds
    )
    came = "nothing came back"
    if messages["echoed"]:
        came, data = count(messages["echoed"], "message"), size(document["bytes"]["received"])
        came = f"the other {came} came back, {data}" if headline == never else f"{came}, {data}"
    rest = ", ".join(trouble for trouble in troubles if trouble != headline)
    return Verdict(tone, headline, f"{came}; {rest}" if rest else came)


def _never_sent(document: Document) -> str:
    """Return how many messages were never sent, and how much of the schedule that is; empty if none."""
    messages, connections, rate = document["messages"], document["connections"], document["load"]["rate"]
    number = messages["not_sent"]
    if not number:
        return ""
    part = "" if connections["failed"] or connections["closed_early"] else "the last "
    late = f" ({part}{duration(number / rate)} of the schedule)" if rate else ""
    return f"{count(number, 'message')} {'was' if number == 1 else 'were'} never sent{late}"


def _troubles(document: Document, never: str) -> list[str]:
    """Return what failed and how often."""
    messages, connections = document["messages"], document["connections"]
    troubles = [
        f"{count(number, noun)} {what}"
        for number, noun, what in (
            (connections["failed"], "attempt", "to connect failed"),
            (connections["closed_early"], "connection", "ended early"),
            (messages["mismatched"], "message", "came back altered"),
            (messages["unanswered"], "message", "did not come back"),
        )
        if number
    ]
    troubles += [never] if never else []
    return troubles + [
        f"{error['phase']}: {error['error']}"
        for error in document["errors"]
        if error["phase"] not in ("connect", "echo") or error["error"] == "extra"  # others are in the counts above
    ]


def not_timed(document: Document) -> str:
    """Return a sentence on the messages that no latency is known of, and theirs would be the worst; else nothing."""
    messages = document["messages"]
    lost = messages["mismatched"] + messages["unanswered"] + messages["not_sent"]
    if not lost:
        return ""
    due = messages["sent"] + messages["not_sent"]
    return f"{lost:,} of {count(due, 'message')} did not come back or were not sent: they are not in these figures."


def address_story(entry: Document) -> str:
    """Return what happened at one address, an entry of a document's `addresses`."""
    failed = f"{count(entry['failed'], 'attempt')} failed: {entry['example']}" if entry["failed"] else ""
    made = count(entry["connections"], "connection") if entry["connections"] else ""
    return "; ".join(filter(None, (made, failed)))
