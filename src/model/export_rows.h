/* Row orders for exports. To go when row_map.[ch] is there. */
#ifndef GR_EXPORT_ROWS_H
#define GR_EXPORT_ROWS_H
#include "format/module_names.h"
static inline size_t gr_export_row_to(gr_row_map map, size_t n, size_t row) {
    if (map.order == GR_ROWS_AS_IS) {
        return row;
    }
    size_t head = n / (size_t)map.heads, half = head / 2, within = row % head;
    return row - within + 2 * (within % half) + within / half;
}
static inline size_t gr_export_row_from(gr_row_map map, size_t n, size_t row) {
    if (map.order == GR_ROWS_AS_IS) {
        return row;
    }
    size_t head = n / (size_t)map.heads, within = row % head;
    return row - within + within / 2 + within % 2 * (head / 2);
}
static inline bool gr_export_row_fits(gr_row_map map, size_t n) {
    return map.order == GR_ROWS_AS_IS || (map.heads > 0 && n % (2 * (size_t)map.heads) == 0);
}
#endif
