//! x86_64: the processor, its descriptor tables, its clocks, and the PC around it.

pub mod abi;
pub mod acpi;
pub mod boot;
mod clock;
pub mod paging;
mod trap;

use alloc::vec::Vec;
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

pub use clock::*;
pub use trap::*;

global_asm!(include_str!("boot.s"), options(att_syntax));
global_asm!(include_str!("trap.s"), options(att_syntax));

/// Marks the ELF files this kernel runs (EM_X86_64) and the name `uname` gives the machine.
pub const ELF_MACHINE: u16 = 62;
pub const MACHINE_NAME: &str = "x86_64";
/// The end of what a program can address: the lower half less one page, so that no instruction
/// can run on past it into an address that is not canonical.
pub const USER_END: u64 = 0x7fff_ffff_f000;

const MSR_EFER: u32 = 0xc000_0080;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;
const MSR_FS_BASE: u32 = 0xc000_0100;
const MSR_GS_BASE: u32 = 0xc000_0101;

/// A value that only the one running processor touches, with interrupts off.
#[repr(transparent)]
struct Lone<T>(UnsafeCell<T>);
// SAFETY: the other processors are never started and the kernel is not preempted.
unsafe impl<T> Sync for Lone<T> {}

/// The instructions on ports, by the size of what they move.
macro_rules! ports {
    ($($size:ty: $read:ident $write:ident $register:tt;)*) => {$(
        pub(crate) fn $read(port: u16) -> $size {
            let value: $size;
            // SAFETY: reading a port of the PC changes no memory.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value,
                    options(nomem, nostack))
            };
            value
        }

        pub(crate) fn $write(port: u16, value: $size) {
            // SAFETY: the ports used in this folder belong to devices that write no memory by it.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                    options(nomem, nostack))
            };
        }
    )*};
}

ports! {
    u8: in8 out8 "al"; u16: in16 out16 "ax"; u32: in32 out32 "eax";
}

fn write_msr(register: u32, value: u64) {
    // SAFETY: only the registers named above are written, with values checked by the callers.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack))
    };
}

fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading the registers named above has no effect.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack))
    };
    u64::from(high) << 32 | u64::from(low)
}

fn cpuid(leaf: u32, sub: u32) -> core::arch::x86_64::CpuidResult {
    if core::arch::x86_64::__cpuid(leaf & 0x8000_0000).eax < leaf {
        return core::arch::x86_64::CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    }
    core::arch::x86_64::__cpuid_count(leaf, sub)
}

// The segments of trap.s and of STAR below.
const KERNEL_CODE: u16 = 0x08;
const TSS_SELECTOR: u16 = 0x28;

/// The task state segment, in words of 32 bits: where it keeps ring 0's stack, and the first of
/// the interrupts' own.
const TASK_WORDS: usize = 26;
const TASK_STACK: usize = 1;
const TASK_INTERRUPT_STACK: usize = 9;

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

#[repr(C, align(16))]
struct Tables {
    gdt: [u64; 7],
    idt: [[u64; 2]; 256],
    task: [u32; TASK_WORDS],
}

impl Tables {
    fn set_stack(&mut self, word: usize, top: u64) {
        self.task[word] = top as u32;
        self.task[word + 1] = (top >> 32) as u32;
    }
}

/// The double fault's own stack: the usual cause is that a kernel stack ran into its guard page.
#[repr(C, align(16))]
struct EmergencyStack([u8; 8192]);

static EMERGENCY_STACK: Lone<EmergencyStack> = Lone(UnsafeCell::new(EmergencyStack([0; 8192])));
static TABLES: Lone<Tables> =
    Lone(UnsafeCell::new(Tables { gdt: [0; 7], idt: [[0; 2]; 256], task: [0; TASK_WORDS] }));
/// Code and data of ring 0, data and code of ring 3.
const SEGMENTS: [u64; 4] =
    [0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];

extern "C" {
    static trap_stubs_address: u64;
    static mut kernel_rsp: u64;
    static mut smap_enabled: u64;
    fn syscall_entry();
    fn switch_stacks(save: *mut u64, load: u64);
}

/// What the processor offers of what the kernel uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    pub smep: bool,
    pub smap: bool,
    pub umip: bool,
    pub rdrand: bool,
    /// Bits of XCR0; 0 where only FXSAVE is there.
    pub vector_state: u64,
    pub vector_bytes: usize,
}

static FEATURES: Lone<Option<Features>> = Lone(UnsafeCell::new(None));

pub fn features() -> Features {
    // SAFETY: written once, by init_cpu, before anything else runs.
    unsafe { (*FEATURES.0.get()).unwrap_or_default() }
}

/// Loads the descriptor tables and switches on what the processor has for isolation.
pub fn init_cpu() {
    // SAFETY: runs once, before the first interrupt or ring-3 instruction; the tables are static.
    unsafe {
        let tables = &mut *TABLES.0.get();
        let task = core::ptr::addr_of!(tables.task) as u64;
        let limit = TASK_WORDS as u64 * 4 - 1;
        tables.gdt[1..5].copy_from_slice(&SEGMENTS);
        tables.gdt[5] = limit | (task & 0xff_ffff) << 16 | 0x89 << 40 | (task >> 24 & 0xff) << 56;
        tables.gdt[6] = task >> 32;
        tables.set_stack(TASK_INTERRUPT_STACK, EMERGENCY_STACK.0.get() as u64 + 8192);
        tables.task[TASK_WORDS - 1] = 0xffff_0000; // No port is open to ring 3.
        for vector in 0..256u64 {
            let stub = trap_stubs_address + vector * 16;
            // Interrupt gates, entered with interrupts off; the double fault and the
            // non-maskable interrupt on their own stack. No gate can be called from ring 3.
            let stack = if vector == 8 || vector == 2 { 1 } else { 0 };
            tables.idt[vector as usize] = [
                stub & 0xffff
                    | u64::from(KERNEL_CODE) << 16
                    | stack << 32
                    | 0x8e << 40
                    | (stub >> 16 & 0xffff) << 48,
                stub >> 32,
            ];
        }
        let gdt = TablePointer { limit: 55, base: tables.gdt.as_ptr() as u64 };
        let idt = TablePointer { limit: 4095, base: tables.idt.as_ptr() as u64 };
        asm!(
            "lgdt [{gdt}]", "lidt [{idt}]",
            "push 8", "lea {scratch}, [rip + 2f]", "push {scratch}", "retfq",
            "2:", "mov ss, {zero:e}", "ltr {task:x}",
            gdt = in(reg) &gdt, idt = in(reg) &idt, scratch = out(reg) _,
            zero = in(reg) 0, task = in(reg) TSS_SELECTOR,
        );
    }
    write_msr(MSR_EFER, read_msr(MSR_EFER) | 1);
    write_msr(MSR_STAR, 0x10 << 48 | u64::from(KERNEL_CODE) << 32);
    write_msr(MSR_LSTAR, syscall_entry as *const () as u64);
    // Cleared on entry: TF, IF, DF, IOPL, NT, AC.
    write_msr(MSR_SFMASK, 0x4_7700);
    let (one, seven) = (cpuid(1, 0), cpuid(7, 0));
    let mut found = Features {
        smep: seven.ebx & 1 << 7 != 0,
        smap: seven.ebx & 1 << 20 != 0,
        umip: seven.ecx & 1 << 2 != 0,
        rdrand: one.ecx & 1 << 30 != 0,
        vector_state: 0,
        vector_bytes: 512,
    };
    let mut control = 1 << 9 | 1 << 10 | 1 << 5 | 1 << 7; // OSFXSR, OSXMMEXCPT, PAE, PGE
    control |= u64::from(found.umip) << 11 | u64::from(found.smep) << 20;
    control |= u64::from(found.smap) << 21;
    let xsave = one.ecx & 1 << 26 != 0;
    control |= u64::from(xsave) << 18;
    // SAFETY: only bits whose features the processor reported are set; SMAP's flag is read by
    // user_copy alone.
    unsafe {
        asm!("mov cr4, {}", in(reg) control, options(nostack));
        // Native x87 errors, write protection, paging; neither emulation nor lazy switching.
        let mut cr0: u64;
        asm!("mov {}, cr0", out(reg) cr0, options(nostack));
        cr0 = (cr0 | 1 << 5 | 1 << 16 | 1 << 1) & !(1 << 2 | 1 << 3 | 1 << 29 | 1 << 30);
        asm!("mov cr0, {}", in(reg) cr0, options(nostack));
        smap_enabled = u64::from(found.smap);
        if xsave {
            let offered = cpuid(13, 0);
            // x87, SSE, AVX, and the three parts of AVX-512 only together.
            let mut state = u64::from(offered.eax) & 0xe7;
            if state & 0xe0 != 0xe0 || state & 4 == 0 {
                state &= 7;
            }
            found.vector_state = state;
            asm!("xsetbv", in("ecx") 0, in("eax") state as u32, in("edx") 0, options(nostack));
            found.vector_bytes = cpuid(13, 0).ebx as usize;
        }
        *FEATURES.0.get() = Some(found);
    }
}

/// Where traps from ring 3 put their frame: the top of the running thread's kernel stack.
pub fn set_kernel_stack(top: u64) {
    // SAFETY: `top` is the end of a mapped stack; both copies are read by hardware and trap.s only.
    unsafe {
        kernel_rsp = top;
        (*TABLES.0.get()).set_stack(TASK_STACK, top);
    }
}

/// Leaves this kernel stack for another; comes back when a switch loads what went to `save`.
pub fn switch_to(save: &core::cell::Cell<u64>, load: u64) {
    // SAFETY: `load` was saved by this function or made by `new_stack`, and nobody else runs on it.
    unsafe { switch_stacks(save.as_ptr(), load) };
}

/// Leaves this kernel stack for good.
pub fn leave_for(load: u64) {
    static NOBODY: Lone<u64> = Lone(UnsafeCell::new(0));
    // SAFETY: as above; what is saved is never loaded.
    unsafe { switch_stacks(NOBODY.0.get(), load) };
}

pub fn set_thread_pointers(fs: u64, gs: u64) {
    write_msr(MSR_FS_BASE, fs);
    write_msr(MSR_GS_BASE, gs);
}

/// Waits for an interrupt; the caller looks at the devices afterwards.
pub fn wait_for_interrupt() {
    // SAFETY: the interrupt handlers only acknowledge while the kernel runs; "sti; hlt" is one
    // step for the processor, so that no interrupt is missed between the two.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Stops for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off nothing runs any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// One random word of the processor; `None` where it has none to give.
pub fn hardware_random() -> Option<u64> {
    if !features().rdrand {
        return None;
    }
    // Ten tries are what the maker asks for before the source counts as broken.
    for _ in 0..10 {
        let (value, ok): (u64, u8);
        // SAFETY: the processor reported the instruction.
        unsafe {
            asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) ok, options(nomem, nostack))
        };
        if ok != 0 {
            return Some(value);
        }
    }
    None
}

/// A thread's vector and floating-point registers, in the processor's own layout.
#[repr(C, align(64))]
struct VectorBlock([u8; 64]);

pub struct VectorState {
    blocks: Vec<VectorBlock>,
}

impl VectorState {
    /// The state that a program starts with.
    pub fn new() -> VectorState {
        let count = features().vector_bytes.div_ceil(64);
        let mut state = VectorState { blocks: (0..count).map(|_| VectorBlock([0; 64])).collect() };
        let bytes = state.bytes_mut();
        bytes[..2].copy_from_slice(&0x037fu16.to_le_bytes());
        bytes[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        state
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the blocks lie one after the other without padding.
        unsafe { core::slice::from_raw_parts(self.blocks.as_ptr().cast(), self.blocks.len() * 64) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let length = self.blocks.len() * 64;
        // SAFETY: as above, and borrowed alone.
        unsafe { core::slice::from_raw_parts_mut(self.blocks.as_mut_ptr().cast(), length) }
    }

    pub fn save(&mut self) {
        let (features, at) = (features(), self.blocks.as_mut_ptr());
        // SAFETY: the area is 64-byte aligned and as long as CPUID asked for.
        unsafe {
            if features.vector_state != 0 {
                asm!("xsave64 [{}]", in(reg) at, in("eax") u32::MAX, in("edx") u32::MAX,
                    options(nostack));
            } else {
                asm!("fxsave64 [{}]", in(reg) at, options(nostack));
            }
        }
    }

    pub fn load(&self) {
        let (features, at) = (features(), self.blocks.as_ptr());
        // SAFETY: the area was written by `save`, `new` or `sanitize`: every reserved bit is clear.
        unsafe {
            if features.vector_state != 0 {
                asm!("xrstor64 [{}]", in(reg) at, in("eax") u32::MAX, in("edx") u32::MAX,
                    options(nostack));
            } else {
                asm!("fxrstor64 [{}]", in(reg) at, options(nostack));
            }
        }
    }

    /// Clears everything in an area from ring 3 that the processor would refuse to load.
    pub fn sanitize(&mut self) {
        let known = features().vector_state;
        let bytes = self.bytes_mut();
        bytes[26..28].fill(0); // MXCSR has 16 bits.
        if known != 0 {
            let mut present = [0; 8];
            present.copy_from_slice(&bytes[512..520]);
            let present = u64::from_le_bytes(present) & known;
            bytes[512..520].copy_from_slice(&present.to_le_bytes());
            bytes[520..576].fill(0);
        }
    }
}

/// Reads a word of a PCI function's configuration space.
pub fn pci_read(bus: u8, device: u8, function: u8, offset: u8) -> u32 {
    out32(0xcf8, pci_address(bus, device, function, offset));
    in32(0xcfc)
}

pub fn pci_write(bus: u8, device: u8, function: u8, offset: u8, value: u32) {
    out32(0xcf8, pci_address(bus, device, function, offset));
    out32(0xcfc, value);
}

fn pci_address(bus: u8, device: u8, function: u8, offset: u8) -> u32 {
    let place = u32::from(bus) << 16 | u32::from(device) << 11 | u32::from(function) << 8;
    0x8000_0000 | place | u32::from(offset & 0xfc)
}

const SERIAL: u16 = 0x3f8;

pub fn serial_init() {
    // No interrupts, 115,200 bits in a second, eight to a byte, queues on.
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
        out8(SERIAL + register, value);
    }
}

pub fn serial_write(byte: u8) {
    // A line that never becomes free (no device) must not stop the kernel; and asking without a
    // pause would keep an emulated line's own thread from its work.
    for _ in 0..1_000 {
        if in8(SERIAL + 5) & 0x20 != 0 {
            break;
        }
        busy_wait_us(20);
    }
    out8(SERIAL, byte);
}

/// Reads QEMU's configuration device: the named file, if there is one and it fits.
pub fn firmware_file(name: &str, limit: usize) -> Option<Vec<u8>> {
    const SELECT: u16 = 0x510;
    const DATA: u16 = 0x511;
    let bytes = |count: usize| (0..count).map(|_| in8(DATA)).collect::<Vec<u8>>();
    let word = |bytes: &[u8]| bytes.iter().fold(0, |sum, b| sum << 8 | usize::from(*b));
    out16(SELECT, 0);
    if bytes(4) != b"QEMU" {
        return None;
    }
    out16(SELECT, 0x19);
    for _ in 0..word(&bytes(4)).min(1024) {
        let entry = bytes(64);
        let (size, end) = (word(&entry[..4]), entry[8..].iter().position(|b| *b == 0));
        if &entry[8..8 + end.unwrap_or(56)] == name.as_bytes() && size <= limit {
            out16(SELECT, word(&entry[4..6]) as u16);
            return Some(bytes(size));
        }
    }
    None
}

/// Starts the machine again: by the keyboard controller, else by a triple fault.
pub fn reboot() -> ! {
    out8(0x64, 0xfe);
    busy_wait_us(100_000);
    let nothing = TablePointer { limit: 0, base: 0 };
    // SAFETY: the fault without a table to serve it resets the processor: what is wanted.
    unsafe { asm!("lidt [{}]", "int3", in(reg) &nothing) };
    halt()
}
