//! The processor architecture. Everything that knows x86_64 stands in its folder; the rest of the
//! kernel sees only what is exported here.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
