//! The formats against references that others made, and against the properties that their
//! documentation states.

mod encoding;
mod fixture;
mod ggml;
mod hadamard;
mod layouts;
mod matrices;
mod packings;
mod tables;
