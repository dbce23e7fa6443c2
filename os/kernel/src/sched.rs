//! Threads, and which of them runs. Ring 3 is preempted; the kernel itself only gives the
//! processor away where a call waits.

use crate::arch::{self, Frame, VectorState};
use crate::mm::{self, Global};
use crate::syscall::{refuse, Errno};
use crate::{log, network, signal};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;

/// Threads of the program: eight times the largest thread pool that it starts.
pub const MAX_THREADS: usize = 256;
/// How long a thread runs while others wait.
const SLICE_US: u64 = 4_000;
/// The longest sleep of the processor: the power button is looked at this often.
const HOUSEKEEPING_US: u64 = 100_000;

pub type Tid = u32;
pub const FIRST_TID: Tid = 1;

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    Futex {
        address: u64,
        mask: u32,
    },
    /// The object of that number, see `files`.
    Object(u64),
    /// Any object.
    Poll,
    /// Only its deadline or a signal.
    Sleep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    Event,
    Timeout,
    Signal,
}

pub struct Thread {
    slot: u64,
    stack_top: u64,
    saved: Rc<Cell<u64>>,
    pub vector: VectorState,
    pub fs: u64,
    pub gs: u64,
    wait: Option<Wait>,
    deadline: Option<u64>,
    woken: Woken,
    /// Cleared and woken when the thread ends.
    pub clear_tid: u64,
    pub signals: signal::ThreadSignals,
}

struct Scheduler {
    threads: BTreeMap<Tid, Box<Thread>>,
    ready: VecDeque<Tid>,
    current: Tid,
    next_tid: Tid,
    free_slots: Vec<u64>,
    /// Ended threads whose stack could not be given back while they ran on it.
    dead: Vec<Box<Thread>>,
    slice_end: u64,
    switch_wanted: bool,
    housekeeping_us: u64,
    /// Microseconds without anything to run.
    idle_us: u64,
}

static SCHEDULER: Global<Scheduler> = Global::new(Scheduler {
    threads: BTreeMap::new(),
    ready: VecDeque::new(),
    current: 0,
    next_tid: FIRST_TID,
    free_slots: Vec::new(),
    dead: Vec::new(),
    slice_end: 0,
    switch_wanted: false,
    housekeeping_us: 0,
    idle_us: 0,
});

pub fn current() -> Tid {
    SCHEDULER.get().current
}

pub fn idle_us() -> u64 {
    SCHEDULER.get().idle_us
}

/// Runs `f` on the running thread.
pub fn with_current<T>(f: impl FnOnce(&mut Thread) -> T) -> T {
    let mut scheduler = SCHEDULER.get();
    let current = scheduler.current;
    f(scheduler.threads.get_mut(&current).expect("the running thread is in the table"))
}

pub fn thread_ids() -> Vec<Tid> {
    SCHEDULER.get().threads.keys().copied().collect()
}

/// Runs `f` on a thread, if there is one of that number.
pub fn with_thread<T>(tid: Tid, f: impl FnOnce(&mut Thread) -> T) -> Option<T> {
    SCHEDULER.get().threads.get_mut(&tid).map(|thread| f(thread))
}

/// Makes a thread that enters ring 3 by `frame`.
pub fn spawn(frame: &Frame, fs: u64, signals: signal::ThreadSignals) -> Result<Tid, Errno> {
    reap();
    let mut scheduler = SCHEDULER.get();
    refuse!(scheduler.threads.len() >= MAX_THREADS || mm::frames::available() < 64, EAGAIN);
    if scheduler.next_tid == FIRST_TID {
        scheduler.free_slots = (0..MAX_THREADS as u64 + 1).rev().collect();
    }
    let slot = scheduler.free_slots.pop().ok_or(Errno::EAGAIN)?;
    let Some(stack_top) = mm::map_stack(slot) else {
        scheduler.free_slots.push(slot);
        return Err(Errno::EAGAIN);
    };
    let tid = scheduler.next_tid;
    scheduler.next_tid += 1;
    let mut vector = VectorState::new();
    if scheduler.current != 0 {
        vector.save(); // A new thread inherits its maker's control words.
    }
    let thread = Thread {
        slot,
        stack_top,
        saved: Rc::new(Cell::new(arch::new_stack(stack_top, frame))),
        vector,
        fs,
        gs: 0,
        wait: None,
        deadline: None,
        woken: Woken::Event,
        clear_tid: 0,
        signals,
    };
    scheduler.threads.insert(tid, Box::new(thread));
    scheduler.ready.push_back(tid);
    scheduler.want_switch();
    Ok(tid)
}

impl Scheduler {
    /// Somebody waits for the processor: see to it that the slice ends.
    fn want_switch(&mut self) {
        if self.current != 0 {
            arch::arm_timer(self.slice_end, arch::now_us());
        }
    }

    fn make_ready(&mut self, tid: Tid, woken: Woken) {
        let Some(thread) = self.threads.get_mut(&tid) else { return };
        if thread.wait.take().is_some() {
            thread.woken = woken;
            thread.deadline = None;
            self.ready.push_back(tid);
            self.want_switch();
        }
    }

    /// Wakes up to `limit` threads for which `test` holds, oldest first; returns how many.
    fn make_all_ready(
        &mut self,
        limit: usize,
        test: impl Fn(&Thread) -> bool,
        woken: Woken,
    ) -> usize {
        let wanted = self.threads.iter().filter(|(_, thread)| test(thread)).take(limit);
        let found: Vec<Tid> = wanted.map(|(tid, _)| *tid).collect();
        found.iter().for_each(|tid| self.make_ready(*tid, woken));
        found.len()
    }
}

/// Waits until woken, until `deadline_us`, or until a signal must be delivered.
pub fn block(wait: Wait, deadline_us: Option<u64>) -> Woken {
    if signal::pending() {
        return Woken::Signal;
    }
    if deadline_us.is_some_and(|deadline| deadline <= arch::now_us()) {
        return Woken::Timeout;
    }
    with_current(|thread| {
        thread.wait = Some(wait);
        thread.deadline = deadline_us;
    });
    switch_away();
    with_current(|thread| thread.woken)
}

/// Repeats `attempt` for as long as it answers EAGAIN and may wait; between, waits.
pub fn retry<T>(
    wait: Wait,
    may_wait: bool,
    mut attempt: impl FnMut() -> Result<T, Errno>,
) -> Result<T, Errno> {
    loop {
        match attempt() {
            Err(Errno::EAGAIN) if may_wait => {}
            result => return result,
        }
        if block(wait, None) == Woken::Signal {
            with_current(|thread| thread.signals.restartable = true);
            return Err(Errno::EINTR);
        }
    }
}

/// Wakes up to `limit` threads for which `matches` holds, oldest first; returns how many.
pub fn wake(limit: usize, matches: impl Fn(&Wait) -> bool) -> usize {
    let mut scheduler = SCHEDULER.get();
    let waits = |thread: &Thread| thread.wait.as_ref().is_some_and(&matches);
    scheduler.make_all_ready(limit, waits, Woken::Event)
}

/// Wakes a thread so that it takes its signal.
pub fn interrupt(tid: Tid) {
    SCHEDULER.get().make_ready(tid, Woken::Signal);
}

pub fn yield_now() {
    {
        let mut scheduler = SCHEDULER.get();
        if scheduler.ready.is_empty() {
            return;
        }
        let current = scheduler.current;
        scheduler.ready.push_back(current);
    }
    switch_away();
}

/// Gives the processor to the next ready thread, and waits with the processor asleep where none
/// is. Returns when the calling thread runs again.
fn switch_away() {
    let next = next_ready();
    let switch = {
        let mut scheduler = SCHEDULER.get();
        scheduler.slice_end = arch::now_us() + SLICE_US;
        scheduler.switch_wanted = false;
        if !scheduler.ready.is_empty() {
            scheduler.want_switch();
        }
        let old = core::mem::replace(&mut scheduler.current, next);
        if old == next {
            return;
        }
        let save = scheduler.threads.get_mut(&old).map(|thread| {
            thread.vector.save();
            thread.saved.clone()
        });
        let thread = &scheduler.threads[&next];
        thread.vector.load();
        arch::set_thread_pointers(thread.fs, thread.gs);
        arch::set_kernel_stack(thread.stack_top);
        (save, thread.saved.get())
    };
    match switch {
        (Some(save), load) => arch::switch_to(&save, load),
        (None, load) => arch::leave_for(load),
    }
    reap();
}

fn next_ready() -> Tid {
    let mut idle_since = None;
    loop {
        let next = SCHEDULER.get().ready.pop_front();
        if let Some(next) = next {
            if let Some(since) = idle_since {
                SCHEDULER.get().idle_us += arch::now_us() - since;
            }
            return next;
        }
        service();
        if SCHEDULER.get().ready.is_empty() {
            idle_since = idle_since.or_else(|| Some(arch::now_us()));
            arch::wait_for_interrupt();
            service();
        }
    }
}

fn reap() {
    let dead = core::mem::take(&mut SCHEDULER.get().dead);
    for thread in dead {
        mm::unmap_stack(thread.slot);
        SCHEDULER.get().free_slots.push(thread.slot);
    }
}

/// Starts the first thread; the boot stack is left behind.
pub fn run() -> ! {
    switch_away();
    unreachable!("the boot stack was left")
}

/// Ends the running thread, and the program with the last one.
pub fn exit_thread(status: i32) -> ! {
    let clear = with_current(|thread| thread.clear_tid);
    if clear != 0 && crate::usercopy::write_u32(clear, 0).is_ok() {
        wake(1, |wait| matches!(wait, Wait::Futex { address, .. } if *address == clear));
    }
    if SCHEDULER.get().threads.len() == 1 {
        exit_program(status);
    }
    let mut scheduler = SCHEDULER.get();
    let current = scheduler.current;
    let thread = scheduler.threads.remove(&current);
    scheduler.dead.extend(thread);
    drop(scheduler);
    switch_away();
    unreachable!("an ended thread ran again")
}

/// Looks after everything that happens by itself: frames, timers, the power button.
pub fn service() {
    let now = arch::now_us();
    let mut next = network::service(now).unwrap_or(u64::MAX).min(signal::run_alarm(now));
    let mut scheduler = SCHEDULER.get();
    let due = |thread: &Thread| thread.deadline.is_some_and(|deadline| deadline <= now);
    scheduler.make_all_ready(usize::MAX, due, Woken::Timeout);
    for thread in scheduler.threads.values() {
        next = next.min(thread.deadline.unwrap_or(u64::MAX));
    }
    if !scheduler.ready.is_empty() {
        scheduler.switch_wanted |= scheduler.slice_end <= now;
        next = next.min(scheduler.slice_end.max(now + 1));
    }
    let housekeeping = scheduler.housekeeping_us <= now;
    if housekeeping {
        scheduler.housekeeping_us = now + HOUSEKEEPING_US;
    }
    next = next.min(scheduler.housekeeping_us);
    drop(scheduler);
    if housekeeping {
        crate::time::discipline(now);
        if arch::acpi::power_button() {
            signal::power_button(now);
        }
        signal::check_drain(now);
    }
    arch::arm_timer(next, arch::now_us());
}

/// Called on every way back to ring 3.
pub fn before_return(frame: &mut Frame) {
    if !frame.is_syscall() {
        service();
    }
    if SCHEDULER.get().switch_wanted {
        SCHEDULER.get().switch_wanted = false;
        yield_now();
    }
    signal::deliver(frame);
}

/// The program ended by itself.
pub fn exit_program(status: i32) -> ! {
    log!("program ended with status {status}");
    power_off()
}

/// The kernel ends the program.
pub fn end_program(reason: &str, status: i32) -> ! {
    crate::error!("program killed (status {status}): {reason}");
    power_off()
}

fn power_off() -> ! {
    let found = arch::paging::audit();
    log!(
        "page tables: {} user and {} kernel pages in {} tables, {} writable and executable, {} \
         kernel pages open to the program",
        found.user_pages,
        found.kernel_pages,
        found.tables,
        found.writable_and_executable,
        found.kernel_open_to_user
    );
    let heap = mm::trim();
    let (free, total) = mm::frames::count();
    let left = network::look(|stack| stack.statistics().sockets);
    let faults = mm::space::faults();
    log!("memory: {free} of {total} frames free, {heap} in the heap, {faults} faults, {left} sockets");
    log!("power off");
    arch::acpi::power_off()
}
