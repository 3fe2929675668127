/* The key of a server, for who serves and for who asks. It is no setting: command lines and `graft config` are there to be
 * read. */
#include "cli.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { KEY_MOST = 4096 };

/* It becomes a header's value, which a line's end or a control character would break. */
static bool is_text(const char *key) {
    for (; *key; key++) {
        if ((unsigned char)*key < 0x20 || *key == 0x7f) {
            return false;
        }
    }
    return true;
}

int cli_api_key(const char **key, const cli_settings *s, graft_error *err) {
    const char *variable = getenv("GRAFT_API_KEY");
    gr_buffer file;
    *key = variable && *variable ? variable : NULL;
    if (s->api_key_file) {
        int code = cli_read(&file, s->api_key_file, err);
        if (code || file.length > KEY_MOST) {
            gr_buffer_finish(&file);
            return code ? code
                        : gr_fail(err, GRAFT_E_TOO_LARGE, "%.*s is larger than %d bytes: it is no file of a key", CLI_PATH_SHOWN,
                                  s->api_key_file, KEY_MOST);
        }
        if (file.data) {
            file.data[strcspn(file.data, "\r\n")] = '\0';
        }
        *key = cli_keep(file.data ? file.data : cli_strdup(""));
    }
    if (*key && !is_text(*key)) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "%s holds a control character",
                       s->api_key_file ? s->api_key_file : "GRAFT_API_KEY");
    }
    return 0;
}
