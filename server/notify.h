/* A word to systemd: 20 lines instead of a library. */
#ifndef SRV_NOTIFY_H
#define SRV_NOTIFY_H

/* Sends `state` ("READY=1") to the socket that $NOTIFY_SOCKET names; NULL: to nobody. */
void srv_notify(const char *socket_path, const char *state);

#endif
