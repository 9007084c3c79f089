//! Downloads.

mod api;

pub use api::{FetchError, FetchOptions, Outcome, Phase, Progress, SourceProgress, SourceState};
