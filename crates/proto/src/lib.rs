//! Generated wire types, and nothing written by hand but this page.
//!
//! * [`cluster`]: between a node and the scheduler (gRPC).
//! * [`peer`]: between two nodes (length-prefixed messages on one stream).
//! * [`cri`]: between a kubelet and containerd (gRPC; the names and numbers are Kubernetes').
//! * [`containerd`]: between containerd and a snapshotter, and between a client and containerd (gRPC; the names
//!   and numbers are containerd's).

#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    reason = "generated; the .proto files carry the comments"
)]
mod generated {
    // The nesting mirrors the packages: generated code names its neighbours by path.
    pub mod containerd {
        pub mod services {
            pub mod content {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.content.v1");
                }
            }
            pub mod diff {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.diff.v1");
                }
            }
            pub mod events {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.events.v1");
                }
            }
            pub mod images {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.images.v1");
                }
            }
            pub mod leases {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.leases.v1");
                }
            }
            pub mod namespaces {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.namespaces.v1");
                }
            }
            pub mod snapshots {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.snapshots.v1");
                }
            }
        }
        pub mod types {
            tonic::include_proto!("containerd.types");
        }
    }
    pub mod runtime {
        pub mod v1 {
            tonic::include_proto!("runtime.v1");
        }
    }
    pub mod pantala {
        pub mod cluster {
            pub mod v1 {
                tonic::include_proto!("pantala.cluster.v1");
            }
        }
        pub mod peer {
            pub mod v1 {
                tonic::include_proto!("pantala.peer.v1");
            }
        }
    }
}

pub use generated::pantala::cluster::v1 as cluster;
pub use generated::pantala::peer::v1 as peer;
/// Kubernetes' container runtime interface.
pub use generated::runtime::v1 as cri;

/// containerd's own words.
pub mod containerd {
    pub use super::generated::containerd::services::content::v1 as content;
    pub use super::generated::containerd::services::diff::v1 as diff;
    pub use super::generated::containerd::services::events::v1 as events;
    pub use super::generated::containerd::services::images::v1 as images;
    pub use super::generated::containerd::services::leases::v1 as leases;
    pub use super::generated::containerd::services::namespaces::v1 as namespaces;
    pub use super::generated::containerd::services::snapshots::v1 as snapshots;
    pub use super::generated::containerd::types;
}
