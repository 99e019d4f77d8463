"""What a connector service does with the official client; prints each answer as a line of JSON.

Run as `python story.py sync|async URL KEY`, with any release of the client on the path.
"""

import asyncio
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from elasticsearch import ApiError, AsyncElasticsearch, Elasticsearch

STORY = json.loads(Path(__file__).with_name("story.json").read_text())


async def tell(client: Any) -> None:
    for step in STORY:
        call = client.connector if step["call"] != "info" else client
        try:
            answer = getattr(call, step["call"])(**step["with"])
            body = (await answer if inspect.isawaitable(answer) else answer).body
            told = {"body": body}
        except ApiError as error:
            found = error.body["error"]
            told = {"error": type(error).__name__, "status": error.status_code}
            told["type"] = found["type"] if isinstance(found, dict) else found
        print(json.dumps(told))
    closed = client.close()
    if inspect.isawaitable(closed):
        await closed


if __name__ == "__main__":
    _, kind, url, key = sys.argv
    made = {"sync": Elasticsearch, "async": AsyncElasticsearch}[kind]
    asyncio.run(tell(made(url, api_key=key)))
