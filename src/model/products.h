/* Sums of products for what is computed once at loading: float32 numbers, sums of short blocks in float32, of those in double. */
#ifndef GR_PRODUCTS_H
#define GR_PRODUCTS_H

#include <stddef.h>

/*
 * out[r * out_stride + k] = the dot product of row r of x and row k of y, of n elements each; r < rows, k < ranks. Strides in
 * elements. Of a relative error around 1e-7 of the sum of magnitudes.
 */
void gr_products(double *out, size_t out_stride, const float *x, size_t x_stride, size_t rows, const float *y, size_t y_stride,
                 size_t ranks, size_t n);
/* The sum of squares, and b^T M b for M [n][n] (`scratch`: n numbers), in double throughout. */
double gr_square_sum(const float *x, size_t n);
double gr_quadratic_form(const double *m, const double *b, double *scratch, size_t n);

#endif
