/* src/format/safetensors_write: what it writes, the strict reader reads as it was. */
#include "format_helpers.h"

#include "base/memory.h"
#include "format/safetensors.h"
#include "format/safetensors_write.h"

static gr_tensor_info tensor(const char *name, gr_dtype dtype, uint32_t n_dims, uint64_t rows, uint64_t columns) {
    return (gr_tensor_info){.name = (char *)name, .dtype = dtype, .n_dims = n_dims, .shape = {rows, columns}};
}

static void test_reads_back(void **state) {
    (void)state;
    gr_tensor_info t[] = {tensor("b.half", GR_DTYPE_F16, 2, 3, 5), tensor("a.wide", GR_DTYPE_F32, 2, 7, 1),
                          tensor("c.vector", GR_DTYPE_F32, 1, 9, 0), tensor("a.half", GR_DTYPE_BF16, 2, 1, 1)};
    gr_buffer b;
    gr_tensor_list l;
    graft_error err;
    uint64_t length;
    gr_buffer_init(&b, 1 << 16);
    assert_int_equal(gr_safetensors_begin(&b, t, 4, &err), 0);
    assert_int_equal(b.length % 8, 0);
    uint64_t size = t[3].offset + t[3].size;
    assert_int_equal(size, b.length + 7 * 4 + 9 * 4 + 2 + 30);
    assert_int_equal(gr_safetensors_header_length(&length, (uint8_t *)b.data, 16, size, &err), 0);
    assert_int_equal(length + 8, b.length);
    assert_int_equal(gr_safetensors_parse(&l, b.data + 8, (size_t)length, size, &err), 0);
    assert_int_equal(l.n, 4);
    for (size_t i = 0; i < 4; i++) {
        const gr_tensor_info *found = gr_tensor_list_find(&l, t[i].name);
        assert_non_null(found);
        assert_int_equal(found->offset, t[i].offset);
        assert_int_equal(found->size, t[i].size);
        assert_int_equal(found->dtype, t[i].dtype);
        assert_int_equal(found->n_dims, t[i].n_dims);
        assert_int_equal(t[i].offset % gr_dtype_size(t[i].dtype), 0);
    }
    assert_string_equal(t[0].name, "a.wide"); /* wide first, then by name */
    assert_string_equal(t[3].name, "b.half");
    gr_tensor_list_finish(&l);
    gr_buffer_finish(&b);
}

static void test_refuses(void **state) {
    (void)state;
    gr_tensor_info t = tensor("x", GR_DTYPE_F32, 2, UINT64_C(1) << 62, 4);
    gr_buffer b;
    graft_error err;
    gr_buffer_init(&b, 1 << 16);
    assert_int_equal(gr_safetensors_begin(&b, &t, 1, &err), GRAFT_E_OVERFLOW);
    gr_buffer_finish(&b);
    gr_buffer_init(&b, 16);
    t.shape[0] = 1;
    assert_int_equal(gr_safetensors_begin(&b, &t, 1, &err), GRAFT_E_OUT_OF_MEMORY);
    gr_buffer_finish(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_back),
        cmocka_unit_test(test_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
