//! System calls: their table, their errors, and the way from a trap to the function that serves
//! one. What each does not offer stands beside it in the table; SYSCALLS.md is made from that.

mod fs;
mod io;
mod memory;
mod process;
mod sockets;

use crate::arch::{self, abi, Frame};
use crate::files::{self, tree, File, Object};
use crate::mm::{frames, Global};
use crate::sched::{self, Wait, Woken};
use crate::{log, network, random, signal, time as date, usercopy};
use alloc::rc::Rc;
use alloc::vec::Vec;
pub use errno::{refuse, Errno};

/// The user and group that the program sees itself as.
pub const USER: u32 = 1000;
pub const HOST_NAME: &str = "o3storage";

pub type Answer = Result<u64, Errno>;

/// A call's six arguments.
pub type Args = [u64; 6];

macro_rules! calls {
    ($($module:ident: $($name:ident)*;)*) => {
        /// The calls that are offered, by Linux's names.
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Call { $($($name,)*)* }

        fn run(call: Call, frame: &mut Frame, args: &Args) -> Answer {
            match call { $($(Call::$name => $module::$name(frame, args),)*)* }
        }
    };
}

// The module that serves it, and the name of the call and of its function. What a call does not
// offer stands at its function's head, after "Limits:".
calls! {
    io: read write readv writev pread64 pwrite64 preadv2 pwritev2 close dup dup2 dup3 fcntl ioctl
        pipe2 eventfd2 poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_pwait;
    fs: openat lseek fstat newfstatat faccessat2 getdents64 mkdirat unlinkat renameat2 linkat
        symlinkat readlinkat fchmod fchmodat umask utimensat truncate ftruncate fallocate fsync
        flock statfs fstatfs getcwd chdir fchdir;
    memory: mmap mprotect munmap mremap madvise brk;
    sockets: socket socketpair bind listen accept4 connect shutdown sendto recvfrom sendmsg
        recvmsg getsockname getpeername setsockopt getsockopt;
    process: clone exit exit_group futex set_tid_address gettid getpid getppid
        getuid getresuid sched_yield sched_getaffinity getcpu arch_prctl prlimit64 getrusage times
        sysinfo uname getrandom clock_gettime clock_getres clock_nanosleep gettimeofday time
        rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait
        sigaltstack pause alarm kill tgkill;
}

const TABLE_SIZE: usize = 512;

/// Each number's call, and for an older form the shape of its arguments.
static TABLE: [Option<(Call, &str)>; TABLE_SIZE] = {
    let mut table = [None; TABLE_SIZE];
    let mut run = 0;
    while run < abi::NUMBERS.len() {
        let (first, calls) = abi::NUMBERS[run];
        let mut at = 0;
        while at < calls.len() {
            table[first + at] = Some((calls[at], ""));
            at += 1;
        }
        run += 1;
    }
    let mut at = 0;
    while at < abi::OLDER.len() {
        let (number, _, call, shape) = abi::OLDER[at];
        table[number] = Some((call, shape));
        at += 1;
    }
    table
};

/// The mark of preadv and pwritev, whose place must be given and which have no flags.
pub const FIRST_FORM: u64 = 1 << 63;

fn arrange(shape: &str, args: Args) -> Args {
    if shape.is_empty() {
        return args;
    }
    let mut arranged = [0; 6];
    for (to, kind) in arranged.iter_mut().zip(shape.bytes()) {
        *to = match kind {
            b'0'..=b'5' => args[usize::from(kind - b'0')],
            b'h' => fs::HERE,
            b'p' => process::PROCESS,
            b'n' => fs::AT_SYMLINK_NOFOLLOW,
            b'r' => fs::AT_REMOVEDIR,
            b'f' => FIRST_FORM,
            _ => 0,
        };
    }
    arranged
}

/// Which unknown calls were told of already.
static TOLD: Global<[bool; TABLE_SIZE]> = Global::new([false; TABLE_SIZE]);

/// Serves the call whose number and arguments are in `frame`.
pub fn dispatch(frame: &mut Frame) {
    let number = frame.error as usize;
    let args = frame.arguments();
    let result = match TABLE.get(number).copied().flatten() {
        Some((call, shape)) => {
            let args = arrange(shape, args);
            let result = run(call, frame, &args);
            crate::console::line(2, format_args!("{call:?} {args:x?} -> {result:x?}"));
            result
        }
        None => {
            tell_unknown(number, &args);
            Err(Errno::ENOSYS)
        }
    };
    frame.registers[arch::RESULT] = result.unwrap_or_else(|errno| -(errno as i64) as u64);
}

fn tell_unknown(number: usize, args: &Args) {
    if abi::REFUSED.iter().any(|(refused, _)| *refused == number) {
        return;
    }
    let told = &mut TOLD.get()[number.min(TABLE_SIZE - 1)];
    if !core::mem::replace(told, true) {
        log!("unknown system call {number} with {args:x?}");
    }
}
