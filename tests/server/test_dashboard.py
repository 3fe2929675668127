#!/usr/bin/env python3
"""Tests of how `graft serve` serves its dashboard: types, headers, what a browser holds already, and what is no file of it.

What the page does is tested in a browser: tests/browser. GRAFT_BIN names the binary (required).
"""
import re
import unittest
from pathlib import Path

from serving import ROOT, Case, Server

FOLDER = ROOT / "server/dashboard"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
         ".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8"}
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def names():
    return sorted(str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*") if p.suffix in TYPES)


class Page(Case):
    def test_root(self):
        page = self.good("GET", "/", headers=HTML)
        self.assertEqual(page.headers["Content-Type"], TYPES[".html"])
        self.assertEqual(page.text, (FOLDER / "index.html").read_text())
        for accept in [{}, {"Accept": "*/*"}, {"Accept": "application/json"}]:
            plain = self.good("GET", "/", headers=accept)
            self.assertEqual(plain.headers["Content-Type"], "text/plain; charset=utf-8")
            self.assertEqual(plain.text, "graft is running\n")
            self.assertIsNone(plain.headers["ETag"])
        self.assertEqual(page.headers["Vary"], plain.headers["Vary"])
        self.assertIn("Accept", plain.headers["Vary"])

    def test_every_file_is_in_the_binary_as_it_is(self):
        self.assertGreater(len(names()), 10)
        for name in names():
            reply = self.good("GET", f"/dashboard/{name}")
            self.assertEqual(reply.body, (FOLDER / name).read_bytes(), name)
            self.assertEqual(reply.headers["Content-Type"], TYPES[Path(name).suffix], name)
            self.assertEqual(reply.headers["X-Content-Type-Options"], "nosniff", name)

    def test_page_names_only_files_that_exist(self):
        found = set(re.findall(r'(?:src|href)="([^"]+)"', (FOLDER / "index.html").read_text()))
        self.assertIn("dashboard/app.js", found)
        for path in found:
            self.good("GET", f"/{path}")
        for name in [n for n in names() if n.endswith(".js")]:
            for imported in re.findall(r'from ?"([^"]+)"', (FOLDER / name).read_text()):
                path = (FOLDER / name).parent / imported
                self.assertIn(str(path.resolve().relative_to(FOLDER)), names(), f"{name} imports {imported}")

    def test_headers(self):
        for path in ["/", "/dashboard/app.js", "/dashboard/style.css", "/dashboard/vendor/preact.js"]:
            headers = self.good("GET", path, headers=HTML).headers
            policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
            self.assertEqual(policy["default-src"], "'none'")
            for what in ["script-src", "style-src", "connect-src"]:
                self.assertEqual(policy[what], "'self'")
            self.assertEqual(policy["frame-ancestors"], "'none'")
            self.assertNotIn("unsafe", headers["Content-Security-Policy"])
            self.assertEqual(headers["X-Frame-Options"], "DENY")
            self.assertEqual(headers["Referrer-Policy"], "no-referrer")
            self.assertEqual(headers["Cache-Control"], "no-cache")

    def test_nothing_of_the_page_needs_what_the_policy_forbids(self):
        text = (FOLDER / "index.html").read_text()
        self.assertFalse(re.findall(r"<style|style=|\son\w+=|<script(?![^>]*\ssrc=)|https?://", text))
        html_from_text = r"innerHTML|InnerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
        for name in [n for n in names() if n.endswith(".js") and not n.startswith("vendor/")]:
            self.assertFalse(re.findall(html_from_text, (FOLDER / name).read_text()), name)

    def test_not_modified(self):
        for path, headers in [("/", HTML), ("/dashboard/app.js", {})]:
            tag = self.good("GET", path, headers=headers).headers["ETag"]
            self.assertRegex(tag, r'\A"[0-9a-f]{16}"\Z')
            for held in [tag, f"W/{tag}", f'"other", {tag}', "*"]:
                reply = self.server.get(path, headers={**headers, "If-None-Match": held})
                self.assertEqual((reply.status, reply.body), (304, b""), held)
                self.assertEqual(reply.headers["ETag"], tag)
            for held in ['"other"', "", tag[:-2] + '"']:
                self.assertEqual(self.server.get(path, headers={**headers, "If-None-Match": held}).status, 200, held)
        tags = {self.good("GET", f"/dashboard/{n}").headers["ETag"] for n in names()}
        self.assertEqual(len(tags), len(names()))

    def test_head(self):
        for path, headers in [("/", HTML), ("/", {}), ("/dashboard/style.css", {})]:
            whole = self.good("GET", path, headers=headers)
            head = self.server.ask("HEAD", path, headers=headers)
            self.assertEqual((head.status, head.body), (200, b""))
            for name in ["Content-Type", "Content-Length", "ETag", "Vary"]:
                self.assertEqual(head.headers[name], whole.headers[name], name)

    def test_what_is_no_file(self):
        for path in ["/dashboard/elm.js", "/dashboard/embed.cmake", "/dashboard/vendor/update.sh", "/dashboard/vendor/",
                     "/dashboard/../dashboard.c", "/dashboard/%2e%2e/dashboard.c", "/dashboard//app.js", "/dashboard/./app.js",
                     "/dashboard/app.js/", "/dashboard/APP.JS", "/dashboard//etc/passwd", "/dashboard/", "/dashboard"]:
            self.bad(404, "not_found", "GET", path)
        self.bad(400, "bad_request", "GET", "/dashboard/app.js%00")
        for path in ["/", "/dashboard/app.js"]:
            self.assertEqual(self.bad(405, "method_not_allowed", "POST", path, {}).headers["Allow"], "GET, HEAD, OPTIONS")


class WithKey(unittest.TestCase):
    def test_page_needs_no_key_and_data_does(self):
        server = Server(env={"GRAFT_API_KEY": "a-key-for-the-tests"})
        try:
            self.assertEqual(server.get("/", headers=HTML).status, 200)
            self.assertEqual(server.get("/").text, "graft is running\n")
            self.assertEqual(server.get("/dashboard/app.js").status, 200)
            for path in ["/v1/lora_adapters", "/v1/projects", "/v1/models"]:
                self.assertEqual(server.get(path).status, 401, path)
        finally:
            server.close()


if __name__ == "__main__":
    unittest.main(verbosity=1)
