#include "names.h"

#include <string.h>

static bool allowed(unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
}

bool gr_name_valid(const char *name, size_t length) {
    if (length < 1 || length > GR_NAME_MAX) {
        return false;
    }
    for (size_t i = 0; i < length; i++) {
        if (!allowed((unsigned char)name[i])) {
            return false;
        }
    }
    return !(name[0] == '.' && (length == 1 || (length == 2 && name[1] == '.')));
}

static int bad_name(const char *name, size_t length, const char *what, graft_error *err) {
    char q[GR_QUOTE_SIZE];
    return gr_fail(err, GRAFT_E_BAD_NAME, "%s name \"%s\": a name is 1 to %d of A-Z a-z 0-9 . _ - and not \".\" or \"..\"", what,
                   gr_quote(q, name, length), GR_NAME_MAX);
}

int gr_name_check(const char *name, const char *what, graft_error *err) {
    size_t length = name ? strlen(name) : 0;
    return name && gr_name_valid(name, length) ? 0 : bad_name(name ? name : "", length, what, err);
}

int gr_name_from_file(char out[GR_NAME_MAX + 1], const char *file, size_t length, graft_error *err) {
    if (length < 1 || length > GR_NAME_MAX) {
        return bad_name(file, length, "file", err);
    }
    char name[GR_NAME_MAX + 1];
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)file[i];
        if (c < 0x20 || c >= 0x7f) {
            return bad_name(file, length, "file", err);
        }
        name[i] = allowed(c) ? (char)c : '-';
    }
    name[length] = '\0';
    if (!gr_name_valid(name, length) || strspn(name, "-.") == length) {
        return bad_name(file, length, "file", err);
    }
    memcpy(out, name, length + 1);
    return 0;
}
