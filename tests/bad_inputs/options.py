"""O: options that change more than matrices. Filled below."""
