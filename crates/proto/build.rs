//! Generates Rust from the `.proto` files with a compiler in Rust: no `protoc` is needed anywhere.

use std::error::Error;

const FILES: &[&str] = &[
    "pantala/cluster.proto",
    "pantala/peer.proto",
    "containerd/mount.proto",
    "containerd/descriptor.proto",
    "containerd/snapshots.proto",
    "containerd/diff.proto",
    "containerd/content.proto",
    "containerd/images.proto",
    "containerd/leases.proto",
    "containerd/namespaces.proto",
    "containerd/events.proto",
    "cri/image.proto",
    "cri/runtime.proto",
];

/// Fields of bytes that are passed on without a copy.
const SHARED: &[&str] = &[
    ".pantala.peer.v1.Piece.data",
    ".containerd.services.content.v1.ReadContentResponse.data",
    ".containerd.services.content.v1.WriteContentRequest.data",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let mut build = tonic_prost_build::configure();
    for field in SHARED {
        build = build.bytes(field);
    }
    build.compile_fds(descriptors)?;
    Ok(())
}
