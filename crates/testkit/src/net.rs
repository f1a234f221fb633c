//! Hosts behind a bridge.
//!
//! The bridge stands in the cage's own network namespace as 10.77.0.1, so the test itself reaches every host with
//! ordinary sockets. Each host is a namespace with one interface, `eth0`, and a token bucket at both ends of
//! its cable: upload at the host's end, download at the bridge's.
//!
//! Processes enter a host by `nsenter --net`. `ip netns exec` would also give them a mount namespace of their
//! own, and containerd would not see what a snapshotter mounts.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cage::Cage;
use crate::process;

/// The first three bytes of every address.
const SUBNET: [u8; 3] = [10, 77, 0];

/// A bridge, and the hosts that were plugged in.
#[derive(Debug)]
pub struct Network {
    next: AtomicU8,
}

/// One host of the lab.
#[derive(Debug, Clone)]
pub struct Host {
    name: String,
    address: Ipv4Addr,
}

/// What a link lets through, the same in each direction.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Megabits per second.
    pub rate_mbit: u32,
    /// The bucket's depth in KiB. Below 128 the bucket cuts large packets into small ones and the machine, not the
    /// rate, becomes the limit.
    pub burst_kib: u32,
    /// How much waits in line before the bucket drops, as time at this rate.
    pub queue_ms: u32,
}

impl Shape {
    /// A link of so many Mbit/s with a bucket and a queue as a real one has.
    pub const fn mbit(rate_mbit: u32) -> Self {
        Self { rate_mbit, burst_kib: 128, queue_ms: 50 }
    }
}

impl Network {
    /// The bridge of this cage. One per cage.
    pub fn new(_cage: &Cage) -> Result<Self> {
        ip("link add br0 type bridge")?;
        ip(&format!("addr add {}/24 dev br0", address(1)))?;
        ip("link set br0 up")?;
        Ok(Self { next: AtomicU8::new(2) })
    }

    /// Plugs a new host in. `name` has at most 8 letters or digits.
    pub fn host(&self, name: &str) -> Result<Host> {
        let address = address(self.next.fetch_add(1, Ordering::Relaxed));
        ip(&format!("netns add {name}"))?;
        ip(&format!("link add {} type veth peer name eth0 netns {name}", cable(name)))?;
        ip(&format!("link set {} master br0 up", cable(name)))?;
        for inside in [&format!("addr add {address}/24 dev eth0"), "link set eth0 up", "link set lo up"] {
            ip(&format!("-n {name} {inside}"))?;
        }
        Ok(Host { name: name.into(), address })
    }
}

impl Host {
    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host's address on the bridge.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A command that will run on this host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace().display())).arg("--").arg(program);
        command
    }

    /// Limits the host's link both ways, from now on.
    pub fn shape(&self, shape: Shape) -> Result<()> {
        let Shape { rate_mbit, burst_kib, queue_ms } = shape;
        let bucket = format!("root tbf rate {rate_mbit}mbit burst {burst_kib}kb latency {queue_ms}ms");
        tc(&format!("-n {} qdisc replace dev eth0 {bucket}", self.name))?;
        tc(&format!("qdisc replace dev {} {bucket}", cable(&self.name)))
    }

    /// Takes the limit away.
    pub fn unshape(&self) -> Result<()> {
        tc(&format!("-n {} qdisc del dev eth0 root", self.name))?;
        tc(&format!("qdisc del dev {} root", cable(&self.name)))
    }

    /// Pulls the cable out (`false`) or puts it back in.
    pub fn plug(&self, connected: bool) -> Result<()> {
        ip(&format!("link set {} {}", cable(&self.name), if connected { "up" } else { "down" }))
    }

    /// Bytes that came down and went up the host's link since it was plugged in, headers included.
    pub fn link_bytes(&self) -> Result<(u64, u64)> {
        let output =
            process::run(Command::new("ip").args(["-j", "-s", "-n", &self.name, "link", "show", "eth0"]))?;
        let links: serde_json::Value = serde_json::from_str(&output)?;
        let count = |way: &str| links[0]["stats64"][way]["bytes"].as_u64().context("no counters of eth0");
        Ok((count("rx")?, count("tx")?))
    }

    /// Moves the calling thread onto this host: sockets that it makes from now on are the host's.
    pub fn enter(&self) -> Result<()> {
        let namespace = std::fs::File::open(self.namespace())?;
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter the network of {}", self.name))
    }

    fn namespace(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }
}

fn address(last: u8) -> Ipv4Addr {
    let [a, b, c] = SUBNET;
    Ipv4Addr::new(a, b, c, last)
}

/// The bridge's end of a host's cable.
fn cable(host: &str) -> String {
    format!("to-{host}")
}

fn ip(arguments: &str) -> Result<()> {
    process::run(Command::new("ip").args(arguments.split(' '))).map(drop)
}

fn tc(arguments: &str) -> Result<()> {
    process::run(Command::new("tc").args(arguments.split(' '))).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;
    use crate::cage::{self, Needs};

    /// Sends `len` bytes from one host to the other; answers Mbit/s.
    fn transfer(from: &Host, to: &Host, len: usize) -> Result<f64> {
        let (ready, listening) = std::sync::mpsc::channel();
        let (to, from, address) = (to.clone(), from.clone(), to.address());
        let receiver = std::thread::spawn(move || -> Result<usize> {
            to.enter()?;
            let listener = TcpListener::bind((address, 9000))?;
            ready.send(())?;
            let mut received = Vec::new();
            Ok(listener.accept()?.0.read_to_end(&mut received)?)
        });
        let sender = std::thread::spawn(move || -> Result<()> {
            listening.recv()?;
            from.enter()?;
            Ok(TcpStream::connect((address, 9000))?.write_all(&vec![7; len])?)
        });
        let start = Instant::now();
        sender.join().unwrap()?;
        assert_eq!(receiver.join().unwrap()?, len);
        Ok(len as f64 * 8.0 / 1e6 / start.elapsed().as_secs_f64())
    }

    #[test]
    fn a_shaped_link_is_never_faster_than_its_rate() {
        cage::test(Needs::Network, |cage| {
            let network = Network::new(cage)?;
            let (a, b) = (network.host("a")?, network.host("b")?);
            let free = transfer(&a, &b, 16 << 20)?;
            for host in [&a, &b] {
                host.shape(Shape::mbit(200))?;
            }
            let shaped = transfer(&a, &b, 16 << 20)?;
            println!("{free:.0} Mbit/s without a bucket, {shaped:.0} with one of 200");
            // The bucket's own depth comes on top, once for each of the two.
            assert!(shaped < 210.0, "{shaped:.0} Mbit/s");
            assert!(b.link_bytes()?.0 > 32 << 20, "both transfers came down b's link");
            Ok(())
        });
    }
}
