/* Random system calls from ring 3: four threads, arguments from live descriptors, mapped and
   half-mapped pointers, kernel addresses and boundary values. The program must live through it,
   and frames and descriptors must be back at the start's count. Usage: fuzz CALLS SEED. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define THREADS 4
#define ARENA ((char *)0x200000000000ul)
#define ARENA_SIZE (64ul << 20)
/* A mapping that begins on the last page reaches this far past it: the longest that is asked for. */
#define ARENA_REACH (64ul << 12)
#define FIRST_FD 3
#define LAST_FD 60
#define CALLS 512

static long attempts[CALLS], successes[CALLS], errors[CALLS][134];
static long per_thread;
static uint64_t first_seed;
static volatile int running;
static pthread_t threads[THREADS];
static volatile int thread_ids[THREADS];

/* Argument kinds: one letter each in the table below. */
struct entry {
    short number;
    const char *arguments;
};

/* f descriptor, p pointer to data, n path, l length, i small number, o offset, t short time span,
   T null or short time span, m poll-like milliseconds, a arena address, A arena length, P
   protection, M mmap flags, s signal set that leaves USR1 open, F open flags, z nought, D a new
   descriptor's number, g signal 0 or USR1, w own thread, u futex word, c clock, e epoll operation,
   k socket kind, v advice, h 8, L lock operation, q the start of the prepared page (an address), I
   parts, H a message, V an integer, E an event, S a length's place, Y 16, W 4, N nought to four, C
   an ioctl, j and y a socket option's level and name, x message flags, K accept's flags. */
static const struct entry table[] = {
    {0, "fpl"}, {1, "fpl"}, {2, "nFi"}, {3, "f"}, {4, "np"}, {5, "fp"}, {6, "np"}, {7, "pim"},
    {8, "foi"}, {9, "aAPMfo"}, {10, "aAP"}, {11, "aA"}, {12, "z"}, {13, "izph"}, {14, "ispz"},
    {14, "isph"}, {16, "fCV"}, {17, "fplo"}, {18, "fplo"}, {19, "fIN"}, {20, "fIN"}, {21, "ni"},
    {22, "p"}, {23, "ipppt"}, {24, ""}, {25, "aAAi"}, {28, "aAv"}, {32, "f"}, {33, "fD"},
    {35, "tp"}, {39, ""}, {41, "iki"}, {42, "fqY"}, {43, "fqS"}, {44, "fpNxzz"}, {44, "fplxqY"}, {45, "fplxqS"},
    {46, "fHx"}, {47, "fHx"}, {48, "fi"}, {49, "fqY"}, {50, "fi"}, {51, "fqS"}, {52, "fqS"},
    {53, "ikip"}, {54, "fjyVW"}, {55, "fjyVS"}, {62, "ig"}, {63, "p"}, {72, "fio"}, {73, "fL"},
    {74, "f"}, {75, "f"}, {76, "no"}, {77, "fo"}, {79, "pl"}, {80, "n"}, {81, "f"}, {82, "nn"},
    {83, "ni"}, {84, "n"}, {86, "nn"}, {87, "n"}, {88, "nn"}, {89, "npl"}, {90, "ni"}, {91, "fi"},
    {95, "i"}, {96, "pp"}, {97, "ip"}, {98, "ip"}, {99, "p"}, {100, "p"}, {102, ""}, {104, ""},
    {107, ""}, {108, ""}, {110, ""}, {111, ""}, {118, "ppp"}, {120, "ppp"}, {124, "i"},
    {127, "ph"}, {128, "sptl"}, {128, "spth"}, {131, "zp"}, {137, "np"}, {138, "fp"}, {158, "zp"},
    {186, ""}, {200, "wg"}, {201, "p"}, {202, "uiiTui"}, {204, "wlp"}, {217, "fpl"},
    {228, "cp"}, {229, "cp"}, {230, "citp"}, {232, "fpim"}, {233, "fefE"}, {234, "iwg"},
    {257, "dnFi"}, {258, "dni"}, {262, "dnpi"}, {263, "dni"}, {264, "dndn"}, {265, "dndnz"},
    {266, "ndn"}, {267, "dnpl"}, {268, "dni"}, {269, "dni"}, {270, "ipppTz"}, {271, "pitsh"},
    {273, "pl"}, {280, "dnpi"}, {281, "fpimsh"}, {284, "i"}, {285, "fioo"}, {288, "fqSK"},
    {290, "ik"}, {291, "z"}, {292, "fDi"}, {293, "pk"}, {295, "fINo"}, {296, "fINo"},
    {302, "iizp"}, {309, "pp"}, {316, "dndni"}, {318, "pli"}, {327, "fINozz"}, {328, "fINozz"},
    {439, "dnii"},
};
#define ENTRIES (sizeof table / sizeof table[0])

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static const uint64_t edges[] = {0, 1, 2, 7, 8, 255, 4095, 4096, 4097, 65535, 65536, 0x7fffffff,
    0x80000000, 0xffffffff, 0x100000000, 0x7fffffffffffffff, 0x8000000000000000,
    0xfffffffffffff000, 0xffffffffffffffff};
static char names[16][24];
static struct timespec spans[4] = {{0, 0}, {0, 1000}, {0, 100000}, {0, 999999999 / 500}};
static uint64_t sets[3];
static uint32_t words[8];

static uint64_t argument(char kind, uint64_t *state, char *own)
{
    uint64_t r = next(state);
    switch (kind) {
    case 'f': return r % 16 ? FIRST_FD + (r >> 8) % 24 : (r >> 8) % 3 ? 9999 : -1ul;
    case 'D': return FIRST_FD + (r >> 8) % 40;
    case 'd': return r % 4 ? -100 : FIRST_FD + (r >> 8) % 24;
    case 'p':
        switch (r % 16) {
        case 0: return 0;
        case 1: return 0xffffffff80200000ul + (r >> 8 & 0xffff);
        case 2: return 0xffff800000000000ul + (r >> 8 & 0xffffff);
        case 3: return 0x7fffffffeff8ul;
        case 4: return (uint64_t)own + 4096 - 1 - (r >> 8 & 31); /* Half-mapped. */
        case 5: case 6: return (uint64_t)ARENA + (r >> 8) % ARENA_SIZE;
        default: return (uint64_t)own + (r >> 8) % 3000;
        }
    case 'n': return r % 16 ? (uint64_t)names[(r >> 8) % 16] : argument('p', state, own);
    case 'l': return r % 4 ? (r >> 8) % 3000 : edges[(r >> 8) % 19];
    case 'i': return r % 8 ? (r >> 8) % 24 : edges[(r >> 8) % 19];
    case 'o': return r % 4 ? (r >> 8) % 20000 : edges[(r >> 8) % 19];
    case 't': return r % 16 ? (uint64_t)&spans[(r >> 8) % 4] : 0xffffffff80200000ul;
    case 'T': return (uint64_t)&spans[(r >> 8) % 4];
    case 'm': return r % 2;
    case 'a': return (uint64_t)ARENA + ((r >> 8) % (ARENA_SIZE / 4096)) * 4096 + (r % 32 ? 0 : 8);
    case 'A': return r % 16 ? ((r >> 8) % 64) * 4096 : ((r >> 8) % 9) * 1000;
    case 'P': return r % 9;
    case 'M': return 0x10 | (r % 8 ? 0x22 : (r >> 8) % 4);
    case 's': return r % 8 ? (uint64_t)&sets[(r >> 8) % 3] : 0;
    case 'F': return (r >> 8 & 3) | (r & 0x40) | (r & 0x200) | 0x800;
    case 'g': return r % 2 ? 0 : SIGUSR1;
    case 'w': return r % 2 ? thread_ids[(r >> 8) % THREADS] : (r >> 8) % 100;
    case 'u': return (uint64_t)&words[(r >> 8) % 8] + (r % 32 ? 0 : 1);
    case 'c': return (r >> 8) % 14;
    case 'e': return 1 + (r >> 8) % 4;
    case 'k': return (r % 3) | 0x800;
    case 'v': return (r >> 8) % 24;
    case 'h': return 8;
    case 'q': return r % 16 ? (uint64_t)own : argument('p', state, own);
    case 'I': return r % 16 ? (uint64_t)own + 512 : argument('p', state, own);
    case 'H': return r % 16 ? (uint64_t)own + 1024 : argument('p', state, own);
    case 'V': return r % 16 ? (uint64_t)own + 1536 : argument('p', state, own);
    case 'E': return r % 16 ? (uint64_t)own + 1600 : argument('p', state, own);
    case 'S': return r % 16 ? (uint64_t)own + 1700 : argument('p', state, own);
    case 'Y': return r % 16 ? 16 : (r >> 8) % 200;
    case 'W': return r % 16 ? 4 : (r >> 8) % 16;
    case 'N': return r % 16 ? (r >> 8) % 5 : argument('i', state, own);
    case 'C': return r % 2 ? 0x541b : 0x5450 + (r >> 8) % 2;
    case 'j': return r % 2 ? 1 : 6;
    case 'y': return (r >> 8) % 10 + (r % 8 ? 0 : 30);
    case 'x': return r % 2 ? 0x4040 : r % 4 ? 0x40 : (r >> 8) & 0x4142;
    case 'K': return r % 8 ? 0x800 : argument('i', state, own);
    case 'L': return ((r >> 8) % 10) | 4;
    default: return 0;
    }
}

static void prepare(char *own, uint64_t *state)
{
    /* What structures begin with: addresses, parts, sets, events. */
    uint64_t *at = (uint64_t *)own;
    for (int i = 0; i < 500; i++) {
        uint64_t r = next(state);
        at[i] = r % 4 == 0 ? (uint64_t)own + r % 3000 : r % 4 == 1 ? (r >> 8) % 600 : r % 64;
    }
    if (next(state) % 4) {
        memset(own, 0, 16);
        own[0] = 2;
        memcpy(own + 2, "\x1f\x90\x7f\0\0\1", 6); /* 127.0.0.1:8080 */
    }
    for (int i = 0; i < 4; i++) {
        at[64 + 2 * i] = (uint64_t)own + 2000 + next(state) % 500;
        at[65 + 2 * i] = next(state) % 500;
    }
    memset(own + 1024, 0, 56);
    at[130] = (uint64_t)own + 512;
    at[131] = next(state) % 4;
    at[192] = next(state) % 3;
    *(uint32_t *)(own + 1600) = 0x2005 | (next(state) % 2 ? 1u << 31 : 0);
    *(uint32_t *)(own + 1700) = 16;
}

/* Opens one of each kind, so that the calls that follow find what they work on. */
static void furnish(void)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(8080)};
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fds[12], n = 0;
    fds[n++] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    bind(fds[0], (void *)&here, sizeof here);
    listen(fds[0], 5);
    for (int i = 0; i < 2; i++) {
        fds[n] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        connect(fds[n++], (void *)&here, sizeof here);
    }
    fds[n++] = accept4(fds[0], 0, 0, SOCK_NONBLOCK);
    fds[n++] = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    bind(fds[n - 1], (void *)&here, sizeof here);
    if (!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds + n))
        n += 2;
    if (!pipe2(fds + n, O_NONBLOCK))
        n += 2;
    fds[n++] = epoll_create1(0);
    fds[n++] = eventfd(1, EFD_NONBLOCK);
    for (int i = 0; i < n; i++)
        if (fds[i] > LAST_FD)
            close(fds[i]);
}

static void *work(void *argument_)
{
    long number = (long)argument_;
    uint64_t state = first_seed * 77777 + number * 1234567 + 1;
    thread_ids[number] = syscall(SYS_gettid);
    char *own = mmap(0, 8192, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    /* Kept without rights: in a hole another thread's page would come to lie, and be written to. */
    mprotect(own + 4096, 4096, PROT_NONE);
    for (long i = 0; i < per_thread; i++) {
        const struct entry *entry = &table[next(&state) % ENTRIES];
        uint64_t a[6] = {0};
        if (i % 16 == 0)
            prepare(own, &state);
        if (i % 256 == 0)
            furnish();
        for (int k = 0; entry->arguments[k]; k++)
            a[k] = argument(entry->arguments[k], &state, own);
        if (entry->number == 72 && a[1] == 4)
            a[2] |= 0x800;                    /* F_SETFL keeps O_NONBLOCK */
        if (entry->number == 16 && a[1] == 0x5421)
            continue;
        if ((entry->number == 41 || entry->number == 53) && a[0] > 2)
            a[0] = 1 + a[0] % 2;
        if (entry->number == 53)
            a[2] = 0;
        if (entry->number == 158)
            a[0] = 0x1003;
        if (entry->number == 230)
            a[1] &= ~1ul;                     /* No absolute sleep. */
        if (entry->number == 202 && (a[1] & 127) % 2 == 1 && (a[1] & 127) != 1)
            a[1] = 1;
        if (entry->number == 200 || entry->number == 234)
            a[entry->number == 234 ? 1 : 0] %= 0x7fffffff;
        __sync_fetch_and_add(&attempts[entry->number], 1);
        long result;
        register uint64_t r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
        __asm__ volatile("syscall" : "=a"(result)
                         : "a"((long)entry->number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10),
                           "r"(r8), "r"(r9) : "rcx", "r11", "memory");
        if (entry->number == SYS_mremap && result > 0
            && (uint64_t)result - (uint64_t)ARENA >= ARENA_SIZE)
            munmap((void *)result, a[2]);     /* What was moved out of the arena. */
        if (result >= 0 || result < -133)
            __sync_fetch_and_add(&successes[entry->number], 1);
        else
            __sync_fetch_and_add(&errors[entry->number][-result], 1);
    }
    munmap(own, 8192);
    __sync_fetch_and_sub(&running, 1);
    return 0;
}

static void nothing(int signal) { (void)signal; }

/* What can be written to: names from chance are not only those of `names`. */
static const char *folders[] = {"/tmp", "/run", "/data", "/var/tmp", "/dev/shm", "/home"};

static int erase(const char *name, const struct stat *about, int kind, struct FTW *place)
{
    (void)about, (void)kind;
    if (place->level > 0)
        remove(name);
    return 0;
}

static void clean(void)
{
    for (int fd = FIRST_FD; fd <= 5000; fd++)
        close(fd);
    munmap(ARENA, ARENA_SIZE + ARENA_REACH);
    if (chdir("/"))
        exit(3);
    for (int i = 0; i < 6; i++)
        nftw(folders[i], erase, 16, FTW_DEPTH | FTW_PHYS);
    umask(022);
}

static void once(void)
{
    if (mmap(ARENA, ARENA_SIZE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        exit(4);
    running = THREADS;
    for (long i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], 0, work, (void *)i))
            exit(5);
    while (running) { /* Frees whoever waits. */
        usleep(20000);
        for (int i = 0; i < THREADS; i++)
            if (thread_ids[i] && running)
                syscall(SYS_tgkill, getpid(), thread_ids[i], SIGUSR1);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], 0);
        thread_ids[i] = 0;
    }
    clean();
}

int main(int count, char **arguments)
{
    long calls = count > 1 ? atol(arguments[1]) : 100000;
    first_seed = count > 2 ? strtoull(arguments[2], 0, 0) : 1;
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGUSR1, &action, 0);
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < 16; i++)
        snprintf(names[i], sizeof names[i], i < 8 ? "/tmp/f%d" : i < 12 ? "/tmp/f%d/x" : "/tmp/d%d/y",
                 i % 4);
    strcpy(names[14], "/usr/bin/fuzz");
    strcpy(names[15], "");
    sets[1] = 1ul << 40;
    struct sysinfo before, after;
    memset(errors, 0, sizeof errors); /* Its pages are there before any are counted. */
    per_thread = calls / 8 / THREADS;
    once(); /* The kernel's own lists grow once. */
    sysinfo(&before);
    per_thread = calls / 8 * 7 / THREADS;
    first_seed += 1000;
    once();
    sysinfo(&after);
#define LOST(kind, sign) (sign * ((long)before.kind - (long)after.kind) / 4096)
    long total = 0, never = 0, least = 1l << 40;
    for (int i = 0; i < CALLS; i++) {
        if (!attempts[i])
            continue;
        total += attempts[i];
        never += successes[i] == 0;
        if (successes[i] && successes[i] < least)
            least = successes[i];
        printf("call %d: %ld ok", i, successes[i]);
        for (int e = 1; e < 134; e++)
            if (errors[i][e])
                printf(", errno %d x %ld", e, errors[i][e]);
        printf("\n");
    }
    printf("fuzz: %ld calls, %ld never succeeded, least %ld, %ld frames lost, next fd %d\n", total,
           never, least, LOST(freeram, 1), open("/dev/null", O_RDONLY));
    printf("fuzz: of the frames lost %ld are in the kernel's heap, %ld in files\n",
           LOST(bufferram, -1), LOST(sharedram, -1));
    return 0;
}
