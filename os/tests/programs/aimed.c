/* Random system calls from ring 3: four threads, arguments from live descriptors, mapped and
   half-mapped pointers, kernel addresses and boundary values. One call in four is aimed: its
   arguments are those of a right call, on a descriptor that the thread or one of the others keeps
   alive, so that every call also succeeds. The program must live through it, and frames and
   descriptors must be back at the start's count. Usage: aimed CALLS SEED [SECONDS]: with SECONDS,
   closed connections have that long to come to their end before anything is counted. */

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
#define KIT_FIRST 64 /* Each thread's kit of descriptors: see `restock`. */
#define KIT_SIZE 16
#define KIT_LAST (KIT_FIRST + THREADS * KIT_SIZE - 1)
#define MAX_FD 4352
#define AIMED 4 /* One call in so many is aimed. */
#define CALLS 512

static long attempts[CALLS], successes[CALLS], errors[CALLS][134];
static long aimed_calls, per_thread;
static uint64_t first_seed;
static volatile int running;
static pthread_t threads[THREADS];
static volatile int thread_ids[THREADS], last_number[THREADS];

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
   an ioctl, G flags of a clone that is refused, B a set or a bad address, j and y a socket option's level and name, x message flags, K accept's flags. */
static const struct entry table[] = {
    {0, "fpl"}, {1, "fpl"}, {2, "nFi"}, {3, "f"}, {4, "np"}, {5, "fp"}, {6, "np"}, {7, "pim"},
    {8, "foi"}, {9, "aAPMfo"}, {10, "aAP"}, {11, "aA"}, {12, "z"}, {13, "izph"}, {14, "ispz"},
    {14, "isph"}, {16, "fCV"}, {17, "fplo"}, {18, "fplo"}, {19, "fIN"}, {20, "fIN"}, {21, "ni"},
    {22, "p"}, {23, "ipppt"}, {24, ""}, {25, "aAAi"}, {28, "aAv"}, {32, "f"}, {33, "fD"},
    {34, ""}, {35, "tp"}, {37, "i"}, {39, ""}, {41, "iki"}, {42, "fqY"}, {43, "fqS"}, {44, "fpNxzz"}, {44, "fplxqY"}, {45, "fplxqS"},
    {46, "fHx"}, {47, "fHx"}, {48, "fi"}, {49, "fqY"}, {50, "fi"}, {51, "fqS"}, {52, "fqS"},
    {53, "ikip"}, {54, "fjyVW"}, {55, "fjyVS"}, {56, "Gz"}, {62, "ig"}, {63, "p"}, {72, "fio"}, {73, "fL"},
    {74, "f"}, {75, "f"}, {76, "no"}, {77, "fo"}, {79, "pl"}, {80, "n"}, {81, "f"}, {82, "nn"},
    {83, "ni"}, {84, "n"}, {86, "nn"}, {87, "n"}, {88, "nn"}, {89, "npl"}, {90, "ni"}, {91, "fi"},
    {95, "i"}, {96, "pp"}, {97, "ip"}, {98, "ip"}, {99, "p"}, {100, "p"}, {102, ""}, {104, ""},
    {107, ""}, {108, ""}, {110, ""}, {111, ""}, {118, "ppp"}, {120, "ppp"}, {124, "i"},
    {127, "ph"}, {128, "sptl"}, {128, "spth"}, {130, "Bi"}, {131, "zp"}, {137, "np"}, {138, "fp"}, {158, "zp"},
    {186, ""}, {200, "wg"}, {201, "p"}, {202, "uiiTui"}, {204, "wlp"}, {217, "fpl"},
    {228, "cp"}, {229, "cp"}, {230, "citp"}, {232, "fpim"}, {233, "fefE"}, {234, "iwg"},
    {257, "dnFi"}, {258, "dni"}, {262, "dnpi"}, {263, "dni"}, {264, "dndn"}, {265, "dndnz"},
    {266, "ndn"}, {267, "dnpl"}, {268, "dni"}, {269, "dni"}, {270, "ipppTz"}, {271, "pitsh"},
    {280, "dnpi"}, {281, "fpimsh"}, {284, "i"}, {285, "fioo"}, {288, "fqSK"},
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
    case 'f':
        if (r % 16 == 0)
            return (r >> 8) % 3 ? 9999 : -1ul;
        if (r % 16 < 4)
            return KIT_FIRST + (r >> 8) % (THREADS * KIT_SIZE);
        return FIRST_FD + (r >> 8) % 24;
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
    case 'G': return r % 2 ? (r >> 8) & 0x7ffefeff : 0x10100 | 1ul << 31;
    case 'B': return r % 2 ? (uint64_t)&sets[(r >> 8) % 3] : 0xffffffff80200000ul;
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

enum { FILE_, FOLDER, CLIENT, SERVER, DATAGRAM, PAIR, PAIR_, READER, WRITER, EPOLL, EVENT, LISTENER,
       TARGET };

/* What one thread aims with. */
struct aim {
    int number, base; /* The thread's, and its first descriptor of the kit. */
    char *page;       /* Two kilobytes for structures. */
    char *stack;      /* Of the threads that it makes. */
    char file[24], one[24], two[24], folder[24];
    int drop[2];      /* To be closed after the call. */
    void *mapped;     /* To be unmapped after the call. */
    size_t mapped_size;
};

static struct sockaddr_in here(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void place(struct aim *aim, int slot, int fd)
{
    if (fd >= 0 && fd != aim->base + slot) {
        dup2(fd, aim->base + slot);
        close(fd);
    }
}

/* A connection that ends by a reset: it leaves nothing to wait for. */
static void drop_connection(int client, int server)
{
    char byte = 0;
    send(server, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    close(client);
    close(server);
}

static int knock(int port)
{
    struct sockaddr_in to = here(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    connect(fd, (void *)&to, sizeof to);
    return fd;
}

/* Opens one of each kind at its place, so that the aimed calls find what they work on. */
static void restock(struct aim *aim)
{
    int two[2], port = 8100 + aim->number;
    struct sockaddr_in local = here(port);
    struct epoll_event event = {.events = EPOLLIN};
    place(aim, FILE_, open(aim->file, O_RDWR | O_CREAT | O_TRUNC, 0600));
    if (ftruncate(aim->base + FILE_, 8192))
        chmod(aim->file, 0600);
    place(aim, FOLDER, open("/tmp", O_RDONLY | O_DIRECTORY));
    close(aim->base + LISTENER);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    bind(fd, (void *)&local, sizeof local);
    listen(fd, 64);
    place(aim, LISTENER, fd);
    drop_connection(aim->base + CLIENT, aim->base + SERVER);
    two[0] = knock(port);
    two[1] = accept4(aim->base + LISTENER, 0, 0, SOCK_NONBLOCK);
    place(aim, CLIENT, two[0]);
    place(aim, SERVER, two[1]);
    close(aim->base + DATAGRAM);
    fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    bind(fd, (void *)&local, sizeof local);
    connect(fd, (void *)&local, sizeof local);
    place(aim, DATAGRAM, fd);
    if (!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, two)) {
        place(aim, PAIR, two[0]);
        place(aim, PAIR_, two[1]);
    }
    if (!pipe2(two, O_NONBLOCK)) {
        place(aim, READER, two[0]);
        place(aim, WRITER, two[1]);
    }
    place(aim, EPOLL, epoll_create1(0));
    place(aim, EVENT, eventfd(1, EFD_NONBLOCK));
    epoll_ctl(aim->base + EPOLL, EPOLL_CTL_ADD, aim->base + EVENT, &event);
    place(aim, TARGET, open("/dev/null", O_RDWR));
}

static void make_file(const char *name) { close(open(name, O_RDWR | O_CREAT, 0600)); }

static void *make_page(struct aim *aim, size_t size)
{
    aim->mapped_size = size;
    aim->mapped = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return aim->mapped;
}

static int drop(struct aim *aim, int at, int fd) { return aim->drop[at] = fd; }

/* A thread that sets the place that is cleared at its end, and ends: three calls. */
static void make_thread(struct aim *aim)
{
    volatile int *alive = (void *)aim->stack;
    volatile long *answer = (void *)(aim->stack + 8);
    long result, flags = 0x50f00; /* VM, FS, FILES, SIGHAND, THREAD, SYSVSEM. */
    *alive = 1;
    *answer = -1;
    __sync_fetch_and_add(&attempts[SYS_clone], 1);
    register uint64_t r12 __asm__("r12") = (uint64_t)answer;
    register uint64_t r10 __asm__("r10") = 0, r8 __asm__("r8") = 0;
    __asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjnz 1f\n\t"
                     "mov $218, %%eax\n\tmov %%rbx, %%rdi\n\tsyscall\n\tmov %%rax, (%%r12)\n\t"
                     "mov $60, %%eax\n\txor %%edi, %%edi\n\tsyscall\n1:"
                     : "=a"(result)
                     : "a"(SYS_clone), "D"(flags), "S"(aim->stack + 16384 - 64), "d"(0), "b"(alive),
                       "r"(r12), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    if (result < 0) {
        __sync_fetch_and_add(&errors[SYS_clone][-result], 1);
        return;
    }
    while (*alive)
        sched_yield();
    for (int i = 0; i < 3; i++) {
        int number = (const int[]){SYS_clone, SYS_set_tid_address, SYS_exit}[i];
        __sync_fetch_and_add(&successes[number], i == 1 ? *answer > 0 : 1);
        if (i)
            __sync_fetch_and_add(&attempts[number], 1);
    }
}

/* Writes the arguments of a right call; false where there is nothing but chance for it. */
static int take_aim(struct aim *aim, int number, uint64_t *a, uint64_t *state, char *own)
{
    uint64_t r = next(state);
    /* Now and then on what another thread works on. */
    int kit = r % 8 ? aim->base : KIT_FIRST + (int)(r >> 8) % THREADS * KIT_SIZE;
    int file = kit + FILE_, stream, fd, two[2];
    int sockets[] = {kit + CLIENT, kit + SERVER, kit + DATAGRAM, kit + LISTENER};
    int pick = r >> 16 & 3, port = 8100 + aim->number;
    uint64_t page = (uint64_t)aim->page, name = (uint64_t)aim->file, *words = (void *)aim->page;
    uint64_t one = (uint64_t)aim->one, other = (uint64_t)aim->two, folder = (uint64_t)aim->folder;
    struct sockaddr_in any = here(0), listener = here(port), *address = (void *)(page + 512);
    struct iovec *part = (void *)(page + 256);
    struct msghdr *message = (void *)(page + 320);
    struct epoll_event event = {.events = EPOLLIN};
    sigset_t set;
#define CALL(...)                                                    \
    do {                                                             \
        const uint64_t given[6] = {__VA_ARGS__};                     \
        memcpy(a, given, sizeof given);                              \
        return 1;                                                    \
    } while (0)
    memset(aim->page, 0, 640);
    *part = (struct iovec){own, 1 + (r >> 20) % 1000};
    *message = (struct msghdr){.msg_iov = part, .msg_iovlen = 1};
    *address = here(port);
    *(uint32_t *)(page + 600) = sizeof *address;
    stream = r >> 18 & 1 ? kit + CLIENT : kit + DATAGRAM;
    switch (number) {
    case SYS_read: case SYS_write: CALL(file, (uint64_t)own, (r >> 20) % 500);
    case SYS_open: CALL(name, O_RDWR | O_CREAT, 0600);
    case SYS_close: CALL(dup(file));
    case SYS_stat: case SYS_lstat: CALL(name, page);
    case SYS_fstat: case SYS_fstatfs: CALL(kit + (r >> 20) % TARGET, page);
    case SYS_statfs: CALL((uint64_t) "/tmp", page);
    case SYS_poll: case SYS_ppoll:
        for (int i = 0; i < 4; i++)
            words[i] = (uint64_t)(kit + (r >> (20 + 4 * i)) % TARGET) | 7ul << 32;
        CALL(page, 4, number == SYS_poll ? 0 : (uint64_t)&spans[0], 0, 8);
    case SYS_lseek: CALL(file, (r >> 20) % 8192, pick % 3);
    case SYS_mmap: aim->mapped_size = 4096 * (1 + pick);
        if (r & 1 << 20)
            CALL(0, aim->mapped_size, pick, MAP_PRIVATE, file, 0);
        CALL(0, aim->mapped_size, pick, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    case SYS_mprotect: CALL((uint64_t)make_page(aim, 8192), 4096 * (1 + (r >> 20 & 1)), pick);
    case SYS_munmap: CALL((uint64_t)make_page(aim, 8192), 8192);
    case SYS_mremap: page = (uint64_t)make_page(aim, 8192);
        CALL(page, 8192, 4096 * (1 + pick), MREMAP_MAYMOVE);
    case SYS_madvise: CALL((uint64_t)make_page(aim, 8192), 8192, pick % 2 ? MADV_DONTNEED : 0);
    case SYS_rt_sigaction: CALL(1 + (r >> 20) % 64, 0, page, 8);
    case SYS_rt_sigprocmask: CALL(pick % 3, 0, page, 8);
    case SYS_ioctl: CALL(kit + (pick % 2 ? READER : CLIENT), 0x541b, page);
    case SYS_pread64: case SYS_pwrite64: CALL(file, (uint64_t)own, (r >> 20) % 500, (r >> 32) % 8192);
    case SYS_readv: case SYS_writev: CALL(file, (uint64_t)part, 1);
    case SYS_preadv: case SYS_pwritev: case SYS_preadv2: case SYS_pwritev2:
        CALL(file, (uint64_t)part, 1, (r >> 32) % 8192, 0, 0);
    case SYS_access: CALL(name, 4);
    case SYS_pipe: case SYS_pipe2: CALL(page, number == SYS_pipe ? 0 : O_NONBLOCK);
    case SYS_socketpair: CALL(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, page);
    case SYS_select: case SYS_pselect6: fd = kit + (r >> 20) % TARGET;
        words[fd / 64] = 1ul << fd % 64;
        CALL(fd + 1, page, pick % 2 ? page : 0, 0, number == SYS_select ? page + 128 : (uint64_t)&spans[0]);
    case SYS_dup: CALL(kit + (r >> 20) % TARGET);
    case SYS_dup2: case SYS_dup3: CALL(file, aim->base + TARGET, number == SYS_dup2 ? 0 : O_CLOEXEC);
    case SYS_pause: return r % 4 == 0; /* Each waits for the next round of signals. */
    case SYS_nanosleep: CALL((uint64_t)&spans[pick]);
    case SYS_alarm: CALL(pick);
    case SYS_socket: CALL(AF_INET, (pick % 2 ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK, 0);
    case SYS_connect: /* With a datagram socket, or a connection that is waited for. */
        fd = drop(aim, 0, socket(AF_INET, r & 7 << 20 ? SOCK_DGRAM : SOCK_STREAM, 0));
        CALL(fd, (uint64_t)address, sizeof *address);
    case SYS_accept: case SYS_accept4: drop(aim, 0, knock(port));
        CALL(kit + LISTENER, (uint64_t)address, page + 600, number == SYS_accept ? 0 : SOCK_NONBLOCK);
    case SYS_sendto: CALL(stream, (uint64_t)own, (r >> 20) % 1000, 0x4040);
    case SYS_sendmsg: CALL(stream, (uint64_t)message, 0x4040);
    case SYS_recvfrom: case SYS_recvmsg: /* What was sent just now. */
        send(stream == kit + CLIENT ? kit + SERVER : stream, own, 100, 0x4040);
        if (number == SYS_recvmsg)
            CALL(stream, (uint64_t)message, MSG_DONTWAIT);
        CALL(stream, (uint64_t)own, 1000, MSG_DONTWAIT | (pick % 2 ? MSG_PEEK : 0),
             stream == kit + CLIENT ? 0 : (uint64_t)address, page + 600);
    case SYS_shutdown:
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, two))
            return 0;
        drop(aim, 1, two[1]);
        CALL(drop(aim, 0, two[0]), pick % 3);
    case SYS_bind: fd = drop(aim, 0, socket(AF_INET, pick % 2 ? SOCK_STREAM : SOCK_DGRAM, 0));
        *address = any;
        CALL(fd, (uint64_t)address, sizeof any);
    case SYS_listen: CALL(kit + LISTENER, 1 + pick * 16);
    case SYS_getsockname: CALL(sockets[pick], (uint64_t)address, page + 600);
    case SYS_getpeername: CALL(sockets[pick % 3], (uint64_t)address, page + 600);
    case SYS_setsockopt: *words = pick % 2;
        CALL(kit + CLIENT, r & 1 << 20 ? 1 : 6, r & 1 << 20 ? 2 : 1, page, 4);
    case SYS_getsockopt: CALL(sockets[pick], SOL_SOCKET, 3 + pick % 2, page, page + 600);
    case SYS_kill: CALL(getpid(), pick % 2 ? 0 : SIGUSR1);
    case SYS_tkill: CALL(thread_ids[aim->number], pick % 2 ? 0 : SIGUSR1);
    case SYS_tgkill: CALL(getpid(), thread_ids[aim->number], pick % 2 ? 0 : SIGUSR1);
    case SYS_uname: case SYS_sysinfo: case SYS_times: case SYS_time: CALL(page);
    case SYS_fcntl: CALL(kit + (r >> 20) % TARGET, pick % 2 ? F_GETFL : F_GETFD);
    case SYS_flock: CALL(file, pick % 2 ? 5 : 8);
    case SYS_fsync: case SYS_fdatasync: CALL(file);
    case SYS_truncate: CALL(name, (r >> 20) % 20000);
    case SYS_ftruncate: CALL(file, (r >> 20) % 20000);
    case SYS_fallocate: CALL(file, pick % 2, (r >> 20) % 8192, 1 + (r >> 40) % 8192);
    case SYS_getcwd: fd = chdir("/tmp");
        CALL(page, 500);
    case SYS_chdir: CALL((uint64_t) "/tmp");
    case SYS_fchdir: CALL(kit + FOLDER);
    case SYS_rename: make_file(aim->one);
        CALL(one, other);
    case SYS_renameat: case SYS_renameat2: make_file(aim->one);
        CALL(AT_FDCWD, one, AT_FDCWD, other, 0);
    case SYS_mkdir: rmdir(aim->folder);
        CALL(folder, 0700);
    case SYS_mkdirat: rmdir(aim->folder);
        CALL(AT_FDCWD, folder, 0700);
    case SYS_rmdir: mkdir(aim->folder, 0700);
        CALL(folder);
    case SYS_link: case SYS_linkat: make_file(aim->one);
        unlink(aim->two);
        if (number == SYS_link)
            CALL(one, other);
        CALL(AT_FDCWD, one, AT_FDCWD, other, 0);
    case SYS_unlink: make_file(aim->one);
        CALL(one);
    case SYS_unlinkat: make_file(aim->one);
        CALL(AT_FDCWD, one, 0);
    case SYS_symlink: unlink(aim->two);
        CALL(name, other);
    case SYS_symlinkat: unlink(aim->two);
        CALL(name, kit + FOLDER, other);
    case SYS_readlink: case SYS_readlinkat: unlink(aim->two);
        if (symlink(aim->file, aim->two))
            return 0;
        if (number == SYS_readlink)
            CALL(other, page, 100);
        CALL(AT_FDCWD, other, page, 100);
    case SYS_chmod: CALL(name, 0600 | (r >> 20 & 077));
    case SYS_fchmod: CALL(file, 0600 | (r >> 20 & 077));
    case SYS_fchmodat: CALL(AT_FDCWD, name, 0600 | (r >> 20 & 077));
    case SYS_gettimeofday: CALL(page, pick % 2 ? page + 16 : 0);
    case SYS_getrlimit: CALL((r >> 20) % 16, page);
    case SYS_prlimit64: CALL(0, (r >> 20) % 16, 0, page);
    case SYS_getrusage: CALL(pick % 2, page);
    case SYS_getresuid: case SYS_getresgid: CALL(page, page + 8, page + 16);
    case SYS_rt_sigpending: CALL(page, 8);
    case SYS_rt_sigtimedwait: /* For one that waits. */
        sigemptyset(&set);
        sigaddset(&set, SIGUSR2);
        sigprocmask(SIG_BLOCK, &set, 0);
        syscall(SYS_tgkill, getpid(), thread_ids[aim->number], SIGUSR2);
        *words = 1ul << (SIGUSR2 - 1);
        CALL(page, pick % 2 ? page + 256 : 0, (uint64_t)&spans[2], 8);
    case SYS_rt_sigsuspend: /* Until one that waits already. */
        sigemptyset(&set);
        sigaddset(&set, SIGUSR1);
        sigprocmask(SIG_BLOCK, &set, 0);
        syscall(SYS_tgkill, getpid(), thread_ids[aim->number], SIGUSR1);
        CALL(page, 8);
    case SYS_sigaltstack: CALL(0, page);
    case SYS_arch_prctl: CALL(0x1003, page);
    case SYS_futex: CALL((uint64_t)&words[8], 1 | (pick % 2 ? 128 : 0), 1);
    case SYS_sched_getaffinity: CALL(0, 8, page);
    case SYS_getdents64: lseek(kit + FOLDER, 0, SEEK_SET);
        CALL(kit + FOLDER, page, 600);
    case SYS_clock_gettime: case SYS_clock_getres: CALL((r >> 20) % 8, page);
    case SYS_clock_nanosleep: CALL(pick % 2, 0, (uint64_t)&spans[pick], 0);
    case SYS_epoll_wait: case SYS_epoll_pwait: CALL(kit + EPOLL, page, 1 + pick, 0, 0, 8);
    case SYS_epoll_ctl: fd = 1 + pick % 3;
        epoll_ctl(kit + EPOLL, fd == EPOLL_CTL_ADD ? EPOLL_CTL_DEL : EPOLL_CTL_ADD, kit + EVENT, &event);
        *(struct epoll_event *)page = event;
        CALL(kit + EPOLL, fd, kit + EVENT, page);
    case SYS_openat: CALL(kit + FOLDER, name, O_RDWR | O_CREAT, 0600);
    case SYS_newfstatat: CALL(AT_FDCWD, name, page, pick % 2 ? AT_SYMLINK_NOFOLLOW : 0);
    case SYS_faccessat: case SYS_faccessat2: CALL(AT_FDCWD, name, 4, 0);
    case SYS_utimensat: CALL(AT_FDCWD, name, 0, 0);
    case SYS_eventfd: case SYS_eventfd2: CALL(pick, number == SYS_eventfd ? 0 : O_NONBLOCK);
    case SYS_epoll_create1: CALL(0);
    case SYS_getcpu: CALL(page, page + 8);
    case SYS_getrandom: CALL(page, (r >> 20) % 500, 0);
    default: return 0;
    }
#undef CALL
}

/* Gives back what the aimed call was staged with, and what it made. */
static void follow(struct aim *aim, int number, uint64_t length, long result)
{
    int *made = (int *)aim->page;
    if (number == SYS_accept || number == SYS_accept4)
        drop_connection(aim->drop[0], result);
    else
        for (int i = 0; i < 2; i++)
            if (aim->drop[i] >= 0)
                close(aim->drop[i]);
    if ((number == SYS_pipe || number == SYS_pipe2 || number == SYS_socketpair) && result == 0) {
        close(made[0]);
        close(made[1]);
    }
    if ((number == SYS_mmap || number == SYS_mremap) && result > 0)
        aim->mapped = (void *)result;
    if (number == SYS_mremap && result > 0)
        aim->mapped_size = length;
    if (number == SYS_munmap && result == 0)
        aim->mapped = MAP_FAILED; /* Another thread may have the place by now. */
    if (aim->mapped != MAP_FAILED)
        munmap(aim->mapped, aim->mapped_size);
    if (number == SYS_rt_sigsuspend) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGUSR1);
        sigprocmask(SIG_UNBLOCK, &set, 0);
    }
    aim->drop[0] = aim->drop[1] = -1;
    aim->mapped = MAP_FAILED;
}

/* The calls that make descriptors: those past the first few are closed again at once, but for one
   sixteenth of the time, in which the table fills up. */
static int makes_descriptor(int number, uint64_t second)
{
    switch (number) {
    case SYS_open: case SYS_dup: case SYS_socket: case SYS_accept: case SYS_openat: case SYS_eventfd:
    case SYS_accept4: case SYS_eventfd2: case SYS_epoll_create1: return 1;
    case SYS_fcntl: return second == F_DUPFD || second == F_DUPFD_CLOEXEC;
    default: return 0;
    }
}

static __thread volatile long handled;

static void *work(void *argument_)
{
    long number = (long)argument_, returned = 0;
    uint64_t state = first_seed * 77777 + number * 1234567 + 1;
    struct aim aim = {.number = number, .base = KIT_FIRST + number * KIT_SIZE, .drop = {-1, -1},
                      .mapped = MAP_FAILED};
    thread_ids[number] = syscall(SYS_gettid);
    char *own = mmap(0, 8192, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    /* Kept without rights: in a hole another thread's page would come to lie, and be written to. */
    mprotect(own + 4096, 4096, PROT_NONE);
    aim.stack = mmap(0, 16384, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    aim.page = mmap(0, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    snprintf(aim.file, sizeof aim.file, "/tmp/k%ld", number);
    snprintf(aim.one, sizeof aim.one, "/tmp/k%ld-one", number);
    snprintf(aim.two, sizeof aim.two, "/tmp/k%ld-two", number);
    snprintf(aim.folder, sizeof aim.folder, "/tmp/k%ld-folder", number);
    for (long i = 0; i < per_thread; i++) {
        const struct entry *entry = &table[next(&state) % ENTRIES];
        uint64_t a[6] = {0};
        last_number[number] = entry->number;
        int filling = i >= per_thread / 16 * 7 && i < per_thread / 2;
        if (i % 16 == 0)
            prepare(own, &state);
        if (i % 1024 == 0)
            restock(&aim);
        if (i == per_thread / 2)
            for (int fd = KIT_LAST + 1; fd < MAX_FD; fd++)
                close(fd);
        int aimed = next(&state) % AIMED == 0;
        if (aimed && entry->number == SYS_clone) {
            if (next(&state) % 8 == 0)
                make_thread(&aim);
            continue;
        }
        aimed = aimed && take_aim(&aim, entry->number, a, &state, own);
        if (entry->number == SYS_pause && !aimed)
            continue;
        if (!aimed) {
            for (int k = 0; entry->arguments[k]; k++)
                a[k] = argument(entry->arguments[k], &state, own);
            if (entry->number == 72 && a[1] == 4)
                a[2] |= 0x800;                /* F_SETFL keeps O_NONBLOCK */
            if (entry->number == 16 && a[1] == 0x5421)
                continue;
            if ((entry->number == 41 || entry->number == 53) && a[0] > 2)
                a[0] = 1 + a[0] % 2;
            if (entry->number == 53)
                a[2] = 0;
            if (entry->number == 158)
                a[0] = 0x1003;
            if (entry->number == 230)
                a[1] &= ~1ul;                 /* No absolute sleep. */
            if (entry->number == 202 && (a[1] & 127) % 2 == 1 && (a[1] & 127) != 1)
                a[1] = 1;
            if (entry->number == 200 || entry->number == 234)
                a[entry->number == 234 ? 1 : 0] %= 0x7fffffff;
            if (entry->number == SYS_rt_sigsuspend && a[0] < 1ul << 47)
                a[1] = 7;                     /* With a right one it waits. */
        }
        __sync_fetch_and_add(&attempts[entry->number], 1);
        __sync_fetch_and_add(&aimed_calls, aimed);
        long result;
        register uint64_t r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
        __asm__ volatile("syscall" : "=a"(result)
                         : "a"((long)entry->number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10),
                           "r"(r8), "r"(r9) : "rcx", "r11", "memory");
        /* These two have no other answer than that a signal came. */
        int waits = entry->number == SYS_pause || entry->number == SYS_rt_sigsuspend;
        if (result >= 0 || result < -133 || waits && result == -EINTR)
            __sync_fetch_and_add(&successes[entry->number], 1);
        else
            __sync_fetch_and_add(&errors[entry->number][-result], 1);
        if (!aimed && entry->number == SYS_mremap && result > 0
            && (uint64_t)result - (uint64_t)ARENA >= ARENA_SIZE)
            munmap((void *)result, a[2]);     /* What was moved out of the arena. */
        if (aimed)
            follow(&aim, entry->number, a[2], result);
        if (result > LAST_FD && !filling && makes_descriptor(entry->number, a[1])
            && (result < KIT_FIRST || result > KIT_LAST))
            close(result);
        /* A thread that goes on after its handler has returned from it by the call for that. */
        __sync_fetch_and_add(&attempts[SYS_rt_sigreturn], handled - returned);
        __sync_fetch_and_add(&successes[SYS_rt_sigreturn], handled - returned);
        returned = handled;
    }
    munmap(own, 8192);
    munmap(aim.stack, 16384);
    munmap(aim.page, 4096);
    __sync_fetch_and_sub(&running, 1);
    return 0;
}

static void nothing(int signal)
{
    (void)signal;
    handled++;
}

/* Opens as many sockets as there is room for, and gives them back. */
static int room_for_sockets(void)
{
    int fds[MAX_FD], count = 0;
    while (count < MAX_FD && (fds[count] = socket(AF_INET, SOCK_STREAM, 0)) >= 0)
        count++;
    for (int i = 0; i < count; i++)
        close(fds[i]);
    return count;
}

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
    for (int fd = FIRST_FD; fd <= MAX_FD; fd++)
        close(fd);
    munmap(ARENA, ARENA_SIZE + ARENA_REACH);
    alarm(0);
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
    long seen = 0, quiet = 0;
    while (running) { /* Frees whoever waits. */
        long made = 0;
        usleep(10000);
        for (int i = 0; i < CALLS; i++)
            made += attempts[i];
        quiet = made == seen ? quiet + 1 : 0;
        seen = made;
        if (quiet == 6000) { /* A minute. */
            for (int i = 0; i < THREADS; i++)
                printf("stalled: thread %d in or before call %d\n", thread_ids[i], last_number[i]);
            exit(6);
        }
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

/* Lets closed connections come to their end; then what is there: frames, room for sockets. */
static struct sysinfo count_frames(int seconds, int *room)
{
    struct sysinfo now;
    for (time_t end = time(0) + seconds; time(0) < end;)
        sleep(1);
    *room = room_for_sockets();
    sysinfo(&now);
    return now;
}

int main(int count, char **arguments)
{
    long calls = count > 1 ? atol(arguments[1]) : 100000;
    int seconds = count > 3 ? atoi(arguments[3]) : 0, room, room_after;
    first_seed = count > 2 ? strtoull(arguments[2], 0, 0) : 1;
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGUSR1, &action, 0);
    sigaction(SIGUSR2, &action, 0);
    sigaction(SIGALRM, &action, 0);
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < 16; i++)
        snprintf(names[i], sizeof names[i], i < 8 ? "/tmp/f%d" : i < 12 ? "/tmp/f%d/x" : "/tmp/d%d/y",
                 i % 4);
    strcpy(names[14], "/usr/bin/fuzz");
    strcpy(names[15], "");
    sets[1] = 1ul << 40;
    memset(errors, 0, sizeof errors); /* Its pages are there before any are counted. */
    per_thread = calls / 8 / THREADS;
    once(); /* The kernel's own lists grow once. */
    struct sysinfo before = count_frames(seconds, &room);
    per_thread = calls / 8 * 7 / THREADS;
    first_seed += 1000;
    once();
    struct sysinfo after = count_frames(seconds, &room_after);
#define LOST(kind, sign) (sign * ((long)before.kind - (long)after.kind) / 4096)
    long total = 0, never = 0, least = 1l << 40;
    for (int i = 0; i < CALLS; i++) {
        if (!attempts[i])
            continue;
        total += attempts[i];
        never += successes[i] == 0;
        if (successes[i] < least)
            least = successes[i];
        printf("call %d: %ld ok", i, successes[i]);
        for (int e = 1; e < 134; e++)
            if (errors[i][e])
                printf(", errno %d x %ld", e, errors[i][e]);
        printf("\n");
    }
    printf("fuzz: %ld calls, %ld aimed, %ld never succeeded, least %ld, %ld frames lost, "
           "%d sockets lost, next fd %d\n", total, aimed_calls, never, least, LOST(freeram, 1),
           room - room_after, open("/dev/null", O_RDONLY));
    printf("fuzz: of the frames lost %ld are in the kernel's heap, %ld in files\n",
           LOST(bufferram, -1), LOST(sharedram, -1));
    return 0;
}
