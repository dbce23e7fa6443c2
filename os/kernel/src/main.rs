//! O3StorageOS: a kernel that runs one unmodified Linux program, offering the part of Linux's
//! system calls which that needs. See `os/README.md`.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

extern crate alloc;

#[allow(unsafe_code)]
mod arch;
mod config;
mod console;
#[allow(unsafe_code)]
mod drivers;
mod files;
mod loader;
#[allow(unsafe_code)]
mod mm;
mod network;
mod random;
mod sched;
mod signal;
mod syscall;
mod time;
mod usercopy;

use alloc::string::String;
use syscall::refuse;

/// Called by the way in with the boot protocol (1 PVH, 2 Multiboot2) and its information.
#[allow(unsafe_code)] // The name is what the assembly calls.
#[no_mangle]
extern "C" fn kernel_main(protocol: u32, information: u64) -> ! {
    arch::start_clock();
    arch::serial_init();
    arch::init_cpu();
    mm::init(
        &mut |each| arch::boot::each_memory_range(protocol, information, each),
        &mut |each| arch::boot::each_module(protocol, information, each),
        arch::boot::information_range(protocol, information),
    );
    let boot = arch::boot::read(protocol, information);
    arch::acpi::init(boot.acpi_root);
    arch::init_clock();
    if let Err(why) = start(&boot) {
        error!("cannot start: {why}");
        arch::acpi::power_off();
    }
    sched::run()
}

fn start(boot: &arch::boot::BootInfo) -> Result<(), String> {
    let config = config::read(boot)?;
    console::set_level(config.log_level);
    let (free, total) = mm::frames::count();
    log!("O3StorageOS {}, booted by {}", env!("CARGO_PKG_VERSION"), boot.protocol);
    log!("memory: {} MiB, {} MiB free", total / 256, free / 256);
    log!("processor: counter at {} MHz, {:?}", arch::clock_mhz(), arch::features());
    time::init();
    let card = drivers::init();
    let seeded = random::reseed(arch::now_us());
    refuse!(!seeded, "no source of randomness: neither RDRAND nor virtio-rng is there");
    let mut tree = vfs::Tree::new(time::date_ns);
    let image = boot.modules.first().ok_or("no root image was given as a boot module")?;
    let bytes = mm::physical_bytes(image.0, (image.1 - image.0) as usize);
    refuse!(image.0 % mm::PAGE != 0, "the root image is not at a page boundary");
    bytes
        .ok_or(syscall::Errno::EINVAL)
        .and_then(|bytes| tree.load(bytes))
        .and_then(|()| files::furnish(&mut tree))
        .map_err(|why| alloc::format!("the root image cannot be read: {why:?}"))?;
    log!("root image: {} KiB, {} entries", (image.1 - image.0) / 1024, tree.usage().1);
    files::init(tree);
    network::init(card, &config);
    let (arguments, variables) = (config.arguments.len(), config.environment.len());
    let (source, files) = (config.source, config.files.len());
    log!(
        "configuration from {source}: {arguments} arguments, {variables} variables, {files} files"
    );
    for (path, data) in &config.files {
        files::system_file(path, data, 0o400);
    }
    loader::start(&config.arguments, &config.environment)?;
    log!("starting {}", config.arguments[0]);
    Ok(())
}
