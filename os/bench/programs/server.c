/* A small HTTP server on epoll, for speed: GET /N answers N bytes, PUT takes its body and answers
   nothing. One thread, level-triggered, connections that stay open. `server PORT`. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_FDS = 1024, HEAD = 4096, CHUNK = 262144 };

struct connection {
    char head[HEAD];
    size_t filled;    /* bytes of the head that were read */
    size_t body_left; /* of the request */
    size_t send_left; /* of the answer */
    int writing;
};

static struct connection *table[MAX_FDS];
static char bytes[CHUNK];
static int ep;

static void watch(int fd, int operation, unsigned events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    epoll_ctl(ep, operation, fd, &event);
}

static void end(int fd) {
    free(table[fd]);
    table[fd] = 0;
    close(fd);
}

/* Sends what is left of the answer; 0 where the socket is full, -1 where it broke. */
static int push(int fd, struct connection *c) {
    while (c->send_left) {
        size_t size = c->send_left < CHUNK ? c->send_left : CHUNK;
        ssize_t n = write(fd, bytes, size);
        if (n <= 0) {
            if (!c->writing) watch(fd, EPOLL_CTL_MOD, EPOLLOUT);
            c->writing = 1;
            return 0;
        }
        c->send_left -= n;
    }
    if (c->writing) watch(fd, EPOLL_CTL_MOD, EPOLLIN);
    c->writing = 0;
    return 1;
}

static int answer(int fd, struct connection *c) {
    size_t size = strncmp(c->head, "GET /", 5) ? 0 : strtoul(c->head + 5, 0, 10);
    char text[1 << 12];
    int n = sprintf(text, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", size);
    size_t with = size < sizeof text - n ? size : sizeof text - n;
    memset(text + n, 'x', with); /* A small body goes with its head, in one call. */
    c->send_left = size - with;
    if (write(fd, text, n + with) != (ssize_t)(n + with)) return -1;
    return push(fd, c);
}

static int readable(int fd, struct connection *c) {
    for (;;) {
        if (c->body_left) {
            ssize_t n = read(fd, bytes, c->body_left < CHUNK ? c->body_left : CHUNK);
            if (n == 0) return -1;
            if (n < 0) return 0;
            c->body_left -= n;
            if (c->body_left) continue;
            if (answer(fd, c) < 0) return -1;
            return 0;
        }
        ssize_t n = read(fd, c->head + c->filled, HEAD - 1 - c->filled);
        if (n == 0) return -1;
        if (n < 0) return 0;
        c->filled += n;
        c->head[c->filled] = 0;
        char *blank = strstr(c->head, "\r\n\r\n");
        if (!blank) return c->filled == HEAD - 1 ? -1 : 0;
        size_t rest = c->filled - (blank + 4 - c->head);
        char *field = strstr(c->head, "Content-Length: ");
        size_t body = field && field < blank ? strtoul(field + 16, 0, 10) : 0;
        c->filled = 0;
        if (rest > body) return -1;
        c->body_left = body - rest;
        if (!c->body_left) return answer(fd, c) < 0 ? -1 : 0;
    }
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_port = htons(argc > 1 ? atoi(argv[1]) : 80);
    memset(bytes, 'x', sizeof bytes);
    signal(SIGPIPE, SIG_IGN); /* A client that left is seen by write. */
    ep = epoll_create1(0);
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 128)) return 1;
    watch(listener, EPOLL_CTL_ADD, EPOLLIN);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[64];
        int count = epoll_wait(ep, events, 64, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int new = accept4(listener, 0, 0, SOCK_NONBLOCK);
                if (new < 0) continue;
                if (new >= MAX_FDS) {
                    close(new);
                    continue;
                }
                setsockopt(new, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                table[new] = calloc(1, sizeof(struct connection));
                watch(new, EPOLL_CTL_ADD, EPOLLIN);
                continue;
            }
            struct connection *c = table[fd];
            if (!c) continue;
            if ((c->writing ? push(fd, c) : readable(fd, c)) < 0) end(fd);
        }
    }
}
