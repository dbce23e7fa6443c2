//! The bookkeeping of epoll: who is interested in what, and in which order it is told.
//!
//! An object (an open file, named by the caller's number) that may have become ready is put on
//! the queue by [`Epoll::notify`]; [`Epoll::collect`] asks what is ready now, and keeps
//! level-triggered entries on the queue for as long as they are.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

extern crate alloc;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use errno::refuse;
pub use errno::Errno as Error;

#[cfg(test)]
#[path = "../../../tests/host/epoll.rs"]
mod tests;

pub const IN: u32 = 0x1;
pub const PRI: u32 = 0x2;
pub const OUT: u32 = 0x4;
pub const ERR: u32 = 0x8;
pub const HUP: u32 = 0x10;
pub const RDNORM: u32 = 0x40;
pub const WRNORM: u32 = 0x100;
pub const RDHUP: u32 = 0x2000;
pub const EXCLUSIVE: u32 = 1 << 28;
pub const ONESHOT: u32 = 1 << 30;
pub const EDGE: u32 = 1 << 31;

/// Entries of one instance: one for every descriptor there can be.
pub const MAX_INTERESTS: usize = 8192;

struct Interest {
    events: u32,
    data: u64,
    queued: bool,
}

impl Interest {
    fn enqueue(&mut self, key: Key, queue: &mut VecDeque<Key>) {
        if !core::mem::replace(&mut self.queued, true) {
            queue.push_back(key);
        }
    }
}

/// Object and descriptor: the same object may be watched under two descriptors.
type Key = (u64, i32);

#[derive(Default)]
pub struct Epoll {
    interests: BTreeMap<Key, Interest>,
    queue: VecDeque<Key>,
}

impl Epoll {
    pub fn new() -> Epoll {
        Epoll::default()
    }

    /// Begins to watch; what is ready already is told too.
    pub fn add(&mut self, object: u64, fd: i32, events: u32, data: u64) -> Result<(), Error> {
        refuse!(self.interests.contains_key(&(object, fd)), EEXIST);
        refuse!(self.interests.len() >= MAX_INTERESTS, ENOSPC);
        self.interests.insert((object, fd), Interest { events, data, queued: true });
        self.queue.push_back((object, fd));
        Ok(())
    }

    pub fn modify(&mut self, object: u64, fd: i32, events: u32, data: u64) -> Result<(), Error> {
        let interest = self.interests.get_mut(&(object, fd)).ok_or(Error::ENOENT)?;
        interest.events = events;
        interest.data = data;
        interest.enqueue((object, fd), &mut self.queue);
        Ok(())
    }

    pub fn remove(&mut self, object: u64, fd: i32) -> Result<(), Error> {
        let interest = self.interests.remove(&(object, fd)).ok_or(Error::ENOENT)?;
        if interest.queued {
            self.queue.retain(|key| *key != (object, fd));
        }
        Ok(())
    }

    /// Forgets an object that was closed under all its descriptors.
    pub fn remove_object(&mut self, object: u64) {
        let range = (object, i32::MIN)..=(object, i32::MAX);
        let keys: Vec<Key> = self.interests.range(range).map(|(key, _)| *key).collect();
        for (object, fd) in keys {
            let _ = self.remove(object, fd);
        }
    }

    /// The object may be ready, or became ready once more. True where somebody may be told.
    pub fn notify(&mut self, object: u64) -> bool {
        let mut any = false;
        let range = (object, i32::MIN)..=(object, i32::MAX);
        for (key, interest) in self.interests.range_mut(range) {
            if interest.events & !(EDGE | ONESHOT | EXCLUSIVE) == 0 {
                continue; // A one-shot entry that was told waits to be armed again.
            }
            any = true;
            interest.enqueue(*key, &mut self.queue);
        }
        any
    }

    /// Whether anything may be ready; `collect` knows for sure.
    pub fn may_be_ready(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Up to `limit` ready entries as (events, data). `ready` answers what an object is ready for.
    pub fn collect(&mut self, limit: usize, ready: &mut dyn FnMut(u64) -> u32) -> Vec<(u32, u64)> {
        let mut found = Vec::new();
        for _ in 0..self.queue.len() {
            if found.len() >= limit {
                break;
            }
            let Some(key) = self.queue.pop_front() else { break };
            let Some(interest) = self.interests.get_mut(&key) else { continue };
            let armed = interest.events & !(EDGE | ONESHOT | EXCLUSIVE) != 0;
            let events = if armed { ready(key.0) & (interest.events | ERR | HUP) } else { 0 };
            if events == 0 {
                interest.queued = false;
                continue;
            }
            found.push((events, interest.data));
            interest.queued = interest.events & (ONESHOT | EDGE) == 0;
            if interest.queued {
                self.queue.push_back(key);
            } else if interest.events & ONESHOT != 0 {
                interest.events &= EDGE | ONESHOT | EXCLUSIVE;
            }
        }
        found
    }
}
