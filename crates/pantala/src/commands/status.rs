//! `pantala status`.

use std::path::PathBuf;

use crate::admin::{SOCKET_NAME, fetch_status};
use crate::cli::{Output, StatusArgs};
use crate::out;
use crate::status::table;

/// Where a node keeps its socket if nobody said otherwise: `pantala node`, `pantala up`.
const DEFAULT_SOCKETS: [&str; 2] = ["/var/lib/pantala/node", "/var/lib/pantala"];

/// Prints the status of the node on this machine.
pub async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let status = match args.socket {
        Some(socket) => fetch_status(&socket).await?,
        None => first_that_answers().await?,
    };
    match args.output {
        Output::Table => out::print(table(&status)),
        Output::Json => out::print(serde_json::to_string_pretty(&status)? + "\n"),
    }
}

async fn first_that_answers() -> anyhow::Result<crate::status::Status> {
    for dir in DEFAULT_SOCKETS {
        let socket = PathBuf::from(dir).join(SOCKET_NAME);
        if socket.exists() {
            return fetch_status(&socket).await;
        }
    }
    anyhow::bail!(
        "no node runs here with its default directory: start one with `pantala up` or `pantala node`, or name its \
         socket with --socket <dataDir>/{SOCKET_NAME}"
    )
}
