/* For tests/faults: CLOCK_MONOTONIC runs O3_CLOCK_SPEED times as fast, so that the deadlines of a
 * real process pass within a test. The wall clock, which signatures carry, is left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t id, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    static long long start_ns;
    static long speed;
    if (!real) {
        struct timespec first;
        const char *text = getenv("O3_CLOCK_SPEED");
        speed = text ? atol(text) : 1;
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
        real(CLOCK_MONOTONIC, &first);
        start_ns = first.tv_sec * 1000000000LL + first.tv_nsec;
    }
    int result = real(id, now);
    if (result == 0 && id == CLOCK_MONOTONIC) {
        long long ns = now->tv_sec * 1000000000LL + now->tv_nsec;
        ns = start_ns + (ns - start_ns) * speed;
        now->tv_sec = ns / 1000000000LL;
        now->tv_nsec = ns % 1000000000LL;
    }
    return result;
}
