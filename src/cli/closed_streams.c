/*
 * Opens a standard stream that the process was started without so that using it fails.
 *
 * Rust's runtime opens /dev/null in the place of a closed standard stream before main() begins, and
 * from there on nobody can tell `acervo get k >&-` from `acervo get k >/dev/null`: the answer would
 * be lost with exit status 0. This runs before the runtime, which leaves an open stream alone. A
 * directory can be neither read nor written. (As gnulib's stdopen does.)
 */
#include <errno.h>
#include <fcntl.h>

__attribute__((constructor)) static void open_closed_streams(void)
{
    /* open() gives the lowest number that is free, which is this one: those below are open. */
    for (int stream = 0; stream <= 2; stream++)
        if (fcntl(stream, F_GETFD) == -1 && errno == EBADF && open("/", O_RDONLY) != stream)
            return;
}
