/*
 * Names for files that other programs keep: ollama:NAME is what Ollama has on disk, hf:ORG/NAME what lies in Hugging Face's
 * local cache. A reference becomes the path of a file or folder that is there, opened in place; nothing is ever downloaded.
 * The reference is a stranger's, and so is what the stores hold: names cannot lead out, links must end within the store.
 */
#ifndef GR_REFERENCE_H
#define GR_REFERENCE_H

#include "base/error.h"

#define GR_REFERENCE_MAX 1024

/* As graft_find_model and graft_find_adapter. `stores` may be NULL for paths. *path: gr_free. */
int gr_find_model(char **path, const char *reference, const graft_stores *stores, graft_error *err);
int gr_find_adapter(char **path, const char *reference, const graft_stores *stores, graft_error *err);

#endif
