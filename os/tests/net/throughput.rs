//! Prints the virtual-time throughput of the stack against itself: `throughput [MiB] [seeds]`.

#[path = "link.rs"]
mod link;

pub use net::*;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    let total: usize = arguments.next().unwrap_or(16) << 20;
    let seeds = arguments.next().unwrap_or(5) as u64;
    let far = [0, 1, 5].map(|percent| (format!("{percent} %"), link::lossy(percent)));
    let near = [1, 5].map(|percent| (format!("{percent} % near"), link::near(percent)));
    let clean = [("none".to_string(), link::CLEAN)];
    for (name, faults) in clean.into_iter().chain(far).chain(near) {
        for (ways, bytes) in [("one way", [0, total]), ("both ways", [total, total])] {
            let rate = |seed| link::transfer(faults, bytes, 1 + seed * 7919) / 1048576.0;
            let mut rates: Vec<f64> = (0..seeds).map(rate).collect();
            rates.sort_by(f64::total_cmp);
            let median = rates[rates.len() / 2];
            println!("loss {name:>8}, {ways:>9}: median {median:7.2} MiB/s of {rates:.2?}");
        }
    }
}
