//! Calls on threads, signals, time and the system itself.

use super::*;
use crate::arch::{MACHINE_NAME, RESULT};
use crate::mm::{self, space};
use crate::signal::{Action, AlternateStack, ThreadSignals};
use crate::usercopy::{tell, write_words};

pub const NS: u64 = 1_000_000_000;
/// What the program is told of its one process.
pub const PROCESS: u64 = sched::FIRST_TID as u64;

const CLONE_VM: u64 = 0x100;
const CLONE_THREAD: u64 = 0x1_0000;
const CLONE_SETTLS: u64 = 0x8_0000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
const CLONE_CHILD_SETTID: u64 = 0x100_0000;
/// VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, the four above, and DETACHED.
const CLONE_KNOWN: u64 = 0x17d_0f00;

/// Limits: threads of the one process only; fork answers ENOSYS.
pub fn clone(frame: &mut Frame, args: &Args) -> Answer {
    let flags = args[0];
    refuse!(flags & (CLONE_VM | CLONE_THREAD) != CLONE_VM | CLONE_THREAD, ENOSYS); // A new process.
    refuse!(flags & !CLONE_KNOWN != 0, EINVAL);
    let mut start = *frame;
    start.registers[RESULT] = 0;
    if args[abi::CLONE_STACK] != 0 {
        start.stack = args[abi::CLONE_STACK];
    }
    let (mask, fs) = sched::with_current(|thread| (thread.signals.mask, thread.fs));
    let fs = if flags & CLONE_SETTLS != 0 { args[abi::CLONE_TLS] } else { fs };
    refuse!(fs >= arch::USER_END, EPERM);
    let tid = sched::spawn(&start, fs, ThreadSignals { mask, ..ThreadSignals::default() })?;
    if flags & CLONE_CHILD_CLEARTID != 0 {
        sched::with_thread(tid, |thread| thread.clear_tid = args[abi::CLONE_CHILD_TID]);
    }
    // The thread is there already: a bad address here is the program's own loss.
    if flags & CLONE_PARENT_SETTID != 0 {
        let _ = usercopy::write_u32(args[abi::CLONE_PARENT_TID], tid);
    }
    if flags & CLONE_CHILD_SETTID != 0 {
        let _ = usercopy::write_u32(args[abi::CLONE_CHILD_TID], tid);
    }
    Ok(u64::from(tid))
}

pub fn exit(_: &mut Frame, &[status, ..]: &Args) -> Answer {
    sched::exit_thread(status as i32 & 0xff)
}

pub fn exit_group(_: &mut Frame, &[status, ..]: &Args) -> Answer {
    sched::exit_program(status as i32 & 0xff)
}

const FUTEX_PRIVATE: u64 = 128;
const FUTEX_REALTIME: u64 = 256;

/// Limits: WAIT, WAKE, WAIT_BITSET, WAKE_BITSET; no requeue, no priority inheritance.
pub fn futex(_: &mut Frame, &[address, operation, value, timeout, _, mask]: &Args) -> Answer {
    refuse!(address % 4 != 0, EINVAL);
    let command = operation & !(FUTEX_PRIVATE | FUTEX_REALTIME);
    let mask = if matches!(command, 9 | 10) { mask as u32 } else { u32::MAX };
    refuse!(mask == 0, EINVAL);
    match command {
        0 | 9 => {
            // FUTEX_WAIT's time is a span, WAIT_BITSET's a point, of the date where asked.
            let deadline = match (timeout, command) {
                (0, _) => None,
                (at, 0) => read_timeout(at)?,
                (at, _) => {
                    let point = read_time(at)?;
                    let now = clock_ns(if operation & FUTEX_REALTIME != 0 { 0 } else { 1 })?;
                    Some(arch::now_us() + point.saturating_sub(now).div_ceil(1000))
                }
            };
            // On one processor, without preemption here, comparing and queueing are one step.
            refuse!(usercopy::read_u32(address)? != value as u32, EAGAIN);
            match sched::block(Wait::Futex { address, mask }, deadline) {
                Woken::Event => Ok(0),
                Woken::Timeout => Err(Errno::ETIMEDOUT),
                Woken::Signal => {
                    sched::with_current(|t| t.signals.restartable = timeout == 0);
                    Err(Errno::EINTR)
                }
            }
        }
        1 | 10 => {
            let limit = (value as i32).max(0) as usize;
            Ok(sched::wake(limit, |wait| match wait {
                Wait::Futex { address: at, mask: bits } => *at == address && bits & mask != 0,
                _ => false,
            }) as u64)
        }
        _ => Err(Errno::ENOSYS),
    }
}

pub fn set_tid_address(_: &mut Frame, &[at, ..]: &Args) -> Answer {
    sched::with_current(|thread| thread.clear_tid = at);
    Ok(u64::from(sched::current()))
}

pub fn gettid(_: &mut Frame, _: &Args) -> Answer {
    Ok(u64::from(sched::current()))
}

/// Limits: always 1.
pub fn getpid(_: &mut Frame, _: &Args) -> Answer {
    Ok(PROCESS)
}

/// Limits: always 0.
pub fn getppid(_: &mut Frame, _: &Args) -> Answer {
    Ok(0)
}

/// Limits: always 1000.
pub fn getuid(_: &mut Frame, _: &Args) -> Answer {
    Ok(u64::from(USER))
}

pub fn getresuid(_: &mut Frame, &[real, effective, saved, ..]: &Args) -> Answer {
    for at in [real, effective, saved] {
        usercopy::write_u32(at, USER)?;
    }
    Ok(0)
}

pub fn sched_yield(_: &mut Frame, _: &Args) -> Answer {
    sched::yield_now();
    Ok(0)
}

/// Limits: one processor.
pub fn sched_getaffinity(_: &mut Frame, &[tid, size, at, ..]: &Args) -> Answer {
    refuse!(size < 8 || size % 8 != 0, EINVAL);
    refuse!(tid != 0 && sched::with_thread(tid as u32, |_| ()).is_none(), ESRCH);
    usercopy::write_u64(at, 1).map(|()| 8)
}

pub fn getcpu(_: &mut Frame, &[processor, node, ..]: &Args) -> Answer {
    for at in [processor, node].into_iter().filter(|at| *at != 0) {
        usercopy::write_u32(at, 0)?;
    }
    Ok(0)
}

/// Limits: ARCH_SET_FS, ARCH_GET_FS, ARCH_SET_GS, ARCH_GET_GS.
pub fn arch_prctl(_: &mut Frame, &[command, value, ..]: &Args) -> Answer {
    let set = matches!(command, 0x1001 | 0x1002);
    refuse!(set && value >= arch::USER_END, EPERM);
    let (fs, gs) = sched::with_current(|thread| {
        match command {
            0x1001 => thread.gs = value,
            0x1002 => thread.fs = value,
            _ => {}
        }
        (thread.fs, thread.gs)
    });
    match command {
        0x1001 | 0x1002 => arch::set_thread_pointers(fs, gs),
        0x1003 => usercopy::write_u64(value, fs)?,
        0x1004 => usercopy::write_u64(value, gs)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// A resource's limit; most have none.
fn limit(resource: u64) -> Result<u64, Errno> {
    match resource {
        3 => Ok(crate::loader::STACK_SIZE),
        4 => Ok(0),
        6 => Ok(sched::MAX_THREADS as u64),
        7 => Ok(crate::files::MAX_DESCRIPTORS as u64),
        0..=15 => Ok(u64::MAX),
        _ => Err(Errno::EINVAL),
    }
}

/// Limits: limits are read, not set.
pub fn prlimit64(_: &mut Frame, &[process, resource, new, old, ..]: &Args) -> Answer {
    refuse!(process != 0 && process != PROCESS, ESRCH);
    let limit = limit(resource)?;
    refuse!(new != 0 && usercopy::read_words(new, 2)? != [limit, limit], EPERM);
    tell(old, &[limit, limit])
}

fn busy_us() -> u64 {
    arch::now_us().saturating_sub(sched::idle_us())
}

/// Limits: times of the machine since its start.
pub fn getrusage(_: &mut Frame, &[who, at, ..]: &Args) -> Answer {
    refuse!(!matches!(who as i32, -1..=1), EINVAL);
    let busy = if who as i32 == -1 { 0 } else { busy_us() };
    let mut words = [0; 18];
    words[0] = busy / 1_000_000;
    words[1] = busy % 1_000_000;
    let (free, total) = frames::count();
    words[4] = (total - free) as u64 * 4;
    words[8] = space::faults();
    write_words(at, &words)
}

pub fn times(_: &mut Frame, &[at, ..]: &Args) -> Answer {
    tell(at, &[busy_us() / 10_000, 0, 0, 0])?;
    Ok(arch::now_us() / 10_000)
}

/// Limits: shared memory is what files take, buffers what the kernel's heap keeps.
pub fn sysinfo(_: &mut Frame, &[at, ..]: &Args) -> Answer {
    let (kept, files) = (mm::trim(), tree().usage().0 as usize / 4096);
    let (free, total) = frames::count();
    let mut words = [0; 14];
    words[0] = arch::now_us() / 1_000_000;
    // Usable, free, in files, and in the kernel's heap.
    words[4..8]
        .copy_from_slice(&[total, free, files, kept - files].map(|frames| frames as u64 * 4096));
    words[10] = sched::thread_ids().len() as u64;
    words[13] = 1; // The unit of the sizes: a byte.
    write_words(at, &words)
}

pub fn uname(_: &mut Frame, &[at, ..]: &Args) -> Answer {
    let mut bytes = [0; 6 * 65];
    // The release is what glibc wants to see at least.
    let fields = ["Linux", HOST_NAME, "5.15.0", "O3StorageOS", MACHINE_NAME, "(none)"];
    for (i, field) in fields.iter().enumerate() {
        bytes[i * 65..i * 65 + field.len()].copy_from_slice(field.as_bytes());
    }
    usercopy::write(at, &bytes).map(|()| 0)
}

pub fn getrandom(_: &mut Frame, &[at, length, flags, ..]: &Args) -> Answer {
    refuse!(flags & !7 != 0 || flags & 6 == 6, EINVAL);
    let mut buffer = [0; 256];
    let length = length.min(0x1ff_ffff);
    let mut done = 0;
    while done < length {
        let part = (length - done).min(256) as usize;
        random::fill(&mut buffer[..part]);
        match usercopy::write(at + done, &buffer[..part]) {
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
            Ok(()) => done += part as u64,
        }
    }
    Ok(done)
}

fn clock_ns(clock: u64) -> Result<u64, Errno> {
    match clock {
        0 | 5 | 11 => Ok(date::date_ns()),
        1 | 4 | 6 | 7 => Ok(arch::now_ns()),
        2 | 3 => Ok(busy_us() * 1000),
        // The processor time of a thread or process by its number.
        _ if clock as i32 & 4 != 0 || (clock as i32) < 0 => Ok(busy_us() * 1000),
        _ => Err(Errno::EINVAL),
    }
}

/// Limits: the processor-time clocks count since the start.
pub fn clock_gettime(_: &mut Frame, &[clock, at, ..]: &Args) -> Answer {
    let now = clock_ns(clock)?;
    write_words(at, &[now / NS, now % NS])
}

pub fn clock_getres(_: &mut Frame, &[clock, at, ..]: &Args) -> Answer {
    clock_ns(clock)?;
    tell(at, &[0, 1])
}

/// Limits: no time zone.
pub fn gettimeofday(_: &mut Frame, &[at, zone, ..]: &Args) -> Answer {
    let now = date::date_ns();
    tell(at, &[now / NS, now % NS / 1000])?;
    tell(zone, &[0])
}

pub fn time(_: &mut Frame, &[at, ..]: &Args) -> Answer {
    let seconds = date::date_ns() / NS;
    tell(at, &[seconds])?;
    Ok(seconds)
}

/// A `struct timespec` in nanoseconds.
fn read_time(at: u64) -> Result<u64, Errno> {
    let [seconds, ns] = usercopy::read_array(at)?;
    refuse!(seconds > i64::MAX as u64 || ns >= NS, EINVAL);
    Ok(seconds.saturating_mul(NS).saturating_add(ns))
}

/// The point in time at the end of a span; none for a null pointer.
pub fn read_timeout(at: u64) -> Result<Option<u64>, Errno> {
    if at == 0 {
        return Ok(None);
    }
    Ok(Some(arch::now_us().saturating_add(read_time(at)?.div_ceil(1000))))
}

pub fn clock_nanosleep(_: &mut Frame, &[clock, flags, at, rest_at, ..]: &Args) -> Answer {
    let (time, now) = (read_time(at)?, clock_ns(clock)?);
    refuse!(flags & !1 != 0 || clock > 11, EINVAL);
    let span = if flags & 1 != 0 { time.saturating_sub(now) } else { time };
    let deadline = arch::now_us().saturating_add(span.div_ceil(1000));
    if sched::block(Wait::Sleep, Some(deadline)) != Woken::Signal {
        return Ok(0);
    }
    if flags & 1 == 0 {
        let rest = deadline.saturating_sub(arch::now_us()).saturating_mul(1000);
        tell(rest_at, &[rest / NS, rest % NS])?;
    }
    Err(Errno::EINTR)
}

/// Every call with a set of signals says how long it is.
pub fn check_set_size(size: u64) -> Result<(), Errno> {
    (size == 8).then_some(()).ok_or(Errno::EINVAL)
}

pub fn rt_sigaction(_: &mut Frame, &[signal, new, old, size, ..]: &Args) -> Answer {
    refuse!(!(1..=u64::from(signal::COUNT)).contains(&signal), EINVAL);
    check_set_size(size)?;
    let signal = signal as u32;
    let before = signal::action(signal);
    if new != 0 {
        let [handler, flags, restorer, mask] = usercopy::read_array(new)?;
        signal::set_action(signal, Action { handler, flags, restorer, mask })?;
    }
    tell(old, &[before.handler, before.flags, before.restorer, before.mask])
}

pub fn rt_sigprocmask(_: &mut Frame, &[how, new, old, size, ..]: &Args) -> Answer {
    check_set_size(size)?;
    let before = sched::with_current(|thread| thread.signals.mask);
    if new != 0 {
        let set = usercopy::read_u64(new)?;
        let mask = match how {
            0 => before | set,
            1 => before & !set,
            2 => set,
            _ => return Err(Errno::EINVAL),
        };
        let mask = mask & !signal::bit(signal::SIGKILL) & !signal::bit(19);
        sched::with_current(|thread| thread.signals.mask = mask);
    }
    tell(old, &[before])
}

pub fn rt_sigreturn(frame: &mut Frame, _: &Args) -> Answer {
    signal::sigreturn(frame)
}

pub fn rt_sigpending(_: &mut Frame, &[at, ..]: &Args) -> Answer {
    usercopy::write_u64(at, signal::pending_set()).map(|()| 0)
}

pub fn rt_sigsuspend(_: &mut Frame, &[at, size, ..]: &Args) -> Answer {
    check_set_size(size)?;
    let mask = usercopy::read_u64(at)? & !signal::bit(signal::SIGKILL);
    signal::set_mask_for_now(mask);
    while sched::block(Wait::Sleep, None) != Woken::Signal {}
    Err(Errno::EINTR)
}

pub fn rt_sigtimedwait(_: &mut Frame, &[set, info, timeout, size, ..]: &Args) -> Answer {
    check_set_size(size)?;
    let wanted = usercopy::read_u64(set)?;
    let deadline = read_timeout(timeout)?;
    loop {
        if let Some(signal) = signal::take(wanted) {
            tell(info, &[u64::from(signal), 0])?;
            return Ok(u64::from(signal));
        }
        match signal::wait_for(wanted, deadline) {
            Woken::Timeout => return Err(Errno::EAGAIN),
            Woken::Signal if signal::pending() => return Err(Errno::EINTR),
            _ => {}
        }
    }
}

pub fn sigaltstack(frame: &mut Frame, &[new, old, ..]: &Args) -> Answer {
    let before = sched::with_current(|thread| thread.signals.stack);
    let inside = frame.stack.wrapping_sub(before.start) < before.size;
    if new != 0 {
        let [start, flags, size] = usercopy::read_array(new)?;
        let enabled = flags as u32 & 2 == 0;
        refuse!(inside, EPERM);
        refuse!(enabled && size < 2048, ENOMEM);
        let stack = if enabled {
            usercopy::check(start, size)?;
            AlternateStack { start, size, enabled }
        } else {
            AlternateStack::default()
        };
        sched::with_current(|thread| thread.signals.stack = stack);
    }
    let flags = if !before.enabled { 2 } else { u64::from(inside) };
    tell(old, &[before.start, flags, before.size])
}

pub fn pause(_: &mut Frame, _: &Args) -> Answer {
    while sched::block(Wait::Sleep, None) != Woken::Signal {}
    Err(Errno::EINTR)
}

/// Limits: the only interval timer.
pub fn alarm(_: &mut Frame, &[seconds, ..]: &Args) -> Answer {
    let left = signal::set_alarm(arch::now_us(), u64::from(seconds as u32));
    arch::arm_timer(0, arch::now_us()); // Looks at the alarms, and sets the timer by them.
    Ok(left)
}

/// Limits: the program itself only.
pub fn kill(_: &mut Frame, &[process, signal, ..]: &Args) -> Answer {
    refuse!(!matches!(process as i32, -1..=1), ESRCH);
    signal::send(None, signal as u32).map(|()| 0)
}

pub fn tgkill(_: &mut Frame, &[process, tid, signal, ..]: &Args) -> Answer {
    refuse!(process != PROCESS, ESRCH);
    signal::send(Some(tid as u32), signal as u32).map(|()| 0)
}
