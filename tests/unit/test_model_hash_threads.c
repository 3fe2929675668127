/* The ring: whatever is put in whatever pieces, at whatever pace, the hash is that of the bytes in order. */
#include "format_helpers.h"

#include "model/hash_ring.h"

#include <openssl/evp.h>
#include <time.h>

enum { BUFFER = 1000, STREAM = 400000 };

static uint8_t stream[STREAM];

static void make_stream(void) {
    uint32_t state = 12345;
    for (size_t i = 0; i < STREAM; i++) {
        state = state * 1664525u + 1013904223u;
        stream[i] = (uint8_t)(state >> 24);
    }
}

static void nap(void) {
    nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

/* Puts the first n bytes in pieces of many lengths, 0 too. `slowly`: the hashing thread waits, else the reader. */
static void feed(gr_hash_ring *r, size_t n, bool slowly) {
    size_t at = 0;
    for (size_t piece = 1; at < n; piece = piece * 7 % (BUFFER + 1)) {
        size_t length = n - at < piece ? n - at : piece;
        void *buffer = gr_hash_ring_take(r);
        assert_ptr_equal(gr_hash_ring_take(r), buffer);
        assert_int_equal((uintptr_t)buffer % 64, 0);
        memcpy(buffer, stream + at, length);
        gr_hash_ring_put(r, length);
        assert_memory_equal(buffer, stream + at, length); /* readable until the next take */
        at += length;
        if (piece % 50 == 0) {
            gr_hash_ring_take(r);
            gr_hash_ring_put(r, 0);
        }
        if (slowly) {
            nap();
        }
    }
}

static void check(size_t n, bool threaded, bool slowly) {
    gr_hash_ring r;
    graft_error err;
    uint8_t wanted[32], got[32];
    uint64_t blocks = gr_memory_blocks();
    assert_int_equal(EVP_Digest(stream, n, wanted, NULL, EVP_sha256(), NULL), 1);
    assert_int_equal(gr_hash_ring_start(&r, BUFFER, threaded, &err), 0);
    feed(&r, n, slowly);
    assert_int_equal(gr_hash_ring_result(&r, got, &err), 0);
    assert_memory_equal(got, wanted, 32);
    gr_hash_ring_finish(&r);
    assert_int_equal(gr_memory_blocks(), blocks);
}

static void the_hash_is_that_of_the_bytes(void **state) {
    (void)state;
    static const size_t sizes[] = {0, 1, 63, 64, 999, 1000, 1001, 20000, STREAM};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        check(sizes[i], false, false);
        for (int again = 0; again < 5; again++) {
            check(sizes[i], true, false);
        }
    }
    check(20000, true, true);
}

static void it_may_be_given_up_at_any_time(void **state) {
    (void)state;
    uint64_t blocks = gr_memory_blocks();
    for (size_t n = 0; n < 60000; n += 977) {
        gr_hash_ring r;
        graft_error err;
        assert_int_equal(gr_hash_ring_start(&r, BUFFER, n % 3 != 0, &err), 0);
        feed(&r, n, false);
        if (n % 2) {
            gr_hash_ring_take(&r);
        }
        gr_hash_ring_finish(&r);
        assert_int_equal(gr_memory_blocks(), blocks);
    }
}

static int start_and_finish(void *threaded, graft_error *err) {
    gr_hash_ring r;
    int rc = gr_hash_ring_start(&r, BUFFER, *(bool *)threaded, err);
    gr_hash_ring_finish(&r);
    return rc;
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    torture("inline", start_and_finish, &(bool){false});
    torture("on a thread", start_and_finish, &(bool){true});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_hash_is_that_of_the_bytes),
        cmocka_unit_test(it_may_be_given_up_at_any_time),
        cmocka_unit_test(every_allocation_may_fail),
    };
    make_stream();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
