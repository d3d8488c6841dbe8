//! One file per command; each is thin over the libraries.

pub(crate) mod pull;
