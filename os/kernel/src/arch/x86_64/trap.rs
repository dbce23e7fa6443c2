//! What the processor does on a trap, and the frame that trap.s leaves for it.

use super::*;

/// A program's registers, in the order in which trap.s leaves them.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Frame {
    /// r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx: as a signal's context has them.
    pub registers: [u64; 15],
    vector: u64,
    /// The processor's error code; for a system call its number.
    pub error: u64,
    pub program_counter: u64,
    code: u64,
    pub flags: u64,
    pub stack: u64,
    data: u64,
}

/// Where a call's answer goes among the registers: rax.
pub const RESULT: usize = 13;
/// rdi, rsi, rdx, r10, r8, r9.
pub const ARGUMENTS: [usize; 6] = [8, 9, 12, 2, 0, 1];
pub const USER_CODE: u64 = 0x23;
pub const USER_DATA: u64 = 0x1b;
/// Flags a program may set: the arithmetic ones, DF, TF, AC, ID.
const USER_FLAGS: u64 = 0x24_0dd5;
const FLAGS_ALWAYS: u64 = 0x202; // Interrupts on, and the bit that is always set.
const SYSCALL_VECTOR: u64 = 256;

impl Frame {
    /// The registers that a program, or a new thread of it, starts with.
    pub fn start(program_counter: u64, stack: u64) -> Frame {
        let mut frame =
            Frame { program_counter, stack, vector: SYSCALL_VECTOR, ..Frame::default() };
        frame.sanitize();
        frame
    }

    pub fn is_user(&self) -> bool {
        self.code & 3 == 3
    }

    /// Forces what would let ring 3 choose more than its own registers.
    pub fn sanitize(&mut self) -> bool {
        self.code = USER_CODE;
        self.data = USER_DATA;
        self.flags = self.flags & USER_FLAGS | FLAGS_ALWAYS;
        self.program_counter < USER_END
    }

    pub fn is_syscall(&self) -> bool {
        self.vector == SYSCALL_VECTOR
    }

    /// Makes the interrupted call run again when the program goes on.
    pub fn restart_syscall(&mut self) {
        self.program_counter -= 2; // The length of the instruction.
        self.registers[RESULT] = self.error;
    }

    pub fn arguments(&self) -> [u64; 6] {
        ARGUMENTS.map(|at| self.registers[at])
    }
}

/// A place for `frame` at the top of a kernel stack, and what to switch to so that it is entered.
pub fn new_stack(top: u64, frame: &Frame) -> u64 {
    extern "C" {
        fn leave_kernel();
    }
    let at = top - core::mem::size_of::<Frame>() as u64;
    // SAFETY: the stack is mapped, belongs to the new thread alone, and is longer than this.
    unsafe {
        *(at as *mut Frame) = *frame;
        let words = (at - 7 * 8) as *mut u64;
        for i in 0..6 {
            *words.add(i) = 0;
        }
        *words.add(6) = leave_kernel as *const () as u64;
    }
    at - 7 * 8
}

const PAGE_FAULT: u64 = 14;
const VECTOR_TIMER: u64 = 0x40;
pub const VECTOR_DEVICE: u8 = 0x41;
const VECTOR_SPURIOUS: u64 = 0xff;

/// What went wrong in ring 3, for the signal that tells the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Memory { address: u64, mapped: bool },
    Instruction,
    Arithmetic,
    Breakpoint,
    Protection,
    Alignment,
}

extern "C" {
    fn user_copy(to: *mut u8, from: *const u8, bytes: usize) -> u64;
    fn user_copy_start();
    fn user_copy_end();
    fn user_copy_failed();
}

/// Copies between kernel and user memory; the caller has checked that the user side lies below
/// [`USER_END`]. False where a page of it is not there or not allowed.
pub fn copy_user(to: *mut u8, from: *const u8, bytes: usize) -> bool {
    // SAFETY: one side is a live kernel slice; faults on the other end the copy.
    unsafe { user_copy(to, from, bytes) == 0 }
}

#[no_mangle]
extern "C" fn trap_handler(frame: &mut Frame) {
    match frame.vector {
        VECTOR_TIMER => {
            clock::acknowledge();
            clock::timer_fired();
        }
        VECTOR_SPURIOUS => {}
        32..=254 => clock::acknowledge(),
        PAGE_FAULT => {
            let address: u64;
            // SAFETY: reading the faulting address has no effect.
            unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack)) };
            page_fault(frame, address);
        }
        vector if frame.is_user() => {
            let fault = match vector {
                0 | 16 | 19 => Fault::Arithmetic,
                1 | 3 => Fault::Breakpoint,
                6 => Fault::Instruction,
                17 => Fault::Alignment,
                _ => Fault::Protection,
            };
            crate::signal::raise_fault(frame, fault);
        }
        vector => panic!(
            "processor exception {vector}, error {:#x}, at {:#x}, stack {:#x}",
            frame.error, frame.program_counter, frame.stack
        ),
    }
    if frame.is_user() {
        crate::sched::before_return(frame);
    }
}

fn page_fault(frame: &mut Frame, address: u64) {
    let access = crate::mm::Access { write: frame.error & 2 != 0, execute: frame.error & 16 != 0 };
    let place = |label: unsafe extern "C" fn()| label as *const () as u64;
    let copying = (place(user_copy_start)..place(user_copy_end)).contains(&frame.program_counter);
    if !frame.is_user() && !copying {
        panic!("page fault in the kernel: {address:#x} touched from {:#x}", frame.program_counter);
    }
    if address < USER_END && crate::mm::space::fault(address, access) {
        return;
    }
    if copying {
        frame.program_counter = place(user_copy_failed);
        return;
    }
    let mapped = frame.error & 1 != 0;
    crate::signal::raise_fault(frame, Fault::Memory { address, mapped });
}

/// Returns 1 where the short way back to ring 3 may be taken.
#[no_mangle]
extern "C" fn syscall_handler(frame: &mut Frame) -> u32 {
    let (at, flags) = (frame.program_counter, frame.flags);
    crate::syscall::dispatch(frame);
    crate::sched::before_return(frame);
    // The processor loads both from rcx and r11; a frame changed by a signal, or one with TF or NT
    // set, takes the long way.
    let same = frame.program_counter == at && frame.flags == flags;
    u32::from(same && at < USER_END && flags & 0x4100 == 0)
}
