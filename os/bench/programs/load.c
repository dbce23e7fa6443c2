/* The client of the bench, on the host: `load ADDRESS PORT GET|PUT PATH BYTES CONNECTIONS SECONDS`.
   Each connection has one request under way; "%d" in the path is its number. Prints the requests
   that were answered, and the time. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 256, HEAD = 4096, CHUNK = 262144, PATIENCE_S = 20 };

struct connection {
    int fd;
    char *request;
    size_t size;
    size_t sent; /* of the request */
    char head[HEAD];
    size_t filled;
    size_t left;
    int in_body;
};

static char drain[CHUNK];
static int ep;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void watch(struct connection *c, int operation, unsigned events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(ep, operation, c->fd, &event)) fail("epoll_ctl");
}

static void push(struct connection *c) {
    int was = c->sent > 0;
    while (c->sent < c->size) {
        ssize_t n = write(c->fd, c->request + c->sent, c->size - c->sent);
        if (n <= 0) {
            if (!was) watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            return;
        }
        c->sent += n;
    }
    if (was) watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

/* 1 where the answer is whole. */
static int pull(struct connection *c) {
    for (;;) {
        if (c->in_body) {
            if (!c->left) return 1;
            ssize_t n = read(c->fd, drain, c->left < CHUNK ? c->left : CHUNK);
            if (n == 0) fail("the server closed");
            if (n < 0) return 0;
            c->left -= n;
            continue;
        }
        ssize_t n = read(c->fd, c->head + c->filled, HEAD - 1 - c->filled);
        if (n == 0) fail("the server closed");
        if (n < 0) return 0;
        c->filled += n;
        c->head[c->filled] = 0;
        char *blank = strstr(c->head, "\r\n\r\n");
        if (!blank) continue;
        if (strncmp(c->head, "HTTP/1.1 200", 12)) {
            fprintf(stderr, "answer: %.60s\n", c->head);
            exit(1);
        }
        char *field = strstr(c->head, "Content-Length: ");
        size_t size = field ? strtoul(field + 16, 0, 10) : 0;
        size_t with = c->filled - (blank + 4 - c->head);
        c->left = size - with;
        c->in_body = 1;
    }
}

static void make_request(struct connection *c, int number, char **argv) {
    size_t body = atol(argv[5]);
    char path[256];
    snprintf(path, sizeof path, argv[4], number);
    c->request = malloc(HEAD + body);
    char *at = c->request + sprintf(c->request, "%s %s HTTP/1.1\r\nHost: x\r\n", argv[3], path);
    if (strcmp(argv[3], "PUT")) {
        at += sprintf(at, "\r\n");
    } else {
        at += sprintf(at, "Content-Length: %zu\r\n\r\n", body);
        memset(at, 'y', body);
        at += body;
    }
    c->size = at - c->request;
}

int main(int argc, char **argv) {
    if (argc != 8) return 2;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    inet_aton(argv[1], &address.sin_addr);
    int count = atoi(argv[6]), on = 1;
    double seconds = atof(argv[7]);
    ep = epoll_create1(0);
    static struct connection all[MAX_CONNECTIONS];
    for (int i = 0; i < count; i++) {
        struct connection *c = &all[i];
        make_request(c, i, argv);
        /* A card that was just plugged in takes a moment. */
        for (double end = now() + PATIENCE_S;; usleep(20000)) {
            c->fd = socket(AF_INET, SOCK_STREAM, 0);
            if (!connect(c->fd, (void *)&address, sizeof address)) break;
            if (now() > end) fail("connect");
            close(c->fd);
        }
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        fcntl(c->fd, F_SETFL, O_NONBLOCK);
        watch(c, EPOLL_CTL_ADD, EPOLLIN);
        push(c);
    }
    long done = 0;
    double begin = now(), end = begin + seconds, last = begin;
    while (last < end) {
        struct epoll_event events[64];
        int n = epoll_wait(ep, events, 64, 1000);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) push(c);
            if (!pull(c)) continue;
            done++;
            c->sent = c->filled = c->left = 0;
            c->in_body = 0;
            push(c);
        }
        last = now();
        if (last > end + 10) break;
    }
    printf("%ld requests %.4f seconds\n", done, last - begin);
    return 0;
}
