/* A folder for files that only this run needs. */
#include "cli.h"

#include "base/memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_SIZE = 4096, DEEPEST = 4 };

static char top[PATH_SIZE]; /* "" = there is none */

/* Links are removed, not followed. */
static void remove_entries(const char *folder, int depth) {
    DIR *dir = opendir(folder);
    if (!dir) {
        return;
    }
    for (struct dirent *entry; (entry = readdir(dir));) {
        struct stat st;
        char path[PATH_SIZE + 256];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
            continue;
        }
        if (!S_ISDIR(st.st_mode)) {
            unlinkat(dirfd(dir), entry->d_name, 0);
        } else if (depth < DEEPEST && (size_t)snprintf(path, sizeof path, "%s/%s", folder, entry->d_name) < sizeof path) {
            remove_entries(path, depth + 1);
            unlinkat(dirfd(dir), entry->d_name, AT_REMOVEDIR);
        }
    }
    closedir(dir);
}

void cli_temp_remove(void) {
    if (*top) {
        remove_entries(top, 0);
        rmdir(top);
        *top = '\0';
    }
}

int cli_temp_make(const char *what, graft_error *err) {
    const char *where = getenv("TMPDIR");
    char path[PATH_SIZE];
    where = where && *where ? where : "/tmp";
    if ((size_t)snprintf(path, sizeof path, "%s/graft-%s-XXXXXX", where, what) >= sizeof path || !mkdtemp(path)) {
        return gr_fail(err, GRAFT_E_IO_ERROR, "%.*s: no temporary folder can be made: %s", CLI_PATH_SHOWN, where,
                       strerror(errno));
    }
    snprintf(top, sizeof top, "%s", path);
    atexit(cli_temp_remove);
    return 0;
}

char *cli_temp_path(const char *format, ...) {
    gr_buffer b;
    char name[256];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    gr_buffer_init(&b, 2 * PATH_SIZE);
    gr_buffer_printf(&b, "%s/%s", top, name);
    cli_buffer_check(&b);
    char *path = cli_strdup(b.data);
    gr_buffer_finish(&b);
    return path;
}

int cli_make_folder(const char *path, graft_error *err) {
    return mkdir(path, 0700) == 0 ? 0 : gr_fail(err, GRAFT_E_IO_ERROR, "%.*s: %s", CLI_PATH_SHOWN, path, strerror(errno));
}
