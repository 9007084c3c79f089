//! Bytes from outside: frames and messages, the examples of `docs/PROTOCOL.md`, the event loop that
//! carries them over real sockets, and every parser against inputs drawn at random.

mod fuzz;
mod net_loop;
mod properties;
mod protocol_doc;
