//! The date: read once from the battery clock, carried on by the processor's counter, and held to
//! the battery clock by running a little faster or slower. It never jumps and never goes back.

use crate::arch;
use crate::mm::Global;

/// How often the two clocks are compared.
const COMPARE_US: u64 = 64_000_000;
/// The rate of correction: a two-thousandth, as other systems use.
const SLEW_DIVISOR: i64 = 2_000;

struct Date {
    /// Date less the monotonic clock, in nanoseconds.
    offset_ns: i64,
    /// What is still to be corrected.
    error_ns: i64,
    adjusted_us: u64,
    compared_us: u64,
}

static DATE: Global<Date> =
    Global::new(Date { offset_ns: 0, error_ns: 0, adjusted_us: 0, compared_us: 0 });

pub fn init() {
    let mut date = DATE.get();
    let now_ns = arch::now_ns() as i64;
    date.offset_ns = arch::read_date() as i64 * 1_000_000_000 - now_ns;
    date.compared_us = arch::now_us();
    date.adjusted_us = date.compared_us;
}

/// Nanoseconds since 1970.
pub fn date_ns() -> u64 {
    (arch::now_ns() as i64 + DATE.get().offset_ns) as u64
}

/// Called several times a second: corrects the date by small steps.
pub fn discipline(now_us: u64) {
    let mut date = DATE.get();
    let passed_ns = (now_us - date.adjusted_us) as i64 * 1000;
    date.adjusted_us = now_us;
    let step = date.error_ns.clamp(-passed_ns / SLEW_DIVISOR, passed_ns / SLEW_DIVISOR);
    date.offset_ns += step;
    date.error_ns -= step;
    if now_us - date.compared_us >= COMPARE_US {
        date.compared_us = now_us;
        let battery_ns = arch::read_date() as i64 * 1_000_000_000;
        let ours_ns = now_us as i64 * 1000 + date.offset_ns;
        // The battery clock shows whole seconds: within one they agree.
        date.error_ns = match battery_ns - ours_ns {
            behind if behind > 0 => behind,
            ahead if ahead < -1_000_000_000 => ahead + 1_000_000_000,
            _ => 0,
        };
    }
}
