//! Devices: what stands on the PCI bus, and the virtio devices among it.

mod pci;
mod virtio;

use crate::log;
use crate::mm::Global;
use alloc::vec::Vec;
pub use virtio::NetworkCard;

static RNG: Global<Option<virtio::RandomSource>> = Global::new(None);

/// Finds the devices; answers the network card, if there is one.
pub fn init() -> Option<NetworkCard> {
    let mut card = None;
    for function in pci::functions() {
        match (function.vendor, function.device) {
            (0x1af4, 0x1041 | 0x1000) if card.is_none() => match NetworkCard::new(&function) {
                Some(found) => {
                    let mac: Vec<_> = found.mac.iter().map(|b| alloc::format!("{b:02x}")).collect();
                    log!("virtio-net at {function}, address {}", mac.join(":"));
                    card = Some(found);
                }
                None => log!("virtio-net at {function} does not offer virtio 1.0: not used"),
            },
            (0x1af4, 0x1044 | 0x1005) if RNG.get().is_none() => {
                *RNG.get() = virtio::RandomSource::new(&function);
                log!("virtio-rng at {function}, used: {}", RNG.get().is_some());
            }
            _ => {}
        }
    }
    card
}

/// Fills `out` from the random device; false where there is none or it does not answer.
pub fn rng_read(out: &mut [u8]) -> bool {
    RNG.get().as_mut().is_some_and(|source| source.read(out))
}
