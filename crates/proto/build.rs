//! Generates Rust from the `.proto` files with a compiler in Rust: no `protoc` is needed anywhere.

use std::error::Error;

const FILES: &[&str] =
    &["pantala/cluster.proto", "pantala/peer.proto", "containerd/mount.proto", "containerd/snapshots.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().bytes(".pantala.peer.v1.Piece.data").compile_fds(descriptors)?;
    Ok(())
}
