#!/usr/bin/env python3
"""docs/openapi.json: it names the routes that server/route.c has and no other, and replies are as it says."""
import json
import re
import unittest

from serving import PROMPT, ROOT, Case

FILE = ROOT / "docs/openapi.json"
DOCUMENT = json.loads(FILE.read_text())
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int, "number": (int, float)}
# What the checks below look at, and what says nothing about values.
KNOWN = {"$ref", "anyOf", "oneOf", "const", "enum", "type", "required", "properties", "additionalProperties", "propertyNames", "items",
         "minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum", "maxProperties", "pattern",
         "description", "example", "format", "contentMediaType", "contentSchema"}
NOT_NOW = ["/v1/projects/current"]  # nothing is it at first
CHANGES = ["/v1/keys", "/v1/load_lora_adapter"]  # a first key shuts everybody out; a folder that is not there


def resolve(ref):
    at = DOCUMENT
    assert ref.startswith("#/"), ref
    for step in ref[2:].split("/"):
        at = at[step]
    return at


def is_of(value, kind):
    return isinstance(value, TYPES[kind]) and not (isinstance(value, bool) and kind in ("integer", "number"))


def faults(value, schema, at="$"):
    """Why the value is not the schema's, of those keywords that replies need."""
    if "$ref" in schema:
        return faults(value, resolve(schema["$ref"]), at)
    found = []
    for key in ("anyOf", "oneOf"):
        good = [not faults(value, s, at) for s in schema.get(key, [])]
        if good and (not any(good) if key == "anyOf" else good.count(True) != 1):
            found.append(f"{at}: {key} of none or of several: {[faults(value, s, at) for s in schema[key]]}")
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(is_of(value, k) for k in kinds):
        return found + [f"{at}: {value!r} is not {kinds}"]
    if "const" in schema and value != schema["const"] or "enum" in schema and value not in schema["enum"]:
        found.append(f"{at}: {value!r} is none of the values")
    if isinstance(value, dict):
        found += [f"{at}: {key} is missing" for key in schema.get("required", []) if key not in value]
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            found += faults(item, inner, f"{at}.{key}") if isinstance(inner, dict) else []
    if isinstance(value, list):
        found += [f for i, item in enumerate(value) for f in faults(item, schema.get("items", {}), f"{at}[{i}]")]
    if isinstance(value, (int, float)) and not value >= schema.get("minimum", value):
        found.append(f"{at}: {value} is too small")
    return found


def parts(x):
    if isinstance(x, dict):
        yield x
        for v in x.values():
            yield from parts(v)
    elif isinstance(x, list):
        for v in x:
            yield from parts(v)


class File(unittest.TestCase):
    def test_routes(self):
        found = re.findall(r'\{EVHTTP_REQ_(\w+), "([^"]+)", \w+, SRV_(\w+)', (ROOT / "server/route.c").read_text())
        self.assertGreater(len(found), 10)
        described = []
        for path, calls in DOCUMENT["paths"].items():
            for method, call in calls.items():
                access = "ANYONE" if call.get("security") == [{}] else "ADMIN" if "key for everything" in call.get("description", "") else "KEY"
                described.append((method.upper(), re.sub(r"\{\w+\}", "{}", path), access))
        self.assertEqual(sorted(described), sorted(found))

    def test_references(self):
        refs = [p["$ref"] for p in parts(DOCUMENT) if "$ref" in p]
        for ref in refs:
            resolve(ref)
        for kind in ("schemas", "responses"):
            unused = [n for n in DOCUMENT["components"][kind] if f"#/components/{kind}/{n}" not in refs]
            self.assertEqual(unused, [])

    def test_path_parameters(self):
        for path, calls in DOCUMENT["paths"].items():
            for call in calls.values():
                self.assertEqual(re.findall(r"\{(\w+)\}", path), [p["name"] for p in call.get("parameters", []) if p["in"] == "path"])

    def test_names(self):
        calls = [c for calls in DOCUMENT["paths"].values() for c in calls.values()]
        names = [c["operationId"] for c in calls]
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual({t for c in calls for t in c["tags"]}, {t["name"] for t in DOCUMENT["tags"]})

    def test_the_validator_knows_all_keywords(self):
        def schemas(s):
            yield s
            for key in ("anyOf", "oneOf"):
                for inner in s.get(key, []):
                    yield from schemas(inner)
            for inner in s.get("properties", {}).values():
                yield from schemas(inner)
            if "items" in s:
                yield from schemas(s["items"])
        for top in DOCUMENT["components"]["schemas"].values():
            for schema in schemas(top):
                self.assertLessEqual(set(schema), KNOWN)

    def test_the_validator_can_fail(self):
        model = {"id": "x", "object": "model", "created": 1, "owned_by": "graft", "root": None, "parent": None, "max_model_len": 1, "state": "ok"}
        schema = {"$ref": "#/components/schemas/Model"}
        self.assertEqual(faults(model, schema), [])
        for wrong in ({"object": "thing"}, {"created": "1"}, {"created": True}, {"root": 1}):
            self.assertEqual(len(faults({**model, **wrong}, schema)), 1)
        del model["id"]
        self.assertEqual(faults(model, schema), ["$: id is missing"])


class Replies(Case):
    def check(self, method, path, body=None, status=200, template=None, **more):
        reply = self.server.ask(method, path, body, **more)
        self.assertEqual(reply.status, status, reply.text)
        told = DOCUMENT["paths"][template or path][method.lower()]["responses"][str(status)]
        told = resolve(told["$ref"]) if "$ref" in told else told
        kind = reply.headers["Content-Type"]
        self.assertIn(kind.split(";")[0], [k.split(";")[0] for k in told["content"]])
        if kind == "application/json":
            self.assertEqual(faults(reply.json, told["content"][kind]["schema"]), [])
        return reply, told["content"].get(kind, {}).get("schema")

    def test_gets(self):
        self.complete()  # so that something is in memory and was used
        for path, calls in DOCUMENT["paths"].items():
            if "get" in calls and "{" not in path and path not in NOT_NOW:
                with self.subTest(path):
                    self.check("GET", path)
        self.check("GET", "/v1/models/alder", template="/v1/models/{model}")
        self.check("GET", "/v1/models/elm", status=404, template="/v1/models/{model}")

    def test_itself(self):
        self.assertEqual(self.good("GET", "/openapi.json").json, DOCUMENT)

    def test_examples(self):
        """Every example of a body is taken."""
        tried = 0
        for path, calls in DOCUMENT["paths"].items():
            for method, call in calls.items():
                schema = call.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
                example = (resolve(schema["$ref"]) if "$ref" in schema else schema).get("example")
                if example and path not in CHANGES:
                    with self.subTest(path):
                        tried += 1
                        self.check(method.upper(), path, example)
        self.assertGreater(tried, 1)

    def test_streams(self):
        for path, more in (("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}], "logprobs": True, "top_logprobs": 2}),
                           ("/v1/completions", {"prompt": PROMPT, "logprobs": 2})):
            body = {"model": "alder", "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}, **more}
            reply, schema = self.check("POST", path, body)
            piece = schema["properties"]["data"]["anyOf"][0]["contentSchema"]
            events = reply.events
            self.assertEqual(events.pop(), "[DONE]")
            for event in events:
                self.assertEqual(faults(json.loads(event), piece), [])
            self.check("POST", path, {**body, "stream": False, "stream_options": None})

    def test_errors(self):
        for status, body in ((400, {"prompt": 1}), (404, {"prompt": "x", "model": "elm"})):
            self.check("POST", "/v1/completions", body, status=status)
        self.check("POST", "/v1/completions", b"x", status=415, headers={"Content-Type": "text/plain"})
        self.check("POST", "/v1/load_lora_adapter", {"lora_name": "elm", "lora_path": "/nowhere"}, status=404)
        self.check("POST", "/v1/unload_lora_adapter", {}, status=400)

    def test_adapters(self):
        for call in ("load", "pin", "unpin", "unload"):
            self.check("POST", f"/v1/lora_adapters/birch/{call}", template=f"/v1/lora_adapters/{{name}}/{call}")
        reply, schema = self.check("POST", "/v1/lora_adapters/scan")
        lines = [json.loads(line) for line in reply.text.splitlines()]
        self.assertTrue(lines[-1]["done"])
        for line in lines:
            self.assertEqual(faults(line, schema["contentSchema"]), [])


class Current(Case):
    def test_it(self):
        told = DOCUMENT["paths"]["/v1/projects/current"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        self.assertEqual(faults(self.good("POST", "/v1/projects/current", {"project": "alder"}).json, told), [])
        self.assertEqual(faults(self.good("GET", "/v1/projects/current").json, told), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
