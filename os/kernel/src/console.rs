//! The serial console: lines for people, with the time since power-on.

use crate::arch;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// 0 errors only, 1 what was found and what happens, 2 more for debugging.
static LEVEL: AtomicU8 = AtomicU8::new(1);
static LINE_START: AtomicBool = AtomicBool::new(true);

pub struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write_bytes(text.as_bytes());
        Ok(())
    }
}

/// The program's own output, as it comes.
pub fn write_bytes(bytes: &[u8]) {
    for byte in bytes {
        if *byte == b'\n' {
            arch::serial_write(b'\r');
        }
        arch::serial_write(*byte);
    }
    if let Some(last) = bytes.last() {
        LINE_START.store(*last == b'\n', Ordering::Relaxed);
    }
}

pub fn set_level(level: u8) {
    LEVEL.store(level, Ordering::Relaxed);
}

pub fn line(level: u8, arguments: fmt::Arguments) {
    if level > LEVEL.load(Ordering::Relaxed) {
        return;
    }
    if !LINE_START.load(Ordering::Relaxed) {
        write_bytes(b"\n");
    }
    let now = arch::now_us() + arch::before_start_us();
    let _ = writeln!(Serial, "[{:3}.{:06}] {arguments}", now / 1_000_000, now % 1_000_000);
}

#[macro_export]
macro_rules! log {
    ($($arg:tt)*) => { $crate::console::line(1, format_args!($($arg)*)) };
}

#[macro_export]
macro_rules! error {
    ($($arg:tt)*) => { $crate::console::line(0, format_args!($($arg)*)) };
}

/// How long a panic's message stays on a screen before the machine starts again.
const PANIC_WAIT_US: u64 = 5_000_000;

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    static AGAIN: AtomicBool = AtomicBool::new(false);
    if !AGAIN.swap(true, Ordering::Relaxed) {
        let place = info.location().map_or(("unknown", 0), |l| (l.file(), l.line()));
        error!("kernel panic at {}:{}: {}", place.0, place.1, info.message());
        error!("starting again in {} s", PANIC_WAIT_US / 1_000_000);
    }
    arch::busy_wait_us(PANIC_WAIT_US);
    arch::reboot()
}
