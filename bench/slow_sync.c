/* For bench/group_commit.py: fdatasync that does nothing (O3_SYNC_US=0) or takes O3_SYNC_US
 * microseconds longer. Loaded with LD_PRELOAD into the store that is measured, never shipped. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

int fdatasync(int fd)
{
    static int (*real)(int);
    static long delay_us = -1;
    if (delay_us < 0) {
        const char *text = getenv("O3_SYNC_US");
        delay_us = text ? atol(text) : 0;
        real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    }
    if (delay_us == 0)
        return 0;
    usleep((useconds_t)delay_us);
    return real(fd);
}
