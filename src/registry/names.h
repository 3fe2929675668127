/*
 * Names of projects and adapters: 1 to 128 of A-Z a-z 0-9 . _ - and not "." or "..". Checked where a name comes in and
 * nowhere else, so that no name can be a path, steer a terminal, or look like another one. Case matters.
 */
#ifndef GR_NAMES_H
#define GR_NAMES_H

#include "loader/catalog.h"

#include <stddef.h>

bool gr_name_valid(const char *name, size_t length);

/* 0 or BAD_NAME, quoting it. `what` is "project" or "adapter". NULL is no name. */
int gr_name_check(const char *name, const char *what, graft_error *err);

/*
 * A name made from a file's or folder's: spaces and ASCII punctuation become '-'. Whatever else is not allowed (control
 * characters, other scripts, too long, nothing left) is BAD_NAME rather than a guess.
 */
int gr_name_from_file(char out[GR_NAME_MAX + 1], const char *file, size_t length, graft_error *err);

#endif
