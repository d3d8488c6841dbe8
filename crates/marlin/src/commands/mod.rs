//! One file per command; each is thin over the libraries.

pub(crate) mod audit;
pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod devices;
pub(crate) mod inspect;
pub(crate) mod pack;
pub(crate) mod perplexity;
pub(crate) mod pull;
pub(crate) mod run;
pub(crate) mod selftest;
pub(crate) mod tune;
