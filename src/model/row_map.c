/* Row orders: all of them move rows within heads, or exchange heads with what each has of q, k and v. */
#include "row_map.h"

/* Rows of one head: with NEOX those of one of q, k and v. */
static size_t head_rows(gr_row_map map, size_t n) {
    return n / (size_t)map.heads / (map.order == GR_ROWS_NEOX_QKV ? 3 : 1);
}

bool gr_row_map_fits(gr_row_map map, size_t n) {
    if (map.order == GR_ROWS_AS_IS) {
        return true;
    }
    size_t parts = map.order == GR_ROWS_NEOX_QKV ? 3 : 2;
    return map.heads > 0 && n > 0 && n % (parts * (size_t)map.heads) == 0;
}

/* [outer][inner][n] to [inner][outer][n]: where the row `row` goes. */
static size_t exchange(size_t row, size_t outer, size_t inner, size_t n) {
    size_t within = row % n, i = row / n % inner, o = row / n / inner;
    return (i * outer + o) * n + within;
}

size_t gr_row_map_to(gr_row_map map, size_t n, size_t row) {
    if (map.order == GR_ROWS_AS_IS) {
        return row;
    }
    size_t head = head_rows(map, n);
    if (map.order == GR_ROWS_NEOX_QKV) {
        return exchange(row, (size_t)map.heads, 3, head);
    }
    return row - row % head + exchange(row % head, 2, head / 2, 1);
}

size_t gr_row_map_from(gr_row_map map, size_t n, size_t row) {
    if (map.order == GR_ROWS_AS_IS) {
        return row;
    }
    size_t head = head_rows(map, n);
    if (map.order == GR_ROWS_NEOX_QKV) {
        return exchange(row, 3, (size_t)map.heads, head);
    }
    return row - row % head + exchange(row % head, head / 2, 2, 1);
}

size_t gr_row_map_unit(gr_row_map map, size_t n, size_t block) {
    if (map.order == GR_ROWS_AS_IS) {
        return block;
    }
    if (map.order == GR_ROWS_NEOX_QKV) {
        return n;
    }
    size_t head = head_rows(map, n), rows = head;
    while (rows % block != 0 && rows < n) {
        rows += head;
    }
    return rows;
}
