//! The ops of a forward pass as dispatches: for each kernel, which grid and constants it runs with.

pub mod activation;
pub mod embed;
pub mod hadamard;
mod lengths;
pub mod linear;
pub mod norm;
pub mod pack;
pub mod quantise_activations;
pub mod rope;
mod vectors;
