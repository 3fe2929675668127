"""For schemathesis (test_schemathesis.py): what it makes up gets names that exist, so that more than 404 is reached, and asks for short
answers. The kind of a value is never changed: what was made to be wrong stays so."""
import json
import os
import zlib
from pathlib import Path

import jsonschema
import schemathesis

NAMES = ["alder", "birch", "cedar", "llama", "alder:latest", "llama::birch"]
ADAPTERS = os.environ["FUZZ_ADAPTERS"]


def choose(text, values):
    """Half of all texts, always the same ones, become one of the values."""
    n = zlib.crc32(text.encode("utf-8", "replace"))
    return values[n // 2 % len(values)] if n % 2 else text


def shorten(body, key, most):
    if type(body.get(key)) is int and body[key] > most and body[key] <= 2147483647:
        body[key] = most


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict):
        return body
    for key in ("model", "lora_name", "project"):
        if isinstance(body.get(key), str) and body[key]:
            body[key] = choose(body[key], NAMES)
    if body.get("unregister") is True and "lora_name" not in body:  # else what is asked for later would be gone
        body["unregister"] = False
    if isinstance(body.get("lora_path"), str) and body["lora_path"]:
        body["lora_path"] = choose(body["lora_path"], [f"{ADAPTERS}/{name}" for name in NAMES[:4]])
    if "messages" in body or "prompt" in body:
        if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
            body["max_tokens"] = 3
        shorten(body, "max_tokens", 3)
        shorten(body, "max_completion_tokens", 3)
        if body.get("n") in range(4, 65):
            body["n"] = 3
    return body


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    return {key: choose(value, NAMES) if isinstance(value, str) else value for key, value in (path_parameters or {}).items()}


DOCUMENT = json.loads((Path(__file__).resolve().parents[2] / "docs/openapi.json").read_text())


def piece_schema(case, kind):
    """What one line or one event's data of this reply must be; None if it is no stream."""
    replies = DOCUMENT["paths"][case.operation.path][case.operation.method.lower()]["responses"]
    schema = replies["200"]["content"].get(kind, {}).get("schema", {})
    if kind == "text/event-stream":
        schema = schema["properties"]["data"]["anyOf"][0]
    return schema.get("contentSchema")


@schemathesis.check
def pieces_of_streams(ctx, response, case):
    """schemathesis looks into whole replies only."""
    kind = response.headers.get("content-type", [""])[0].split(";")[0]
    schema = piece_schema(case, kind) if response.status_code == 200 else None
    if schema is None or kind == "application/json":
        return
    validator = jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]})
    lines = [line for line in response.content.decode().split("\n") if line]
    if kind == "text/event-stream":
        lines = [line.removeprefix("data: ") for line in lines]
        lines = lines[:-1] if lines[-1] == "[DONE]" else lines  # schemathesis reads no more than some events
    for line in lines:
        validator.validate(json.loads(line))
