//! The stack, its card, and the link between its sockets and open files.

use crate::config::Config;
use crate::drivers::NetworkCard;
use crate::mm::Global;
use crate::{arch, files, log, random};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use net::{SocketId, Stack};

struct Network {
    stack: Stack,
    card: Option<NetworkCard>,
    /// The open file's number of each socket.
    owners: BTreeMap<SocketId, u64>,
    deadline_us: Option<u64>,
}

static NETWORK: Global<Option<Network>> = Global::new(None);

const MTU: usize = 1500;
/// Rounds of sending 64 frames in one step: four times what a full window on this machine takes.
const MAX_ROUNDS: usize = 256;

pub fn init(card: Option<NetworkCard>, config: &Config) {
    let mut secret = [0; 32];
    random::fill(&mut secret);
    let mac = card.as_ref().map_or([2, 0, 0, 0, 0, 1], |card| card.mac);
    let address = config.address.clone();
    let stack = Stack::new(net::Config { mac, mtu: MTU, address, secret });
    let network = Network { stack, card, owners: BTreeMap::new(), deadline_us: Some(0) };
    *NETWORK.get() = Some(network);
}

/// Does what is due; answers when to be called again at the latest.
pub fn service(now_us: u64) -> Option<u64> {
    let mut guard = NETWORK.get();
    let network = guard.as_mut()?;
    let received = match &mut network.card {
        Some(card) => card.receive(&mut |frame| network.stack.receive_frame(frame, now_us)),
        None => false,
    };
    if received || network.deadline_us.is_some_and(|deadline| deadline <= now_us) {
        drop(guard);
        settle(now_us);
        guard = NETWORK.get();
    }
    guard.as_ref().and_then(|network| network.deadline_us)
}

/// Runs due timers, sends what waits, and tells the files of sockets whose state changed.
fn settle(now_us: u64) {
    let mut changed = Vec::new();
    let mut lease = None;
    if let Some(network) = NETWORK.get().as_mut() {
        let Network { stack, card, .. } = network;
        // A peer on this machine answers at once: two that never agree must not keep the kernel here.
        let more = (0..MAX_ROUNDS).all(|_| {
            if stack.next_deadline().is_some_and(|deadline| deadline <= now_us) {
                stack.poll(now_us);
            }
            let room = card.as_ref().map_or(usize::MAX, |card| card.room());
            let sent = stack.transmit(now_us, room.min(64), &mut |frame| {
                if let Some(card) = card.as_mut() {
                    card.send(frame);
                }
            });
            sent > 0
        });
        if let Some(card) = card.as_mut() {
            card.flush();
        }
        network.deadline_us = match more || card.as_ref().is_some_and(|card| card.room() == 0) {
            // A full queue to the card is looked at again soon: it raises no interrupt.
            true => Some(now_us + 200),
            false => network.stack.next_deadline().map(|d| d.max(now_us + 1)),
        };
        while let Some(id) = network.stack.take_event() {
            changed.extend(network.owners.get(&id));
        }
        lease = network.stack.take_lease_change();
    }
    changed.dedup();
    for object in changed {
        files::notify(object);
    }
    if let Some(lease) = lease {
        tell_lease(lease);
    }
}

fn tell_lease(lease: Option<net::Lease>) {
    let Some(lease) = lease else {
        log!("network: no address yet");
        return;
    };
    log!("network: address {}/{}, gateway {:?}", lease.address, lease.prefix, lease.gateway);
    files::system_file("/etc/resolv.conf", lease.resolv_conf().as_bytes(), 0o444);
    let hosts = lease.hosts(crate::syscall::HOST_NAME);
    files::system_file("/etc/hosts", hosts.as_bytes(), 0o444);
}

/// Runs `f` on the stack with the time, then sends what came of it.
pub fn with<T>(f: impl FnOnce(&mut Stack, u64) -> T) -> T {
    let now = arch::now_us();
    let result = f(&mut NETWORK.get().as_mut().expect("the network was set up").stack, now);
    settle(now);
    result
}

/// Looks at the stack only.
pub fn look<T>(f: impl FnOnce(&Stack) -> T) -> T {
    f(&NETWORK.get().as_ref().expect("the network was set up").stack)
}

/// Says which open file a socket belongs to.
pub fn own(id: SocketId, object: Option<u64>) {
    if let Some(network) = NETWORK.get().as_mut() {
        match object {
            Some(object) => network.owners.insert(id, object),
            None => network.owners.remove(&id),
        };
    }
}
