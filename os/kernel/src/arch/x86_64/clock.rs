//! The time stamp counter as the clock, the local APIC's timer as the alarm, and the date from
//! the CMOS clock.

use super::*;
use crate::mm;

const APIC_BASE: u64 = 0xfee0_0000;
const APIC_EOI: usize = 0xb0;
const APIC_SPURIOUS: usize = 0xf0;
const APIC_TIMER: usize = 0x320;
const APIC_INITIAL: usize = 0x380;
const APIC_CURRENT: usize = 0x390;
const APIC_DIVIDE: usize = 0x3e0;
/// How long the counters are compared with the reference clock.
const CALIBRATION_US: u64 = 10_000;
const PM_TIMER_HZ: u64 = 3_579_545;

#[derive(Clone, Copy)]
struct Clock {
    apic: u64,
    start: u64,
    /// Counts in 2^20 microseconds, so that multiplication keeps the precision.
    tsc_per_us_20: u64,
    apic_per_us_20: u64,
    armed_us: u64,
}

static CLOCK: Lone<Clock> = Lone(UnsafeCell::new(Clock {
    apic: 0,
    start: 0,
    tsc_per_us_20: 1000 << 20,
    apic_per_us_20: 0,
    armed_us: u64::MAX,
}));

fn clock() -> &'static mut Clock {
    // SAFETY: one processor, interrupts off; each use ends before the next begins.
    unsafe { &mut *CLOCK.0.get() }
}

fn counter() -> u64 {
    // SAFETY: reading the time stamp counter has no effect.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Marks the start of time: called first thing.
pub fn start_clock() {
    clock().start = counter();
}

/// Microseconds since the kernel's first instruction; never goes back.
pub fn now_us() -> u64 {
    now_ns() / 1000
}

pub fn now_ns() -> u64 {
    let clock = clock();
    let passed = counter().wrapping_sub(clock.start);
    ((u128::from(passed) << 20) * 1000 / u128::from(clock.tsc_per_us_20)) as u64
}

/// Microseconds from power-on to the kernel's first instruction, as far as the counter tells:
/// it starts at nought with the machine.
pub fn before_start_us() -> u64 {
    ((u128::from(clock().start) << 20) / u128::from(clock().tsc_per_us_20)) as u64
}

fn apic_read(register: usize) -> u32 {
    // SAFETY: the APIC's page is mapped uncached by init_clock.
    unsafe { core::ptr::read_volatile((clock().apic + register as u64) as *const u32) }
}

fn apic_write(register: usize, value: u32) {
    // SAFETY: as above; the registers named here affect this processor's interrupts only.
    unsafe { core::ptr::write_volatile((clock().apic + register as u64) as *mut u32, value) }
}

/// Switches the APIC on and measures both counters against the ACPI timer.
pub fn init_clock() {
    // The old interrupt controllers are masked for good: devices signal by message.
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    clock().apic = mm::map_device(APIC_BASE, 4096);
    apic_write(APIC_SPURIOUS, 0x1ff);
    apic_write(APIC_DIVIDE, 3); // By 16.
    apic_write(APIC_TIMER, 1 << 16);
    apic_write(APIC_INITIAL, u32::MAX);
    let before = counter();
    let port = acpi::pm_timer_port().expect("the machine has no ACPI timer");
    let first = in32(port) & 0xff_ffff;
    let wanted = PM_TIMER_HZ * CALIBRATION_US / 1_000_000;
    let mut passed = 0;
    while passed < wanted {
        passed = u64::from((in32(port) & 0xff_ffff).wrapping_sub(first) & 0xff_ffff);
    }
    let elapsed_ns = passed * 1_000_000_000 / PM_TIMER_HZ;
    let tsc = counter() - before;
    let apic = u64::from(u32::MAX - apic_read(APIC_CURRENT));
    let clock = clock();
    clock.tsc_per_us_20 = ((u128::from(tsc) << 20) * 1000 / u128::from(elapsed_ns)) as u64;
    clock.apic_per_us_20 = ((u128::from(apic) << 20) * 1000 / u128::from(elapsed_ns)) as u64;
    apic_write(APIC_INITIAL, 0);
    apic_write(APIC_TIMER, 0x40);
}

pub fn clock_mhz() -> u64 {
    clock().tsc_per_us_20 >> 20
}

/// Asks for an interrupt at `deadline_us` or before; an earlier one that is set already stays.
pub fn arm_timer(deadline_us: u64, now_us: u64) {
    let clock = clock();
    if clock.armed_us <= deadline_us && clock.armed_us > now_us {
        return;
    }
    clock.armed_us = deadline_us;
    let wait = deadline_us.saturating_sub(now_us).clamp(1, 10_000_000);
    let count = (u128::from(wait) * u128::from(clock.apic_per_us_20)) >> 20;
    apic_write(APIC_INITIAL, (count as u32).max(1));
}

pub fn timer_fired() {
    clock().armed_us = u64::MAX;
}

pub fn acknowledge() {
    apic_write(APIC_EOI, 0);
}

/// Where a device writes, and what, to raise [`VECTOR_DEVICE`].
pub fn message_interrupt() -> (u64, u32) {
    (APIC_BASE, u32::from(VECTOR_DEVICE))
}

pub fn busy_wait_us(time_us: u64) {
    let end = now_us() + time_us;
    while now_us() < end {
        core::hint::spin_loop();
    }
}

fn cmos(register: u8) -> u8 {
    out8(0x70, register);
    in8(0x71)
}

/// Seconds since 1970 from the battery clock, which is read twice so that it was not changing.
pub fn read_date() -> u64 {
    let read = || [0, 2, 4, 7, 8, 9, 0x32].map(cmos);
    let mut value = read();
    for _ in 0..100 {
        while cmos(10) & 0x80 != 0 {
            core::hint::spin_loop();
        }
        value = read();
        if cmos(10) & 0x80 == 0 && value == read() {
            break;
        }
    }
    let mode = cmos(11);
    if mode & 4 == 0 {
        let afternoon = value[2] & 0x80;
        value[2] &= 0x7f;
        value = value.map(|v| (v >> 4) * 10 + (v & 15));
        value[2] |= afternoon;
    }
    if mode & 2 == 0 {
        let hour = value[2] & 0x7f;
        value[2] = hour % 12 + if value[2] & 0x80 != 0 { 12 } else { 0 };
    }
    let [second, minute, hour, day, month, year, century] = value.map(u64::from);
    let year = year + 100 * if (19..=30).contains(&century) { century } else { 20 };
    // Days since 1970 by counting from the first of March (a leap day then ends its year).
    let (y, m) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    (days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second
}
