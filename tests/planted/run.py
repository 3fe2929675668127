#!/usr/bin/env python3
"""Plants one bug at a time in a copy of the loader and says which test notices.

    run.py            all of them; the table on stdout (docs/testing.md has the last one)
    run.py NAME …     only these

A bug is an exact piece of source and what replaces it. A piece that is not there exactly once ends the run: the source has moved
on, and the bug has to move with it. GRAFT_SCHEDULES is how many schedules each scene gets (2000).
"""
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# name, what it leaves out or gets wrong, file in src/loader, what is there, what is put in its place
BUGS = [
    ("skip_retain", "a waiter's lease is not counted", "table.c",
     "    for (gr_waiter *w = v->waiters; w; w = w->next) {\n        gr_table_hold(t, v, now);\n    }\n", ""),
    ("skip_retain_copy", "a copied lease is not counted", "lease.c",
     "            gr_table_hold(&copy->loader->table, copy->version, gr_now_us());\n", ""),
    ("evict_leased", "the policy is not told of a lease: it may evict what is leased", "table.c",
     "    if (v->state == GR_RESIDENT) {\n        gr_policy_hold(t->policy, &v->policy);\n    }\n", ""),
    ("reload_joins", "a reload joins an older flight", "lease.c",
     "return flight && !a->request->reload && (", "return flight && ("),
    ("older_revision_joined", "a flight for an older revision is joined", "lease.c",
     "(!flight->path || flight->revision >= a->entry.revision)", "true"),
    ("revision_not_raised", "who joins does not say that there is a newer revision", "lease.c",
     "        flight->revision = a->entry.revision;\n", ""),
    ("revision_not_in_key", "a resident is served whatever revision was asked for", "lease.c",
     "slot->resident && slot->resident->revision >= a->entry.revision && !a->request->reload",
     "slot->resident && !a->request->reload"),
    ("generation_not_compared", "files that changed behind the catalogue's back are served", "flight.c",
     "if (v->expected[0] && strcmp(v->expected, loaded->generation) != 0) {", "if (false) {"),
    ("stale_asker_reloads", "who looked into the catalogue before it changed loads the new revision again", "lease.c",
     "(!flight->path || flight->revision >= a->entry.revision)", "(!flight->path || flight->revision == a->entry.revision)"),
    ("busy_flight_joined", "a flight that found no room can be joined before it says so", "flight.c",
     "            v->slot->flight = NULL; /* it will end busy", "            /* it will end busy"),
    ("no_reserve", "a load does not reserve its bytes", "table.c",
     "    if (!over_count(t) && gr_budget_reserve(&t->budget, bytes)) {\n        v->reserved = bytes;\n",
     "    if (!over_count(t)) {\n        v->reserved = 0;\n"),
    ("reserve_what_is_coming", "what was evicted counts as free before it is freed", "budget.c",
     "b->own + b->resident + b->loading + b->draining;", "b->own + b->resident + b->loading;"),
    ("reserve_not_returned", "a failed load keeps its reservation", "table.c",
     "    gr_budget_commit(&t->budget, v->reserved, 0);\n", ""),
    ("off_by_one_count", "one adapter more than max_adapters", "table.c",
     "t->n_resident + t->n_reserved >= (uint64_t)t->max_adapters;", "t->n_resident + t->n_reserved > (uint64_t)t->max_adapters;"),
    ("count_without_loading", "loads under way do not count towards max_adapters", "table.c",
     "t->n_resident + t->n_reserved >= (uint64_t)t->max_adapters;", "t->n_resident >= (uint64_t)t->max_adapters;"),
    ("never_unpark_on_release", "a release does not wake those who wait for room", "lease.c",
     "    gr_table_unhold(&l->table, v, gr_now_us(), dead);\n    gr_flight_unpark(l);\n",
     "    gr_table_unhold(&l->table, v, gr_now_us(), dead);\n"),
    ("never_unpark_on_free", "freed memory does not wake those who wait for room", "loader.c",
     "        gr_table_freed(&l->table, dead);\n        gr_flight_unpark(l);\n", "        gr_table_freed(&l->table, dead);\n"),
    ("free_at_detach", "what is unloaded is freed although it is leased", "table.c",
     "    gr_budget_drain(&t->budget, v->loaded.bytes);\n    if (v->leases == 0) {\n        list_push(dead, v);\n    }\n",
     "    gr_budget_drain(&t->budget, v->loaded.bytes);\n    list_push(dead, v);\n"),
    ("double_free_at_release", "the last release frees what unload has freed", "table.c",
     "    } else if (v->leases == 0) {\n        list_push(dead, v);\n    }\n}\n\nvoid gr_table_pin",
     "    }\n    if (v->leases == 0 && v->state != GR_RESIDENT) {\n        list_push(dead, v);\n        list_push(dead, v);\n    }\n}\n\nvoid gr_table_pin"),
    ("leak_at_release", "nobody frees what was unloaded while leased", "table.c",
     "    } else if (v->leases == 0) {\n        list_push(dead, v);\n    }\n}\n\nvoid gr_table_pin",
     "    }\n    (void)dead;\n}\n\nvoid gr_table_pin"),
    ("older_load_wins", "of two loads the one that ends last wins, not the one that began last", "table.c",
     "slot->resident && slot->resident->serial > v->serial;", "false;"),
    ("no_lock_around_budget", "the rest is reserved without the mutex", "flight.c",
     "        gr_mutex_lock(&l->mutex);\n        uint64_t reserved = v->reserved;\n"
     "        bool fits = loaded->bytes <= reserved || gr_table_reserve_more(&l->table, v, loaded->bytes);\n",
     "        uint64_t reserved = v->reserved;\n        gr_budget *b = &l->table.budget;\n"
     "        bool fits = loaded->bytes <= reserved || gr_budget_free(b) >= loaded->bytes - reserved;\n"
     "        gr_now_us();\n        b->loading += fits && loaded->bytes > reserved ? loaded->bytes - reserved : 0;\n"
     "        v->reserved = fits && loaded->bytes > reserved ? loaded->bytes : reserved;\n        gr_mutex_lock(&l->mutex);\n"),
    ("negative_cache_blind", "a remembered failure counts for a mended file too", "flight.c",
     "&& same_file(&failure->identity, &v->identity)", "&& (same_file(&failure->identity, &v->identity) || true)"),
    ("no_negative_cache", "failures are not remembered", "flight.c",
     "    if (!same || v->reload || gr_now_us() >= failure->until) {", "    if (!same || failure->until) {"),
    ("leaver_cancels", "a waiter that leaves ends the flight for the rest", "lease.c",
     "            gr_waiter_unlink(flight, w);\n            gr_late(flight, err);\n",
     "            gr_waiter_unlink(flight, w);\n            gr_late(flight, err);\n            flight->waiters = NULL;\n"),
    ("leaver_stays_linked", "a waiter that leaves stays in the list", "lease.c",
     "            gr_waiter_unlink(flight, w);\n            gr_late(flight, err);\n", "            gr_late(flight, err);\n"),
    ("retry_bad_file", "a bad file is tried again like one that may get better", "flight.c",
     "if (!may_pass(err->code) || v->attempts >= most) {", "if (v->attempts >= most) {"),
    ("never_retry", "what may pass is not tried again", "flight.c",
     "if (!may_pass(err->code) || v->attempts >= most) {", "if (v->attempts >= 1) {"),
    ("stop_forgets_the_parked", "closing does not answer those who wait for room", "loader.c",
     "        while (v && v->state != GR_LOADING) {", "        while (v && (v->state != GR_LOADING || v->parked)) {"),
    ("clerk_not_woken", "what was given back for later is not freed until something else happens", "lease.c",
     "        if (l->dead != before) {\n            gr_cond_signal(&l->clerk);\n        }\n", "        (void)before;\n"),
    ("callback_under_lock", "callbacks of the late are called with the mutex held", "clerk.c",
     "            gr_bury(l, dead);\n            gr_call_back(late);\n",
     "            gr_bury(l, dead);\n            gr_mutex_lock(&l->mutex);\n            gr_call_back(late);\n            gr_mutex_unlock(&l->mutex);\n"),
    ("pin_unseen", "a pin does not hold", "table.c",
     "        (pinned ? gr_policy_hold : gr_policy_unhold)(t->policy, &slot->resident->policy);\n", "        (void)t;\n"),
    ("enqueue_after_stop", "a flight whose waiter leaves while the loader closes goes into the queue again", "flight.c",
     "    if (l->stop) {\n        return;\n    }\n    v->queue_next = NULL;\n", "    v->queue_next = NULL;\n"),
    ("first_announcement", "a second attempt reserves what the first one announced", "flight.c",
     "    int rc = b->prepare(b->self, v->path, &v->job, &v->wanted_bytes, err);\n",
     "    uint64_t first = v->wanted_bytes;\n    int rc = b->prepare(b->self, v->path, &v->job, &v->wanted_bytes, err);\n"
     "    v->wanted_bytes = v->attempts && first ? first : v->wanted_bytes;\n"),
    ("pause_keeps_reservation", "a flight keeps its reservation while it pauses", "flight.c",
     "        gr_table_unreserve(&l->table, v);\n        v->retry_at", "        v->retry_at"),
    ("pause_uncapped", "a pause may be as long as it likes", "flight.c",
     "    pause = pause < LONGEST_PAUSE_US ? pause : LONGEST_PAUSE_US;\n", ""),
    ("pause_forgotten", "nobody wakes those who pause", "clerk.c", "        gr_flight_unpause(l, now, &next);\n", ""),
    ("pause_for_nobody", "a flight goes on trying when all who asked have left", "flight.c",
     "bool rest = v->waiters && !l->stop;", "bool rest = !l->stop;"),
    ("rest_not_evicted_for", "what takes more than it announced finds only what is free", "flight.c",
     "fits ? NULL : gr_policy_evict(l->table.policy, loaded->bytes - reserved);", "NULL;"),
    ("stale_not_said", "the catalogue takes over the generation of a load that was overtaken", "flight.c",
     ".stale = !news}", ".stale = ((void)news, false)}"),
    ("landings_cross", "two loads of a name tell the catalogue at the same time", "flight.c", "while (v->slot->landing) {", "while (false) {"),
    ("evict_in_vain", "what nobody holds is evicted though that does not make enough room", "table.c",
     "return bytes <= gr_budget_free(&t->budget) + (t->budget.resident - t->held_bytes);", "return true;"),
    ("impatient_wait", "who does not wait for room waits with those who do", "flight.c",
     "impatient = room == GR_ROOM_NONE ? resolve_impatient(l, v) : NULL;", "impatient = NULL;"),
    ("impatient_join", "who does not wait for room joins those who do", "lease.c",
     "if ((*flight)->short_since && a->request->deadline_us == 0) {", "if (false) {"),
    ("old_pin_holds", "a pin that the catalogue knew before it was taken back holds", "lease.c",
     "if (a->entry.pinned && a->pin_events == atomic_load(&l->pin_events)) {", "if (a->entry.pinned) {"),
    ("temporary_stays", "a temporary adapter stays", "lease.c",
     "    if (v->temporary && v->state == GR_RESIDENT && v->leases == 1 && !v->slot->pinned) {", "    if (false) {"),
]

FLAGS = ["-std=c17", "-O1", "-g", "-w", "-D_POSIX_C_SOURCE=200809L", "-Iinclude", "-Isrc", "-Itests", "-Itests/unit", "-Itests/schedule", "-pthread"]
CC = os.environ.get("CC", "cc")
SCHEDULES = os.environ.get("GRAFT_SCHEDULES", "2000")
SHIMMED = ("thread.c", "clock.c", "memory.c")


def pkg(*args):
    try:
        return subprocess.run(["pkg-config", *args], capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return ["-lcmocka"] if "--libs" in args else []


class Tree:
    """A copy of the sources, compiled piece by piece."""

    def __init__(self, where):
        self.where = where
        for folder in ("src", "include", "tests"):
            shutil.copytree(os.path.join(ROOT, folder), os.path.join(where, folder))
        self.objects = os.path.join(where, "o")
        os.mkdir(self.objects)
        self.sources = {
            "loader": glob.glob(os.path.join(where, "src/loader/*.c")),
            "base": glob.glob(os.path.join(where, "src/base/*.c")),
            "schedule": glob.glob(os.path.join(where, "tests/schedule/*.c")),
            "unit": [os.path.join(where, "tests/unit/test_loader_loader.c")],
        }
        for kind, files in self.sources.items():
            for file in files:
                self.compile(kind, file)

    def object(self, kind, file):
        return os.path.join(self.objects, kind + "_" + os.path.basename(file)[:-2] + ".o")

    def compile(self, kind, file):
        done = subprocess.run([CC, *FLAGS, *pkg("--cflags", "cmocka"), "-c", file, "-o", self.object(kind, file)],
                              cwd=self.where, capture_output=True, text=True)
        if done.returncode:
            sys.exit("does not compile: %s\n%s" % (file, done.stderr))

    def link(self):
        def objects(kind, without=()):
            return [self.object(kind, f) for f in self.sources[kind] if os.path.basename(f) not in without]
        subprocess.run([CC, "-pthread", "-o", "schedules", *objects("schedule"), *objects("loader"), *objects("base", SHIMMED), "-lm"],
                       cwd=self.where, check=True)
        subprocess.run([CC, "-pthread", "-o", "unit", *objects("unit"), *objects("loader"), *objects("base"), *pkg("--libs", "cmocka"), "-lm"],
                       cwd=self.where, check=True)

    def run(self, program, limit):
        try:
            done = subprocess.run(["./" + program], cwd=self.where, capture_output=True, text=True, errors="replace", timeout=limit,
                                  env=dict(os.environ, GRAFT_SCHEDULES=SCHEDULES))
        except subprocess.TimeoutExpired:
            return None, ""
        return done.returncode, done.stdout + done.stderr


def by_schedules(tree):
    code, text = tree.run("schedules", 300)
    if code is None:
        return "does not end"
    found = re.findall(r"FAILED: scenario (\w+), seed (\d+)[^:]*: (.*)", text)
    if code and not found:
        return "crashes"
    if not found:
        return ""
    first = found[0]
    scenes = len({f[0] for f in found})
    return "%s (seed %s)%s: %s" % (first[0], first[1], " and %d more" % (scenes - 1) if scenes > 1 else "", first[2])


def by_unit(tree):
    code, text = tree.run("unit", 60)
    if code is None:
        started = re.findall(r"\[ RUN      \] (\w+)", text)
        return (started[-1] + " " if started else "") + "does not end"
    if code == 0:
        return ""
    failed = re.findall(r"\[  (?:FAILED|ERROR )  \] (\w+)$", text, re.M)
    started = re.findall(r"\[ RUN      \] (\w+)", text)
    names = list(dict.fromkeys(failed)) or [started[-1] + " (crash)" if started else "crashes"]
    return names[0] + (" and %d more" % (len(names) - 1) if len(names) > 1 else "")


def main():
    wanted = set(sys.argv[1:])
    with tempfile.TemporaryDirectory() as where:
        tree = Tree(where)
        tree.link()
        for what, found in (("schedules", by_schedules(tree)), ("test_loader_loader", by_unit(tree))):
            if found:
                sys.exit("%s fails before any bug is planted: %s" % (what, found))
        missed = 0
        bugs = [b for b in BUGS if not wanted or b[0] in wanted]
        print("| bug | what is wrong | seeded schedules | test_loader_loader |\n| --- | --- | --- | --- |", flush=True)
        for name, what, file, old, new in bugs:
            path = os.path.join(where, "src/loader", file)
            with open(path, encoding="utf-8") as f:
                source = f.read()
            if source.count(old) != 1:
                sys.exit("%s: src/loader/%s has this %d times, not once:\n%s" % (name, file, source.count(old), old))
            with open(path, "w", encoding="utf-8") as f:
                f.write(source.replace(old, new))
            tree.compile("loader", path)
            tree.link()
            a, b = by_schedules(tree), by_unit(tree)
            missed += not (a or b)
            print("| %s | %s | %s | %s |" % (name, what, a or "–", b or "–"), flush=True)
            with open(path, "w", encoding="utf-8") as f:
                f.write(source)
            tree.compile("loader", path)
    print("\n%d bugs planted, %d caught" % (len(bugs), len(bugs) - missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
