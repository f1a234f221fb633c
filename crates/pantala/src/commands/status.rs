//! `pantala status`.

use std::path::PathBuf;

use crate::admin::{SOCKET_NAME, fetch_status};
use crate::cli::{Output, StatusArgs};
use crate::out;
use crate::status::table;

/// Where the socket is if nobody said otherwise: `pantala node`, `pantala up`, `pantala snapshotter`.
const DEFAULT_SOCKETS: [&str; 3] = ["/var/lib/pantala/node", "/var/lib/pantala", snapshotter::DEFAULT_ROOT];

/// Prints the status of the service on this machine.
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
    // A socket may be there though whoever made it was killed.
    let mut silent = None;
    for dir in DEFAULT_SOCKETS {
        let socket = PathBuf::from(dir).join(SOCKET_NAME);
        if socket.exists() {
            match fetch_status(&socket).await {
                Ok(status) => return Ok(status),
                Err(error) => silent = silent.or(Some(error)),
            }
        }
    }
    Err(silent.unwrap_or_else(|| {
        anyhow::anyhow!(
            "nothing of Pantala runs here with its default directory: start one of `pantala up`, `pantala node` and \
             `pantala snapshotter`, or name its socket with --socket <dataDir or root>/{SOCKET_NAME}"
        )
    }))
}
