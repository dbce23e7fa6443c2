//! Sends mutated frames into the stack: `fuzz [frames] [seed]`. Build it with
//! `CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true`, so that its assertions stand too.

#[path = "frames.rs"]
mod frames;
#[path = "link.rs"]
mod link;

pub use net::*;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    let count = arguments.next().unwrap_or(1_000_000);
    let seed = arguments.next().unwrap_or(1);
    let begin = std::time::Instant::now();
    println!("{:?} in {:?}, seed {seed}", frames::run(count, seed), begin.elapsed());
}
