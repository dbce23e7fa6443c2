//! The boot configuration: what runs, with which arguments, environment and secret files. It comes
//! from QEMU's configuration device or as the second boot module; no value of it is ever printed.
//! The command line carries the address and the log level only.
//!
//! The text is lines of `KEY=value`. `ARG=` adds an argument (the first is the program), `FILE=path
//! length` is followed by that many bytes and a newline and becomes a file, mode 0400; every other
//! key is set in the environment. The first line is `O3CONFIG 1`.

use crate::arch;
use crate::arch::boot::BootInfo;
use crate::mm::physical_bytes;
use crate::syscall::refuse;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use net::{AddressSource, Ipv4Addr, Lease};

/// A configuration holds keys and a few certificates.
const MAX_SIZE: usize = 1 << 20;
const MAX_LINES: usize = 1024;
const FIRMWARE_NAME: &str = "opt/o3storage/config";

pub struct Config {
    pub arguments: Vec<String>,
    pub environment: Vec<String>,
    pub files: Vec<(String, Vec<u8>)>,
    pub address: AddressSource,
    pub log_level: u8,
    pub source: &'static str,
}

/// Reads everything; the reason where something in it cannot be.
pub fn read(boot: &BootInfo) -> Result<Config, String> {
    let mut config = Config {
        arguments: Vec::new(),
        environment: Vec::new(),
        files: Vec::new(),
        address: AddressSource::Dhcp,
        log_level: 1,
        source: "none",
    };
    read_command_line(&boot.command_line, &mut config)?;
    let module = boot.modules.get(1).and_then(|(start, end)| {
        physical_bytes(*start, (end - start) as usize).filter(|bytes| bytes.len() <= MAX_SIZE)
    });
    if let Some(bytes) = module {
        config.source = "the second boot module";
        parse(bytes, &mut config)?;
    } else if let Some(bytes) = arch::firmware_file(FIRMWARE_NAME, MAX_SIZE) {
        config.source = "fw_cfg";
        parse(&bytes, &mut config)?;
    }
    if config.arguments.is_empty() {
        config.arguments = alloc::vec!["/usr/bin/python3".into(), "/app/main.py".into()];
    }
    Ok(config)
}

fn parse(bytes: &[u8], config: &mut Config) -> Result<(), String> {
    let mut rest = bytes;
    for number in 1..=MAX_LINES {
        let end = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        let line = core::str::from_utf8(&rest[..end])
            .map_err(|_| alloc::format!("configuration line {number} is not text"))?;
        rest = rest.get(end + 1..).unwrap_or(&[]);
        if number == 1 {
            refuse!(line != "O3CONFIG 1", "the configuration does not begin with 'O3CONFIG 1'");
        } else if let Some((key, value)) = line.split_once('=') {
            match key {
                "ARG" => config.arguments.push(value.into()),
                "FILE" => {
                    let parts = value.rsplit_once(' ');
                    let parts = parts.and_then(|(path, n)| Some((path, n.parse::<usize>().ok()?)));
                    let (path, data) = parts
                        .and_then(|(path, length)| Some((path, rest.get(..length)?)))
                        .filter(|(path, _)| path.starts_with('/'))
                        .ok_or_else(|| alloc::format!("configuration line {number}: bad FILE"))?;
                    config.files.push((path.into(), data.to_vec()));
                    rest = rest.get(data.len() + 1..).unwrap_or(&[]);
                }
                _ => config.environment.push(line.into()),
            }
        } else if !line.is_empty() {
            return Err(alloc::format!("configuration line {number} has no '='"));
        }
        if rest.is_empty() {
            return Ok(());
        }
    }
    Err(alloc::format!("the configuration has more than {MAX_LINES} lines"))
}

/// `ip=dhcp`, or `ip=ADDRESS/PREFIX` with `gw=ADDRESS` and `dns=ADDRESS,...`; `log=0..2`. The boot
/// loader may put the kernel's name first.
fn read_command_line(line: &str, config: &mut Config) -> Result<(), String> {
    let bad =
        |word: &str| alloc::format!("'{word}' on the kernel's command line is not understood");
    let mut lease: Option<Lease> = None;
    let (mut gateway, mut servers) = (None, Vec::new());
    for word in line.split_whitespace() {
        let Some((key, value)) = word.split_once('=') else { continue };
        let address = |text: &str| text.parse::<Ipv4Addr>().map_err(|_| bad(word));
        match key {
            "ip" if value == "dhcp" => config.address = AddressSource::Dhcp,
            "ip" => {
                let (text, prefix) = value.split_once('/').ok_or_else(|| bad(word))?;
                let prefix = prefix.parse().ok().filter(|p| *p <= 32).ok_or_else(|| bad(word))?;
                let address = address(text)?;
                lease = Some(Lease { address, prefix, gateway: None, name_servers: Vec::new() });
            }
            "gw" => gateway = Some(address(value)?),
            "dns" => {
                for text in value.split(',').take(net::MAX_NAME_SERVERS) {
                    servers.push(address(text)?);
                }
            }
            "log" => {
                config.log_level =
                    value.parse().ok().filter(|level| *level <= 2).ok_or_else(|| bad(word))?;
            }
            _ => return Err(bad(&word.to_string())),
        }
    }
    if let Some(lease) = lease {
        config.address = AddressSource::Static(Lease { gateway, name_servers: servers, ..lease });
    }
    Ok(())
}
