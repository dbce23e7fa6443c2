//! What programs of this architecture expect: the numbers of the calls, and the structures whose
//! layout differs from one architecture to the next.

use super::{features, Frame};
use crate::sched;
use crate::signal::AlternateStack;
use crate::syscall::Call;
use crate::usercopy;

/// The numbers of the calls that are offered.
pub const NUMBERS: &[(usize, Call)] = &[
    (0, Call::read),
    (1, Call::write),
    (2, Call::open),
    (3, Call::close),
    (4, Call::stat),
    (5, Call::fstat),
    (6, Call::lstat),
    (7, Call::poll),
    (8, Call::lseek),
    (9, Call::mmap),
    (10, Call::mprotect),
    (11, Call::munmap),
    (12, Call::brk),
    (13, Call::rt_sigaction),
    (14, Call::rt_sigprocmask),
    (15, Call::rt_sigreturn),
    (16, Call::ioctl),
    (17, Call::pread64),
    (18, Call::pwrite64),
    (19, Call::readv),
    (20, Call::writev),
    (21, Call::access),
    (22, Call::pipe),
    (23, Call::select),
    (24, Call::sched_yield),
    (25, Call::mremap),
    (28, Call::madvise),
    (32, Call::dup),
    (33, Call::dup2),
    (34, Call::pause),
    (35, Call::nanosleep),
    (39, Call::getpid),
    (41, Call::socket),
    (42, Call::connect),
    (43, Call::accept),
    (44, Call::sendto),
    (45, Call::recvfrom),
    (46, Call::sendmsg),
    (47, Call::recvmsg),
    (48, Call::shutdown),
    (49, Call::bind),
    (50, Call::listen),
    (51, Call::getsockname),
    (52, Call::getpeername),
    (53, Call::socketpair),
    (54, Call::setsockopt),
    (55, Call::getsockopt),
    (56, Call::clone),
    (60, Call::exit),
    (62, Call::kill),
    (63, Call::uname),
    (72, Call::fcntl),
    (73, Call::flock),
    (74, Call::fsync),
    (75, Call::fdatasync),
    (76, Call::truncate),
    (77, Call::ftruncate),
    (79, Call::getcwd),
    (80, Call::chdir),
    (81, Call::fchdir),
    (82, Call::rename),
    (83, Call::mkdir),
    (84, Call::rmdir),
    (86, Call::link),
    (87, Call::unlink),
    (88, Call::symlink),
    (89, Call::readlink),
    (90, Call::chmod),
    (91, Call::fchmod),
    (95, Call::umask),
    (96, Call::gettimeofday),
    (97, Call::getrlimit),
    (98, Call::getrusage),
    (99, Call::sysinfo),
    (100, Call::times),
    (102, Call::getuid),
    (104, Call::getgid),
    (107, Call::geteuid),
    (108, Call::getegid),
    (110, Call::getppid),
    (111, Call::getpgrp),
    (118, Call::getresuid),
    (120, Call::getresgid),
    (124, Call::getsid),
    (127, Call::rt_sigpending),
    (128, Call::rt_sigtimedwait),
    (130, Call::rt_sigsuspend),
    (131, Call::sigaltstack),
    (137, Call::statfs),
    (138, Call::fstatfs),
    (158, Call::arch_prctl),
    (186, Call::gettid),
    (200, Call::tkill),
    (201, Call::time),
    (202, Call::futex),
    (204, Call::sched_getaffinity),
    (213, Call::epoll_create),
    (217, Call::getdents64),
    (218, Call::set_tid_address),
    (228, Call::clock_gettime),
    (229, Call::clock_getres),
    (230, Call::clock_nanosleep),
    (231, Call::exit_group),
    (232, Call::epoll_wait),
    (233, Call::epoll_ctl),
    (234, Call::tgkill),
    (257, Call::openat),
    (258, Call::mkdirat),
    (262, Call::newfstatat),
    (263, Call::unlinkat),
    (264, Call::renameat),
    (265, Call::linkat),
    (266, Call::symlinkat),
    (267, Call::readlinkat),
    (268, Call::fchmodat),
    (269, Call::faccessat),
    (270, Call::pselect6),
    (271, Call::ppoll),
    (273, Call::set_robust_list),
    (280, Call::utimensat),
    (281, Call::epoll_pwait),
    (284, Call::eventfd),
    (285, Call::fallocate),
    (288, Call::accept4),
    (290, Call::eventfd2),
    (291, Call::epoll_create1),
    (292, Call::dup3),
    (293, Call::pipe2),
    (295, Call::preadv),
    (296, Call::pwritev),
    (302, Call::prlimit64),
    (309, Call::getcpu),
    (316, Call::renameat2),
    (318, Call::getrandom),
    (327, Call::preadv2),
    (328, Call::pwritev2),
    (439, Call::faccessat2),
];

/// Calls that answer ENOSYS for good and are not worth a line on the console: new processes,
/// other file systems' and newer ways to do what has an older one.
pub const REFUSED: &[(usize, &str)] = &[
    (57, "fork"),
    (58, "vfork"),
    (59, "execve"),
    (157, "prctl"),
    (332, "statx"),
    (334, "rseq"),
    (425, "io_uring_setup"),
    (435, "clone3"),
    (436, "close_range"),
];

/// Whether a number is preadv2's or pwritev2's, which take flags.
pub fn is_second_form(number: usize) -> bool {
    matches!(number, 327 | 328)
}

/// Packed on this architecture: events, then the data at offset 4.
pub const EPOLL_EVENT_SIZE: usize = 12;
pub const EPOLL_DATA_AT: usize = 4;

/// The place of each argument of clone: stack, parent's and child's place for the number, thread
/// pointer.
pub const CLONE_STACK: usize = 1;
pub const CLONE_PARENT_TID: usize = 2;
pub const CLONE_CHILD_TID: usize = 3;
pub const CLONE_TLS: usize = 4;

pub struct StatFields {
    pub inode: u64,
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub device: u64,
    pub size: u64,
    pub blocks: u64,
    pub time_ns: u64,
}

pub const STAT_SIZE: usize = 144;

/// `struct stat`.
pub fn stat_bytes(stat: &StatFields) -> [u8; STAT_SIZE] {
    let (seconds, ns) = (stat.time_ns / 1_000_000_000, stat.time_ns % 1_000_000_000);
    let owner = u64::from(stat.uid);
    let words = [
        1,
        stat.inode,
        u64::from(stat.links),
        u64::from(stat.mode) | owner << 32,
        owner,
        stat.device,
        stat.size,
        4096,
        stat.blocks,
        seconds,
        ns,
        seconds,
        ns,
        seconds,
        ns,
    ];
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

/// Builds the frame a handler returns by, below `top`, and makes `frame` enter the handler.
pub fn push_signal_frame(
    frame: &mut Frame,
    top: u64,
    info: &SignalInfo,
    handler: u64,
    restorer: u64,
) -> bool {
    let features = features();
    let size = features.vector_bytes as u64;
    let (Some(vector_at), true) = (
        (top & !63).checked_sub(RED_ZONE + (size + 4).next_multiple_of(64)),
        handler < super::USER_END,
    ) else {
        return false;
    };
    let Some(at) = vector_at.checked_sub(FRAME_WORDS as u64 * 8).map(|at| (at & !15) - 8) else {
        return false;
    };
    let written = sched::with_vector_state(|state| {
        state.save();
        let mut bytes = state.bytes()[..size as usize].to_vec();
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
    words[0] = restorer;
    words[CONTEXT] = if features.vector_state != 0 { 7 } else { 6 };
    words[CONTEXT + 2] = info.stack.start;
    words[CONTEXT + 3] = if info.stack.enabled { 0 } else { 2 };
    words[CONTEXT + 4] = info.stack.size;
    let f = &*frame;
    words[REGISTERS..REGISTERS + 18].copy_from_slice(&[
        f.r8, f.r9, f.r10, f.r11, f.r12, f.r13, f.r14, f.r15, f.rdi, f.rsi, f.rbp, f.rbx, f.rdx,
        f.rax, f.rcx, f.rsp, f.rip, f.rflags,
    ]);
    words[REGISTERS + 18] = super::USER_CODE | super::USER_DATA << 48;
    words[REGISTERS + 21] = info.old_mask;
    words[REGISTERS + 22] = info.address;
    words[VECTOR_POINTER] = vector_at;
    words[MASK] = info.old_mask;
    words[INFO] = u64::from(info.signal);
    words[INFO + 1] = u64::from(info.code as u32);
    words[INFO + 2] = info.address;
    let bytes: alloc::vec::Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    if usercopy::write(vector_at, &written).is_err() || usercopy::write(at, &bytes).is_err() {
        return false;
    }
    frame.rdi = u64::from(info.signal);
    frame.rsi = at + INFO as u64 * 8;
    frame.rdx = at + CONTEXT as u64 * 8;
    frame.rax = 0;
    frame.rsp = at;
    frame.rip = handler;
    frame.rflags &= !0x500; // Direction and trap flags.
    true
}

/// Takes the registers back; answers the signal mask, or `None` where the frame cannot be.
pub fn pop_signal_frame(frame: &mut Frame) -> Option<u64> {
    let words = usercopy::read_words(frame.rsp.wrapping_sub(8), FRAME_WORDS).ok()?;
    let r = &words[REGISTERS..];
    let mut back = Frame {
        r8: r[0],
        r9: r[1],
        r10: r[2],
        r11: r[3],
        r12: r[4],
        r13: r[5],
        r14: r[6],
        r15: r[7],
        rdi: r[8],
        rsi: r[9],
        rbp: r[10],
        rbx: r[11],
        rdx: r[12],
        rax: r[13],
        rcx: r[14],
        rsp: r[15],
        rip: r[16],
        rflags: r[17],
        ..*frame
    };
    if !back.sanitize() {
        return None;
    }
    if words[VECTOR_POINTER] != 0 {
        let mut bytes = alloc::vec![0; features().vector_bytes];
        usercopy::read(words[VECTOR_POINTER], &mut bytes).ok()?;
        sched::with_vector_state(|state| {
            state.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
            state.sanitize();
            state.load();
        });
    }
    *frame = back;
    Some(words[MASK])
}
