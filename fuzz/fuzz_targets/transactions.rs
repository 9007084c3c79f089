//! The target `transactions` of `tests/wire/fuzz/targets.rs`.
#![no_main]

#[allow(dead_code, reason = "the other targets are other programs")]
#[path = "../../tests/wire/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::transactions(data));
