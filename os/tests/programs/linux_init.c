/* The first program under Debian's kernel, where it stands in for O3StorageOS: it loads the modules
   of virtio's network card, sets the address from O3_IP and O3_GW of the command line, runs the
   program that /arguments names, says how it ended, and switches the machine off. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void must(int result, const char *what) {
    if (result < 0) printf("linux_init: %s: %s\n", what, strerror(errno));
}

static void set_address(struct sockaddr *target, in_addr_t address) {
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = address};
    memcpy(target, &in, sizeof in);
}

static void up(int fd, const char *name) {
    struct ifreq request = {0};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    must(ioctl(fd, SIOCSIFFLAGS, &request), name);
}

static void network(const char *text, const char *gateway) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    up(fd, "lo");
    if (!text) return;
    char address[32] = {0};
    strncpy(address, text, sizeof address - 1);
    char *slash = strchr(address, '/');
    int prefix = slash ? atoi(slash + 1) : 24;
    if (slash) *slash = 0;
    struct ifreq request = {0};
    strcpy(request.ifr_name, "eth0");
    set_address(&request.ifr_addr, inet_addr(address));
    must(ioctl(fd, SIOCSIFADDR, &request), "address");
    set_address(&request.ifr_addr, htonl(~0u << (32 - prefix)));
    must(ioctl(fd, SIOCSIFNETMASK, &request), "netmask");
    up(fd, "eth0");
    if (gateway) {
        struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
        set_address(&route.rt_dst, 0);
        set_address(&route.rt_genmask, 0);
        set_address(&route.rt_gateway, inet_addr(gateway));
        must(ioctl(fd, SIOCADDRT, &route), "gateway");
    }
    close(fd);
}

int main(void) {
    must(mount("proc", "/proc", "proc", 0, 0), "/proc");
    must(mount("dev", "/dev", "devtmpfs", 0, 0), "/dev");
    for (int number = 0;; number++) {
        char path[32];
        snprintf(path, sizeof path, "/modules/%d.ko", number);
        int fd = open(path, O_RDONLY);
        if (fd < 0) break;
        must(syscall(SYS_finit_module, fd, "", 0), path);
        close(fd);
    }
    network(getenv("O3_IP"), getenv("O3_GW"));
    static char text[8192];
    int fd = open("/arguments", O_RDONLY);
    int size = read(fd, text, sizeof text - 1);
    close(fd);
    char *arguments[64] = {0};
    for (int at = 0, n = 0; at < size && n < 63; at += strlen(text + at) + 1) {
        arguments[n++] = text + at;
    }
    char *environment[] = {"HOME=/home", "PATH=/usr/bin", 0};
    pid_t child = fork();
    if (child == 0) {
        execve(arguments[0], arguments, environment);
        _exit(127);
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    int shown = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    printf("program ended with status %d\n", shown);
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
    return 0;
}
