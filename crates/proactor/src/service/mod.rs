//! The server layer: what is built on a completion port every time.

pub mod framing;
pub mod timer_wheel;
