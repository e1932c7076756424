//! Decoding and assembling: no server needed. What a server really sends is in `corpus.bin`, taken by the system test
//! `every_kind_of_message_that_a_server_sends_is_decoded` (DFLUX_CORPUS=FILE writes it anew).

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in #[test] functions, not in what they call")]

mod assemble;
mod model;
mod pgoutput;
mod rate;
