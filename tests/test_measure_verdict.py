"""The verdict: one sentence on whether every byte came back, for each way a run can end."""

from __future__ import annotations

import pytest

from documents import closed, empty, interrupted, mismatch, opened, refused
from echopair.measure.verdict import FAIR, GOOD, POOR, verdict

HELD = [{"expression": "p99>1us", "value_us": 900.0, "failed": True}]
CLOSE_TIMEOUT = [{"phase": "close", "error": "timeout", "count": 1, "example": ""}]


def with_(document, **changes):
    """Return the document with these values; those that are dictionaries add to what is there."""
    for key, value in changes.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    return document


@pytest.mark.parametrize(
    ("document", "tone", "text"),
    [
        (closed(), GOOD, "Every byte came back: 4,000 messages, 3.91 MiB."),
        (
            with_(closed(), load={"verify": "length"}),
            GOOD,
            "Every message came back at its length: 4,000 messages, 3.91 MiB.",
        ),
        (
            with_(closed(), load={"verify": "none"}),
            GOOD,
            "Every message was answered, unchecked: 4,000 messages, 3.91 MiB.",
        ),
        (with_(closed(), load={"verify": None}), GOOD, "Every message was answered: 4,000 messages, 3.91 MiB."),
        (empty(), FAIR, "No message was sent: nothing came back."),
        (
            with_(opened(), exit_status=1, messages={"not_sent": 1000}),
            POOR,
            "1,000 messages were never sent (the last 500 ms of the schedule): "
            "the other 4,000 messages came back, 3.91 MiB.",
        ),
        (
            with_(opened(), exit_status=1, messages={"not_sent": 1}, connections={"closed_early": 1}),
            POOR,
            "1 message was never sent (500 us of the schedule): "
            "the other 4,000 messages came back, 3.91 MiB; 1 connection ended early.",
        ),
        (
            with_(closed(), exit_status=99, messages={"not_sent": 2}, thresholds=HELD),
            POOR,
            "2 messages were never sent: the other 4,000 messages came back, 3.91 MiB; failed for p99>1us.",
        ),
        (
            with_(closed(), exit_status=1, messages={"not_sent": 2, "unanswered": 1}),
            POOR,
            "Not every byte came back: 4,000 messages, 3.91 MiB; "
            "1 message did not come back, 2 messages were never sent.",
        ),
        (
            with_(empty(), messages={"not_sent": 2}),
            POOR,
            "2 messages were never sent: nothing came back.",
        ),
        (refused(), POOR, "Failed: nothing came back; 50 attempts to connect failed."),
        (
            mismatch(),
            POOR,
            "Not every byte came back intact: 800 messages, 800 KiB; 2 connections ended early, "
            "1 message came back altered, 5 messages did not come back, failed for p99>20ms, lag.p99>1ms.",
        ),
        (
            with_(closed(), exit_status=1, messages={"unanswered": 1}),
            POOR,
            "Not every byte came back: 4,000 messages, 3.91 MiB; 1 message did not come back.",
        ),
        (
            with_(closed(), exit_status=1, errors=CLOSE_TIMEOUT),
            POOR,
            "Every byte came back, but not all went well: 4,000 messages, 3.91 MiB; close: timeout.",
        ),
        (
            with_(closed(), exit_status=99, thresholds=HELD),
            POOR,
            "Every byte came back, but a threshold was crossed: 4,000 messages, 3.91 MiB; failed for p99>1us.",
        ),
        (
            with_(closed(), exit_status=99, thresholds=HELD, errors=CLOSE_TIMEOUT),
            POOR,
            "Every byte came back, but not all went well: 4,000 messages, 3.91 MiB; "
            "close: timeout, failed for p99>1us.",
        ),
        (
            with_(closed(), exit_status=1, errors=[{"phase": "echo", "error": "extra", "count": 1, "example": ""}]),
            POOR,
            "More came back than was sent: 4,000 messages, 3.91 MiB; echo: extra.",
        ),
        (
            with_(empty(), exit_status=129),
            FAIR,
            "Interrupted by SIGHUP before anything was measured: nothing came back.",
        ),
        (
            interrupted(),
            FAIR,
            "Interrupted by SIGINT after 1.50 s: 1,500 messages, 1.46 MiB; 50 messages did not come back.",
        ),
        (with_(closed(), exit_status=143), FAIR, "Interrupted by SIGTERM after 4.00 s: 4,000 messages, 3.91 MiB."),
        (
            with_(refused(), exit_status=130),
            POOR,
            "Failed, and interrupted by SIGINT: nothing came back; 50 attempts to connect failed.",
        ),
        (
            with_(mismatch(), exit_status=130, thresholds=[]),
            POOR,
            "Not every byte came back intact: 800 messages, 800 KiB; 2 connections ended early, "
            "1 message came back altered, 5 messages did not come back.",
        ),
    ],
)
def test_it_says_whether_every_byte_came_back_and_what_failed(document, tone, text):
    assert verdict(document).tone == tone
    assert str(verdict(document)) == text
