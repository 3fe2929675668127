#!/usr/bin/env python3
"""Compares graft's eviction policies with libCacheSim (PyPI: libcachesim), eviction by eviction.

lru, sieve and s3fifo must give up the same objects in the same order. libCacheSim does not say what it evicted, so
each eviction is checked by asking it: graft's victim must be inside before libCacheSim evicts, and gone after, while
exactly one object left. Belady is compared by its number of misses: among objects that are never used again either
may go first.

With different sizes the same is checked for objects smaller than a tenth of the capacity; larger ones libCacheSim's
S3FIFO refuses, and graft does not.

    make cachesim

which is (tests/loader/run.sh: where libcachesim comes from)

    VENV/bin/python tests/loader/compare_libcachesim.py BUILD/tests/loader_replay [--requests 1000000] [--golden]

--golden also prints, for tests/unit/test_loader_replay.c, a digest (64-bit FNV-1a over the victims' keys) of the
evictions on its short trace.
"""
import argparse
import subprocess
import sys
import time

try:
    import libcachesim
except ImportError:
    sys.exit("compare_libcachesim: needs the Python package libcachesim (see the head of this file)")

CACHES = {"lru": libcachesim.LRU, "sieve": libcachesim.Sieve, "s3fifo": libcachesim.S3FIFO}
MIB = 1 << 20
HASHPOWER = 12  # of libCacheSim's tables; the default takes 128 MB for each of three


class Different(Exception):
    pass


def make_trace(program, kind, objects, requests, skew, seed, sizes):
    """[(key, bytes)] and the text of the trace."""
    text = subprocess.run([program, "make", kind, *map(str, (objects, requests, skew, seed)), sizes],
                          check=True, capture_output=True).stdout
    return [(int(f[0]), int(f[1])) for f in map(bytes.split, text.splitlines())], text


def our_evictions(program, policy, capacity, text):
    out = subprocess.run([program, "evictions", policy, str(capacity)], input=text, check=True,
                         capture_output=True).stdout
    return [(int(at), int(key)) for at, key in map(bytes.split, out.splitlines())]


def compare_evictions(cache, trace, ours):
    """Replays the trace through libCacheSim; raises Different at the first eviction that is not ours."""
    request, victim = libcachesim.Request(), libcachesim.Request()
    get, find, evict, insert = cache.get, cache.find, cache.evict, cache.insert
    capacity, claims = cache.cache_size, iter(ours)
    for at, (key, size) in enumerate(trace):
        request.obj_id, request.obj_size = key, size
        if find(request, True) is not None:
            continue
        # cache.get would do the rest in one go; done by hand, each eviction can be looked at.
        if not cache.can_insert(request):
            raise Different(f"request {at}: libCacheSim refuses object {key} of {size} bytes")
        while cache.get_occupied_byte() + size > capacity:
            claimed_at, claimed = next(claims, (None, None))
            if claimed_at != at:
                raise Different(f"request {at}: libCacheSim evicts, graft does so at {claimed_at}")
            victim.obj_id = claimed
            n = cache.get_n_obj()
            if find(victim, False) is None:
                raise Different(f"request {at}: graft evicts {claimed}, which libCacheSim does not have")
            while cache.get_n_obj() == n:  # S3FIFO may empty its small queue into main without evicting
                evict(request)
            if cache.get_n_obj() != n - 1 or find(victim, False) is not None:
                raise Different(f"request {at}: graft evicts {claimed}, libCacheSim another")
        insert(request)
    if next(claims, None) is not None:
        raise Different("graft evicts more often than libCacheSim")


def compare_belady(program, capacity, trace, text):
    """Number of misses of each."""
    out = subprocess.run([program, "summary", "belady", str(capacity)], input=text, check=True, capture_output=True)
    ours = int(out.stdout.split()[1])
    future, next_use = [0] * len(trace), {}
    for at in range(len(trace) - 1, -1, -1):
        future[at] = next_use.get(trace[at][0], (1 << 63) - 1)
        next_use[trace[at][0]] = at
    cache, request, misses = libcachesim.Belady(capacity, hashpower=HASHPOWER), libcachesim.Request(), 0
    for at, (key, size) in enumerate(trace):
        request.obj_id, request.obj_size, request.next_access_vtime = key, size, future[at]
        misses += not cache.get(request)
    if misses != ours:
        raise Different(f"graft's Belady misses {ours} times, libCacheSim's {misses} times")


def digest(keys):
    h = 0xcbf29ce484222325
    for key in keys:
        for byte in key.to_bytes(8, "little"):
            h = (h ^ byte) * 0x100000001b3 % (1 << 64)
    return h


def run(program, name, workload, capacity):
    """One workload and capacity through every policy. Returns the number that differ."""
    trace, text = make_trace(program, *workload)
    bad = 0
    for policy, make_cache in CACHES.items():
        start, what = time.monotonic(), f"{policy:8} {name} capacity {capacity}"
        ours = our_evictions(program, policy, capacity, text)
        try:
            compare_evictions(make_cache(capacity, hashpower=HASHPOWER), trace, ours)
            print(f"same      {what}: {len(ours)} evictions, {time.monotonic() - start:.1f} s", flush=True)
        except Different as e:
            print(f"DIFFERENT {what}: {e}", flush=True)
            bad += 1
    if workload[-1] == "equal":
        try:
            compare_belady(program, capacity, trace, text)
            print(f"same      belady   {name} capacity {capacity}", flush=True)
        except Different as e:
            print(f"DIFFERENT belady   {name} capacity {capacity}: {e}", flush=True)
            bad += 1
    return bad


def golden(program):
    """The trace of test_loader_replay.c: its evictions are libCacheSim's or this fails."""
    trace, text = make_trace(program, "zipf", 200, 20000, 0.9, 7, "equal")
    for policy, make_cache in CACHES.items():
        ours = our_evictions(program, policy, 40 * MIB, text)
        compare_evictions(make_cache(40 * MIB, hashpower=HASHPOWER), trace, ours)
        print(f'    {{"{policy}", {len(ours)}, UINT64_C(0x{digest(key for _, key in ours):016x})}},')


def main():
    arguments = argparse.ArgumentParser(description="graft's eviction policies against libCacheSim's")
    arguments.add_argument("program")
    arguments.add_argument("--requests", type=int, default=1000000)
    arguments.add_argument("--golden", action="store_true")
    options = arguments.parse_args()
    n, bad = options.requests, 0
    for skew, objects, places in [(0.6, 100, 20), (0.8, 500, 100), (1.0, 1000, 50), (1.0, 1000, 200), (1.0, 1000, 500),
                                  (1.2, 10000, 1000)]:
        bad += run(options.program, f"zipf {skew} objects {objects}", ("zipf", objects, n, skew, 42, "equal"), places * MIB)
    for kind in "scan", "loop", "shift":
        bad += run(options.program, f"{kind} objects 500", (kind, 500, n, 1.0, 43, "equal"), 100 * MIB)
    # 128 MB at most for an object, so a tenth of 2 GB is more than any
    bad += run(options.program, "zipf 0.8 objects 500, different sizes", ("zipf", 500, n, 0.8, 44, "mixed"), 2 * 10**9 + 3)
    bad += run(options.program, "scan objects 500, different sizes", ("scan", 500, n, 1.0, 45, "mixed"), 3 * 10**9 + 7)
    if options.golden:
        golden(options.program)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
