//! What programs of this architecture expect: the numbers of the calls, and the structures whose
//! layout differs from one architecture to the next.

use super::{features, Frame, ARGUMENTS, RESULT};
use crate::sched;
use crate::signal::{Action, AlternateStack};
use crate::syscall::Call;
use crate::usercopy;

/// Runs of numbers: the first, and the calls from there on.
macro_rules! numbers {
    ($($first:literal: $($name:ident)*;)*) => {
        /// The numbers of the calls that are offered.
        pub const NUMBERS: &[(usize, &[Call])] = &[$(($first, &[$(Call::$name),*])),*];
    };
}

numbers! {
    0: read write; 3: close; 5: fstat;
    7: poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn ioctl;
    17: pread64 pwrite64 readv writev;
    23: select sched_yield mremap; 28: madvise; 32: dup dup2 pause; 37: alarm; 39: getpid;
    41: socket connect;
    44: sendto recvfrom sendmsg recvmsg shutdown bind listen getsockname getpeername socketpair;
    54: setsockopt getsockopt clone;
    60: exit; 62: kill uname; 72: fcntl flock fsync; 76: truncate ftruncate;
    79: getcwd chdir fchdir; 91: fchmod; 95: umask gettimeofday; 98: getrusage sysinfo times;
    102: getuid; 110: getppid; 118: getresuid; 127: rt_sigpending rt_sigtimedwait;
    130: rt_sigsuspend sigaltstack; 137: statfs fstatfs; 158: arch_prctl; 186: gettid;
    201: time futex; 204: sched_getaffinity; 217: getdents64 set_tid_address;
    228: clock_gettime clock_getres clock_nanosleep exit_group; 233: epoll_ctl tgkill;
    257: openat mkdirat; 262: newfstatat unlinkat; 265: linkat symlinkat readlinkat fchmodat;
    270: pselect6 ppoll; 280: utimensat epoll_pwait; 285: fallocate;
    288: accept4; 290: eventfd2 epoll_create1 dup3 pipe2; 302: prlimit64; 309: getcpu;
    316: renameat2; 318: getrandom; 327: preadv2 pwritev2; 439: faccessat2;
}

/// Older forms of calls that are offered under another number: how their arguments stand in the
/// newer one's. A digit is the older call's argument, `h` the working directory, `p` the process,
/// `n` AT_SYMLINK_NOFOLLOW, `r` AT_REMOVEDIR, `f` the mark of a form without flags, `z` nought.
pub const OLDER: &[(usize, &str, Call, &str)] = &[
    (2, "open", Call::openat, "h012"),
    (4, "stat", Call::newfstatat, "h01"),
    (6, "lstat", Call::newfstatat, "h01n"),
    (21, "access", Call::faccessat2, "h01"),
    (22, "pipe", Call::pipe2, "0"),
    (35, "nanosleep", Call::clock_nanosleep, "zz01"),
    (43, "accept", Call::accept4, "012"),
    (75, "fdatasync", Call::fsync, "0"),
    (82, "rename", Call::renameat2, "h0h1"),
    (83, "mkdir", Call::mkdirat, "h01"),
    (84, "rmdir", Call::unlinkat, "h0r"),
    (86, "link", Call::linkat, "h0h1"),
    (87, "unlink", Call::unlinkat, "h0"),
    (88, "symlink", Call::symlinkat, "0h1"),
    (89, "readlink", Call::readlinkat, "h012"),
    (90, "chmod", Call::fchmodat, "h01"),
    (97, "getrlimit", Call::prlimit64, "z0z1"),
    (104, "getgid", Call::getuid, ""),
    (107, "geteuid", Call::getuid, ""),
    (108, "getegid", Call::getuid, ""),
    (111, "getpgrp", Call::getpid, ""),
    (120, "getresgid", Call::getresuid, "012"),
    (124, "getsid", Call::getpid, ""),
    (200, "tkill", Call::tgkill, "p01"),
    (232, "epoll_wait", Call::epoll_pwait, "0123"),
    (264, "renameat", Call::renameat2, "0123"),
    (269, "faccessat", Call::faccessat2, "012"),
    (284, "eventfd", Call::eventfd2, "0"),
    (295, "preadv", Call::preadv2, "0123zf"),
    (296, "pwritev", Call::pwritev2, "0123zf"),
];

/// Calls that answer ENOSYS for good and are not worth a line on the console: new processes,
/// other file systems' and newer ways to do what has an older one.
pub const REFUSED: &[(usize, &str)] = &[
    (57, "fork"),
    (58, "vfork"),
    (59, "execve"),
    (157, "prctl"),
    (273, "set_robust_list"), // Mutexes of threads that died are not passed on.
    (332, "statx"),
    (334, "rseq"),
    (425, "io_uring_setup"),
    (435, "clone3"),
    (436, "close_range"),
];

/// Packed on this architecture: events, then the data at offset 4.
pub const EPOLL_EVENT_SIZE: usize = 12;
pub const EPOLL_DATA_AT: usize = 4;

/// The place of each argument of clone: stack, parent's and child's place for the number, thread
/// pointer.
pub const CLONE_STACK: usize = 1;
pub const CLONE_PARENT_TID: usize = 2;
pub const CLONE_CHILD_TID: usize = 3;
pub const CLONE_TLS: usize = 4;

pub const STAT_SIZE: usize = 144;

/// `struct stat`.
pub fn stat_bytes(stat: &vfs::Stat, owner: u32) -> [u8; STAT_SIZE] {
    let time = [stat.changed_ns / 1_000_000_000, stat.changed_ns % 1_000_000_000];
    let (links, owner) = (u64::from(stat.links), u64::from(owner));
    let mode = u64::from(stat.mode) | owner << 32;
    let head = [1, stat.inode, links, mode, owner, 0, stat.size, 4096, stat.blocks];
    let words = [&head[..], &time, &time, &time].concat();
    let mut bytes = [0; STAT_SIZE];
    for (at, word) in words.iter().enumerate() {
        bytes[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

pub struct SignalInfo {
    pub signal: u32,
    pub code: i32,
    pub address: u64,
    pub old_mask: u64,
    pub stack: AlternateStack,
}

// `struct rt_sigframe`, in words: the return address, the context (5 words of head, 23 registers,
// the pointer to the vector state, 8 reserved, the mask), and 128 bytes of siginfo.
const FRAME_WORDS: usize = 1 + 5 + 23 + 1 + 8 + 1 + 16;
const CONTEXT: usize = 1;
const REGISTERS: usize = CONTEXT + 5;
const VECTOR_POINTER: usize = REGISTERS + 23;
const MASK: usize = VECTOR_POINTER + 9;
const INFO: usize = MASK + 1;
/// The magic numbers that tell the handler that XSAVE's area follows.
const XSTATE_MAGIC1: u32 = 0x4650_5853;
const XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Bytes below the stack pointer that compiled code may be using.
const RED_ZONE: u64 = 128;

/// Builds the frame a handler returns by, below `top`, and makes `frame` enter the handler; `None`
/// where there is no room for it.
pub fn push_signal_frame(
    frame: &mut Frame,
    top: u64,
    info: &SignalInfo,
    action: &Action,
) -> Option<()> {
    let features = features();
    let size = features.vector_bytes as u64;
    let vector_at = (top & !63).checked_sub(RED_ZONE + (size + 4).next_multiple_of(64))?;
    // As if the handler had been called: eight bytes off a multiple of sixteen.
    let at = (vector_at.checked_sub(FRAME_WORDS as u64 * 8 + 8)? & !15) + 8;
    (action.handler < super::USER_END).then_some(())?;
    let written = sched::with_current(|thread| {
        thread.vector.save();
        let mut bytes = thread.vector.bytes()[..size as usize].to_vec();
        if features.vector_state != 0 {
            bytes[464..468].copy_from_slice(&XSTATE_MAGIC1.to_le_bytes());
            bytes[468..472].copy_from_slice(&(size as u32 + 4).to_le_bytes());
            bytes[472..480].copy_from_slice(&features.vector_state.to_le_bytes());
            bytes[480..484].copy_from_slice(&(size as u32).to_le_bytes());
            bytes.extend_from_slice(&XSTATE_MAGIC2.to_le_bytes());
        }
        bytes
    });
    let mut words = [0u64; FRAME_WORDS];
    words[0] = action.restorer;
    words[CONTEXT] = if features.vector_state != 0 { 7 } else { 6 };
    words[CONTEXT + 2] = info.stack.start;
    words[CONTEXT + 3] = if info.stack.enabled { 0 } else { 2 };
    words[CONTEXT + 4] = info.stack.size;
    words[REGISTERS..REGISTERS + 15].copy_from_slice(&frame.registers);
    let rest = [frame.stack, frame.program_counter, frame.flags];
    words[REGISTERS + 15..REGISTERS + 18].copy_from_slice(&rest);
    words[REGISTERS + 18] = super::USER_CODE | super::USER_DATA << 48;
    words[REGISTERS + 21] = info.old_mask;
    words[REGISTERS + 22] = info.address;
    words[VECTOR_POINTER] = vector_at;
    words[MASK] = info.old_mask;
    words[INFO] = u64::from(info.signal);
    words[INFO + 1] = u64::from(info.code as u32);
    words[INFO + 2] = info.address;
    usercopy::write(vector_at, &written).ok()?;
    usercopy::write_words(at, &words).ok()?;
    let arguments = [u64::from(info.signal), at + INFO as u64 * 8, at + CONTEXT as u64 * 8];
    for (register, value) in ARGUMENTS.into_iter().zip(arguments) {
        frame.registers[register] = value;
    }
    frame.registers[RESULT] = 0;
    (frame.stack, frame.program_counter) = (at, action.handler);
    frame.flags &= !0x500; // Direction and trap flags.
    Some(())
}

/// Takes the registers back; answers the signal mask, or `None` where the frame cannot be.
pub fn pop_signal_frame(frame: &mut Frame) -> Option<u64> {
    let words = usercopy::read_words(frame.stack.wrapping_sub(8), FRAME_WORDS).ok()?;
    let mut back = *frame;
    back.registers.copy_from_slice(&words[REGISTERS..REGISTERS + 15]);
    [back.stack, back.program_counter, back.flags] =
        words[REGISTERS + 15..REGISTERS + 18].try_into().ok()?;
    back.sanitize().then_some(())?;
    if words[VECTOR_POINTER] != 0 {
        let mut bytes = alloc::vec![0; features().vector_bytes];
        usercopy::read(words[VECTOR_POINTER], &mut bytes).ok()?;
        sched::with_current(|thread| {
            thread.vector.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
            thread.vector.sanitize();
            thread.vector.load();
        });
    }
    *frame = back;
    Some(words[MASK])
}
