//! System calls: their table, their errors, and the way from a trap to the function that serves
//! one. What each does not offer stands beside it in the table; SYSCALLS.md is made from that.

mod fs;
mod io;
mod memory;
mod process;
mod sockets;

use crate::arch::{abi, Frame};
use crate::log;
use crate::mm::Global;

/// The user and group that the program sees itself as.
pub const USER: u32 = 1000;
pub const HOST_NAME: &str = "o3storage";

pub type Answer = Result<u64, Errno>;

macro_rules! errors {
    ($($name:ident = $value:literal,)*) => {
        /// Error numbers, the same on all of Linux's newer architectures.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Errno { $($name = $value,)* }
    };
}

errors! {
    EPERM = 1, ENOENT = 2, ESRCH = 3, EINTR = 4, EBADF = 9, EAGAIN = 11, ENOMEM = 12, EACCES = 13,
    EFAULT = 14, EEXIST = 17, EXDEV = 18, ENODEV = 19, ENOTDIR = 20, EISDIR = 21, EINVAL = 22,
    EMFILE = 24, ENOTTY = 25, EFBIG = 27, ENOSPC = 28, ESPIPE = 29, EROFS = 30, EPIPE = 32,
    ERANGE = 34, ENAMETOOLONG = 36, ENOSYS = 38, ENOTEMPTY = 39, ELOOP = 40, ENOTSOCK = 88,
    EDESTADDRREQ = 89, EMSGSIZE = 90, ENOPROTOOPT = 92, EPROTONOSUPPORT = 93, EOPNOTSUPP = 95,
    EAFNOSUPPORT = 97, EADDRINUSE = 98, EADDRNOTAVAIL = 99, ENETUNREACH = 101, ECONNRESET = 104,
    ENOBUFS = 105, EISCONN = 106, ENOTCONN = 107, ETIMEDOUT = 110, ECONNREFUSED = 111,
    EINPROGRESS = 115,
}

impl From<vfs::Error> for Errno {
    fn from(error: vfs::Error) -> Errno {
        use vfs::Error::*;
        match error {
            NotFound => Errno::ENOENT,
            NotDirectory => Errno::ENOTDIR,
            IsDirectory => Errno::EISDIR,
            Exists => Errno::EEXIST,
            NotEmpty => Errno::ENOTEMPTY,
            ReadOnly => Errno::EROFS,
            Denied => Errno::EPERM,
            TooManyLinks => Errno::ELOOP,
            NameTooLong => Errno::ENAMETOOLONG,
            NoSpace => Errno::ENOSPC,
            Invalid | BadImage => Errno::EINVAL,
            WouldBlock => Errno::EAGAIN,
            BrokenPipe => Errno::EPIPE,
        }
    }
}

impl From<net::Error> for Errno {
    fn from(error: net::Error) -> Errno {
        use net::Error::*;
        match error {
            WouldBlock => Errno::EAGAIN,
            InProgress => Errno::EINPROGRESS,
            AddressInUse => Errno::EADDRINUSE,
            AddressNotAvailable => Errno::EADDRNOTAVAIL,
            NotConnected => Errno::ENOTCONN,
            AlreadyConnected => Errno::EISCONN,
            ConnectionRefused => Errno::ECONNREFUSED,
            ConnectionReset => Errno::ECONNRESET,
            TimedOut => Errno::ETIMEDOUT,
            Unreachable => Errno::ENETUNREACH,
            NoMemory => Errno::ENOBUFS,
            Invalid => Errno::EINVAL,
            BrokenPipe => Errno::EPIPE,
            MessageTooLong => Errno::EMSGSIZE,
            NotSupported => Errno::EOPNOTSUPP,
        }
    }
}

/// A call's six arguments.
pub type Args = [u64; 6];

macro_rules! calls {
    ($($name:ident => $function:path, $note:literal;)*) => {
        /// The calls that are offered, by Linux's names.
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Call { $($name,)* }

        fn run(call: Call, frame: &mut Frame, args: &Args) -> Answer {
            match call { $(Call::$name => $function(frame, args),)* }
        }
    };
}

// Name => the function that serves it, and what it does not offer.
calls! {
    read => io::read, "";
    write => io::write, "SIGPIPE is sent only where the program did not ignore it";
    readv => io::readv, "";
    writev => io::writev, "";
    pread64 => io::pread64, "";
    pwrite64 => io::pwrite64, "";
    preadv => io::preadv, "";
    pwritev => io::pwritev, "";
    preadv2 => io::preadv, "no flag but RWF_HIPRI, RWF_DSYNC, RWF_SYNC and RWF_NOWAIT, which change nothing";
    pwritev2 => io::pwritev, "as preadv2";
    close => io::close, "";
    dup => io::dup, "";
    dup2 => io::dup2, "";
    dup3 => io::dup3, "";
    fcntl => io::fcntl, "F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL (O_APPEND, O_NONBLOCK); no record locks, no owners";
    ioctl => io::ioctl, "FIONBIO, FIONREAD, FIOCLEX, FIONCLEX; nothing is a terminal (ENOTTY)";
    pipe => io::pipe, "";
    pipe2 => io::pipe2, "no O_DIRECT";
    eventfd => io::eventfd, "";
    eventfd2 => io::eventfd2, "";
    poll => io::poll, "";
    ppoll => io::ppoll, "";
    select => io::select, "";
    pselect6 => io::pselect6, "";
    epoll_create => io::epoll_create, "";
    epoll_create1 => io::epoll_create1, "";
    epoll_ctl => io::epoll_ctl, "an epoll cannot watch an epoll (EINVAL)";
    epoll_wait => io::epoll_wait, "";
    epoll_pwait => io::epoll_pwait, "";
    open => fs::open, "";
    openat => fs::openat, "no O_TMPFILE, O_PATH or O_DIRECT; O_SYNC and O_DSYNC change nothing in memory";
    lseek => fs::lseek, "SEEK_SET, SEEK_CUR, SEEK_END; no holes";
    stat => fs::stat, "";
    lstat => fs::lstat, "";
    fstat => fs::fstat, "one time for access, change and modification";
    newfstatat => fs::newfstatat, "";
    access => fs::access, "";
    faccessat => fs::faccessat, "";
    faccessat2 => fs::faccessat2, "";
    getdents64 => fs::getdents64, "";
    mkdir => fs::mkdir, "";
    mkdirat => fs::mkdirat, "";
    rmdir => fs::rmdir, "";
    unlink => fs::unlink, "";
    unlinkat => fs::unlinkat, "";
    rename => fs::rename, "";
    renameat => fs::renameat, "both directories must be the working directory, or the paths absolute";
    renameat2 => fs::renameat2, "RENAME_NOREPLACE is the only flag";
    link => fs::link, "";
    linkat => fs::linkat, "as renameat";
    symlink => fs::symlink, "";
    symlinkat => fs::symlinkat, "";
    readlink => fs::readlink, "";
    readlinkat => fs::readlinkat, "";
    chmod => fs::chmod, "";
    fchmod => fs::fchmod, "";
    fchmodat => fs::fchmodat, "";
    umask => fs::umask, "";
    utimensat => fs::utimensat, "only the time of modification is kept";
    truncate => fs::truncate, "";
    ftruncate => fs::ftruncate, "";
    fallocate => fs::fallocate, "mode 0 and FALLOC_FL_KEEP_SIZE";
    fsync => fs::fsync, "files are in memory: there is nothing to wait for";
    fdatasync => fs::fsync, "as fsync";
    flock => fs::flock, "";
    statfs => fs::statfs, "";
    fstatfs => fs::fstatfs, "";
    getcwd => fs::getcwd, "";
    chdir => fs::chdir, "";
    fchdir => fs::fchdir, "";
    mmap => memory::mmap, "PROT_EXEC only for MAP_PRIVATE of root-image files, never with PROT_WRITE; a file in memory is copied when it is mapped, and not mapped MAP_SHARED for writing (ENODEV)";
    mprotect => memory::mprotect, "never adds PROT_EXEC, and never allows writing and execution together (EACCES)";
    munmap => memory::munmap, "";
    mremap => memory::mremap, "no MREMAP_FIXED; anonymous memory only";
    madvise => memory::madvise, "MADV_DONTNEED and MADV_FREE drop pages; other advice changes nothing";
    brk => memory::brk, "";
    socket => sockets::socket, "AF_INET, SOCK_STREAM and SOCK_DGRAM";
    socketpair => sockets::socketpair, "AF_UNIX, SOCK_STREAM";
    bind => sockets::bind, "";
    listen => sockets::listen, "";
    accept => sockets::accept, "";
    accept4 => sockets::accept4, "";
    connect => sockets::connect, "";
    shutdown => sockets::shutdown, "";
    sendto => sockets::sendto, "MSG_DONTWAIT, MSG_NOSIGNAL; MSG_MORE changes nothing";
    recvfrom => sockets::recvfrom, "MSG_DONTWAIT, MSG_PEEK, MSG_WAITALL, MSG_NOSIGNAL";
    sendmsg => sockets::sendmsg, "no control messages (EINVAL)";
    recvmsg => sockets::recvmsg, "no control messages";
    getsockname => sockets::getsockname, "";
    getpeername => sockets::getpeername, "";
    setsockopt => sockets::setsockopt, "SO_REUSEADDR, SO_REUSEPORT, SO_KEEPALIVE, SO_BROADCAST, SO_SNDBUF, SO_RCVBUF, SO_LINGER off, SO_RCVTIMEO, SO_SNDTIMEO of nought, TCP_NODELAY, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT; sizes and keep-alive times are read back as they are in the stack";
    getsockopt => sockets::getsockopt, "the same, SO_ERROR, SO_TYPE, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN";
    clone => process::clone, "threads of the one process only; fork answers ENOSYS";
    exit => process::exit, "";
    exit_group => process::exit_group, "";
    futex => process::futex, "WAIT, WAKE, WAIT_BITSET, WAKE_BITSET; no requeue, no priority inheritance";
    set_tid_address => process::set_tid_address, "";
    set_robust_list => process::set_robust_list, "ENOSYS: mutexes of threads that died are not passed on";
    gettid => process::gettid, "";
    getpid => process::getpid, "always 1";
    getppid => process::getppid, "always 0";
    getpgrp => process::getpid, "";
    getsid => process::getpid, "";
    getuid => process::getuid, "always 1000";
    geteuid => process::getuid, "";
    getgid => process::getuid, "";
    getegid => process::getuid, "";
    getresuid => process::getresuid, "";
    getresgid => process::getresuid, "";
    sched_yield => process::sched_yield, "";
    sched_getaffinity => process::sched_getaffinity, "one processor";
    getcpu => process::getcpu, "";
    arch_prctl => process::arch_prctl, "ARCH_SET_FS, ARCH_GET_FS, ARCH_SET_GS, ARCH_GET_GS";
    prlimit64 => process::prlimit64, "limits are read, not set";
    getrlimit => process::getrlimit, "";
    getrusage => process::getrusage, "times of the machine since its start";
    times => process::times, "as getrusage";
    sysinfo => process::sysinfo, "";
    uname => process::uname, "";
    getrandom => process::getrandom, "";
    clock_gettime => process::clock_gettime, "the processor-time clocks count since the start";
    clock_getres => process::clock_getres, "";
    clock_nanosleep => process::clock_nanosleep, "";
    nanosleep => process::nanosleep, "";
    gettimeofday => process::gettimeofday, "no time zone";
    time => process::time, "";
    rt_sigaction => process::rt_sigaction, "";
    rt_sigprocmask => process::rt_sigprocmask, "";
    rt_sigreturn => process::rt_sigreturn, "";
    rt_sigpending => process::rt_sigpending, "";
    rt_sigsuspend => process::rt_sigsuspend, "";
    rt_sigtimedwait => process::rt_sigtimedwait, "";
    sigaltstack => process::sigaltstack, "";
    pause => process::pause, "";
    kill => process::kill, "the program itself only";
    tkill => process::tkill, "";
    tgkill => process::tgkill, "";
}

const TABLE_SIZE: usize = 512;

static TABLE: [Option<Call>; TABLE_SIZE] = {
    let mut table = [None; TABLE_SIZE];
    let mut at = 0;
    while at < abi::NUMBERS.len() {
        let (number, call) = abi::NUMBERS[at];
        table[number] = Some(call);
        at += 1;
    }
    table
};

/// Which unknown calls were told of already.
static TOLD: Global<[bool; TABLE_SIZE]> = Global::new([false; TABLE_SIZE]);

/// Serves the call whose number and arguments are in `frame`.
pub fn dispatch(frame: &mut Frame) {
    let number = frame.error as usize;
    let args = frame.arguments();
    let result = match TABLE.get(number).copied().flatten() {
        Some(call) => {
            let result = run(call, frame, &args);
            crate::console::line(2, format_args!("{call:?} {args:x?} -> {result:x?}"));
            result
        }
        None => {
            tell_unknown(number, &args);
            Err(Errno::ENOSYS)
        }
    };
    frame.set_result(match result {
        Ok(value) => value,
        Err(errno) => -(errno as i64) as u64,
    });
}

fn tell_unknown(number: usize, args: &Args) {
    if abi::REFUSED.iter().any(|(refused, _)| *refused == number) {
        return;
    }
    let mut told = TOLD.get();
    let known =
        told.get_mut(number.min(TABLE_SIZE - 1)).is_some_and(|t| core::mem::replace(t, true));
    if !known {
        log!("unknown system call {number} with {args:x?}");
    }
}
