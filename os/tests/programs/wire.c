/* Sends bytes both ways over one TCP connection, with their sums:
   `wire serve BYTES`, `wire ask ADDRESS BYTES`. The bytes come from a generator, so that a piece in
   the wrong place changes the sum. The asking side prints bytes, sums and MiB/s of each way. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 7000, CHUNK = 65536 };
static _Alignas(8) unsigned char chunk[CHUNK];

static void fail(const char *what) {
    printf("wire: %s: %s\n", what, strerror(errno));
    fflush(stdout);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* FNV-1a by words of 8 bytes: the order counts. */
static uint64_t add(uint64_t sum, const unsigned char *data, size_t size) {
    for (size_t at = 0; at + 8 <= size; at += 8) {
        uint64_t word;
        memcpy(&word, data + at, 8);
        sum = (sum ^ word) * 0x100000001b3;
        sum ^= sum >> 29;
    }
    return sum;
}

static uint64_t push(int fd, long total) {
    uint64_t sum = 1, state = 88172645463325252u;
    for (long done = 0; done < total; done += CHUNK) {
        for (size_t at = 0; at < CHUNK; at += 8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            memcpy(chunk + at, &state, 8);
        }
        sum = add(sum, chunk, CHUNK);
        for (size_t at = 0; at < CHUNK;) {
            ssize_t n = write(fd, chunk + at, CHUNK - at);
            if (n <= 0) fail("write");
            at += n;
        }
    }
    return sum;
}

static uint64_t pull(int fd, long total) {
    uint64_t sum = 1;
    size_t filled = 0;
    for (long done = 0; done < total;) {
        size_t room = CHUNK - filled, left = total - done;
        ssize_t n = read(fd, chunk + filled, left < room ? left : room);
        if (n <= 0) fail("read");
        done += n;
        filled += n;
        size_t whole = filled & ~7ul;
        sum = add(sum, chunk, whole);
        memmove(chunk, chunk + whole, filled -= whole);
    }
    return sum;
}

static void send_sum(int fd, uint64_t sum) {
    if (write(fd, &sum, 8) != 8) fail("write");
}

static uint64_t take_sum(int fd) {
    uint64_t sum;
    for (size_t at = 0; at < 8;) {
        ssize_t n = read(fd, (char *)&sum + at, 8 - at);
        if (n <= 0) fail("read");
        at += n;
    }
    return sum;
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    if (argc == 3 && !strcmp(argv[1], "serve")) {
        long total = atol(argv[2]);
        int listener = socket(AF_INET, SOCK_STREAM, 0);
        if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4)) fail("listen");
        printf("ready\n");
        fflush(stdout);
        int fd = accept(listener, 0, 0);
        if (fd < 0) fail("accept");
        send_sum(fd, pull(fd, total));
        send_sum(fd, push(fd, total));
        shutdown(fd, SHUT_WR);
        read(fd, chunk, 1);
        return 0;
    }
    if (argc != 4) return 2;
    long total = atol(argv[3]);
    inet_aton(argv[2], &address.sin_addr);
    int fd = -1;
    for (double end = now() + 60;; usleep(200000)) {
        fd = socket(AF_INET, SOCK_STREAM, 0);
        if (!connect(fd, (void *)&address, sizeof address)) break;
        if (now() > end) fail("connect");
        close(fd);
    }
    double begin = now();
    uint64_t pushed = push(fd, total), seen = take_sum(fd);
    double middle = now();
    uint64_t pulled = pull(fd, total), told = take_sum(fd);
    double end = now();
    double mib = total / 1048576.0;
    printf("there %s %.3f MiB/s back %s %.3f MiB/s of %ld bytes\n",
           pushed == seen ? "equal" : "DIFFERENT", mib / (middle - begin),
           pulled == told ? "equal" : "DIFFERENT", mib / (end - middle), total);
    fflush(stdout);
    /* The machine stays on until the other end knows of our end: frames of it may be lost. */
    shutdown(fd, SHUT_WR);
    read(fd, chunk, 1);
    return 0;
}
