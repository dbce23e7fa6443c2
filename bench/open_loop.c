/* For bench/_open_loop.py: sends requests that were signed beforehand, each at its due time, and
 * counts how long the answers took. Python spends 100 us on a request and is late by up to 1 ms;
 * this spends a few and is late by as much, so that what is measured is the server.
 *
 *     open_loop PORT FILE RATE CONNECTIONS SECONDS REQUESTS PERIOD_S
 *
 * RATE: requests per second, request n being due n / RATE after the start. 0: a closed loop, in
 * which each connection sends its next request when it has its answer. It ends after SECONDS or
 * REQUESTS, whichever is first, and the answers under way. FILE is described where it is read.
 * Connections go to 127.0.0.1, are opened before the start, and each has had an answer by then.
 *
 * Every PERIOD_S and at the end a line of JSON tells what came since the line before it. Latencies
 * count from the due time (in a closed loop: from the sending) and are given as [bucket, count],
 * where bucket is of `bucket_of`. Every answer is read to its end and checked; what is wrong with
 * it is counted by its text. A connection that is lost is counted and not opened again.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_CONNECTIONS = 4096,       /* as many as a server takes */
    MAX_OPERATIONS = 8,           /* of a mix */
    MAX_REQUESTS = 1 << 20,       /* of one operation, in the file */
    MAX_FILE_BYTES = 256 << 20,   /* it is held in memory */
    MAX_BODY_BYTES = 1 << 20,
    MAX_HEAD_BYTES = 16 << 10,    /* of an answer; also of a line between two chunks */
    MAX_SECONDS = 7200,
    MAX_RATE = 1000000,
    RECEIVE_BYTES = 256 << 10,
    EVENTS = 64,
    ANSWER_TIMEOUT_S = 60,        /* for the last answers, after the last request is sent */
    NAME_BYTES = 8,
    STAMP_BYTES = 8,              /* a body begins with its object's number */
    MANTISSA_BITS = 7,            /* of a bucket: 0.8 % */
    BUCKETS = 35 << MANTISSA_BITS,
    COMPLAINTS = 3,               /* bodies of errors that are shown */
};

static const uint64_t SECOND_NS = 1000000000;
static const uint64_t MAX_LATENCY_NS = ((uint64_t)1 << 40) - 1; /* 18 minutes, or more */

enum kind { PUT, GET, HEAD, LIST, KINDS };
enum state { IN_HEAD, IN_BODY, IN_CHUNK_LINE, IN_CHUNK, IN_TRAILER };
enum wrong { WRONG_BODY, LOST, NOT_HTTP, NO_ANSWER, REASONS, MAX_STATUS = 1000 };
static const char *const REASON[REASONS] = {"wrong body", "connection lost", "not HTTP",
                                            "no answer"};

struct latencies {
    uint64_t max_ns, count[BUCKETS];
};

struct bytes {
    const uint8_t *at;
    size_t size;
};

struct operation {
    char name[NAME_BYTES + 1];
    enum kind kind;
    uint32_t requests, least_bytes;
    struct bytes *head;
    struct latencies took;
    uint64_t wrong[MAX_STATUS];
};

struct connection {
    int fd;
    bool busy, sending, chunked, length_known, bad;
    enum state state;
    struct operation *operation;
    uint32_t object;
    uint64_t due_ns, left, got, length;
    size_t sent;
    int status;
    size_t head_bytes;
    char head[MAX_HEAD_BYTES + 1];
};

static struct operation operations[MAX_OPERATIONS];
static uint32_t operation_count, object_count, body_bytes, mix_length;
static const uint8_t *mix, *body;
static struct connection *connections;
static uint32_t connection_count, open_count, busy_count;
static struct connection *idle[MAX_CONNECTIONS]; /* a ring: the one that rested longest is next */
static uint32_t idle_first, idle_count;
static int epoll;
static double rate;
static uint64_t began_ns, next_number, total, crowded, noticed;
static struct latencies late; /* from a request's due time to its sending */
static unsigned complaints;

static void die(const char *text)
{
    fprintf(stderr, "open_loop: %s\n", text);
    exit(2);
}

static void die_of(const char *call)
{
    fprintf(stderr, "open_loop: %s: %s\n", call, strerror(errno));
    exit(2);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static double cpu_s(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* The number's highest MANTISSA_BITS + 1 bits, in a row for each power of two. */
static uint32_t bucket_of(uint64_t value)
{
    int bits = value ? 64 - __builtin_clzll(value) : 0;
    int shift = bits > MANTISSA_BITS + 1 ? bits - MANTISSA_BITS - 1 : 0;
    return ((uint32_t)shift << MANTISSA_BITS) + (uint32_t)(value >> shift);
}

static void note(struct latencies *found, uint64_t value)
{
    if (value > MAX_LATENCY_NS)
        value = MAX_LATENCY_NS;
    if (value > found->max_ns)
        found->max_ns = value;
    found->count[bucket_of(value)]++;
}

/* --- the file: all numbers of 32 bits, least byte first
 *
 *     "O3LOAD01"; objects; bytes of a body; operations; length of the mix
 *     for each operation: name (8 bytes, zeros behind it); kind; its requests (1, or one for each
 *         object); least bytes of its answer's body (LIST)
 *     the mix: the number of an operation, one byte each; request n is of mix[n % length]
 *     a body, in which each object's number takes the first eight bytes
 *     for each operation and each of its requests: length and bytes of the head that is sent */

static const uint8_t *file_at, *file_end;

static const uint8_t *take(size_t size)
{
    const uint8_t *at = file_at;
    if ((size_t)(file_end - file_at) < size)
        die("the file of requests is too short");
    file_at += size;
    return at;
}

static uint32_t take_number(uint32_t least, uint32_t most)
{
    uint32_t value;
    memcpy(&value, take(sizeof value), sizeof value);
    if (value < least || value > most)
        die("a number in the file of requests is out of its limits");
    return value;
}

static void read_requests(const char *path)
{
    FILE *file = fopen(path, "rb");
    struct stat about;
    if (!file || fstat(fileno(file), &about))
        die_of(path);
    if (about.st_size > MAX_FILE_BYTES)
        die("the file of requests is too large");
    size_t size = (size_t)about.st_size;
    uint8_t *data = malloc(size + 1);
    if (!data || fread(data, 1, size, file) != size)
        die("the file of requests cannot be read");
    fclose(file);
    file_at = data;
    file_end = data + size;
    if (memcmp(take(8), "O3LOAD01", 8))
        die("not a file of requests");
    object_count = take_number(1, MAX_REQUESTS);
    body_bytes = take_number(STAMP_BYTES, MAX_BODY_BYTES);
    operation_count = take_number(1, MAX_OPERATIONS);
    mix_length = take_number(1, MAX_REQUESTS);
    for (uint32_t n = 0; n < operation_count; n++) {
        memcpy(operations[n].name, take(NAME_BYTES), NAME_BYTES);
        operations[n].kind = (enum kind)take_number(0, KINDS - 1);
        operations[n].requests = take_number(1, object_count);
        operations[n].least_bytes = take_number(0, UINT32_MAX);
        if (operations[n].requests != 1 && operations[n].requests != object_count)
            die("an operation has one request, or one for each object");
    }
    mix = take(mix_length);
    for (uint32_t n = 0; n < mix_length; n++)
        if (mix[n] >= operation_count)
            die("the mix names an operation that is not in the file");
    body = take(body_bytes);
    for (uint32_t n = 0; n < operation_count; n++) {
        operations[n].head = calloc(operations[n].requests, sizeof(struct bytes));
        if (!operations[n].head)
            die("out of memory");
        for (uint32_t object = 0; object < operations[n].requests; object++) {
            size_t length = take_number(1, MAX_HEAD_BYTES);
            operations[n].head[object] = (struct bytes){take(length), length};
        }
    }
    if (file_at != file_end)
        die("the file of requests is too long");
}

/* --- one request and its answer */

static void stamp_of(uint32_t object, uint8_t stamp[STAMP_BYTES])
{
    for (int n = 0; n < STAMP_BYTES; n++)
        stamp[n] = (uint8_t)((uint64_t)object >> 8 * n);
}

static void wait_for(struct connection *c, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event))
        die_of("epoll_ctl");
}

static void lose(struct connection *c, enum wrong reason)
{
    c->operation->wrong[reason]++;
    busy_count -= c->busy;
    c->busy = c->sending = false;
    close(c->fd);
    c->fd = -1;
    if (--open_count == 0)
        die("every connection was lost");
}

/* Sends what is left of the request; the rest when the socket takes it. */
static void send_some(struct connection *c)
{
    const struct bytes *head = &c->operation->head[c->operation->requests == 1 ? 0 : c->object];
    uint8_t stamp[STAMP_BYTES];
    stamp_of(c->object, stamp);
    struct iovec all[3] = {{(void *)head->at, head->size},
                           {stamp, STAMP_BYTES},
                           {(void *)(body + STAMP_BYTES), body_bytes - STAMP_BYTES}};
    size_t parts = c->operation->kind == PUT ? 3 : 1;
    struct msghdr message = {.msg_iov = all, .msg_iovlen = parts};
    size_t size = 0, skip = c->sent;
    for (size_t n = 0; n < parts; n++) {
        size += all[n].iov_len;
        size_t passed = skip < all[n].iov_len ? skip : all[n].iov_len;
        all[n].iov_base = (uint8_t *)all[n].iov_base + passed;
        all[n].iov_len -= passed;
        skip -= passed;
    }
    ssize_t done = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (done < 0 && errno != EAGAIN && errno != EINTR) {
        lose(c, LOST);
        return;
    }
    c->sent += done > 0 ? (size_t)done : 0;
    if (c->sending != (c->sent < size)) {
        c->sending = !c->sending;
        wait_for(c, c->sending ? EPOLLIN | EPOLLOUT : EPOLLIN);
    }
}

static void start(struct connection *c, uint64_t number, uint64_t due_ns)
{
    c->busy = true;
    busy_count++;
    c->operation = &operations[mix[number % mix_length]];
    /* 7,919 is prime: objects are spread, and each operation meets all of them. */
    c->object = (uint32_t)(number * 7919 % object_count);
    c->due_ns = due_ns;
    c->state = IN_HEAD;
    c->sent = c->head_bytes = 0;
    c->got = 0;
    c->bad = false;
    send_some(c);
}

static bool parse_head(struct connection *c)
{
    c->chunked = c->length_known = false;
    c->length = 0;
    if (sscanf(c->head, "HTTP/1.%*1[01] %3d", &c->status) != 1 || c->status < 100)
        return false;
    for (char *line = strstr(c->head, "\r\n"); line; line = strstr(line + 2, "\r\n")) {
        const char *value = strchr(line + 2, ':');
        size_t name = value ? (size_t)(value - line - 2) : 0;
        if (name == 14 && !strncasecmp(line + 2, "content-length", name)) {
            char *end;
            value += 1 + strspn(value + 1, " \t");
            c->length = strtoull(value, &end, 10);
            c->length_known = end != value && *end == '\r' && *value != '-';
        } else if (name == 17 && !strncasecmp(line + 2, "transfer-encoding", name)) {
            c->chunked = !strncasecmp(value + 1 + strspn(value + 1, " \t"), "chunked\r", 8);
        }
    }
    return true;
}

static void look_at(struct connection *c, const uint8_t *data, size_t size)
{
    if (c->status != 200 && complaints < COMPLAINTS) {
        complaints++;
        fprintf(stderr, "open_loop: %s: HTTP %d: %.*s\n", c->operation->name, c->status,
                (int)(size < 600 ? size : 600), (const char *)data);
    }
    if (c->operation->kind == GET && c->status == 200 && !c->bad) {
        uint8_t stamp[STAMP_BYTES];
        stamp_of(c->object, stamp);
        size_t in_stamp = c->got < STAMP_BYTES ? STAMP_BYTES - c->got : 0;
        if (in_stamp > size)
            in_stamp = size;
        c->bad = c->got + size > body_bytes ||
                 memcmp(stamp + c->got % STAMP_BYTES, data, in_stamp) ||
                 memcmp(body + c->got + in_stamp, data + in_stamp, size - in_stamp);
    }
    c->got += size;
}

enum fed { MORE, ENDED, BROKEN };

/* Takes in a piece of the answer. */
static enum fed feed(struct connection *c, const uint8_t *data, size_t size)
{
    while (size) {
        if (c->state == IN_BODY || c->state == IN_CHUNK) {
            size_t piece = size < c->left ? size : (size_t)c->left;
            look_at(c, data, piece);
            c->left -= piece;
            data += piece;
            size -= piece;
            if (c->left)
                return MORE;
            if (c->state == IN_BODY)
                return size ? BROKEN : ENDED;
            c->state = IN_CHUNK_LINE; /* the line ending behind a chunk's bytes is taken with it */
            c->head_bytes = 0;
            continue;
        }
        /* A head, or a line between chunks: gathered until its end. */
        const char *mark = c->state == IN_HEAD ? "\r\n\r\n" : "\r\n";
        size_t before = c->head_bytes, marks = strlen(mark);
        size_t piece = size < MAX_HEAD_BYTES - before ? size : MAX_HEAD_BYTES - before;
        memcpy(c->head + before, data, piece);
        c->head_bytes += piece;
        size_t from = before < marks - 1 ? 0 : before - marks + 1;
        char *end = memmem(c->head + from, c->head_bytes - from, mark, marks);
        if (!end) {
            if (c->head_bytes == MAX_HEAD_BYTES)
                return BROKEN;
            return MORE;
        }
        size_t length = (size_t)(end - c->head) + marks;
        data += length - before;
        size -= length - before;
        c->head[length] = 0;
        c->head_bytes = 0;
        if (c->state == IN_TRAILER) {
            if (length == marks)
                return size ? BROKEN : ENDED;
        } else if (c->state == IN_CHUNK_LINE) {
            char *digits_end;
            if (length == marks && c->got)
                continue; /* the end of the chunk before */
            c->left = strtoull(c->head, &digits_end, 16);
            if (digits_end == c->head || (*digits_end != '\r' && *digits_end != ';'))
                return BROKEN;
            c->state = c->left ? IN_CHUNK : IN_TRAILER;
        } else {
            if (!parse_head(c))
                return BROKEN;
            if (c->status < 200)
                continue;
            if (c->operation->kind == HEAD || c->status == 204 || c->status == 304)
                return size ? BROKEN : ENDED;
            if (!c->chunked && !c->length_known)
                return BROKEN;
            c->left = c->length;
            c->state = c->chunked ? IN_CHUNK_LINE : IN_BODY;
            if (!c->chunked && !c->left)
                return size ? BROKEN : ENDED;
        }
    }
    return MORE;
}

static void judge(struct connection *c)
{
    const struct operation *o = c->operation;
    bool good = true;
    if (c->status != 200)
        c->operation->wrong[c->status]++;
    else if (o->kind == GET)
        good = !c->bad && c->got == body_bytes;
    else if (o->kind == HEAD)
        good = c->length_known && c->length == body_bytes;
    else if (o->kind == LIST)
        good = c->got >= o->least_bytes;
    if (!good)
        c->operation->wrong[WRONG_BODY]++;
}

/* What the socket brought; true when the answer is whole. */
static bool receive(struct connection *c)
{
    static uint8_t data[RECEIVE_BYTES];
    ssize_t size = recv(c->fd, data, sizeof data, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    enum fed fed = size > 0 && c->busy ? feed(c, data, (size_t)size) : BROKEN;
    if (fed == MORE)
        return false;
    if (fed == ENDED)
        judge(c);
    if (fed == BROKEN || c->sending) { /* (an answer before the request's end refuses it) */
        lose(c, size > 0 && fed == BROKEN ? NOT_HTTP : LOST);
        return false;
    }
    busy_count--;
    c->busy = false;
    return true;
}

/* --- the run */

static void rest(struct connection *c)
{
    idle[(idle_first + idle_count++) % MAX_CONNECTIONS] = c;
}

static uint64_t due_ns(uint64_t number)
{
    return began_ns + (uint64_t)((double)number / rate * 1e9);
}

static void send_due(uint64_t now)
{
    while (next_number < total && idle_count && (rate == 0 || due_ns(next_number) <= now)) {
        struct connection *c = idle[idle_first];
        idle_first = (idle_first + 1) % MAX_CONNECTIONS;
        idle_count--;
        if (c->fd < 0)
            continue;
        uint64_t due = rate == 0 ? now_ns() : due_ns(next_number);
        if (rate != 0)
            note(&late, now - due);
        start(c, next_number++, due);
    }
    if (rate != 0 && !idle_count) {
        if (noticed < next_number)
            noticed = next_number;
        for (; noticed < total && due_ns(noticed) <= now; noticed++)
            crowded++;
    }
}

static void connect_all(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int yes = 1;
    for (uint32_t n = 0; n < connection_count; n++) {
        struct connection *c = &connections[n];
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) ||
            setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) ||
            epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event))
            die_of("connect");
        open_count++;
        start(c, 0, now_ns());
        while (c->busy) {
            struct pollfd one = {.fd = c->fd, .events = POLLIN};
            if (poll(&one, 1, ANSWER_TIMEOUT_S * 1000) != 1)
                die("a new connection gets no answer");
            receive(c);
        }
        if (c->fd < 0)
            die("a new connection was closed");
        rest(c);
    }
}

static void print_latencies(const char *name, struct latencies *found)
{
    printf("\"%s\": {\"max_ns\": %" PRIu64 ", \"counts\": [", name, found->max_ns);
    const char *comma = "";
    for (int n = 0; n < BUCKETS; n++)
        if (found->count[n]) {
            printf("%s[%d, %" PRIu64 "]", comma, n, found->count[n]);
            comma = ", ";
        }
    printf("]}");
    memset(found, 0, sizeof *found);
}

static void report(uint64_t now, double used_s, bool ended)
{
    printf("{\"at_s\": %.3f, \"cpu_s\": %.3f, \"crowded\": %" PRIu64 ", \"ended\": %s, ",
           (double)(now - began_ns) / 1e9, used_s, crowded, ended ? "true" : "false");
    crowded = 0;
    print_latencies("late", &late);
    printf(", \"operations\": {");
    for (uint32_t n = 0; n < operation_count; n++) {
        printf("%s", n ? ", " : "");
        print_latencies(operations[n].name, &operations[n].took);
    }
    printf("}, \"errors\": {");
    const char *comma = "";
    for (uint32_t n = 0; n < operation_count; n++)
        for (int what = 0; what < MAX_STATUS; what++)
            if (operations[n].wrong[what]) {
                printf("%s\"%s: ", comma, operations[n].name);
                what < REASONS ? printf("%s", REASON[what]) : printf("HTTP %d", what);
                printf("\": %" PRIu64, operations[n].wrong[what]);
                operations[n].wrong[what] = 0;
                comma = ", ";
            }
    printf("}}\n");
    if (fflush(stdout))
        die_of("standard output");
}

static double number_of(const char *text, double least, double most)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= least && value <= most)) {
        fprintf(stderr, "open_loop: %s: from %.0f to %.0f\n", text, least, most);
        exit(2);
    }
    return value;
}

int main(int count, char **text)
{
    if (count != 8)
        die("PORT FILE RATE CONNECTIONS SECONDS REQUESTS PERIOD_S");
    uint16_t port = (uint16_t)number_of(text[1], 1, 65535);
    rate = number_of(text[3], 0, MAX_RATE);
    connection_count = (uint32_t)number_of(text[4], 1, MAX_CONNECTIONS);
    double seconds = number_of(text[5], 0.001, MAX_SECONDS);
    total = (uint64_t)number_of(text[6], 1, 1e12);
    uint64_t period_ns = (uint64_t)(number_of(text[7], 0.01, MAX_SECONDS) * 1e9);
    if (rate > 0 && total > (uint64_t)(rate * seconds))
        total = (uint64_t)(rate * seconds);
    read_requests(text[2]);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* no load without its measurement */
    prctl(PR_SET_TIMERSLACK, 1000UL);
    connections = calloc(connection_count, sizeof *connections);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!connections || epoll < 0)
        die_of("epoll_create1");
    connect_all(port);
    for (uint32_t n = 0; n < operation_count; n++)
        for (int what = 0; what < MAX_STATUS; what++)
            if (operations[n].wrong[what])
                die("the first answer of a connection was an error");

    double used_s = cpu_s();
    began_ns = now_ns();
    uint64_t end_ns = began_ns + (uint64_t)(seconds * 1e9), report_ns = began_ns + period_ns;
    uint64_t give_up_ns = end_ns + ANSWER_TIMEOUT_S * SECOND_NS, now = began_ns;
    for (;;) {
        now = now_ns();
        if (rate == 0 && now >= end_ns)
            total = next_number;
        send_due(now);
        if ((next_number >= total && busy_count == 0) || now >= give_up_ns)
            break;
        if (now >= report_ns) {
            report(now, cpu_s() - used_s, false);
            report_ns += period_ns;
        }
        uint64_t wake_ns = report_ns < give_up_ns ? report_ns : give_up_ns;
        if (rate == 0 && end_ns < wake_ns && now < end_ns)
            wake_ns = end_ns;
        if (rate != 0 && next_number < total && idle_count && due_ns(next_number) < wake_ns)
            wake_ns = due_ns(next_number);
        uint64_t wait_ns = wake_ns > now ? wake_ns - now : 0;
        struct timespec wait = {(time_t)(wait_ns / SECOND_NS), (long)(wait_ns % SECOND_NS)};
        struct epoll_event events[EVENTS];
        int found = epoll_pwait2(epoll, events, EVENTS, &wait, NULL);
        if (found < 0 && errno != EINTR)
            die_of("epoll_pwait2");
        for (int n = 0; n < found; n++) {
            struct connection *c = events[n].data.ptr;
            if (c->fd >= 0 && (events[n].events & EPOLLOUT))
                send_some(c);
            if (c->fd >= 0 && (events[n].events & ~(uint32_t)EPOLLOUT) && receive(c)) {
                now = now_ns();
                note(&c->operation->took, now - c->due_ns);
                rest(c);
            }
            send_due(now_ns());
        }
    }
    for (uint32_t n = 0; n < connection_count; n++)
        if (connections[n].fd >= 0 && connections[n].busy)
            connections[n].operation->wrong[NO_ANSWER]++;
    for (; rate != 0 && next_number < total; next_number++)
        operations[mix[next_number % mix_length]].wrong[NO_ANSWER]++;
    report(now, cpu_s() - used_s, true);
    return 0;
}
