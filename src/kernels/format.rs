//! The formats that numbers are kept in.

pub mod q8_0;
