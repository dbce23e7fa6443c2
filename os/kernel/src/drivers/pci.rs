//! The PCI bus: what is there, its registers, and its interrupts by message.

use crate::arch;
use crate::mm::map_device;
use alloc::vec::Vec;
use core::fmt;

pub struct Function {
    bus: u8,
    slot: u8,
    function: u8,
    pub vendor: u16,
    pub device: u16,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "pci {:02x}:{:02x}.{}", self.bus, self.slot, self.function)
    }
}

/// A list of capabilities longer than this is a circle.
const MAX_CAPABILITIES: usize = 48;

/// Everything on the first bus: where virtual machines put their devices.
pub fn functions() -> Vec<Function> {
    let mut found = Vec::new();
    for slot in 0..32 {
        for function in 0..8 {
            let id = arch::pci_read(0, slot, function, 0);
            if id != u32::MAX {
                let (vendor, device) = (id as u16, (id >> 16) as u16);
                found.push(Function { bus: 0, slot, function, vendor, device });
            }
            let several = arch::pci_read(0, slot, 0, 12) & 0x80_0000 != 0;
            if !several {
                break;
            }
        }
    }
    found
}

impl Function {
    pub fn read(&self, offset: u8) -> u32 {
        arch::pci_read(self.bus, self.slot, self.function, offset)
    }

    pub fn write(&self, offset: u8, value: u32) {
        arch::pci_write(self.bus, self.slot, self.function, offset, value);
    }

    /// Lets the device answer and read memory by itself; its interrupt line stays off.
    pub fn enable(&self) {
        self.write(4, self.read(4) & 0xffff | 0x406);
    }

    /// Each capability's identifier and offset.
    pub fn capabilities(&self) -> Vec<(u8, u8)> {
        let mut found = Vec::new();
        let mut at = self.read(0x34) as u8 & 0xfc;
        while at != 0 && found.len() < MAX_CAPABILITIES {
            let head = self.read(at);
            found.push((head as u8, at));
            at = (head >> 8) as u8 & 0xfc;
        }
        found
    }

    /// Maps `length` bytes at `offset` of a memory register's range.
    pub fn map(&self, register: u8, offset: u32, length: u32) -> Option<u64> {
        let at = 0x10 + register.checked_mul(4).filter(|at| *at <= 20)?;
        let low = self.read(at);
        if low & 1 != 0 {
            return None;
        }
        let wide = low & 6 == 4 && at < 0x24;
        let high = if wide { self.read(at + 4) } else { 0 };
        let base = u64::from(low & !15) | u64::from(high) << 32;
        (base != 0).then(|| map_device(base + u64::from(offset), u64::from(length)))
    }

    /// Makes message `entry` raise the device interrupt. False where the device has none.
    pub fn route_message(&self, entry: u32) -> bool {
        let Some((_, at)) = self.capabilities().into_iter().find(|(id, _)| *id == 0x11) else {
            return false;
        };
        let place = self.read(at + 4);
        let Some(table) = self.map(place as u8 & 7, (place & !7) + entry * 16, 16) else {
            return false;
        };
        let (address, data) = arch::message_interrupt();
        for (i, word) in [address as u32, (address >> 32) as u32, data, 0].into_iter().enumerate() {
            // SAFETY: the entry was just mapped, and belongs to this device's table.
            unsafe { core::ptr::write_volatile((table as *mut u32).add(i), word) };
        }
        self.write(at, self.read(at) & 0x3fff_ffff | 1 << 31);
        true
    }
}
