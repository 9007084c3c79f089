//! The gateway over real HTTP/2: real servers, a real gateway process, and clients made from the
//! interface. Each rule of SPEC B and B1 is a test of its own.

#![cfg(feature = "grpc")]

mod commands;
mod faults;
mod interface;
mod limits;
mod operations;
mod other_languages;
mod proxy;
mod site;
mod streams;
#[path = "../support/mod.rs"]
mod support;
