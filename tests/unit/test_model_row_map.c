/* Row orders against the reshapes that conversion to GGUF carries out, spelt as loops. */
#include "model/row_map.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { MOST = 512 };

/* from[r]: the file's row that is row r of the GGUF. Returns n. */
static size_t interleaved(size_t *from, size_t heads, size_t half) {
    size_t n = 0;
    for (size_t h = 0; h < heads; h++) {
        for (size_t i = 0; i < half; i++) {
            for (size_t part = 0; part < 2; part++) {
                from[n++] = (h * 2 + part) * half + i;
            }
        }
    }
    return n;
}

static size_t fused(size_t *from, size_t heads, size_t dim) {
    size_t n = 0;
    for (size_t part = 0; part < 3; part++) {
        for (size_t h = 0; h < heads; h++) {
            for (size_t i = 0; i < dim; i++) {
                from[n++] = (h * 3 + part) * dim + i;
            }
        }
    }
    return n;
}

static void check(gr_row_map map, const size_t *from, size_t n) {
    assert_true(gr_row_map_fits(map, n));
    for (size_t r = 0; r < n; r++) {
        assert_int_equal(gr_row_map_from(map, n, r), from[r]);
        assert_int_equal(gr_row_map_to(map, n, from[r]), r);
    }
    for (size_t block = 1; block <= 32; block += 31) {
        size_t unit = gr_row_map_unit(map, n, block);
        assert_true(unit >= n || unit % block == 0);
        for (size_t r = 0; r < n; r++) {
            assert_int_equal(from[r] / unit, r / unit);
        }
    }
}

static void every_order_is_what_conversion_does(void **state) {
    (void)state;
    size_t from[MOST];
    const struct { size_t heads, half; } sizes[] = {{1, 1}, {4, 5}, {2, 16}, {3, 8}, {8, 32}, {9, 2}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int heads = (int)sizes[i].heads;
        size_t n = interleaved(from, sizes[i].heads, sizes[i].half);
        check((gr_row_map){GR_ROWS_ROPE_Q, heads}, from, n);
        check((gr_row_map){GR_ROWS_ROPE_K, heads}, from, n);
        n = fused(from, sizes[i].heads, sizes[i].half <= 16 ? sizes[i].half : 16);
        check((gr_row_map){GR_ROWS_NEOX_QKV, heads}, from, n);
    }
    for (size_t r = 0; r < MOST; r++) {
        from[r] = r;
    }
    check((gr_row_map){GR_ROWS_AS_IS, 0}, from, MOST);
    check((gr_row_map){GR_ROWS_AS_IS, 7}, from, 33);
}

static void a_unit_is_no_larger_than_it_must_be(void **state) {
    (void)state;
    assert_int_equal(gr_row_map_unit((gr_row_map){GR_ROWS_AS_IS, 0}, 100, 32), 32);
    assert_int_equal(gr_row_map_unit((gr_row_map){GR_ROWS_ROPE_Q, 9}, 576, 32), 64);
    assert_int_equal(gr_row_map_unit((gr_row_map){GR_ROWS_ROPE_K, 8}, 80 * 8, 32), 160);
    assert_int_equal(gr_row_map_unit((gr_row_map){GR_ROWS_ROPE_Q, 4}, 40, 32), 40);
    assert_int_equal(gr_row_map_unit((gr_row_map){GR_ROWS_ROPE_Q, 4}, 40, 1), 10);
}

static void heads_must_divide_the_rows(void **state) {
    (void)state;
    assert_true(gr_row_map_fits((gr_row_map){GR_ROWS_AS_IS, 0}, 7));
    assert_true(gr_row_map_fits((gr_row_map){GR_ROWS_ROPE_Q, 4}, 40));
    assert_false(gr_row_map_fits((gr_row_map){GR_ROWS_ROPE_Q, 4}, 44)); /* heads of 11: no halves */
    assert_false(gr_row_map_fits((gr_row_map){GR_ROWS_ROPE_K, 4}, 42));
    assert_false(gr_row_map_fits((gr_row_map){GR_ROWS_ROPE_K, 0}, 40));
    assert_false(gr_row_map_fits((gr_row_map){GR_ROWS_ROPE_K, -1}, 40));
    assert_false(gr_row_map_fits((gr_row_map){GR_ROWS_ROPE_Q, 4}, 0));
    assert_true(gr_row_map_fits((gr_row_map){GR_ROWS_NEOX_QKV, 4}, 12));
    assert_false(gr_row_map_fits((gr_row_map){GR_ROWS_NEOX_QKV, 4}, 16));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_order_is_what_conversion_does),
        cmocka_unit_test(a_unit_is_no_larger_than_it_must_be),
        cmocka_unit_test(heads_must_divide_the_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
