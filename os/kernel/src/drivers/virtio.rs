//! Virtio 1.0 over PCI: the network card and the random source. Queues are split rings whose
//! descriptor number is its buffer's number, so nothing is allocated while they run.

use super::pci::Function;
use crate::arch;
use crate::mm::{frames, PAGE, PHYSICAL_BASE};
use core::ptr::{read_volatile, write_volatile};
use core::sync::atomic::{fence, Ordering};

const QUEUE_SIZE: u16 = 256;
/// One Ethernet frame and virtio's header.
const BUFFER: usize = 2048;
/// virtio_net_hdr of version 1: all nought, since nothing is left to the device.
const NET_HEADER: usize = 12;
const RANDOM_TIMEOUT_US: u64 = 1_000_000;

const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_VERSION_1: u64 = 1 << 32;
const DESCRIPTOR_WRITE: u16 = 2;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// A device's registers, all mapped.
struct Transport {
    common: u64,
    notify: u64,
    notify_multiplier: u32,
    device: u64,
}

fn get<T>(at: u64) -> T {
    // SAFETY: `at` is in a register block that Transport::new mapped.
    unsafe { read_volatile(at as *const T) }
}

fn set<T>(at: u64, value: T) {
    // SAFETY: as above; the meaning of each register is virtio's.
    unsafe { write_volatile(at as *mut T, value) }
}

impl Transport {
    /// Resets the device and agrees on `wanted` of its features.
    fn new(function: &Function, wanted: u64) -> Option<Transport> {
        function.enable();
        let (mut common, mut notify, mut device, mut multiplier) = (None, None, None, 0);
        for (id, at) in function.capabilities() {
            if id != 9 {
                continue;
            }
            let (kind, bar) = ((function.read(at) >> 24) as u8, function.read(at + 4) as u8);
            let (offset, length) = (function.read(at + 8), function.read(at + 12));
            let place = match kind {
                1 => &mut common,
                2 => {
                    multiplier = function.read(at + 16);
                    &mut notify
                }
                4 => &mut device,
                _ => continue,
            };
            *place = place.or_else(|| function.map(bar, offset, length));
        }
        let transport = Transport {
            common: common?,
            notify: notify?,
            notify_multiplier: multiplier,
            device: device.unwrap_or(0),
        };
        let c = transport.common;
        set(c + 20, 0u8);
        while get::<u8>(c + 20) != 0 {
            core::hint::spin_loop();
        }
        set(c + 20, 3u8); // Seen, and there is a driver.
        let wanted = wanted | FEATURE_VERSION_1;
        for half in 0..2u32 {
            set(c, half);
            let offered: u32 = get(c + 4);
            set(c + 8, half);
            set(c + 12, offered & (wanted >> (32 * half)) as u32);
            if half == 1 && offered & 1 == 0 {
                return None;
            }
        }
        set(c + 20, 11u8);
        (get::<u8>(c + 20) & 8 != 0).then_some(transport)
    }

    fn queue(&self, index: u16, message: u16) -> Option<Queue> {
        let c = self.common;
        set(c + 22, index);
        let size = get::<u16>(c + 24).min(QUEUE_SIZE);
        if size == 0 {
            return None;
        }
        let buffers = frames::allocate_run(QUEUE_SIZE as usize * BUFFER / PAGE as usize)?;
        let ring = frames::allocate_run(3)?;
        // SAFETY: the frames were just taken, for this queue alone.
        unsafe { core::ptr::write_bytes((PHYSICAL_BASE + ring) as *mut u8, 0, 3 * PAGE as usize) };
        set(c + 24, size);
        set(c + 26, message);
        for (i, address) in [ring, ring + PAGE, ring + 2 * PAGE].into_iter().enumerate() {
            set(c + 32 + 8 * i as u64, address as u32);
            set(c + 36 + 8 * i as u64, (address >> 32) as u32);
        }
        let notify_at = u64::from(get::<u16>(c + 30)) * u64::from(self.notify_multiplier);
        set(c + 28, 1u16);
        Some(Queue {
            index,
            size,
            ring: PHYSICAL_BASE + ring,
            buffers,
            available: 0,
            used: 0,
            notify: self.notify + notify_at,
        })
    }

    fn start(&self) {
        set(self.common + 20, 15u8);
    }
}

struct Queue {
    index: u16,
    size: u16,
    /// Descriptors, available ring, used ring: a page each.
    ring: u64,
    buffers: u64,
    available: u16,
    used: u16,
    notify: u64,
}

impl Queue {
    fn buffer(&mut self, number: u16) -> &mut [u8] {
        let at = PHYSICAL_BASE + self.buffers + u64::from(number) * BUFFER as u64;
        // SAFETY: the buffer is in the queue's own frames, and the device gave it back or never
        // had it: callers ask only for such numbers.
        unsafe { core::slice::from_raw_parts_mut(at as *mut u8, BUFFER) }
    }

    /// Gives a buffer to the device; it is told by `kick`.
    fn post(&mut self, number: u16, length: u32, flags: u16) {
        let descriptor = self.ring + 16 * u64::from(number);
        set(descriptor, self.buffers + u64::from(number) * BUFFER as u64);
        set(descriptor + 8, length);
        set(descriptor + 12, flags);
        let slot = u64::from(self.available % self.size);
        set(self.ring + PAGE + 4 + 2 * slot, number);
        self.available = self.available.wrapping_add(1);
        fence(Ordering::SeqCst);
        set(self.ring + PAGE + 2, self.available);
    }

    fn kick(&self) {
        fence(Ordering::SeqCst);
        if get::<u16>(self.ring + 2 * PAGE) & NO_NOTIFY == 0 {
            set(self.notify, self.index);
        }
    }

    /// The next buffer that the device is done with, and how much it wrote.
    fn take(&mut self) -> Option<(u16, usize)> {
        if get::<u16>(self.ring + 2 * PAGE + 2) == self.used {
            return None;
        }
        fence(Ordering::SeqCst);
        let entry = self.ring + 2 * PAGE + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let (number, length) = (get::<u32>(entry), get::<u32>(entry + 4));
        // What the device says is checked: it must not lead outside the buffers.
        Some(((number % u32::from(self.size)) as u16, (length as usize).min(BUFFER)))
    }
}

pub struct NetworkCard {
    pub mac: [u8; 6],
    receive: Queue,
    transmit: Queue,
    /// Transmit buffers that were never used yet; after that they come back from the device.
    unused: u16,
    kick: bool,
}

impl NetworkCard {
    pub fn new(function: &Function) -> Option<NetworkCard> {
        let transport = Transport::new(function, FEATURE_MAC)?;
        if !function.route_message(0) {
            return None;
        }
        let mut receive = transport.queue(0, 0)?;
        let transmit = transport.queue(1, 0xffff)?;
        set(transmit.ring + PAGE, NO_INTERRUPT);
        let mut mac = [0; 6];
        for (at, byte) in mac.iter_mut().enumerate() {
            *byte = get(transport.device + at as u64);
        }
        transport.start();
        for number in 0..receive.size {
            receive.post(number, BUFFER as u32, DESCRIPTOR_WRITE);
        }
        receive.kick();
        Some(NetworkCard { mac, receive, transmit, unused: 0, kick: false })
    }

    /// Hands every received frame to `each`; answers whether there was one.
    pub fn receive(&mut self, each: &mut dyn FnMut(&[u8])) -> bool {
        let mut any = false;
        // As many as the queue holds, so that a flood cannot keep the kernel here.
        for _ in 0..self.receive.size {
            let Some((number, length)) = self.receive.take() else { break };
            any = true;
            if length > NET_HEADER {
                each(&self.receive.buffer(number)[NET_HEADER..length]);
            }
            self.receive.post(number, BUFFER as u32, DESCRIPTOR_WRITE);
        }
        if any {
            self.receive.kick();
        }
        any
    }

    /// How many frames fit into the queue now.
    pub fn room(&self) -> usize {
        let done: u16 = get(self.transmit.ring + 2 * PAGE + 2);
        let back = done.wrapping_sub(self.transmit.used);
        usize::from(self.transmit.size - self.unused + back)
    }

    /// Queues one frame; the caller has asked for [`Self::room`] and ends with [`Self::flush`].
    pub fn send(&mut self, frame: &[u8]) {
        let number = if self.unused < self.transmit.size {
            self.unused += 1;
            self.unused - 1
        } else {
            let Some((number, _)) = self.transmit.take() else { return };
            number
        };
        let length = (NET_HEADER + frame.len()).min(BUFFER);
        let buffer = self.transmit.buffer(number);
        buffer[..NET_HEADER].fill(0);
        buffer[NET_HEADER..length].copy_from_slice(&frame[..length - NET_HEADER]);
        self.transmit.post(number, length as u32, 0);
        self.kick = true;
    }

    pub fn flush(&mut self) {
        if core::mem::take(&mut self.kick) {
            self.transmit.kick();
        }
    }
}

pub struct RandomSource {
    queue: Queue,
}

impl RandomSource {
    pub fn new(function: &Function) -> Option<RandomSource> {
        let transport = Transport::new(function, 0)?;
        let queue = transport.queue(0, 0xffff)?;
        set(queue.ring + PAGE, NO_INTERRUPT);
        transport.start();
        Some(RandomSource { queue })
    }

    /// Fills `out`; false where the device does not answer in time.
    pub fn read(&mut self, out: &mut [u8]) -> bool {
        let mut done = 0;
        while done < out.len() {
            self.queue.post(0, (out.len() - done).min(BUFFER) as u32, DESCRIPTOR_WRITE);
            self.queue.kick();
            let deadline = arch::now_us() + RANDOM_TIMEOUT_US;
            let length = loop {
                if let Some((_, length)) = self.queue.take() {
                    break length;
                }
                if arch::now_us() > deadline {
                    return false;
                }
            };
            let part = length.min(out.len() - done);
            out[done..done + part].copy_from_slice(&self.queue.buffer(0)[..part]);
            self.queue.buffer(0).fill(0);
            done += part;
        }
        true
    }
}
