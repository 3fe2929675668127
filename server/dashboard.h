/* The files of server/dashboard/, as they are in the binary (embed.cmake). */
#ifndef SRV_DASHBOARD_H
#define SRV_DASHBOARD_H

#include <stddef.h>

typedef struct srv_asset {
    const char *name; /* below /dashboard/: "app.js", "vendor/preact.js" */
    const char *type; /* Content-Type */
    const char *etag; /* with its quotes */
    const unsigned char *data;
    size_t length;
} srv_asset;

extern const srv_asset srv_assets[];
extern const size_t srv_n_assets;

#endif
