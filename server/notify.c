/* systemd's notification protocol: one datagram. */
#include "notify.h"

#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

void srv_notify(const char *socket_path, const char *state) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t n = socket_path ? strlen(socket_path) : 0;
    if (n == 0 || n >= sizeof to.sun_path) {
        return;
    }
    memcpy(to.sun_path, socket_path, n);
    if (*socket_path == '@') {
        to.sun_path[0] = '\0'; /* Linux's names without a file */
    }
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (fd >= 0) {
        sendto(fd, state, strlen(state), 0, (struct sockaddr *)&to, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n));
        close(fd);
    }
}
