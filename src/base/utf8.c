/* UTF-8, by the table of well-formed byte sequences in RFC 3629. */
#include "utf8.h"

/* Bytes that a character starting with c must have, 0 if c cannot start one. */
static size_t width_of(unsigned char c) {
    if (c < 0x80) return 1;
    if (c >= 0xc2 && c <= 0xdf) return 2;
    if (c >= 0xe0 && c <= 0xef) return 3;
    if (c >= 0xf0 && c <= 0xf4) return 4;
    return 0;
}

static bool continues(unsigned char c) {
    return (c & 0xc0) == 0x80;
}

/* The second byte's range is narrower after E0, ED, F0 and F4. */
static bool second_fits(unsigned char first, unsigned char second) {
    switch (first) {
    case 0xe0: return second >= 0xa0;
    case 0xed: return second <= 0x9f;
    case 0xf0: return second >= 0x90;
    case 0xf4: return second <= 0x8f;
    default: return true;
    }
}

size_t gr_utf8_char(const char *s, size_t length) {
    const unsigned char *u = (const unsigned char *)s;
    size_t width = length ? width_of(u[0]) : 0;
    if (width == 0 || width > length) {
        return 0;
    }
    for (size_t i = 1; i < width; i++) {
        if (!continues(u[i])) {
            return 0;
        }
    }
    return width == 1 || second_fits(u[0], u[1]) ? width : 0;
}

bool gr_utf8_valid(const char *s, size_t length) {
    size_t i = 0;
    while (i < length) {
        size_t width = gr_utf8_char(s + i, length - i);
        if (width == 0) {
            return false;
        }
        i += width;
    }
    return true;
}

size_t gr_utf8_complete(const char *s, size_t length) {
    size_t back = 0;
    while (back < 3 && back < length && continues((unsigned char)s[length - 1 - back])) {
        back++;
    }
    if (back == length) {
        return length;
    }
    size_t start = length - 1 - back;
    size_t width = width_of((unsigned char)s[start]);
    bool cut_off = width > back + 1 && (back == 0 || second_fits((unsigned char)s[start], (unsigned char)s[start + 1]));
    return cut_off ? start : length;
}
