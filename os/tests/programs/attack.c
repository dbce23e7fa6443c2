/* One attack on the kernel or on the program's own protection, named by the first argument. An
   attack that the machine must kill returns if it was not; one that must be refused prints
   "refused". */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#define KERNEL 0xffffffff80200000ul
#define LINEAR 0xffff800000200000ul
#define PAGE 4096

static const unsigned char ret_code[] = {0xc3};
/* A far pointer to ring 0's code segment. */
struct __attribute__((packed)) { uint32_t offset; uint16_t selector; } zero_selector = {0, 8};

static void check(int condition, const char *what)
{
    if (!condition) {
        printf("NOT REFUSED: %s (errno %d)\n", what, errno);
        exit(9);
    }
}

static void refused(long result, int wanted, const char *what)
{
    check(result == -1 && errno == wanted, what);
}

static void *page(int protection)
{
    void *at = mmap(0, PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(at != MAP_FAILED, "a page");
    return at;
}

static void run(void *at)
{
    memcpy(at, ret_code, sizeof ret_code);
    ((void (*)(void))at)();
}

/* What the handler changes in the frame that it returns by. */
static enum { RIP, CS, FLAGS, MXCSR, XSTATE } forgery;

static void forge(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    ucontext_t *u = context;
    unsigned char *vector = (unsigned char *)u->uc_mcontext.fpregs;
    switch (forgery) {
    case RIP: u->uc_mcontext.gregs[REG_RIP] = 0x8000000000000000ll; break;
    case CS: u->uc_mcontext.gregs[REG_CSGSFS] = 0x0010000000000008ll; break;
    case FLAGS: u->uc_mcontext.gregs[REG_EFL] = 0x37002; break; /* IOPL 3, NT, VM, RF; no IF */
    case MXCSR: memset(vector + 24, 0xff, 8); break;
    case XSTATE: memset(vector + 512, 0xff, 64); break;
    }
}

/* A fault with a handler, where the signal's frame would begin at eight: the vector state, the red
   zone and 440 bytes lie above it. */
static void low_stack(int number)
{
    (void)number;
    uint32_t a = 13, size, c = 0, d;
    struct sigaction action = {.sa_handler = low_stack};
    __asm__ volatile("cpuid" : "+a"(a), "=b"(size), "+c"(c), "=d"(d));
    sigaction(SIGILL, &action, 0);
    uint64_t top = ((size + 4 + 63) & ~63ul) + 128 + 448;
    __asm__ volatile("mov %0, %%rsp\n ud2" : : "r"(top));
}

static void by_signal(void)
{
    struct sigaction action = {.sa_sigaction = forge, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &action, 0);
    raise(SIGUSR1);
}

static volatile int stop;
static char *volatile shared;

static void *unmapper(void *argument)
{
    (void)argument;
    while (!stop) {
        munmap(shared + 64 * PAGE, 64 * PAGE);
        mmap(shared + 64 * PAGE, 64 * PAGE, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    }
    return 0;
}

/* Runs until the stack ends. */
#pragma GCC diagnostic ignored "-Winfinite-recursion"
static int deep(volatile char *before, int depth)
{
    volatile char here[4096];
    here[0] = before ? before[0] : 1;
    return deep(here, depth + 1) + here[0];
}

static void wrapping_lengths(void)
{
    char buffer[16];
    int zero = open("/dev/zero", O_RDONLY), file = open("/tmp/f", O_RDWR | O_CREAT, 0600);
    refused(syscall(SYS_read, zero, buffer, -1l), EFAULT, "read of -1");
    refused(syscall(SYS_read, zero, -8l, 64l), EFAULT, "read to the end");
    refused(syscall(SYS_write, file, KERNEL, 64l), EFAULT, "write from the kernel");
    refused(syscall(SYS_read, zero, KERNEL, 64l), EFAULT, "read into the kernel");
    refused(syscall(SYS_read, zero, LINEAR, 64l), EFAULT, "read into linear memory");
    refused(syscall(SYS_write, file, 0x7ffffffff000ul, 8192l), EFAULT, "write over the end");
    refused(syscall(SYS_write, file, 0x8000000000000000ul, 8l), EFAULT, "not canonical");
    struct iovec parts[2] = {{buffer, -1ul}, {buffer, 8}};
    refused(writev(file, parts, 2), EINVAL, "a part of -1");
    refused(syscall(SYS_writev, file, parts, -1l), EINVAL, "-1 parts");
    refused(writev(file, (void *)KERNEL, 1), EFAULT, "parts in the kernel");
    refused(syscall(SYS_mmap, 0, -1l, 3, 0x22, -1, 0), ENOMEM, "a map of -1");
    refused(syscall(SYS_mmap, KERNEL, 4096l, 3, 0x32, -1, 0), ENOMEM, "a map in the kernel");
    refused(syscall(SYS_mmap, 0x7fffffffe000ul, 8192l, 3, 0x32, -1, 0), ENOMEM, "a map at the end");
    refused(syscall(SYS_mmap, 0, 4096l, 3, 0x32, -1, 0), ENOMEM, "a map of the null page");
    refused(syscall(SYS_munmap, 0x1000l, -4096l), EINVAL, "an unmap that wraps");
    refused(syscall(SYS_munmap, KERNEL, 4096l), EINVAL, "an unmap of the kernel");
    refused(syscall(SYS_mprotect, KERNEL, 4096l, 3), ENOMEM, "a protect of the kernel");
    refused(syscall(SYS_mremap, buffer, 16l, -1l, 1), EINVAL, "a remap of -1");
    refused(syscall(SYS_getrandom, KERNEL, 64l, 0), EFAULT, "random bytes into the kernel");
    refused(syscall(SYS_futex, KERNEL, 0, 0, 0, 0, 0), EFAULT, "a futex in the kernel");
    refused(syscall(SYS_arch_prctl, 0x1002, KERNEL), EPERM, "a thread pointer in the kernel");
    refused(syscall(SYS_pwrite64, file, buffer, 8l, -1l), EINVAL, "an offset of -1");
    refused(syscall(SYS_pwrite64, file, buffer, 8l, 0x7fffffffffffffffl), EINVAL, "the last offset");
    refused(syscall(SYS_open, KERNEL, 0), EFAULT, "a path in the kernel");
    refused(syscall(SYS_poll, KERNEL, 1, 0), EFAULT, "a poll in the kernel");
    refused(syscall(SYS_epoll_wait, epoll_create1(0), KERNEL, -1, 0), EINVAL, "-1 events");
    puts("refused");
}

#define ASM(name, code) if (!strcmp(attack, name)) { __asm__ volatile(code); return 8; }

int main(int count, char **arguments)
{
    const char *attack = count > 1 ? arguments[1] : "";
    setvbuf(stdout, 0, _IONBF, 0);
    if (!strcmp(attack, "kernel-read")) return *(volatile char *)KERNEL;
    if (!strcmp(attack, "kernel-write")) *(volatile char *)KERNEL = 1;
    if (!strcmp(attack, "kernel-jump")) ((void (*)(void))KERNEL)();
    if (!strcmp(attack, "linear-read")) return *(volatile char *)LINEAR;
    if (!strcmp(attack, "apic-read")) return *(volatile int *)0xffffc00000000020ul;
    if (!strcmp(attack, "noncanonical-read")) return *(volatile char *)0x1234000000000000ul;
    if (!strcmp(attack, "noncanonical-jump")) ((void (*)(void))0x1234000000000000ul)();
    if (!strcmp(attack, "text-write")) *(volatile char *)main = 1;
    if (!strcmp(attack, "constant-write")) *(volatile char *)ret_code = 1;
    if (!strcmp(attack, "null-read")) return *(volatile char *)8;
    if (!strcmp(attack, "null-jump")) ((void (*)(void))0)();
    if (!strcmp(attack, "guard-page")) return deep(0, 0);
    if (!strcmp(attack, "none-page")) return *(volatile char *)page(PROT_NONE);
    if (!strcmp(attack, "stack-run")) { char code[16]; run(code); }
    if (!strcmp(attack, "heap-run")) run(malloc(64));
    if (!strcmp(attack, "page-run")) run(page(PROT_READ | PROT_WRITE));
    if (!strcmp(attack, "data-run")) { static char code[64]; run(code); }
    ASM("in", "mov $0x3f8, %dx\n in %dx, %al")
    ASM("out", "mov $0x604, %dx\n mov $0x2000, %ax\n out %ax, %dx")
    ASM("cli", "cli")
    ASM("sti", "sti")
    ASM("hlt", "hlt")
    ASM("rdmsr", "mov $0xc0000082, %ecx\n rdmsr")
    ASM("wrmsr", "mov $0xc0000082, %ecx\n xor %eax, %eax\n xor %edx, %edx\n wrmsr")
    ASM("mov-cr3", "xor %eax, %eax\n mov %rax, %cr3")
    ASM("read-cr0", "mov %cr0, %rax")
    ASM("mov-dr7", "xor %eax, %eax\n mov %rax, %dr7")
    ASM("lgdt", "sub $16, %rsp\n lgdt (%rsp)")
    ASM("invlpg", "invlpg (%rsp)")
    ASM("swapgs", "swapgs")
    ASM("sysret", "sysretq")
    ASM("iret-to-ring-0", "push $0x10\n push %rsp\n pushfq\n push $8\n lea 1f(%rip), %rax\n push %rax\n iretq\n 1:")
    ASM("int-timer", "int $0x40")
    ASM("int-page-fault", "int $14")
    ASM("int-80", "mov $1, %eax\n int $0x80")
    ASM("far-call", "lcall *zero_selector(%rip)")
    ASM("sidt", "sub $16, %rsp\n sidt (%rsp)")
    ASM("xsetbv", "xor %ecx, %ecx\n mov $1, %eax\n xor %edx, %edx\n xsetbv")
    if (!strcmp(attack, "sigreturn-rip")) { forgery = RIP; by_signal(); }
    if (!strcmp(attack, "sigreturn-flags")) { forgery = FLAGS; by_signal(); __asm__ volatile("cli"); }
    if (!strcmp(attack, "sigreturn-stack")) {
        __asm__ volatile("mov $0xffffffff80200000, %rsp\n mov $15, %eax\n syscall");
    }
    if (!strcmp(attack, "signal-low-stack")) low_stack(0);
    if (!strcmp(attack, "trap-flag")) __asm__ volatile("pushfq\n orq $0x100, (%rsp)\n popfq\n nop");
    if (!strcmp(attack, "survive")) {
        /* Forgeries that are made good, not punished: the program goes on in ring 3. */
        unsigned short cs;
        forgery = CS; by_signal();
        __asm__ volatile("mov %%cs, %0" : "=r"(cs));
        check(cs == 0x23, "the code segment");
        forgery = MXCSR; by_signal();
        forgery = XSTATE; by_signal();
        __asm__ volatile("pushfq\n orq $0x40000, (%rsp)\n popfq"); /* AC: SMAP's gate in ring 0 */
        int zero = open("/dev/zero", O_RDONLY);
        refused(syscall(SYS_read, zero, KERNEL, 64l), EFAULT, "with AC set");
        puts("refused");
        return 0;
    }
    if (!strcmp(attack, "refuse")) {
        char *plain = page(PROT_READ | PROT_WRITE);
        refused(mprotect(plain, PAGE, PROT_READ | PROT_EXEC), EACCES, "execution added");
        refused(mprotect(plain, PAGE, 7), EACCES, "everything added");
        refused((long)mmap(0, PAGE, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), EACCES, "map of everything");
        refused((long)mmap(0, PAGE, 5, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), EACCES, "map to run");
        int file = open("/tmp/code", O_RDWR | O_CREAT, 0700);
        check(write(file, ret_code, 1) == 1, "a file");
        refused((long)mmap(0, PAGE, 5, MAP_PRIVATE, file, 0), EACCES, "a written file to run");
        refused((long)mmap(0, PAGE, 5, MAP_SHARED, file, 0), EACCES, "a written file, shared");
        int image = open("/usr/bin/attack", O_RDONLY);
        refused((long)mmap(0, PAGE, 7, MAP_PRIVATE, image, 0), EACCES, "text to write");
        refused((long)mmap(0, PAGE, 5, MAP_SHARED, image, 0), EACCES, "text, shared");
        char *text = mmap(0, PAGE, 5, MAP_PRIVATE, image, 0);
        check(text != MAP_FAILED, "text");
        refused(mprotect(text, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC), EACCES, "text made writable");
        check(mprotect(text, PAGE, PROT_READ | PROT_WRITE) == 0, "text made data");
        *text = 1;
        refused(mprotect(text, PAGE, PROT_READ | PROT_EXEC), EACCES, "data made text again");
        refused(syscall(SYS_fork), ENOSYS, "fork");
        refused(syscall(SYS_vfork), ENOSYS, "vfork");
        refused(syscall(SYS_execve, "/usr/bin/hello", 0, 0), ENOSYS, "execve");
        refused(syscall(SYS_ptrace, 0, 0, 0, 0), ENOSYS, "ptrace");
        refused(syscall(SYS_iopl, 3), ENOSYS, "iopl");
        refused(syscall(-1l), ENOSYS, "call -1");
        refused(syscall(1l << 40), ENOSYS, "call 2^40");
        puts("refused");
        return 0;
    }
    if (!strcmp(attack, "lengths")) { wrapping_lengths(); return 0; }
    if (!strcmp(attack, "unmap-race")) {
        pthread_t thread;
        shared = mmap(0, 128 * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        pthread_create(&thread, 0, unmapper, 0);
        int zero = open("/dev/zero", O_RDONLY), null = open("/dev/null", O_WRONLY);
        for (int i = 0; i < 2000; i++) {
            read(zero, shared, 128 * PAGE);
            write(null, shared, 128 * PAGE);
        }
        stop = 1;
        pthread_join(thread, 0);
        puts("refused");
        return 0;
    }
    printf("NOT KILLED: %s\n", attack);
    return 8;
}
