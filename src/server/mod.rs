//! One server process: event loop, core, workers, log writer and state machine wired together.

pub mod cluster;
pub mod config;
pub mod console;
pub mod questions;

use self::config::ServerConfig;

/// Why a server stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It could not start.
    #[error("the server on {0} could not start")]
    Start(std::net::SocketAddr),
}

/// Runs a server until it is told to stop.
///
/// # Errors
/// See [`ServerError`].
pub fn run(config: ServerConfig) -> Result<(), ServerError> {
    Err(ServerError::Start(config.listen))
}
