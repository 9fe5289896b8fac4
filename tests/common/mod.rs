//! What several integration tests share. Each test file uses a part of it.

#![allow(dead_code, unreachable_pub, reason = "every test file compiles its own copy")]

pub mod moto;
pub mod stub;
