/* Memory that is made of gr_alloc alone: zeroed blocks, arrays, copies of text. */
#include "memory.h"

#include <string.h>

void *gr_zalloc(size_t size) {
    void *block = gr_alloc(size);
    return block ? memset(block, 0, size) : NULL;
}

void *gr_calloc(size_t count, size_t size) {
    if (size != 0 && count > SIZE_MAX / size) {
        return NULL;
    }
    return gr_zalloc(count * size);
}

char *gr_strndup(const char *s, size_t length) {
    char *copy = length < SIZE_MAX ? gr_alloc(length + 1) : NULL;
    if (copy) {
        memcpy(copy, s, length);
        copy[length] = '\0';
    }
    return copy;
}

char *gr_strdup(const char *s) {
    return s ? gr_strndup(s, strlen(s)) : NULL;
}
