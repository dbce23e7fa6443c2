/* Threads that each keep their own pattern in a vector register while the processor goes round:
   by preemption (busy), by yielding, and through a signal handler that overwrites the register. */

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile int stop;
static volatile long bad, rounds;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int has_avx(void)
{
    return __builtin_cpu_supports("avx");
}

static void handler(int signal)
{
    (void)signal;
    if (has_avx())
        __asm__ volatile("vpcmpeqb %%xmm5, %%xmm5, %%xmm5\n vinsertf128 $1, %%xmm5, %%ymm5, %%ymm5"
                         ::: "xmm5");
    else
        __asm__ volatile("pcmpeqb %%xmm5, %%xmm5" ::: "xmm5");
}

static void *keep(void *argument)
{
    long number = (long)argument;
    unsigned char pattern[32], seen[32];
    memset(pattern, (int)(number * 17 + 1), sizeof pattern);
    int width = has_avx() ? 32 : 16;
    while (!stop) {
        /* One block: loaded, held over a spin or a yield, stored. */
        if (has_avx())
            __asm__ volatile("vmovups %1, %%ymm5\n mov $20000, %%rcx\n 1: dec %%rcx\n jnz 1b\n"
                             "test %2, %2\n jz 2f\n mov $24, %%eax\n syscall\n 2: vmovups %%ymm5, %0"
                             : "=m"(seen) : "m"(pattern), "r"(number & 1)
                             : "rcx", "rax", "r11", "xmm5", "memory");
        else
            __asm__ volatile("movups %1, %%xmm5\n mov $20000, %%rcx\n 1: dec %%rcx\n jnz 1b\n"
                             "test %2, %2\n jz 2f\n mov $24, %%eax\n syscall\n 2: movups %%xmm5, %0"
                             : "=m"(seen) : "m"(pattern), "r"(number & 1)
                             : "rcx", "rax", "r11", "xmm5", "memory");
        if (memcmp(pattern, seen, width))
            bad++;
        rounds++;
        if (number == 0)
            raise(SIGUSR1);
    }
    return 0;
}

int main(int count, char **arguments)
{
    double seconds = count > 1 ? atof(arguments[1]) : 2;
    pthread_t threads[4];
    signal(SIGUSR1, handler);
    for (long i = 0; i < 4; i++)
        if (pthread_create(&threads[i], 0, keep, (void *)i))
            return 2;
    double end = now() + seconds;
    while (now() < end)
        usleep(1000);
    stop = 1;
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], 0);
    printf("vectors: %ld rounds, %ld wrong, avx %d\n", rounds, bad, has_avx());
    return bad != 0;
}
