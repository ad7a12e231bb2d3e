"""Lists of recordings, written and read for a test."""

from pathlib import Path

from mimi_bridge.data.manifest import Listing, list_recordings


def listed(folder: Path, name: str, content: str | bytes) -> Listing:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return list_recordings(folder / name)


def texts(listing: Listing) -> list[tuple[str, str | None]]:
    return [(utterance.id, utterance.text) for utterance in listing.utterances]
