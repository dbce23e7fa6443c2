/* Calls whose results are printed one to a line, to be compared with what Linux answers to the
   very same binary. Nothing printed depends on the machine, the date or the load. The first
   argument is an empty folder to work in. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int cases;
static const char *group = "";
static char path[8][300];

static long show(const char *what, long result)
{
    int error = result == -1 ? errno : 0;
    printf("%03d %s %s = %ld errno %d\n", ++cases, group, what, result, error);
    return result;
}

#define T(expression) show(#expression, (long)(expression))
#define SAY(what, value) printf("%03d %s %s: %ld\n", ++cases, group, what, (long)(value))

static void files(void)
{
    char buffer[64] = "0123456789";
    struct stat st;
    group = "file";
    T(open(path[0], O_RDONLY));
    T(open(path[0], O_RDWR | O_CREAT | O_EXCL, 0640));
    T(open(path[0], O_RDWR | O_CREAT | O_EXCL, 0640));
    int fd = 3;
    T(write(fd, buffer, 10));
    T(lseek(fd, 0, SEEK_CUR));
    T(lseek(fd, -4, SEEK_END));
    T(read(fd, buffer, 64));
    T(read(fd, buffer, 64));
    T(read(fd, buffer, 0));
    T(lseek(fd, -100, SEEK_SET));
    T(lseek(fd, 0, 77));
    T(lseek(fd, 100, SEEK_SET));
    T(write(fd, "x", 1));
    T(fstat(fd, &st));
    SAY("size", st.st_size);
    SAY("mode", st.st_mode);
    SAY("links", st.st_nlink);
    T(pread(fd, buffer, 10, 95));
    SAY("hole", buffer[0] + buffer[4]);
    T(pread(fd, buffer, 10, 101));
    T(pread(fd, buffer, 10, -1));
    T(pwrite(fd, "abc", 3, 5));
    T(pwrite(fd, "abc", 3, -1));
    T(ftruncate(fd, 7));
    T(ftruncate(fd, -1));
    T(lseek(fd, 0, SEEK_END));
    T(fsync(fd));
    T(fdatasync(fd));
    T(fsync(99));
    T(fsync(-1));
    T(close(99));
    T(read(99, buffer, 1));
    T(write(99, buffer, 1));
    T(read(fd, (void *)8, 4) == -1 ? errno : 0);
    T(dup(fd));
    T(dup2(fd, 9));
    T(dup2(fd, fd));
    T(dup2(99, 9));
    T(dup3(fd, fd, 0));
    T(dup3(fd, 10, O_CLOEXEC));
    T(dup3(fd, 10, 12345));
    T(fcntl(10, F_GETFD));
    T(fcntl(9, F_GETFD));
    T(fcntl(9, F_SETFD, FD_CLOEXEC));
    T(fcntl(9, F_GETFD));
    T(fcntl(fd, F_DUPFD, 20));
    T(fcntl(fd, F_DUPFD_CLOEXEC, 20));
    T(fcntl(fd, F_DUPFD, -1));
    T(fcntl(fd, F_GETFL) & ~0x8000);
    T(fcntl(fd, F_SETFL, O_NONBLOCK | O_APPEND));
    T(fcntl(fd, F_GETFL) & ~0x8000);
    T(fcntl(fd, F_SETFL, 0));
    T(fcntl(fd, 9999));
    T(fcntl(99, F_GETFL));
    T(close(4));
    T(close(9));
    T(close(10));
    T(close(20));
    T(close(21));
    T(ioctl(fd, TCGETS, buffer));
    T(ioctl(99, FIONBIO, buffer));
    struct iovec parts[3] = {{buffer, 3}, {buffer + 10, 0}, {buffer + 20, 5}};
    T(writev(fd, parts, 3));
    T(lseek(fd, 0, SEEK_SET));
    T(readv(fd, parts, 3));
    T(readv(fd, parts, -1));
    T(readv(fd, parts, 2000));
    T(preadv(fd, parts, 3, 2));
    T(pwritev(fd, parts, 3, 2));
    T(syscall(SYS_preadv2, fd, parts, 3, -1l, 0, 0));
    T(syscall(SYS_pwritev2, fd, parts, 1, 0l, 0, 0));
    T(syscall(SYS_preadv2, fd, parts, 3, 0l, 0, 1 << 20));
    T(fallocate(fd, 0, 0, 500));
    T(lseek(fd, 0, SEEK_END));
    T(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 900));
    T(lseek(fd, 0, SEEK_END));
    T(fallocate(fd, 0, 0, 0));
    T(fallocate(fd, 0, -1, 10));
    T(open(path[0], O_WRONLY));
    T(read(4, buffer, 1));
    T(close(4));
    T(open(path[0], O_RDONLY));
    T(write(4, buffer, 1));
    T(ftruncate(4, 0));
    T(fallocate(4, 0, 0, 1));
    T(close(4));
    T(open(path[0], O_RDWR | O_TRUNC | O_APPEND));
    T(lseek(4, 0, SEEK_END));
    T(write(4, "12", 2));
    T(lseek(4, 0, SEEK_SET));
    T(write(4, "34", 2));
    T(lseek(4, 0, SEEK_END));
    T(flock(4, LOCK_EX | LOCK_NB));
    T(flock(fd, LOCK_SH | LOCK_NB));
    T(flock(4, LOCK_UN));
    T(flock(fd, LOCK_SH | LOCK_NB));
    T(flock(4, LOCK_SH | LOCK_NB));
    T(flock(4, LOCK_EX | LOCK_NB));
    T(flock(4, 77));
    T(flock(99, LOCK_SH));
    T(close(4));
    T(close(3));
    T(close(3));
}

static void folders(void)
{
    struct stat st;
    char buffer[300];
    group = "folder";
    T(mkdir(path[1], 0755));
    T(mkdir(path[1], 0755));
    T(mkdir("", 0755));
    T(rmdir(path[2]));
    T(unlink(path[1]));
    T(rmdir(path[0]));
    T(open(path[1], O_WRONLY));
    T(open(path[1], O_RDONLY | O_DIRECTORY));
    T(read(3, buffer, 10));
    T(write(3, buffer, 10));
    T(openat(3, "inner", O_CREAT | O_RDWR, 0600));
    T(close(4));
    T(rmdir(path[1]));
    T(openat(3, "inner", O_RDONLY | O_DIRECTORY));
    T(openat(3, "none", O_RDONLY));
    T(openat(99, "none", O_RDONLY));
    T(faccessat(3, "inner", F_OK, 0));
    T(faccessat(3, "inner", R_OK | W_OK, 0));
    T(faccessat(3, "none", F_OK, 0));
    T(access(path[1], 99));
    T(fstatat(3, "inner", &st, 0));
    SAY("inner", st.st_mode);
    T(fstatat(3, "", &st, AT_EMPTY_PATH));
    SAY("self", st.st_mode);
    T(fstatat(3, "", &st, 0));
    T(fstatat(3, "inner", &st, 0x40000));
    T(symlink("inner", path[3]));
    T(symlink("x", path[3]));
    T(symlink("", path[4]));
    T(readlink(path[3], buffer, sizeof buffer));
    T(readlink(path[3], buffer, 3));
    T(readlink(path[3], buffer, 0));
    T(readlink(path[0], buffer, 10));
    T(lstat(path[3], &st));
    SAY("link", st.st_mode & S_IFMT);
    T(stat(path[3], &st));
    T(open(path[3], O_RDONLY | O_NOFOLLOW));
    T(symlinkat("loop", 3, "loop"));
    T(openat(3, "loop", O_RDONLY));
    T(unlinkat(3, "loop", 0));
    T(unlinkat(3, "loop", 0));
    T(unlinkat(3, "inner", AT_REMOVEDIR));
    T(unlinkat(3, "inner", 5));
    T(link(path[0], path[4]));
    T(link(path[0], path[4]));
    T(link(path[1], path[5]));
    T(stat(path[0], &st));
    SAY("links", st.st_nlink);
    T(rename(path[4], path[5]));
    T(rename(path[4], path[5]));
    T(rename(path[5], path[0]));
    T(stat(path[5], &st));
    T(rename(path[1], path[0]));
    T(rename(path[0], path[1]));
    T(syscall(SYS_renameat2, AT_FDCWD, path[0], AT_FDCWD, path[5], 1));
    T(syscall(SYS_renameat2, AT_FDCWD, path[0], AT_FDCWD, path[3], 1));
    T(unlink(path[5]));
    T(unlink(path[5]));
    T(unlink(path[0]));
    snprintf(buffer, sizeof buffer, "%s/deep/er", path[1]);
    T(mkdir(buffer, 0700));
    snprintf(buffer, sizeof buffer, "%s/inner/x", path[1]);
    T(mkdir(buffer, 0700));
    T(rename(path[1], buffer));
    snprintf(buffer, sizeof buffer, "%s/inner/", path[1]);
    T(stat(buffer, &st));
    T(chmod(path[1], 0711));
    T(stat(path[1], &st));
    SAY("mode", st.st_mode);
    T(umask(077));
    T(umask(022));
    T(fchdir(3));
    T(access("inner", F_OK));
    T(chdir("inner"));
    T(chdir(".."));
    T(access("one", F_OK));
    T(chdir(path[1]));
    T(access("../one", F_OK));
    T(chdir("/"));
    T(getcwd(buffer, 1) == 0 ? errno : 0);
    T(strlen(getcwd(buffer, 100)));
    char entries[1024];
    long count = syscall(SYS_getdents64, 3, entries, sizeof entries), names = 0;
    for (long at = 0; at < count; at += *(unsigned short *)(entries + at + 16))
        names++;
    SAY("entries", names);
    T(syscall(SYS_getdents64, 3, entries, sizeof entries));
    T(syscall(SYS_getdents64, 0, entries, 10) == -1);
    struct timespec times[2] = {{5, 6}, {7, 8}};
    T(utimensat(3, "inner", times, 0));
    T(fstatat(3, "inner", &st, 0));
    SAY("seconds", st.st_mtim.tv_sec);
    SAY("ns", st.st_mtim.tv_nsec);
    times[1].tv_nsec = 1000000000;
    T(utimensat(3, "inner", times, 0));
    T(unlinkat(3, "inner", 0));
    T(truncate(path[1], 5));
    T(truncate(path[6], 5));
    T(rmdir(path[1]));
    T(openat(3, "late", O_CREAT | O_WRONLY, 0600));
    T(mkdirat(3, "late", 0700));
    T(symlinkat("x", 3, "late"));
    T(linkat(AT_FDCWD, path[3], 3, "late", 0));
    T(unlink(path[3]));
    T(close(3));
    char name[300];
    memset(name, 'n', 299);
    name[299] = 0;
    T(mkdir(name, 0700));
    T(open(name, O_RDONLY));
}

static void streams(void)
{
    int p[2], q[2];
    char buffer[70000] = "hello";
    group = "stream";
    T(pipe2(p, O_NONBLOCK));
    T(read(p[0], buffer, 5));
    T(write(p[1], "hello", 5));
    T(ioctl(p[0], FIONREAD, q));
    SAY("waiting", q[0]);
    T(read(p[0], buffer, 2));
    T(read(p[0], buffer, 100));
    T(write(p[0], "x", 1));
    T(read(p[1], buffer, 1));
    T(lseek(p[0], 0, SEEK_SET));
    T(pread(p[0], buffer, 1, 0));
    T(write(p[1], buffer, 70000));
    T(write(p[1], buffer, 1));
    T(read(p[0], buffer, 70000));
    T(write(p[1], "", 0));
    T(close(p[1]));
    T(read(p[0], buffer, 5));
    T(close(p[0]));
    T(pipe2(p, O_NONBLOCK));
    T(close(p[0]));
    T(write(p[1], "x", 1));
    T(close(p[1]));
    T(pipe2(p, 0x123456));
    T(pipe((int *)8));
    T(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, p));
    T(read(p[0], buffer, 5));
    T(send(p[0], "abcdef", 6, 0));
    T(recv(p[1], buffer, 3, MSG_PEEK));
    T(recv(p[1], buffer, 100, 0));
    T(recv(p[1], buffer, 100, MSG_DONTWAIT));
    T(shutdown(p[0], SHUT_WR));
    T(recv(p[1], buffer, 100, 0));
    T(send(p[0], "x", 1, MSG_NOSIGNAL));
    T(send(p[1], "back", 4, 0));
    T(recv(p[0], buffer, 100, 0));
    T(close(p[1]));
    T(recv(p[0], buffer, 100, 0));
    T(close(p[0]));
    T(socketpair(AF_INET, SOCK_STREAM, 0, p));
    int e = T(eventfd(3, EFD_NONBLOCK));
    uint64_t value = 0;
    T(read(e, &value, 4));
    T(read(e, &value, 8));
    SAY("value", value);
    T(read(e, &value, 8));
    value = 5;
    T(write(e, &value, 8));
    T(write(e, &value, 8));
    T(write(e, &value, 4));
    T(read(e, &value, 8));
    SAY("sum", value);
    value = -1ul;
    T(write(e, &value, 8));
    value = -2ul;
    T(write(e, &value, 8));
    value = 1;
    T(write(e, &value, 8));
    T(close(e));
    e = T(eventfd(2, EFD_NONBLOCK | EFD_SEMAPHORE));
    T(read(e, &value, 8));
    SAY("one", value);
    T(read(e, &value, 8));
    T(read(e, &value, 8));
    T(close(e));
    T(eventfd(0, 12345));
}

static void waiting(void)
{
    int p[2];
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 77}, got[4];
    group = "wait";
    T(pipe2(p, O_NONBLOCK));
    T(epoll_create1(99));
    int e = T(epoll_create1(0));
    T(epoll_ctl(e, EPOLL_CTL_ADD, p[0], &event));
    T(epoll_ctl(e, EPOLL_CTL_ADD, p[0], &event));
    T(epoll_ctl(e, EPOLL_CTL_MOD, p[1], &event));
    T(epoll_ctl(e, EPOLL_CTL_DEL, p[1], &event));
    T(epoll_ctl(e, 9, p[0], &event));
    T(epoll_ctl(p[0], EPOLL_CTL_ADD, p[1], &event));
    T(epoll_ctl(e, EPOLL_CTL_ADD, 99, &event));
    T(epoll_ctl(e, EPOLL_CTL_ADD, e, &event));
    T(epoll_wait(e, got, 4, 0));
    T(epoll_wait(e, got, 0, 0));
    T(epoll_wait(e, got, -1, 0));
    T(epoll_wait(p[0], got, 4, 0));
    T(write(p[1], "x", 1));
    T(epoll_wait(e, got, 4, -1));
    SAY("events", got[0].events);
    SAY("data", got[0].data.u64);
    T(epoll_wait(e, got, 4, 0));
    event.events = EPOLLIN | EPOLLET;
    T(epoll_ctl(e, EPOLL_CTL_MOD, p[0], &event));
    T(epoll_wait(e, got, 4, 0));
    T(epoll_wait(e, got, 4, 0));
    T(write(p[1], "x", 1));
    T(epoll_wait(e, got, 4, 0));
    T(epoll_wait(e, got, 4, 0));
    event.events = EPOLLIN | EPOLLONESHOT;
    T(epoll_ctl(e, EPOLL_CTL_MOD, p[0], &event));
    T(epoll_wait(e, got, 4, 0));
    T(epoll_wait(e, got, 4, 0));
    T(write(p[1], "x", 1));
    T(epoll_wait(e, got, 4, 5));
    event.events = EPOLLOUT;
    T(epoll_ctl(e, EPOLL_CTL_ADD, p[1], &event));
    T(epoll_wait(e, got, 4, 0));
    SAY("events", got[0].events);
    T(close(p[1]));
    T(epoll_ctl(e, EPOLL_CTL_MOD, p[0], &event));
    T(epoll_wait(e, got, 4, 0));
    SAY("events", got[0].events);
    T(close(p[0]));
    T(epoll_wait(e, got, 4, 0));
    int file = open(path[0], O_CREAT | O_RDWR, 0600);
    T(epoll_ctl(e, EPOLL_CTL_ADD, file, &event));
    struct pollfd polls[3] = {{file, POLLIN | POLLOUT, 0}, {-1, POLLIN, 0}, {99, POLLIN, 0}};
    T(poll(polls, 3, 0));
    SAY("file", polls[0].revents);
    SAY("none", polls[1].revents);
    SAY("bad", polls[2].revents);
    T(poll(0, 0, 3));
    T(poll((void *)8, 1, 0));
    close(file);
    T(pipe(p));
    polls[0] = (struct pollfd){p[0], POLLIN, 0};
    T(poll(polls, 1, 2));
    T(write(p[1], "x", 1));
    T(poll(polls, 1, -1));
    SAY("pipe", polls[0].revents);
    close(p[1]);
    T(poll(polls, 1, 0));
    SAY("pipe", polls[0].revents);
    fd_set in, out;
    FD_ZERO(&in);
    FD_ZERO(&out);
    FD_SET(p[0], &in);
    struct timeval none = {0, 0};
    T(select(p[0] + 1, &in, &out, 0, &none));
    SAY("set", FD_ISSET(p[0], &in));
    // (Linux looks at no bit above the size of the table of descriptors: 64 at least.)
    FD_SET(40, &in);
    T(select(41, &in, 0, 0, &none));
    T(select(-1, 0, 0, 0, &none));
    struct timespec wrong = {0, 1000000000}, little = {0, 1000000};
    T(ppoll(0, 0, &little, 0));
    T(ppoll(0, 0, &wrong, 0));
    T(nanosleep(&wrong, 0));
    T(nanosleep(&little, 0));
    T(clock_nanosleep(CLOCK_MONOTONIC, 0, &little, 0));
    T(clock_nanosleep(99, 0, &little, 0));
    T(syscall(SYS_clock_gettime, 99, &little));
    T(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, 8));
    close(p[0]), close(e);
}

static void *map(size_t length, int protection, int flags, int fd, off_t offset)
{
    return mmap(0, length, protection, flags, fd, offset);
}

static void memory(void)
{
    group = "memory";
    char *at = map(16384, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    SAY("mapped", at != MAP_FAILED);
    SAY("zero", at[5000]);
    at[5000] = 9;
    T(mprotect(at + 4096, 4096, PROT_READ));
    SAY("kept", at[5000]);
    T(mprotect(at + 4096, 4096, PROT_NONE));
    T(mprotect(at + 4096, 4096, 3));
    SAY("kept", at[5000]);
    T(mprotect(at + 1, 4096, 3));
    T(mprotect(at, 0, 3));
    T(madvise(at + 4096, 4096, MADV_DONTNEED));
    SAY("dropped", at[5000]);
    T(madvise(at + 1, 4096, MADV_DONTNEED));
    T(madvise(at, 4096, MADV_WILLNEED));
    T(madvise(at, 4096, 9999));
    T(munmap(at + 4096, 4096));
    T(mprotect(at, 16384, 3));
    T(madvise(at, 16384, MADV_WILLNEED));
    T(munmap(at + 1, 4096));
    T(munmap(at, 0));
    T(munmap(at, 16384));
    T(munmap(at, 16384));
    T(map(0, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    T(map(4096, 3, MAP_ANONYMOUS, -1, 0));
    T(map(4096, 3, MAP_PRIVATE, 99, 0));
    at = map(8192, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    SAY("shared", at != MAP_FAILED);
    at[0] = 1;
    char *moved = mremap(at, 8192, 65536, MREMAP_MAYMOVE);
    SAY("moved", moved != MAP_FAILED);
    SAY("content", moved[0]);
    T(mremap(moved, 65536, 4096, 0) == moved);
    T(mremap(moved, 4096, 0, 0));
    T(mremap(moved + 1, 4096, 4096, 0));
    T(munmap(moved, 4096));
    int fd = open(path[0], O_CREAT | O_RDWR | O_TRUNC, 0600);
    T(write(fd, "mapped file", 11));
    at = map(4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    SAY("equal", memcmp(at, "mapped file", 12));
    at[0] = 'M';
    char one;
    T(pread(fd, &one, 1, 0));
    SAY("unchanged", one);
    T(map(4096, 3, MAP_PRIVATE, fd, 1));
    T(munmap(at, 4096));
    close(fd);
    fd = open(path[0], O_WRONLY);
    T(map(4096, PROT_READ, MAP_PRIVATE, fd, 0));
    close(fd);
    fd = open("/", O_RDONLY);
    T(map(4096, PROT_READ, MAP_PRIVATE, fd, 0));
    close(fd);
    unlink(path[0]);
    char *brk0 = sbrk(0);
    T(sbrk(8192) == brk0);
    brk0[8000] = 1;
    T(sbrk(-8192) != (void *)-1);
    T(sbrk(0) == brk0);
    T(syscall(SYS_brk, 1l) == (long)brk0);
}

static volatile int handled;

static void handler(int number) { handled = handled * 100 + number; }

static void signals(void)
{
    sigset_t set, old, waiting;
    struct sigaction action = {.sa_handler = handler}, before;
    group = "signal";
    T(sigaction(SIGUSR1, &action, &before));
    SAY("default", before.sa_handler == SIG_DFL);
    T(sigaction(SIGKILL, &action, 0));
    T(syscall(SYS_rt_sigaction, 65, 0, 0, 8));
    T(syscall(SYS_rt_sigaction, 10, 0, 0, 4));
    T(raise(SIGUSR1));
    SAY("handled", handled);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    T(sigprocmask(SIG_BLOCK, &set, &old));
    SAY("empty", sigismember(&old, SIGUSR1));
    T(raise(SIGUSR1));
    SAY("blocked", handled);
    T(sigpending(&waiting));
    SAY("pending", sigismember(&waiting, SIGUSR1));
    T(sigprocmask(SIG_SETMASK, &old, 0));
    SAY("taken", handled);
    T(syscall(SYS_rt_sigprocmask, 9, &set, 0, 8));
    T(syscall(SYS_rt_sigprocmask, 0, &set, 0, 4));
    T(kill(getpid(), 0));
    T(kill(getpid(), 99));
    T(syscall(SYS_tkill, gettid(), 0));
    T(syscall(SYS_tgkill, getpid(), gettid(), SIGUSR1));
    SAY("handled", handled);
    T(syscall(SYS_tgkill, getpid(), 999999, 0));
    sigprocmask(SIG_BLOCK, &set, 0);
    raise(SIGUSR1);
    struct timespec none = {0, 0};
    T(sigtimedwait(&set, 0, &none));
    T(sigtimedwait(&set, 0, &none));
    raise(SIGUSR1);
    T(sigsuspend(&old));
    SAY("handled", handled);
    sigprocmask(SIG_SETMASK, &old, 0);
    signal(SIGPIPE, SIG_IGN);
    int p[2];
    T(pipe(p));
    close(p[0]);
    T(write(p[1], "x", 1));
    signal(SIGPIPE, handler);
    handled = 0;
    T(write(p[1], "x", 1));
    SAY("handled", handled);
    close(p[1]);
    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536}, was;
    T(sigaltstack(&stack, &was));
    SAY("disabled", was.ss_flags);
    stack.ss_size = 10;
    T(sigaltstack(&stack, 0));
    stack.ss_flags = SS_DISABLE;
    T(sigaltstack(&stack, &was));
    SAY("size", was.ss_size);
}

static struct sockaddr_in local(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static int option(int fd, int level, int name)
{
    int value = -1;
    socklen_t size = sizeof value;
    return getsockopt(fd, level, name, &value, &size) ? -errno : value;
}

static void sockets(void)
{
    char buffer[100];
    struct sockaddr_in address = local(0), peer;
    struct sockaddr *any = (struct sockaddr *)&address;
    socklen_t size = sizeof address;
    int one = 1;
    group = "socket";
    T(socket(99, SOCK_STREAM, 0));
    T(socket(AF_INET, 99, 0));
    T(socket(AF_INET, SOCK_STREAM, 17));
    int s = T(socket(AF_INET, SOCK_STREAM, 0));
    T(setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, 4));
    T(option(s, SOL_SOCKET, SO_REUSEADDR));
    T(option(s, SOL_SOCKET, SO_TYPE));
    T(option(s, SOL_SOCKET, SO_DOMAIN));
    T(option(s, SOL_SOCKET, SO_PROTOCOL));
    T(option(s, SOL_SOCKET, SO_ACCEPTCONN));
    T(option(s, SOL_SOCKET, SO_ERROR));
    T(option(s, SOL_SOCKET, SO_KEEPALIVE));
    T(setsockopt(s, SOL_SOCKET, SO_KEEPALIVE, &one, 4));
    T(option(s, SOL_SOCKET, SO_KEEPALIVE));
    T(option(s, IPPROTO_TCP, TCP_NODELAY));
    T(setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, 4));
    T(option(s, IPPROTO_TCP, TCP_NODELAY));
    T(setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, 1));
    T(setsockopt(s, SOL_SOCKET, 9999, &one, 4));
    T(setsockopt(99, SOL_SOCKET, SO_REUSEADDR, &one, 4));
    T(setsockopt(1, SOL_SOCKET, SO_REUSEADDR, &one, 4));
    T(send(s, "x", 1, MSG_NOSIGNAL));
    T(recv(s, buffer, 1, 0));
    T(getpeername(s, any, &size));
    T(bind(s, any, 3));
    T(bind(s, any, sizeof address));
    T(bind(s, any, sizeof address));
    T(getsockname(s, any, &size));
    SAY("port", address.sin_port != 0);
    T(accept(s, 0, 0));
    T(listen(s, 5));
    T(listen(s, 5));
    T(option(s, SOL_SOCKET, SO_ACCEPTCONN));
    T(fcntl(s, F_SETFL, O_NONBLOCK));
    T(accept(s, 0, 0));
    T(accept4(s, 0, 0, 0x123456));
    int t = T(socket(AF_INET, SOCK_STREAM, 0));
    T(bind(t, any, sizeof address));
    int c = T(socket(AF_INET, SOCK_STREAM, 0));
    T(connect(c, any, sizeof address));
    T(connect(c, any, sizeof address));
    size = sizeof peer;
    struct pollfd ready = {s, POLLIN, 0};
    T(poll(&ready, 1, 1000));
    SAY("listener", ready.revents);
    int a = T(accept4(s, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK));
    SAY("size", size);
    SAY("family", peer.sin_family);
    T(recv(a, buffer, 10, 0));
    T(send(c, "hello", 5, 0));
    ready.fd = a;
    T(poll(&ready, 1, 1000));
    T(recv(a, buffer, 2, MSG_PEEK));
    T(recv(a, buffer, 100, 0));
    struct iovec parts[2] = {{"scat", 4}, {"tered", 5}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    T(sendmsg(a, &message, 0));
    T(recv(c, buffer, 9, MSG_WAITALL));
    parts[0] = (struct iovec){buffer, 3}, parts[1] = (struct iovec){buffer + 3, 30};
    T(send(a, "gathered", 8, 0));
    poll(&(struct pollfd){c, POLLIN, 0}, 1, 1000);
    T(recvmsg(c, &message, 0));
    SAY("flags", message.msg_flags);
    T(write(c, "w", 1));
    T(poll(&ready, 1, 1000));
    T(read(a, buffer, 5));
    T(shutdown(c, SHUT_WR));
    T(send(c, "x", 1, MSG_NOSIGNAL));
    ready.events = POLLIN | POLLRDHUP;
    T(poll(&ready, 1, 1000));
    SAY("half", ready.revents);
    T(recv(a, buffer, 5, 0));
    T(send(a, "last", 4, 0));
    T(close(a));
    T(recv(c, buffer, 4, MSG_WAITALL));
    T(recv(c, buffer, 5, 0));
    T(close(c));
    T(close(s));
    c = socket(AF_INET, SOCK_STREAM, 0);
    T(connect(c, any, sizeof address));
    T(shutdown(c, SHUT_RDWR));
    T(close(c));
    c = socket(AF_INET, SOCK_STREAM, 0);
    address = local(0);
    T(bind(c, any, sizeof address));
    size = sizeof address;
    getsockname(c, any, &size);
    T(connect(c, any, sizeof address)); /* To itself: both sides open at once. */
    T(send(c, "self", 4, 0));
    T(recv(c, buffer, 10, 0));
    T(shutdown(c, SHUT_WR));
    T(recv(c, buffer, 10, 0));
    T(close(c));
    address.sin_family = 77;
    T(connect(t, any, sizeof address));
    T(connect(t, any, 4));
    close(t);
    int u = T(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0));
    int v = T(socket(AF_INET, SOCK_DGRAM, 0));
    address = local(0);
    T(bind(u, any, sizeof address));
    size = sizeof address;
    T(getsockname(u, any, &size));
    T(recv(u, buffer, 10, 0));
    T(send(v, "x", 1, 0));
    T(sendto(v, "packet", 6, 0, any, size));
    T(poll(&(struct pollfd){u, POLLIN, 0}, 1, 1000));
    T(recvfrom(u, buffer, 3, 0, (struct sockaddr *)&peer, &size));
    T(recv(u, buffer, 3, 0));
    T(connect(v, any, size));
    T(send(v, "again", 5, 0));
    poll(&(struct pollfd){u, POLLIN, 0}, 1, 1000);
    T(recv(u, buffer, 50, 0));
    T(listen(u, 5));
    T(accept(u, 0, 0));
    T(option(u, SOL_SOCKET, SO_TYPE));
    close(u), close(v);
}

static int word;
static volatile int threads_seen;

static void *waker(void *argument)
{
    (void)argument;
    usleep(20000);
    threads_seen++;
    word = 1;
    syscall(SYS_futex, &word, 1, 10, 0, 0, 0);
    return (void *)42;
}

static void threads(void)
{
    struct timespec little = {0, 1000000};
    pthread_t thread;
    void *result;
    group = "thread";
    T(syscall(SYS_futex, &word, 0, 1, 0, 0, 0));
    T(syscall(SYS_futex, &word, 0, 0, &little, 0, 0));
    T(syscall(SYS_futex, &word, 1, 5, 0, 0, 0));
    T(syscall(SYS_futex, (char *)&word + 1, 0, 0, 0, 0, 0));
    T(syscall(SYS_futex, 0xffffffff80000000ul, 128, 0, 0, 0, 0));
    T(syscall(SYS_futex, &word, 9, 0, 0, 0, 0));
    T(syscall(SYS_futex, &word, 77, 0, 0, 0, 0));
    T(pthread_create(&thread, 0, waker, 0));
    while (word == 0)
        syscall(SYS_futex, &word, 0, 0, 0, 0, 0);
    T(pthread_join(thread, &result));
    SAY("result", (long)result);
    SAY("ran", threads_seen);
    T(syscall(SYS_sched_yield));
    T(syscall(SYS_getrandom, 8, 16, 0));
    T(syscall(SYS_getrandom, &word, 4, 999));
    T(syscall(SYS_getrandom, &word, 4, 1));
    T(syscall(SYS_uname, 8));
    T(syscall(SYS_sysinfo, 8));
    T(syscall(SYS_getrusage, 55, 8));
    T(syscall(SYS_prlimit64, 0, 99, 0, 0));
    T(syscall(SYS_getcpu, 8, 0, 0));
    T(syscall(SYS_arch_prctl, 0x7777, 0));
    T(syscall(SYS_sched_getaffinity, 0, 1, &word));
}

int main(int count, char **arguments)
{
    const char *names[] = {"one", "two", "three", "four", "five", "six", "seven", "eight"};
    if (count < 2)
        return 2;
    for (int i = 0; i < 8; i++)
        snprintf(path[i], sizeof path[i], "%s/%s", arguments[1], names[i]);
    umask(022);
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, 0, _IOLBF, 0);
    files(), folders(), streams(), waiting(), memory(), signals(), sockets(), threads();
    printf("oracle: %d cases\n", cases);
    return 0;
}
