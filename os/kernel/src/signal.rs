//! Signals as far as the program uses them: faults, SIGTERM from the power button, and those that
//! it sends to itself.

use crate::arch::{abi, Fault, Frame, RESULT};
use crate::log;
use crate::mm::Global;
use crate::sched::{self, Tid};
use crate::syscall::{refuse, Answer, Errno};

pub const SIGILL: u32 = 4;
pub const SIGTRAP: u32 = 5;
pub const SIGBUS: u32 = 7;
pub const SIGFPE: u32 = 8;
pub const SIGKILL: u32 = 9;
pub const SIGSEGV: u32 = 11;
pub const SIGPIPE: u32 = 13;
pub const SIGALRM: u32 = 14;
pub const SIGTERM: u32 = 15;
const SIGSTOP: u32 = 19;
/// SIGCHLD, SIGCONT, SIGURG, SIGWINCH do nothing by themselves.
const IGNORED: u64 = bit(17) | bit(18) | bit(23) | bit(28);
pub const COUNT: u32 = 64;

const SA_ONSTACK: u64 = 0x0800_0000;
const SA_RESTART: u64 = 0x1000_0000;
const SA_NODEFER: u64 = 0x4000_0000;
const SA_RESETHAND: u64 = 0x8000_0000;
const SA_RESTORER: u64 = 0x0400_0000;
const IGNORE: u64 = 1;

pub const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

#[derive(Clone, Copy, Default)]
pub struct Action {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct AlternateStack {
    pub start: u64,
    pub size: u64,
    pub enabled: bool,
}

/// A new thread has its maker's mask and nothing else.
#[derive(Clone, Copy, Default)]
pub struct ThreadSignals {
    pub mask: u64,
    pub pending: u64,
    /// The mask to go back to after a call that changed it for its own time.
    pub saved_mask: Option<u64>,
    pub stack: AlternateStack,
    /// The call that a signal interrupts may run again.
    pub restartable: bool,
}

struct Process {
    actions: [Action; COUNT as usize + 1],
    pending: u64,
    /// Set by the power button; after this long the machine goes off without the program.
    deadline_us: Option<u64>,
    /// When `alarm` sends its signal.
    alarm_us: Option<u64>,
}

const NO_ACTION: Action = Action { handler: 0, flags: 0, restorer: 0, mask: 0 };
static PROCESS: Global<Process> = Global::new(Process {
    actions: [NO_ACTION; 65],
    pending: 0,
    deadline_us: None,
    alarm_us: None,
});

/// Time that the program has after the power button to finish its answers.
const DRAIN_US: u64 = 30_000_000;

pub fn action(signal: u32) -> Action {
    PROCESS.get().actions[signal as usize]
}

pub fn set_action(signal: u32, action: Action) -> Result<(), Errno> {
    refuse!(signal == SIGKILL || signal == SIGSTOP, EINVAL);
    PROCESS.get().actions[signal as usize] = action;
    Ok(())
}

/// The signals that wait for the running thread, those that it blocks too, and its mask.
fn waiting() -> (u64, u64) {
    let shared = PROCESS.get().pending;
    sched::with_current(|thread| (thread.signals.pending | shared, thread.signals.mask))
}

/// Whether the running thread has a signal to take.
pub fn pending() -> bool {
    let (waiting, mask) = waiting();
    waiting & !mask & !ignored_now(waiting & !mask) != 0
}

/// Takes the first waiting signal of a set away.
pub fn take(set: u64) -> Option<u32> {
    let wanted = waiting().0 & set;
    let signal = (1..=COUNT).find(|signal| wanted & bit(*signal) != 0)?;
    PROCESS.get().pending &= !bit(signal);
    sched::with_current(|thread| thread.signals.pending &= !bit(signal));
    Some(signal)
}

fn ignored_now(signals: u64) -> u64 {
    let process = PROCESS.get();
    let ignored = |signal: &u32| {
        let handler = process.actions[*signal as usize].handler;
        handler == IGNORE || handler == 0 && IGNORED & bit(*signal) != 0
    };
    let each = (1..=COUNT).filter(|signal| signals & bit(*signal) != 0).filter(ignored);
    each.fold(0, |all, signal| all | bit(signal))
}

/// What waits because it is blocked.
pub fn pending_set() -> u64 {
    let (waiting, mask) = waiting();
    waiting & mask
}

/// To one thread, or to the program where `tid` is `None`. Signal 0 only asks for the thread.
pub fn send(tid: Option<Tid>, signal: u32) -> Result<(), Errno> {
    refuse!(signal > COUNT, EINVAL);
    let set = if signal == 0 { 0 } else { bit(signal) };
    let targets = match tid {
        Some(tid) => {
            let sent = sched::with_thread(tid, |thread| thread.signals.pending |= set);
            sent.ok_or(Errno::ESRCH)?;
            alloc::vec![tid]
        }
        None => {
            PROCESS.get().pending |= set;
            sched::thread_ids()
        }
    };
    // The first thread that lets it through is enough.
    let open = |tid: &Tid| sched::with_thread(*tid, |t| t.signals.mask & set == 0) == Some(true);
    let target = targets.into_iter().find(open);
    if let Some(target) = target.filter(|_| set & !ignored_now(set) != 0) {
        sched::interrupt(target);
    }
    Ok(())
}

/// The first press asks the program to end; it has [`DRAIN_US`] for it.
pub fn power_button(now_us: u64) {
    if PROCESS.get().deadline_us.is_some() {
        sched::end_program("power button pressed twice", 128 + SIGTERM as i32);
    }
    log!("power button: asking the program to end");
    PROCESS.get().deadline_us = Some(now_us + DRAIN_US);
    let _ = send(None, SIGTERM);
}

/// Sets or, with nought, forgets the alarm; answers the seconds that were left of the last one.
pub fn set_alarm(now_us: u64, seconds: u64) -> u64 {
    let alarm = (seconds > 0).then(|| now_us + seconds * 1_000_000);
    let before = core::mem::replace(&mut PROCESS.get().alarm_us, alarm);
    before.map_or(0, |at| at.saturating_sub(now_us).div_ceil(1_000_000).max(1))
}

/// Sends a due alarm; answers when the next one is.
pub fn run_alarm(now_us: u64) -> u64 {
    let due = PROCESS.get().alarm_us.take_if(|at| *at <= now_us).is_some();
    if due {
        let _ = send(None, SIGALRM);
    }
    PROCESS.get().alarm_us.unwrap_or(u64::MAX)
}

/// Ends a program that did not end after the power button.
pub fn check_drain(now_us: u64) {
    let deadline = PROCESS.get().deadline_us;
    if deadline.is_some_and(|deadline| deadline <= now_us) {
        sched::end_program("did not end after the power button", 128 + SIGTERM as i32);
    }
}

/// A fault of the running thread. Where it cannot take the signal, the program ends here.
pub fn raise_fault(frame: &mut Frame, fault: Fault) {
    let (signal, code, address) = match fault {
        Fault::Memory { address, mapped } => (SIGSEGV, if mapped { 2 } else { 1 }, address),
        Fault::Instruction => (SIGILL, 2, frame.program_counter),
        Fault::Arithmetic => (SIGFPE, 1, frame.program_counter),
        Fault::Breakpoint => (SIGTRAP, 1, frame.program_counter),
        Fault::Alignment => (SIGBUS, 1, 0),
        Fault::Protection => (SIGSEGV, 128, 0),
    };
    let action = action(signal);
    let blocked = sched::with_current(|t| t.signals.mask & bit(signal) != 0);
    if action.handler <= IGNORE || blocked {
        let (at, stack) = (frame.program_counter, frame.stack);
        let text = alloc::format!("{fault:x?} at {at:#x}, stack {stack:#x}");
        sched::end_program(&text, 128 + signal as i32);
    }
    enter_handler(frame, signal, action, code, address);
}

/// Takes the signals that wait, on the way back to ring 3.
pub fn deliver(frame: &mut Frame) {
    let state = sched::with_current(|thread| thread.signals);
    let restart = frame.is_syscall() && state.restartable;
    let mut taken = false;
    while let Some(signal) = take(!state.mask) {
        taken = true;
        if ignored_now(bit(signal)) != 0 {
            continue;
        }
        let action = action(signal);
        if action.handler == 0 {
            let text = alloc::format!("signal {signal}");
            sched::end_program(&text, 128 + signal as i32);
        }
        if restart && action.flags & SA_RESTART != 0 {
            frame.restart_syscall();
        }
        sched::with_current(|thread| thread.signals.restartable = false);
        return enter_handler(frame, signal, action, 0, 0);
    }
    if restart && taken {
        frame.restart_syscall(); // Interrupted by a signal that nobody wanted.
    }
    sched::with_current(|thread| thread.signals.restartable = false);
    restore_mask();
}

fn enter_handler(frame: &mut Frame, signal: u32, action: Action, code: i32, address: u64) {
    let (old_mask, stack) = sched::with_current(|thread| {
        let signals = &mut thread.signals;
        let old = signals.saved_mask.take().unwrap_or(signals.mask);
        signals.mask |= action.mask;
        if action.flags & SA_NODEFER == 0 {
            signals.mask |= bit(signal);
        }
        (old, signals.stack)
    });
    let on_stack = frame.stack.wrapping_sub(stack.start) < stack.size;
    let alternate = action.flags & SA_ONSTACK != 0 && stack.enabled && !on_stack;
    let top = if alternate { stack.start + stack.size } else { frame.stack };
    if action.flags & SA_RESETHAND != 0 {
        let _ = set_action(signal, NO_ACTION);
    }
    let info = abi::SignalInfo { signal, code, address, old_mask, stack };
    let returns = action.flags & SA_RESTORER != 0;
    if !returns || abi::push_signal_frame(frame, top, &info, &action).is_none() {
        sched::end_program("no room on the stack for a signal", 128 + SIGSEGV as i32);
    }
}

/// Goes back to where a signal interrupted the thread. Nothing in the frame is trusted.
pub fn sigreturn(frame: &mut Frame) -> Answer {
    let Some(mask) = abi::pop_signal_frame(frame) else {
        sched::end_program("a damaged signal frame", 128 + SIGSEGV as i32);
    };
    sched::with_current(|thread| {
        thread.signals.mask = mask & !bit(SIGKILL) & !bit(SIGSTOP);
        thread.signals.restartable = false;
    });
    Ok(frame.registers[RESULT])
}

/// Sets a mask until the call that asked for it has been answered.
pub fn set_mask_for_now(mask: u64) {
    sched::with_current(|thread| {
        thread.signals.saved_mask = Some(thread.signals.mask);
        thread.signals.mask = mask;
    });
}

pub fn restore_mask() {
    sched::with_current(|thread| {
        thread.signals.mask = thread.signals.saved_mask.take().unwrap_or(thread.signals.mask);
    });
}

/// Waits for a signal, those of `set` included though they are blocked.
pub fn wait_for(set: u64, deadline_us: Option<u64>) -> sched::Woken {
    let mask = sched::with_current(|thread| {
        let mask = thread.signals.mask;
        thread.signals.mask &= !set;
        mask
    });
    let woken = sched::block(sched::Wait::Sleep, deadline_us);
    sched::with_current(|thread| thread.signals.mask = mask);
    woken
}
