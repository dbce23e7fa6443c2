//! The few things needed of ACPI: the timer's port, the power button, and the way to power off.

use super::*;
use crate::mm::physical_bytes;
use crate::mm::Global;

#[derive(Clone, Copy, Default)]
struct Power {
    timer: u16,
    event: u16,
    control_a: u16,
    control_b: u16,
    /// The values that mean "off" for the two control registers.
    sleep: Option<(u16, u16)>,
}

static POWER: Global<Power> =
    Global::new(Power { timer: 0, event: 0, control_a: 0, control_b: 0, sleep: None });

fn le32(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

/// Tables are no longer than this in any machine seen; a larger length is damage.
const MAX_TABLE: u32 = 1 << 20;

fn table(address: u64) -> Option<&'static [u8]> {
    let length = le32(physical_bytes(address, 8)?, 4)?;
    if !(36..=MAX_TABLE).contains(&length) {
        return None;
    }
    let bytes = physical_bytes(address, length as usize)?;
    (bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0).then_some(bytes)
}

fn find_root(hint: Option<u64>) -> Option<u64> {
    let is_root = |at: u64| physical_bytes(at, 20).is_some_and(|b| b.starts_with(b"RSD PTR "));
    hint.into_iter().chain((0xe_0000..0x10_0000).step_by(16)).find(|at| is_root(*at))
}

/// Reads the tables; `hint` is where the boot protocol says that the root pointer is.
pub fn init(hint: Option<u64>) {
    let Some(root) = find_root(hint) else { return };
    let Some(address) = physical_bytes(root, 20).and_then(|b| le32(b, 16)) else { return };
    let Some(rsdt) = table(u64::from(address)) else { return };
    for entry in rsdt[36..].chunks_exact(4) {
        let at = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
        if let Some(fadt) = table(u64::from(at)).filter(|t| t.starts_with(b"FACP")) {
            read_fixed(fadt);
        }
    }
}

fn read_fixed(fadt: &[u8]) {
    let port = |at| le32(fadt, at).map_or(0, |p| p as u16);
    let mut power = Power {
        event: port(56),
        control_a: port(64),
        control_b: port(68),
        timer: port(76),
        sleep: None,
    };
    if let Some(dsdt) = le32(fadt, 40).and_then(|at| table(u64::from(at))) {
        power.sleep = find_sleep(dsdt);
    }
    // Hand the power registers from the firmware to us where it still holds them.
    let (command, enable) = (port(48), fadt[52]);
    if command != 0 && enable != 0 && in16(power.control_a) & 1 == 0 {
        out8(command, enable);
    }
    if power.event != 0 {
        out16(power.event, 1 << 8); // Forget a press from before.
        out16(power.event + 2, 1 << 8);
    }
    *POWER.get() = power;
}

/// The package named _S5_ in the machine's bytecode: two small integers.
fn find_sleep(dsdt: &[u8]) -> Option<(u16, u16)> {
    let at = dsdt.windows(5).position(|w| w == b"_S5_\x12")? + 5;
    let length_bytes = usize::from(dsdt.get(at)? >> 6) + 1;
    let mut rest = dsdt.get(at + length_bytes + 1..)?;
    let mut next = || {
        let (value, used) = match *rest.first()? {
            0x0a => (u16::from(*rest.get(1)?), 2),
            small => (u16::from(small), 1),
        };
        rest = rest.get(used..)?;
        Some(value)
    };
    Some((next()?, next()?))
}

pub fn pm_timer_port() -> Option<u16> {
    let port = POWER.get().timer;
    (port != 0).then_some(port)
}

/// Whether the power button was pressed since the last question.
pub fn power_button() -> bool {
    let event = POWER.get().event;
    let pressed = event != 0 && in16(event) & 1 << 8 != 0;
    if pressed {
        out16(event, 1 << 8);
    }
    pressed
}

pub fn power_off() -> ! {
    let power = *POWER.get();
    if let Some((a, b)) = power.sleep {
        out16(power.control_a, a << 10 | 1 << 13);
        if power.control_b != 0 {
            out16(power.control_b, b << 10 | 1 << 13);
        }
    }
    halt()
}
