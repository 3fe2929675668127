/* UTF-8 as RFC 3629 defines it: no overlong forms, no surrogates, nothing above U+10FFFF. */
#ifndef GR_UTF8_H
#define GR_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the character at `s` (1 to 4), or 0 if it is invalid or cut off by `length`. */
size_t gr_utf8_char(const char *s, size_t length);

/* Whether all of s[0..length) is valid. */
bool gr_utf8_valid(const char *s, size_t length);

/* Length of the longest prefix of s that ends at a character border: what may be sent when the rest may still
 * come. Invalid bytes count as complete; only a cut-off character at the very end is held back. */
size_t gr_utf8_complete(const char *s, size_t length);

#endif
